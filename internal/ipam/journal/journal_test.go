package journal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
)

// roleVariable makes the test binary play a process that dies.
const roleVariable = "ROPEWAY_JOURNAL_TEST_ROLE"

func TestMain(m *testing.M) {
	path := os.Getenv(roleVariable + "_PATH")
	switch os.Getenv(roleVariable) {
	case "writer":
		os.Exit(role(writeForever(path)))
	case "full":
		os.Exit(role(fillUp(path)))
	}
	os.Exit(m.Run())
}

func role(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func hold(n int) ipam.Record {
	return ipam.Record{Op: ipam.OpHold, At: time.Unix(int64(n), 5).UTC(), Binding: ipam.Binding{
		Key:       ipam.Key{Network: "k8s", ContainerID: fmt.Sprint(n), IfName: "eth0"},
		Owner:     ipam.Owner{Namespace: "default", Name: "web", UID: "u"},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), netip.MustParseAddr("fd00::1")},
	}}
}

func free(r ipam.Record) ipam.Record {
	r.Op = ipam.OpFree
	return r
}

func open(t testing.TB, path string) *Journal {
	t.Helper()
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func load(t testing.TB, j *Journal) []ipam.Record {
	t.Helper()
	records, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// written returns the file of a journal with these records.
func written(t testing.TB, records ...ipam.Record) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	for _, r := range records {
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestWhatIsAppendedIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "ropeway", "journal")
	want := []ipam.Record{hold(1), hold(2), free(hold(1))}
	j := open(t, path)
	for _, r := range want {
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := load(t, j); !reflect.DeepEqual(got, want) {
		t.Errorf("while open: %v", got)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(hold(3)); err == nil {
		t.Error("a closed journal takes records")
	}
	again := open(t, path)
	if got := load(t, again); !reflect.DeepEqual(got, want) || again.Torn() != 0 {
		t.Errorf("opened again: %v, torn %d", got, again.Torn())
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestCutAnywhere: a file that ends anywhere holds the whole lines before, and
// goes on from there.
func TestCutAnywhere(t *testing.T) {
	want := []ipam.Record{hold(1), hold(2), hold(3)}
	data := written(t, want...)
	dir := t.TempDir()
	for cut := len(header()); cut < len(data); cut++ {
		path := filepath.Join(dir, fmt.Sprint(cut))
		if err := os.WriteFile(path, data[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		whole := bytes.Count(data[:cut], []byte("\n")) - 1
		j := open(t, path)
		got := load(t, j)
		if len(got) != whole || whole > 0 && !reflect.DeepEqual(got, want[:whole]) {
			t.Fatalf("cut at %d: %v", cut, got)
		}
		if torn := cut - 1 - bytes.LastIndexByte(data[:cut], '\n'); j.Torn() != torn {
			t.Fatalf("cut at %d: torn %d, want %d", cut, j.Torn(), torn)
		}
		if info, err := os.Stat(path); err != nil || info.Size() != j.size {
			t.Fatalf("cut at %d: %d bytes are left of %d, %v", cut, info.Size(), j.size, err)
		}
		if err := errors.Join(j.Append(hold(9)), j.Close()); err != nil {
			t.Fatal(err)
		}
		again := open(t, path)
		if got := load(t, again); len(got) != whole+1 || !reflect.DeepEqual(got[whole], hold(9)) {
			t.Fatalf("cut at %d, then appended: %v", cut, got)
		}
		again.Close()
	}
}

// TestDamageIsSeen: no changed byte goes unnoticed, unless nothing that the
// file says has changed.
func TestDamageIsSeen(t *testing.T) {
	want := []ipam.Record{hold(1), hold(2), hold(3)}
	data := written(t, want...)
	for at := range data {
		for _, flip := range []byte{0x01, 0x20, 0x80, 0xff} {
			damaged := bytes.Clone(data)
			damaged[at] ^= flip
			got, err := parse(damaged)
			var corrupt *CorruptError
			var newer *VersionError
			switch {
			case err == nil && reflect.DeepEqual(got.records, want): // a digit of another case
			case err == nil && at == len(data)-1 && reflect.DeepEqual(got.records, want[:2]): // the last line lost its end
			case errors.As(err, &corrupt) && corrupt.Line == 1+bytes.Count(data[:at], []byte("\n")):
			case errors.As(err, &newer) && at < len(header()):
			default:
				t.Fatalf("byte %d flipped by %#x: %v, %v", at, flip, got.records, err)
			}
		}
	}
}

func TestDamagedFileIsMovedAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "journal")
	good := string(written(t, hold(1), hold(2)))
	for i, content := range []string{"", "\n", "not a journal\n", strings.Replace(good, `"1"`, `"7"`, 1), "ropeway-journal 01\n", "ropeway-journal 0\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(path)
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) {
			t.Fatalf("%q: %v", content, err)
		}
		aside := fmt.Sprintf("%s.corrupt-%d", path, i+1)
		if kept, err := os.ReadFile(aside); err != nil || string(kept) != content || corrupt.MovedTo != aside || corrupt.Path != path {
			t.Errorf("%q: kept as %q in %s, %v", content, kept, corrupt.MovedTo, err)
		}
		if content == "" || !strings.Contains(content, "hold") {
			continue
		}
		if corrupt.Line != 2 || len(corrupt.Salvaged) != 1 || !reflect.DeepEqual(corrupt.Salvaged[0], hold(2)) || !strings.Contains(corrupt.Error(), "line 2 (its checksum does not match)") {
			t.Errorf("%v, salvaged %v", corrupt, corrupt.Salvaged)
		}
	}
	if got := load(t, open(t, path)); len(got) != 0 {
		t.Errorf("after that: %v", got)
	}
}

// TestNewerVersionIsMovedAside: after a downgrade the older agent begins anew.
func TestNewerVersionIsMovedAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	content := fmt.Sprintf("%s%d\nwhatever\n", magic, Version+1)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(path)
	var newer *VersionError
	if !errors.As(err, &newer) || newer.Found != Version+1 || newer.Path != path {
		t.Fatalf("%v", err)
	}
	if kept, err := os.ReadFile(newer.MovedTo); err != nil || string(kept) != content {
		t.Errorf("%q, %v", kept, err)
	}
	if got := load(t, open(t, path)); len(got) != 0 {
		t.Errorf("after that: %v", got)
	}
}

func TestOneWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	if _, err := Open(path); !errors.Is(err, ErrLocked) {
		t.Errorf("a second writer: %v", err)
	}
	if err := errors.Join(j.Append(hold(1)), j.Close()); err != nil {
		t.Fatal(err)
	}
	if got := load(t, open(t, path)); len(got) != 1 {
		t.Errorf("after the first: %v", got)
	}
}

// TestCompaction: the file follows what is held and not what has happened, and
// says the same before and after.
func TestCompaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	for n := range 6 * compactAfter {
		if err := j.Append(hold(n % 50)); err != nil {
			t.Fatal(err)
		}
		if n%50 > 10 {
			if err := j.Append(free(hold(n % 50))); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := ipam.Compact(load(t, j))
	info, err := os.Stat(path)
	if err != nil || info.Size() > 3*compactAfter*300 {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ipam.Compact(load(t, open(t, path))); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestCompactionMayFail: a journal that cannot be rewritten goes on as it is.
func TestCompactionMayFail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	if err := os.MkdirAll(path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	for range 3 * compactAfter {
		if err := errors.Join(j.Append(hold(1)), j.Append(free(hold(1)))); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(load(t, j)); got != 6*compactAfter {
		t.Errorf("%d records", got)
	}
	if err := os.Remove(path + ".new"); err != nil {
		t.Fatal(err)
	}
	for range compactAfter {
		if err := j.Append(hold(2)); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(load(t, j)); got > compactAfter {
		t.Errorf("not compacted later: %d records", got)
	}
}

// TestUnknownEnd: when a failed write cannot be undone, nothing more is written.
func TestUnknownEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	if err := errors.Join(j.Append(hold(1)), j.file.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := j.Append(hold(2)); err == nil || !strings.Contains(err.Error(), "cannot be cut off") {
			t.Errorf("%v", err)
		}
	}
	if err := j.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if got := load(t, open(t, path)); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func child(t *testing.T, what, path string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVariable+"="+what, roleVariable+"_PATH="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

// writeForever appends records, and prints the number of each once it is told
// that it is kept.
func writeForever(path string) error {
	j, err := Open(path)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		r := hold(n)
		if n%3 != 0 {
			r = free(hold(n - 1))
		}
		if err := j.Append(r); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// TestKilled: whatever a process was told to be kept is there after kill -9, in
// the middle of writing and compacting.
func TestKilled(t *testing.T) {
	for _, after := range []int{1, 100, compactAfter - 1, compactAfter, 3*compactAfter + 7} {
		path := filepath.Join(t.TempDir(), "journal")
		cmd := child(t, "writer", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := -1
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if _, err := fmt.Sscan(lines.Text(), &last); err != nil {
				t.Fatal(err)
			}
			if last == after {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd.Wait() // it was killed: its error says no more
		checkKilled(t, path, last)
	}
}

// checkKilled compares the journal with that of a writer that got to the record
// last, or one further: the one that it was not told of.
func checkKilled(t *testing.T, path string, last int) {
	t.Helper()
	var want []ipam.Record
	for n := range last + 2 {
		if n%3 == 0 {
			want = append(want, hold(n))
		} else {
			want = append(want, free(hold(n-1)))
		}
	}
	got := ipam.Compact(load(t, open(t, path)))
	if !reflect.DeepEqual(got, ipam.Compact(want)) && !reflect.DeepEqual(got, ipam.Compact(want[:last+1])) {
		t.Errorf("after record %d: %d records that mean something else", last, len(got))
	}
}

// fillUp appends to a file that may grow by a part of a record only, and then
// by more.
func fillUp(path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	j, err := Open(path)
	if err != nil {
		return err
	}
	if err := j.Append(hold(1)); err != nil {
		return err
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	narrow := limit
	narrow.Cur = uint64(j.size) + 40
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &narrow); err != nil {
		return err
	}
	if err := j.Append(hold(2)); !errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("a file that cannot grow: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != j.size {
		return fmt.Errorf("%d bytes left of %d, %v", info.Size(), j.size, err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	return j.Append(hold(3))
}

// TestDiskFull: a record that does not fit leaves nothing behind, and the next
// one that fits is kept.
func TestDiskFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	if err := child(t, "full", path).Run(); err != nil {
		t.Fatal(err)
	}
	if got := load(t, open(t, path)); !reflect.DeepEqual(got, []ipam.Record{hold(1), hold(3)}) {
		t.Errorf("%v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte(header()))
	f.Add(written(f, hold(1), free(hold(1))))
	f.Add([]byte(header() + "00000000 {}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parse(data)
		var corrupt *CorruptError
		var newer *VersionError
		if err != nil {
			if !errors.As(err, &corrupt) && !errors.As(err, &newer) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if got.size > int64(len(data)) || !bytes.HasSuffix(data[:got.size], []byte("\n")) {
			t.Fatalf("whole lines up to %d of %d", got.size, len(data))
		}
		again := []byte(header())
		for _, r := range got.records {
			line, err := format(r)
			if err != nil {
				t.Fatal(err)
			}
			again = append(again, line...)
		}
		if reread, err := parse(again); err != nil || !reflect.DeepEqual(reread.records, got.records) {
			t.Fatalf("%v\nbecame %v, %v", got.records, reread.records, err)
		}
	})
}
