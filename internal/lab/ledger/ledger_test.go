package ledger

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func short(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestManifestSurvivesTheDisk(t *testing.T) {
	store := Store(t.TempDir())
	lock, err := store.Lock(t.Context(), "lab", true)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	want := &Manifest{
		Name: "lab", Phase: Starting, Created: time.Now().UTC(), Maker: Process{PID: 7, Start: 9},
		Nodes: 2, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("fd00::/112")},
		AllocateNodeCIDRs: true, ProxyMode: "nftables", APIServer: "https://a:6443", Kubeconfig: "/k",
		Hosts: []Host{{Name: "n", Role: Node, Netns: "rwlab-lab-n", Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.11/24")}, Dir: "/d", Init: Process{PID: 1, Start: 2}}},
	}
	if err := store.Write(want); err != nil {
		t.Fatal(err)
	}
	got, err := store.Read("lab")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read\n%+v, want\n%+v", got, want)
	}
	if host, found := got.Host("n"); !found || host.Logs() != "/d/log" {
		t.Errorf("host n: %v, %v", host, found)
	}
	if names, err := store.List(); err != nil || len(names) != 1 || names[0] != "lab" {
		t.Errorf("labs are %v, %v", names, err)
	}
}

func TestBrokenManifestSaysWhatToDo(t *testing.T) {
	store := Store(t.TempDir())
	if _, err := store.Read("lab"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no manifest: %v, want os.ErrNotExist", err)
	}
	if err := os.MkdirAll(store.Dir("lab"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(store.Dir("lab"), manifestFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Read("lab"); err == nil || !strings.Contains(err.Error(), "ropeway-lab down --name lab") {
		t.Errorf("half a manifest: %v does not say what to do", err)
	}
}

func TestLockIsExclusive(t *testing.T) {
	store := Store(t.TempDir())
	first, err := store.Lock(t.Context(), "lab", true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Lock(short(t), "lab", true); !errors.Is(err, ErrBusy) {
		t.Fatalf("second lock: %v, want ErrBusy", err)
	}
	other, err := store.Lock(short(t), "other", true)
	if err != nil {
		t.Fatalf("another lab is locked too: %v", err)
	}
	other.Unlock()
	first.Unlock()
	again, err := store.Lock(short(t), "lab", false)
	if err != nil {
		t.Fatalf("lock after unlock: %v", err)
	}
	again.Unlock()
}

func TestLockGoesAlongWithAChild(t *testing.T) {
	store := Store(t.TempDir())
	lock, err := store.Lock(t.Context(), "lab", true)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("cat")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	child.ExtraFiles = []*os.File{lock.File()}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lock.Unlock()
	if _, err := store.Lock(short(t), "lab", false); !errors.Is(err, ErrBusy) {
		t.Errorf("lock that a child holds: %v, want ErrBusy", err)
	}
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	again, err := store.Lock(t.Context(), "lab", false)
	if err != nil {
		t.Fatalf("lock after the child's end: %v", err)
	}
	again.Unlock()
}

func TestRemoveLeavesNothing(t *testing.T) {
	base := filepath.Join(t.TempDir(), "store")
	store := Store(base)
	lock, err := store.Lock(t.Context(), "lab", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(store.Dir("lab"), "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lock.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(base); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store is still there: %v", err)
	}
	if _, err := store.Lock(short(t), "lab", false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lock of a lab that is gone: %v, want os.ErrNotExist", err)
	}
}

// One who waited for the lock while the lab was removed must not end up with a
// lock on a directory that has no name any more.
func TestWaiterSeesTheRemoval(t *testing.T) {
	store := Store(t.TempDir())
	lock, err := store.Lock(t.Context(), "lab", true)
	if err != nil {
		t.Fatal(err)
	}
	stale, err := os.Open(store.Dir("lab"))
	if err != nil {
		t.Fatal(err)
	}
	defer stale.Close()
	if err := lock.Remove(); err != nil {
		t.Fatal(err)
	}
	if same(stale, store.Dir("lab")) {
		t.Error("a removed directory passes for the lab's")
	}
	fresh, err := store.Lock(t.Context(), "lab", true)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Unlock()
	if same(stale, store.Dir("lab")) {
		t.Error("the directory of an earlier lab passes for this one's")
	}
}

func TestCheckName(t *testing.T) {
	for name, good := range map[string]bool{
		"lab": true, "a": true, "lab2": true, "abcdefghijkl": true,
		"": false, "a-b": false, "2lab": false, "Lab": false, "a/b": false, "..": false, "abcdefghijklm": false, "a b": false,
	} {
		if err := CheckName(name); (err == nil) != good {
			t.Errorf("CheckName(%q) = %v, want good: %t", name, err, good)
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21\n"
	for _, command := range []string{"(sh)", "(a b)", "(x) R 1 (y)", "()"} {
		state, start, err := parseStat(42, []byte("42 "+command+rest))
		if err != nil || state != 'S' || start != 4711 {
			t.Errorf("command %s: %c, %d, %v; want S, 4711", command, state, start, err)
		}
	}
	for _, bad := range []string{"", "42 sh S", "42 (sh) S 1 2"} {
		if _, _, err := parseStat(42, []byte(bad)); err == nil {
			t.Errorf("parseStat(%q) passed", bad)
		}
	}
}

func TestProcessIdentity(t *testing.T) {
	child := exec.Command("cat")
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Identify(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Alive() || p.Gone() {
		t.Error("a running process is not alive")
	}
	if impostor := (Process{PID: p.PID, Start: p.Start + 1}); impostor.Alive() {
		t.Error("another process under the same number passes for this one")
	}
	stdin.Close()
	// Not waited for yet: a zombie is neither alive nor gone.
	deadline := time.Now().Add(5 * time.Second)
	for p.Alive() {
		if time.Now().After(deadline) {
			t.Fatal("a zombie is alive")
		}
	}
	if p.Gone() {
		t.Error("a zombie is gone")
	}
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if !p.Gone() {
		t.Error("a process that was waited for is not gone")
	}
	if (Process{}).Alive() || !(Process{}).Gone() {
		t.Error("no process is alive")
	}
}
