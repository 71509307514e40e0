package hostinstall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/cniwire"
)

func (h Host) confPath() string { return filepath.Join(h.ConfDir, h.ConfName) }

// ConflistInstalled is true if our conflist is there.
func (h Host) ConflistInstalled() bool {
	info, err := os.Stat(h.confPath())
	return err == nil && info.Mode().IsRegular()
}

// InstallConflist makes ConfDir hold conf, which Render returned, as our
// conflist, and then puts other products' conflists aside that hide it and that
// are to be taken over. It returns true if it changed something. Every program
// that conf names must be there already: a conflist is what makes the runtime
// call the plugins.
func (h Host) InstallConflist(conf []byte) (bool, error) {
	if err := h.requirePlugins(conf); err != nil {
		return false, err
	}
	if err := os.MkdirAll(h.ConfDir, 0o755); err != nil {
		return false, fmt.Errorf("making the conflist directory %s: %w", h.ConfDir, err)
	}
	sweepTemp(h.ConfDir)
	changed, err := replaceFile(h.confPath(), conf, 0o600)
	if err != nil {
		return false, err
	}
	aside, err := h.takeOverConflists()
	return changed || aside, err
}

// requirePlugins returns a sentence about each program that is missing.
func (h Host) requirePlugins(conf []byte) error {
	names, err := pluginTypes(conf)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if pluginAnswers(name) {
			continue
		}
		if _, err := os.Stat(filepath.Join(h.BinDir, name)); err != nil {
			errs = append(errs, fmt.Errorf("the conflist names the plugin %q, and %s has no such program: put it there, or take it out of the template%s",
				name, h.BinDir, takeOverHint(name)))
		}
	}
	return errors.Join(errs...)
}

// pluginAnswers is true for IPAM types that our main plugin serves itself,
// without executing a program of that name.
func pluginAnswers(name string) bool {
	return cniwire.IsServed(name)
}

func takeOverHint(name string) string {
	if name == "calico" {
		return "; Ropeway's plugin answers to the name calico after `ropeway install --take-over calico --take-over calico-ipam`"
	}
	return ""
}

// Foreign is another product's conflist that the runtime finds before ours.
type Foreign struct {
	Name  string   // file name
	Types []string // of its plugins, if it can be read
}

// String says what is wrong with it and what to do.
func (f Foreign) String() string {
	return fmt.Sprintf("%s (plugins: %s) sorts before Ropeway's conflist, so the runtime uses it instead: remove it, or install with --take-over for its plugin",
		f.Name, strings.Join(f.Types, ", "))
}

// Foreign lists the conflists that the runtime prefers to ours: it takes the
// first in the order of names (containerd, CRI-O and libcni alike). Multus has to be
// that one: it runs the cluster's network as one of a pod's.
func (h Host) Foreign() ([]Foreign, error) {
	entries, err := os.ReadDir(h.ConfDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the conflist directory %s: %w", h.ConfDir, err)
	}
	var found []Foreign
	for _, e := range entries { // in the order of names
		if e.Name() >= h.ConfName {
			break
		}
		if e.IsDir() || !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		types := typesOf(filepath.Join(h.ConfDir, e.Name()))
		if !slices.Contains(types, "multus") && !slices.Contains(types, "multus-shim") {
			found = append(found, Foreign{Name: e.Name(), Types: types})
		}
	}
	return found, nil
}

// typesOf returns the plugins that a conflist names, nil if it cannot be read.
func typesOf(path string) []string {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	types, err := pluginTypes(data)
	if err != nil {
		return nil
	}
	return types
}

// takeOverConflists puts conflists aside that hide ours and that name a plugin
// whose name is ours now. Others are only named (see Foreign).
func (h Host) takeOverConflists() (bool, error) {
	foreign, err := h.Foreign()
	if err != nil {
		return false, err
	}
	changed := false
	for _, f := range foreign {
		if !slices.ContainsFunc(f.Types, func(t string) bool { return slices.Contains(h.TakeOver, t) }) {
			continue
		}
		path := filepath.Join(h.ConfDir, f.Name)
		if err := os.Rename(path, path+savedSuffix); err != nil {
			return changed, fmt.Errorf("putting %s aside: %w", path, err)
		}
		changed = true
	}
	return changed, nil
}

// Remove takes away everything that this package ever wrote, the conflist
// first, and puts back what it replaced. It goes on after a failure, and may be
// called again.
func (h Host) Remove() error {
	conf := removeIfThere(h.confPath())
	if conf == nil {
		conf = restoreSaved(h.ConfDir)
		sweepTemp(h.ConfDir)
	}
	return errors.Join(conf, h.removePlugins())
}
