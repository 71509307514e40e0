// Package hostinstall puts onto a node's file system what the container runtime
// needs to use Ropeway: the plugins, and last the conflist. Every file appears
// by rename, whole or not at all. Files of other products are replaced only
// under names that were asked to be taken over; they are kept beside, and put
// back by Remove. No token and no kubeconfig is written.
package hostinstall

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const (
	// savedSuffix marks another product's file that we replaced.
	savedSuffix = ".ropeway-saved"
	// tempPrefix begins names of files that are not complete yet.
	tempPrefix = ".ropeway-tmp-"
	// ledgerName is the file, beside the plugins, that says which are ours. It
	// lies there and not under /run because it must outlive a boot.
	ledgerName = ".ropeway-installed"
	// pluginSource is the name of our plugin in the image.
	pluginSource = "ropeway-cni"
)

// Host is the node's directories and what goes there.
type Host struct {
	BinDir       string   // where the runtime looks for plugins
	ConfDir      string   // where it looks for conflists
	ConfName     string   // our conflist's file name
	PluginSource string   // directory of the plugins in the image
	TakeOver     []string // other products' plugin names that become ours
}

// ourNames are the names that our plugin has without being asked.
func ourNames() []string { return []string{"ropeway", "ropeway-ipam"} }

// ledger says which files of BinDir are ours: name -> sha256 of what we wrote.
type ledger map[string]string

func (h Host) ledgerPath() string { return filepath.Join(h.BinDir, ledgerName) }

// readLedger returns what an earlier agent installed; an unreadable ledger is
// an empty one, and then only files equal to what we install count as ours.
func (h Host) readLedger() ledger {
	l := ledger{}
	data, err := os.ReadFile(h.ledgerPath())
	if err != nil || json.Unmarshal(data, &l) != nil || l == nil {
		return ledger{}
	}
	return l
}

func (h Host) writeLedger(l ledger) error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", h.ledgerPath(), err)
	}
	_, err = replaceFile(h.ledgerPath(), append(data, '\n'), 0o644)
	return err
}

// sum returns a file's sha256 in hex, or "" if there is no such regular file.
func sum(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// replaceFile makes path hold data with the mode, by rename. It returns false
// if path already was so.
func replaceFile(path string, data []byte, mode fs.FileMode) (bool, error) {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		if info, err := os.Stat(path); err == nil && info.Mode().Perm() == mode {
			return false, nil
		}
	}
	return true, writeByRename(path, bytes.NewReader(data), mode)
}

// copyFile copies a program by rename.
func copyFile(from, to string, mode fs.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("reading %s: %w", from, err)
	}
	defer src.Close()
	return writeByRename(to, src, mode)
}

// writeByRename writes beside path, syncs, and renames: after a crash at any
// point path is the old file or the new one.
func writeByRename(path string, data io.Reader, mode fs.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name()) // the first error is the one to tell
		}
	}()
	if _, err = io.Copy(tmp, data); err != nil {
		return fmt.Errorf("writing %s (is the disk full?): %w", path, err)
	}
	if err = errors.Join(tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// sweepTemp removes what a killed agent left unfinished in a directory.
func sweepTemp(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // the caller's own access to dir says what is wrong
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // found again next time
		}
	}
}
