package cniwire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Tombstone is what the plugin leaves when an attachment ended and no agent
// was there to hear of it. The agent applies all of them, as it would a Del,
// before it next hands out an address, and then removes them. They lie in
// TombstoneDir, one file each: JSON, one line.
type Tombstone struct {
	Version    int        `json:"version"`
	Attachment Attachment `json:"attachment"`
	Pod        Pod        `json:"pod,omitzero"`
	// IPAM is the ipam.type of the configuration.
	IPAM string    `json:"ipam,omitempty"`
	Time time.Time `json:"time"`
}

const tombstoneSuffix = ".json"

// name is the same for the same attachment, so that a repeated DEL leaves one.
func (t Tombstone) name() string {
	h := sha256.New()
	for _, part := range []string{t.Attachment.Network, t.Attachment.ContainerID, t.Attachment.IfName} {
		fmt.Fprintf(h, "%d %s ", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]) + tombstoneSuffix
}

// WriteTombstone puts t into dir, atomically: a reader sees all of it or none.
// It sets the version, and the time if there is none. Where not even the
// directory above is there, nothing is written: the journal lay in it, so no
// agent of this boot holds an address (a boot or an uninstall has cleared it, and
// a DEL that was under way then must not bring the directory back).
func WriteTombstone(dir string, t Tombstone) error {
	t.Version = Version
	if t.Time.IsZero() {
		t.Time = time.Now().UTC()
	}
	line, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encoding a tombstone: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making the directory for tombstones: %w", err)
	}
	temp, err := os.CreateTemp(dir, unfinished+"*")
	if err != nil {
		return fmt.Errorf("writing a tombstone: %w", err)
	}
	_, err = temp.Write(append(line, '\n'))
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), filepath.Join(dir, t.name()))
	}
	if err != nil {
		os.Remove(temp.Name())
		return fmt.Errorf("writing a tombstone for %s in %s: %w", t.Attachment.ContainerID, dir, err)
	}
	return nil
}

// ReadTombstones reads those in dir, in no particular order. A directory that
// is not there holds none. Files that cannot be understood are left alone and
// named by the error, which comes together with all the others.
func ReadTombstones(dir string) ([]Tombstone, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading tombstones: %w", err)
	}
	var found []Tombstone
	var errs []error
	for _, e := range entries {
		removeUnfinished(dir, e)
		if strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), tombstoneSuffix) {
			continue
		}
		t, err := readTombstone(filepath.Join(dir, e.Name()))
		if err != nil {
			errs = append(errs, fmt.Errorf("tombstone %s: %w", e.Name(), err))
			continue
		}
		found = append(found, t)
	}
	return found, errors.Join(errs...)
}

// unfinished begins the names of tombstones that are being written.
const unfinished = ".new-"

// removeUnfinished removes what a plugin left that was killed as it wrote: the
// runtime runs that DEL again, and nobody reads the file.
func removeUnfinished(dir string, e os.DirEntry) {
	if !strings.HasPrefix(e.Name(), unfinished) {
		return
	}
	if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > time.Minute {
		_ = os.Remove(filepath.Join(dir, e.Name())) // the next reader tries again
	}
}

func readTombstone(path string) (Tombstone, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Tombstone{}, err
	}
	return parseTombstone(filepath.Base(path), data)
}

func parseTombstone(name string, data []byte) (Tombstone, error) {
	var t Tombstone
	if err := json.Unmarshal(bytes.TrimSpace(data), &t); err != nil {
		return Tombstone{}, fmt.Errorf("not understood: %w", err)
	}
	if t.Version < 1 || t.Attachment.ContainerID == "" || t.name() != name {
		return Tombstone{}, errors.New("not understood: its name does not fit its content")
	}
	return t, nil
}

// RemoveTombstone removes t from dir; one that is not there is no error.
func RemoveTombstone(dir string, t Tombstone) error {
	err := os.Remove(filepath.Join(dir, t.name()))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the tombstone for %s: %w", t.Attachment.ContainerID, err)
	}
	return nil
}
