// Package elfdeps finds the shared libraries that dynamically linked programs need, for any architecture and without
// running anything: for putting programs of a Debian tree into an image.
package elfdeps

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// ErrMissing is returned when a program or a library that one needs is not in the tree.
var ErrMissing = errors.New("not found")

// File is a file that has to be in the image.
type File struct {
	Path   string // where the dynamic linker looks for it, absolute
	Source string // the file on this machine, symbolic links resolved
}

// Tree is a directory with Debian's layout: the machine's own root, or unpacked packages.
type Tree struct {
	Root string // "/" or the directory that packages were unpacked into
}

// Closure returns the shared libraries and the dynamic linkers that the given programs, paths below the tree's root,
// need, sorted by path. The programs themselves are not among them; a static program needs nothing. A library lies
// under its soname in the directory that the dynamic linker searches by default, whatever its file is called.
func (t Tree) Closure(programs ...string) ([]File, error) {
	found := map[string]File{} // path -> file
	done := map[string]bool{}  // source -> visited
	queue := make([]string, 0, len(programs))
	for _, p := range programs {
		source, err := t.Resolve(p)
		if err != nil {
			return nil, err
		}
		queue = append(queue, source)
	}
	for ; len(queue) > 0; queue = queue[1:] {
		if done[queue[0]] {
			continue
		}
		done[queue[0]] = true
		needs, err := t.needs(queue[0])
		if err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", queue[0], err)
		}
		for _, f := range needs {
			found[f.Path] = f
			queue = append(queue, f.Source)
		}
	}
	files := make([]File, 0, len(found))
	for _, f := range found {
		files = append(files, f)
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	return files, nil
}

// Resolve returns the file behind a path of the tree, following symbolic links inside the tree. In a merged-/usr tree
// that packages were unpacked into, /lib and /usr/lib may both hold files; either is looked at.
func (t Tree) Resolve(path string) (string, error) {
	for _, candidate := range alternatives(path) {
		if file, err := t.follow(candidate); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s below %s: %w", path, t.Root, ErrMissing)
}

// alternatives are a path and its twin of the other side of the /usr merge.
func alternatives(path string) []string {
	if strings.HasPrefix(path, "/usr/") {
		return []string{path, strings.TrimPrefix(path, "/usr")}
	}
	return []string{path, "/usr" + path}
}

// follow resolves links; absolute ones mean the tree's root.
func (t Tree) follow(path string) (string, error) {
	const maxLinks = 16
	for range maxLinks {
		dir, err := filepath.EvalSymlinks(filepath.Dir(filepath.Join(t.Root, path)))
		if err != nil {
			return "", err
		}
		file := filepath.Join(dir, filepath.Base(path))
		target, err := os.Readlink(file)
		if err != nil {
			info, err := os.Stat(file)
			if err == nil && !info.Mode().IsRegular() {
				err = fmt.Errorf("%s is no regular file", file)
			}
			return file, err
		}
		if filepath.IsAbs(target) {
			path = target
			continue
		}
		inside, err := filepath.Rel(t.Root, filepath.Join(dir, target))
		if err != nil {
			return "", err
		}
		path = "/" + inside
	}
	return "", fmt.Errorf("%s: too many symbolic links", path)
}

// needs returns the dynamic linker and the direct dependencies of one ELF file.
func (t Tree) needs(file string) ([]File, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read it as an ELF file: %w", err)
	}
	defer f.Close()
	var files []File
	if linker, err := interpreter(f); err != nil {
		return nil, err
	} else if linker != "" {
		source, err := t.Resolve(linker)
		if err != nil {
			return nil, err
		}
		files = append(files, File{Path: linker, Source: source})
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	origin, err := filepath.Rel(t.Root, filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	runpath, err := searchPath(f, "/"+origin)
	if err != nil {
		return nil, err
	}
	for _, lib := range libraries {
		if strings.HasPrefix(lib, "ld-linux") {
			continue // the dynamic linker, which the program names by its full path
		}
		dir, err := defaultDir(f.Machine)
		if err != nil {
			return nil, err
		}
		source, err := t.library(lib, append(runpath, dir, "/usr/lib"))
		if err != nil {
			return nil, err
		}
		files = append(files, File{Path: filepath.Join(dir, lib), Source: source})
	}
	return files, nil
}

// library looks for a library in directories of the tree.
func (t Tree) library(name string, dirs []string) (string, error) {
	for _, dir := range dirs {
		if file, err := t.Resolve(filepath.Join(dir, name)); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("library %s in %v below %s: %w", name, dirs, t.Root, ErrMissing)
}

// searchPath returns the directories that a file names itself, which Debian uses for private libraries.
func searchPath(f *elf.File, origin string) ([]string, error) {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, err := f.DynString(tag)
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			for _, dir := range strings.Split(v, ":") {
				dirs = append(dirs, strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin).Replace(dir))
			}
		}
	}
	return dirs, nil
}

// interpreter is the dynamic linker that a program names; empty for libraries and static programs.
func interpreter(f *elf.File) (string, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		data, err := io.ReadAll(p.Open())
		if err != nil {
			return "", fmt.Errorf("read the interpreter: %w", err)
		}
		return strings.TrimRight(string(data), "\x00"), nil
	}
	return "", nil
}

// defaultDir is where Debian's dynamic linker looks first on an architecture.
func defaultDir(m elf.Machine) (string, error) {
	switch m {
	case elf.EM_X86_64:
		return "/usr/lib/x86_64-linux-gnu", nil
	case elf.EM_AARCH64:
		return "/usr/lib/aarch64-linux-gnu", nil
	}
	return "", fmt.Errorf("architecture %v: only amd64 and arm64 are known", m)
}
