package treelink

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

func none(string) bool { return false }

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var s unix.Stat_t
	if err := unix.Lstat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCloneSharesFilesAndNotDirectories(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "clone")
	write(t, filepath.Join(from, "a/b/file"), "content", 0o640)
	write(t, filepath.Join(from, "a/meta.db"), "database", 0o600)
	if err := os.Symlink("nowhere", filepath.Join(from, "a/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(from, "a"), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := Clone(from, to, func(path string) bool { return strings.HasSuffix(path, ".db") }); err != nil {
		t.Fatal(err)
	}
	for path, shared := range map[string]bool{"a": false, "a/b": false, "a/meta.db": false, "a/b/file": true, "a/link": true} {
		x, y := stat(t, filepath.Join(from, path)), stat(t, filepath.Join(to, path))
		if (x.Ino == y.Ino) != shared {
			t.Errorf("%s: shared is %t, want %t", path, x.Ino == y.Ino, shared)
		}
		if x.Mode != y.Mode || x.Uid != y.Uid || x.Gid != y.Gid {
			t.Errorf("%s: mode and owner %o %d:%d became %o %d:%d", path, x.Mode, x.Uid, x.Gid, y.Mode, y.Uid, y.Gid)
		}
	}
	if data, err := os.ReadFile(filepath.Join(to, "a/meta.db")); err != nil || string(data) != "database" {
		t.Errorf("the copied file is %q, %v", data, err)
	}
	// Taking the clone down leaves the first as it is.
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(from, "a/b/file")); err != nil || string(data) != "content" {
		t.Errorf("after the clone's end the first is %q, %v", data, err)
	}
}

func TestCloneKeepsWhatLayersNeed(t *testing.T) {
	netnstest.NeedRoot(t)
	for name, elsewhere := range map[string]bool{"on one file system": false, "across file systems": true} {
		t.Run(name, func(t *testing.T) {
			from, base := t.TempDir(), t.TempDir()
			if elsewhere {
				if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
			}
			write(t, filepath.Join(from, "opaque/setuid"), "x", 0o755)
			for _, err := range []error{
				unix.Lchown(filepath.Join(from, "opaque/setuid"), 7, 8),
				unix.Chmod(filepath.Join(from, "opaque/setuid"), 0o4755),
				unix.Setxattr(filepath.Join(from, "opaque"), "trusted.overlay.opaque", []byte("y"), 0),
				unix.Mknod(filepath.Join(from, "whiteout"), unix.S_IFCHR|0o600, 0),
				os.Symlink("x", filepath.Join(from, "link")),
				unix.Lchown(filepath.Join(from, "link"), 9, 9),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			to := filepath.Join(base, "clone")
			if err := Clone(from, to, none); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{"opaque", "opaque/setuid", "whiteout", "link"} {
				x, y := stat(t, filepath.Join(from, path)), stat(t, filepath.Join(to, path))
				if x.Mode != y.Mode || x.Uid != y.Uid || x.Gid != y.Gid || x.Rdev != y.Rdev {
					t.Errorf("%s: mode %o owner %d:%d device %d became %o %d:%d %d", path, x.Mode, x.Uid, x.Gid, x.Rdev, y.Mode, y.Uid, y.Gid, y.Rdev)
				}
			}
			value := make([]byte, 8)
			if n, err := unix.Lgetxattr(filepath.Join(to, "opaque"), "trusted.overlay.opaque", value); err != nil || string(value[:n]) != "y" {
				t.Errorf("the directory does not hide what is below it: %q, %v", value[:max(n, 0)], err)
			}
		})
	}
}

func TestCloneOverSomethingIsAnError(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if err := Clone(from, to, none); err == nil {
		t.Error("a clone over a directory that exists passes")
	}
	if err := Clone(filepath.Join(from, "missing"), filepath.Join(to, "x"), none); err == nil {
		t.Error("a clone of nothing passes")
	}
}
