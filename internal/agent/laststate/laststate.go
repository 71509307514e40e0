// Package laststate keeps, under the agent's run directory, what the node did
// last: enough for a new agent to go on while the API server is down. The file
// carries a checksum, is replaced by rename, and names the boot that it is of.
package laststate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan"
)

// header begins the file; the checksum of everything behind the line follows it.
const header = "ropeway-state sha256:"

// State is what the node did last.
type State struct {
	Version int
	BootID  string
	// Node and NodeUID are the Node object that the state was made for.
	Node, NodeUID string
	Network       plan.Network
	// Plan is what the kernel was made equal to.
	Plan plan.State
	// NodeCIDRs are the node's spec.podCIDRs.
	NodeCIDRs []netip.Prefix
	// Ranges are what pods' addresses came from, Sources the node's own
	// addresses in the pod network.
	Ranges  []ipam.Range
	Sources []netip.Addr
	// Pools are the address pools that the node gives addresses of.
	Pools  []*pool.Pool `json:",omitempty"`
	PodMTU int          // bytes
	// Refuses maps transport -> why the node cannot use it.
	Refuses map[plan.Transport]string
	// ProvenUID is the UID of the Node object that was proven reachable.
	ProvenUID string
	// BadOffload is to whom packets by vxlan did not arrive whose inner checksum
	// the interface was to compute, as a sentence; "" if they do.
	BadOffload string
}

// ErrUnusable is returned for a file that cannot be trusted: cut off, changed,
// or written by a later version.
var ErrUnusable = errors.New("the saved state is unusable")

// Load reads the state, which is nil if there is none. With ErrUnusable the
// file has been renamed to *.unusable, and the caller goes on without.
func Load(path string) (*State, error) { return load[State](path) }

// Save replaces the state. After a crash at any moment the file is the old
// state or the new one. Nothing is synced to a disk: the run directory is
// memory, and a boot clears it.
func Save(path string, s State) error {
	s.Version = version
	return save(path, s)
}

// Words are what the node's pods said of the addresses that they want, beside the
// state, since they change with every pod.
type Words struct {
	Version int
	BootID  string
	Pods    map[string]PodWords // namespace/name -> what it said
}

// PodWords are what a pod and its namespace say.
type PodWords struct {
	UID                          string            `json:",omitempty"`
	ConfigHash                   string            `json:",omitempty"` // the UID that the runtime knows a static pod by
	Labels, Annotations          map[string]string `json:",omitempty"`
	NamespaceLabels, NSAnnotated map[string]string `json:",omitempty"`
	StatefulSet, StatefulSetUID  string            `json:",omitempty"`
}

// LoadWords is Load for Words.
func LoadWords(path string) (*Words, error) { return load[Words](path) }

// SaveWords is Save for Words.
func SaveWords(path string, w Words) error {
	w.Version = version
	return save(path, w)
}

func load[T State | Words](path string) (*T, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the saved state: %w", err)
	}
	s, err := parse[T](data)
	if err != nil {
		aside := path + ".unusable"
		return nil, errors.Join(fmt.Errorf("%w (%w); it is kept as %s", ErrUnusable, err, aside), os.Rename(path, aside))
	}
	return s, nil
}

func parse[T State | Words](data []byte) (*T, error) {
	line, body, found := bytes.Cut(data, []byte("\n"))
	sum, ours := strings.CutPrefix(string(line), header)
	if !found || !ours {
		return nil, errors.New("it does not begin as a state does")
	}
	if sum != checksum(body) {
		return nil, errors.New("its checksum does not match")
	}
	var by struct{ Version int }
	if err := json.Unmarshal(body, &by); err != nil {
		return nil, err
	}
	if by.Version > version {
		return nil, fmt.Errorf("it is of version %d, and this agent knows %d", by.Version, version)
	}
	var s T
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

func save[T State | Words](path string, s T) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := write(tmp, s); err != nil {
		return fmt.Errorf("saving the state (is the disk full?): %w", errors.Join(err, os.Remove(tmp)))
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("saving the state: %w", err)
	}
	return nil
}

// headerLine is the first line of a file.
func headerLine(sum hash.Hash) string { return header + hex.EncodeToString(sum.Sum(nil)) + "\n" }

// write writes a whole file. A large cluster's state is several MiB, so there is no
// copy of it with the header before it: that is written last.
func write(path string, s any) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = file.Seek(int64(len(headerLine(sum))), io.SeekStart)
	if err == nil {
		err = json.NewEncoder(io.MultiWriter(file, sum)).Encode(s)
	}
	if err == nil {
		_, err = file.WriteAt([]byte(headerLine(sum)), 0)
	}
	return errors.Join(err, file.Close())
}

// BootID returns the kernel's identifier of the current boot.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot's id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

func checksum(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}
