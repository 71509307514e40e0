package elfdeps

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var lddLine = regexp.MustCompile(`(?m)^\s*(?:(\S+) => )?(/\S+) \(0x`)

// TestClosureIsWhatLddSays compares with the machine's own dynamic linker, for programs with long lists.
func TestClosureIsWhatLddSays(t *testing.T) {
	for _, program := range []string{"/usr/bin/curl", "/usr/sbin/nft", "/bin/ip"} {
		out, err := exec.Command("ldd", program).Output()
		if err != nil {
			t.Fatalf("ldd %s (test/deps.sh installs it): %v", program, err)
		}
		var want []string
		for _, m := range lddLine.FindAllStringSubmatch(string(out), -1) {
			real, err := filepath.EvalSymlinks(m[2])
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, real)
		}
		files, err := Tree{Root: "/"}.Closure(program)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range files {
			got = append(got, f.Source)
		}
		slices.Sort(got)
		slices.Sort(want)
		if len(want) < 3 || !slices.Equal(got, slices.Compact(want)) {
			t.Errorf("%s: got  %v\nwant %v", program, got, want)
		}
	}
}

func TestStaticProgramNeedsNothing(t *testing.T) {
	files, err := Tree{Root: "/"}.Closure("/usr/bin/busybox")
	if err != nil || len(files) != 0 {
		t.Errorf("busybox-static: %v, %v", files, err)
	}
}

// copyProgram puts a program and its libraries into a tree, the libraries of /usr/lib into /lib if twin.
func copyProgram(t *testing.T, program string, twin bool) (root string, libraries []File) {
	t.Helper()
	root = t.TempDir()
	libraries, err := Tree{Root: "/"}.Closure(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(libraries, File{program, program}) {
		to := f.Path
		if twin && f.Path != program {
			to = strings.TrimPrefix(to, "/usr")
		}
		copyFile(t, f.Source, filepath.Join(root, to))
	}
	return root, libraries
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestUnpackedTree: only the tree counts, not the machine, on either side of the /usr merge.
func TestUnpackedTree(t *testing.T) {
	for _, twin := range []bool{false, true} {
		root, want := copyProgram(t, "/usr/bin/curl", twin)
		got, err := Tree{Root: root}.Closure("/usr/bin/curl")
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("twin %v: %d files, want %d", twin, len(got), len(want))
		}
		for i := range got {
			if got[i].Path != want[i].Path || !strings.HasPrefix(got[i].Source, root+"/") {
				t.Errorf("twin %v: %+v, want %s inside the tree", twin, got[i], want[i].Path)
			}
		}
		last := got[len(got)-1]
		if err := os.Remove(last.Source); err != nil {
			t.Fatal(err)
		}
		if _, err := (Tree{Root: root}).Closure("/usr/bin/curl"); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), filepath.Base(last.Path)) {
			t.Errorf("without %s: %v, want ErrMissing with its name", last.Path, err)
		}
	}
}

// TestLinksStayInside: an absolute link in a tree means the tree's root, and a circle is an error.
func TestLinksStayInside(t *testing.T) {
	root := t.TempDir()
	copyFile(t, "/usr/bin/busybox", filepath.Join(root, "usr/bin/real"))
	for link, target := range map[string]string{"absolute": "/usr/bin/real", "relative": "../bin/real", "circle": "circle", "escape": "/usr/bin/curl"} {
		if err := os.Symlink(target, filepath.Join(root, "usr/bin", link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, ok := range map[string]bool{"absolute": true, "relative": true, "circle": false, "escape": false, "none": false} {
		got, err := Tree{Root: root}.Resolve("/usr/bin/" + name)
		if ok && (err != nil || got != filepath.Join(root, "usr/bin/real")) || !ok && !errors.Is(err, ErrMissing) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func TestUnknownArchitecture(t *testing.T) {
	if _, err := defaultDir(elf.EM_RISCV); err == nil {
		t.Error("riscv64 has a default directory")
	}
	if dir, err := defaultDir(elf.EM_AARCH64); err != nil || dir != "/usr/lib/aarch64-linux-gnu" {
		t.Errorf("arm64: %s, %v", dir, err)
	}
}

func TestNoProgram(t *testing.T) {
	if _, err := (Tree{Root: "/"}).Closure("/usr/bin/no-such-program"); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want ErrMissing", err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := (Tree{Root: filepath.Dir(script)}).Closure("/script"); err == nil || !strings.Contains(err.Error(), "ELF") {
		t.Errorf("a script: %v, want an error that says it is no ELF file", err)
	}
}
