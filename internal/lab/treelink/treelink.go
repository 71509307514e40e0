// Package treelink makes a second copy of a directory tree that shares the
// contents of its files with the first.
package treelink

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Clone makes the directory to, which must not exist, a copy of the directory
// from: directories are made anew with the owner, the permissions and the
// extended attributes of the first, everything else is a hard link to it.
// Files for which private returns true are copied, because they are going to
// be written in place; so are all where the two places are on different file
// systems.
func Clone(from, to string, private func(path string) bool) error {
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, below)
		switch {
		case entry.IsDir():
			return makeDir(path, target)
		case entry.Type().IsRegular() && private(path):
			return copyFile(path, target)
		default:
			return link(path, target)
		}
	})
	if err != nil {
		return fmt.Errorf("clone %s to %s: %w", from, to, err)
	}
	return nil
}

// makeDir makes a directory like another one.
func makeDir(like, path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := copyAttributes(like, path); err != nil {
		return err
	}
	return copyOwner(like, path)
}

// copyOwner copies the owner, then the permissions: changing the owner clears
// some of these.
func copyOwner(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s has no owner", from)
	}
	if err := os.Lchown(to, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	return unix.Chmod(to, stat.Mode&0o7777)
}

// copyAttributes copies extended attributes: overlayfs keeps in one of them
// that a directory hides what lies below it.
func copyAttributes(from, to string) error {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the attributes of %s: %w", from, err)
	}
	for start, i := 0, 0; i < n; i++ {
		if names[i] != 0 {
			continue
		}
		if err := copyAttribute(from, to, string(names[start:i])); err != nil {
			return err
		}
		start = i + 1
	}
	return nil
}

func copyAttribute(from, to, name string) error {
	value := make([]byte, 64*1024) // the kernel's limit, XATTR_SIZE_MAX
	n, err := unix.Lgetxattr(from, name, value)
	if err != nil {
		return fmt.Errorf("read attribute %s of %s: %w", name, from, err)
	}
	if err := unix.Lsetxattr(to, name, value[:n], 0); err != nil {
		return fmt.Errorf("write attribute %s of %s: %w", name, to, err)
	}
	return nil
}

// link links a file of any kind, or copies it to another file system.
func link(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EPERM) {
		return err
	}
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s has no device number", from)
	}
	switch {
	case info.Mode().IsRegular():
		return copyFile(from, to)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
		return os.Lchown(to, int(stat.Uid), int(stat.Gid))
	default:
		if err := unix.Mknod(to, stat.Mode, int(stat.Rdev)); err != nil {
			return fmt.Errorf("make %s: %w", to, err)
		}
		return copyOwner(from, to)
	}
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	// In this order: a new owner takes a file's capabilities away.
	if err := copyOwner(from, to); err != nil {
		return err
	}
	return copyAttributes(from, to)
}
