// Package source finds the checkout of Ropeway that the lab builds its parts
// and images from: the lab is a developer's tool and compiles what it runs.
package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// Module is the module path that the root of a checkout declares in go.mod.
const Module = "ropeway.dev/ropeway"

var moduleLine = regexp.MustCompile(`(?m)^module\s+(\S+)\s*$`)

// Root returns the absolute path of the first directory, at or above any of
// the given starting points (tried in order), whose go.mod declares Module.
// Nested modules on the way up are passed over.
func Root(starts ...string) (string, error) {
	for _, start := range starts {
		dir, err := filepath.Abs(start)
		if err != nil {
			return "", fmt.Errorf("find the Ropeway checkout: make %q absolute: %w", start, err)
		}
		if root, ok := climb(dir); ok {
			return root, nil
		}
	}
	return "", fmt.Errorf("find the Ropeway checkout: no go.mod of module %s at or above %q; "+
		"run the command inside a clone of the repository: %w", Module, starts, os.ErrNotExist)
}

// Here is Root from the two places a developer's command can be expected to
// know: the working directory, then the directory of the running program.
func Here() (string, error) {
	var starts []string
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if exe, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(exe))
	}
	if len(starts) == 0 {
		return "", errors.New("find the Ropeway checkout: neither the working directory nor the path of this program can be read; " +
			"change into a clone of the repository")
	}
	return Root(starts...)
}

func climb(dir string) (string, bool) {
	for {
		if declares(filepath.Join(dir, "go.mod")) {
			return dir, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}

func declares(gomod string) bool {
	data, err := os.ReadFile(gomod)
	if err != nil {
		return false
	}
	found := moduleLine.FindSubmatch(data)
	return found != nil && string(found[1]) == Module
}
