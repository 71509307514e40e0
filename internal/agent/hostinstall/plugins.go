package hostinstall

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// InstallPlugins makes BinDir hold our plugin under each of its names, and the
// reference plugins of the image where the node has none. It returns the names
// of the files that it wrote. A plugin that is in use may be replaced: a
// process that runs keeps the file that it started from.
func (h Host) InstallPlugins() ([]string, error) {
	if err := os.MkdirAll(h.BinDir, 0o755); err != nil {
		return nil, fmt.Errorf("making the plugin directory %s: %w", h.BinDir, err)
	}
	sweepTemp(h.BinDir)
	reference, err := h.referencePlugins()
	if err != nil {
		return nil, err
	}
	in := pluginInstaller{Host: h, ledger: h.readLedger()}
	for _, name := range append(ourNames(), h.TakeOver...) {
		if err := in.ours(name); err != nil {
			return in.wrote, errors.Join(err, in.save())
		}
	}
	for _, name := range reference {
		if err := in.reference(name); err != nil {
			return in.wrote, errors.Join(err, in.save())
		}
	}
	return in.wrote, in.save()
}

// referencePlugins lists the plugins of the image beside our own.
func (h Host) referencePlugins() ([]string, error) {
	entries, err := os.ReadDir(h.PluginSource)
	if err != nil {
		return nil, fmt.Errorf("reading the image's plugins in %s (is this Ropeway's image?): %w", h.PluginSource, err)
	}
	var names []string
	for _, e := range entries {
		taken := slices.Contains(ourNames(), e.Name()) || slices.Contains(h.TakeOver, e.Name())
		if e.Type().IsRegular() && e.Name() != pluginSource && !taken {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// pluginInstaller is one run of InstallPlugins.
type pluginInstaller struct {
	Host
	ledger ledger
	wrote  []string
	dirty  bool // the ledger has to be written
}

// ours installs our plugin under a name. Another product's plugin that lies
// there under a name to take over is kept beside.
func (in *pluginInstaller) ours(name string) error {
	path := filepath.Join(in.BinDir, name)
	source := filepath.Join(in.PluginSource, pluginSource)
	have, want, err := sums(path, source)
	if err != nil {
		return err
	}
	if want == "" {
		return fmt.Errorf("the plugin %s is missing in the image: install Ropeway's image", source)
	}
	foreign := have != "" && have != want && have != in.ledger[name]
	if foreign && !slices.Contains(ourNames(), name) {
		if err := keepBeside(path); err != nil {
			return err
		}
	}
	return in.put(name, source, have, want)
}

// reference installs a reference plugin, unless the node has one that is not
// ours: that may be newer, or patched.
func (in *pluginInstaller) reference(name string) error {
	source := filepath.Join(in.PluginSource, name)
	have, want, err := sums(filepath.Join(in.BinDir, name), source)
	if err != nil {
		return err
	}
	if have != "" && have != in.ledger[name] {
		return nil
	}
	return in.put(name, source, have, want)
}

// put writes the file unless it is there. The ledger is written first: a file
// of ours that the ledger does not know would be kept forever.
func (in *pluginInstaller) put(name, source, have, want string) error {
	if in.ledger[name] != want {
		in.ledger[name], in.dirty = want, true
		if err := in.save(); err != nil {
			return err
		}
	}
	if have == want {
		return nil
	}
	if err := copyFile(source, filepath.Join(in.BinDir, name), 0o755); err != nil {
		return err
	}
	in.wrote = append(in.wrote, name)
	return nil
}

func (in *pluginInstaller) save() error {
	if !in.dirty {
		return nil
	}
	in.dirty = false
	return in.writeLedger(in.ledger)
}

// removePlugins removes the plugins that are ours and puts back what was there
// before.
func (h Host) removePlugins() error {
	var errs []error
	source, err := sum(filepath.Join(h.PluginSource, pluginSource))
	if err != nil {
		errs = append(errs, err)
	}
	installed := h.readLedger()
	for _, name := range ourNames() { // ours by their names, should the ledger be lost
		if have, err := sum(filepath.Join(h.BinDir, name)); err == nil {
			installed[name] = have
		}
	}
	for name, written := range installed {
		path := filepath.Join(h.BinDir, name)
		have, err := sum(path)
		if err == nil && have != "" && (have == written || have == source) {
			err = os.Remove(path)
		}
		errs = append(errs, err)
	}
	errs = append(errs, restoreSaved(h.BinDir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the plugins in %s: %w", h.BinDir, err)
	}
	sweepTemp(h.BinDir)
	return removeIfThere(h.ledgerPath())
}

// keepBeside renames another product's file out of the way. A file that was
// kept before stays: it is the one to put back.
func keepBeside(path string) error {
	saved := path + savedSuffix
	if _, err := os.Lstat(saved); err == nil {
		return nil
	}
	// A link, so that the name never is without a plugin.
	if err := os.Link(path, saved); err != nil {
		return fmt.Errorf("keeping %s as %s before taking over its name: %w", path, saved, err)
	}
	return nil
}

// restoreSaved puts back every file that was kept in a directory.
func restoreSaved(dir string) error {
	saved, err := filepath.Glob(filepath.Join(dir, "*"+savedSuffix))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range saved {
		original := path[:len(path)-len(savedSuffix)]
		if _, err := os.Lstat(original); err == nil {
			continue // someone put a newer one there: it stays, and so does the copy
		}
		errs = append(errs, os.Rename(path, original))
	}
	return errors.Join(errs...)
}

// sums returns the digests of two files, "" for one that is not there.
func sums(a, b string) (sumA, sumB string, err error) {
	sumA, errA := sum(a)
	sumB, errB := sum(b)
	return sumA, sumB, errors.Join(errA, errB)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
