// Package ledger records what a lab is made of, on disk and before it is
// made, so that a later process can take down a lab whose maker was killed.
//
// A lab owns one directory. The directory itself is the lab's lock (flock),
// so that nothing but the directory has to be removed in the end, and holds
// the manifest. What a lab makes elsewhere on the machine follows from its
// name alone; the manifest adds what the name does not tell.
package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Phase says how far a lab got.
type Phase string

// The phases of a lab.
const (
	// Starting: `up` is under way, or was killed.
	Starting Phase = "starting"
	// Running: `up` finished.
	Running Phase = "running"
	// Failed: `up` failed and was asked to keep what it had made.
	Failed Phase = "failed"
)

// Role says what a host of a lab is for.
type Role string

// The roles of hosts.
const (
	ControlPlane Role = "control-plane"
	Node         Role = "node"
	Outside      Role = "outside"
	Cloud        Role = "cloud"
)

// Manifest is everything that a later command needs to know about a lab.
type Manifest struct {
	Name    string    `json:"name"`
	Phase   Phase     `json:"phase"`
	Created time.Time `json:"created"`
	// Maker is the process that runs or ran `up`.
	Maker Process `json:"maker"`

	Nodes        int            `json:"nodeCount"`
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs"`
	// AllocateNodeCIDRs says whether the controller-manager gives each node
	// its podCIDRs.
	AllocateNodeCIDRs bool   `json:"allocateNodeCIDRs"`
	ProxyMode         string `json:"proxyMode"`
	// Switch says that the hosts are on a layer-2 network, without a cloud.
	Switch bool `json:"switch,omitempty"`
	// ExternalCloud says that kubelets wait for a cloud controller to make
	// their nodes known.
	ExternalCloud bool `json:"externalCloud,omitempty"`

	APIServer  string `json:"apiServer"`
	Kubeconfig string `json:"kubeconfig"`
	Hosts      []Host `json:"hosts"`
}

// Host is one set of namespaces of a lab.
type Host struct {
	Name  string `json:"name"`
	Role  Role   `json:"role"`
	Netns string `json:"netns"`
	// Addresses carry the prefix length of their vSwitch.
	Addresses []netip.Prefix `json:"addresses"`
	// Dir is the host's own directory on a real file system.
	Dir string `json:"dir"`
	// Init is the host's pid 1, as the machine numbers it; zero until
	// started.
	Init Process `json:"init"`
}

// Logs is the directory that holds a log for each program of the host.
func (h Host) Logs() string { return filepath.Join(h.Dir, "log") }

// Host returns the host of that name.
func (m *Manifest) Host(name string) (*Host, bool) {
	for i := range m.Hosts {
		if m.Hosts[i].Name == name {
			return &m.Hosts[i], true
		}
	}
	return nil, false
}

// Names of a lab's things on the machine all derive from this prefix.
const prefix = "rwlab-"

// validName keeps dashes out, so that the things of lab "a" can be told from
// those of any other lab by prefix, and is short enough for every name that
// is derived from it.
var validName = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)

// CheckName says whether a lab may have that name, and why not.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("lab name %q: use 1 to 12 lower-case letters and digits, a letter first", name)
	}
	return nil
}

// Cgroup is the path, below each cgroup hierarchy, that holds all processes
// of a lab.
func Cgroup(lab string) string { return prefix + lab }

// HostCgroup is the path of one host's processes.
func HostCgroup(lab, host string) string { return filepath.Join(Cgroup(lab), host) }

// NetnsPrefix starts the names of all named network namespaces of a lab.
func NetnsPrefix(lab string) string { return prefix + lab + "-" }

// Store is the directory that holds one directory for each lab.
type Store string

// DefaultStore lies on a real file system: container images and etcd's data
// go there, and overlayfs needs one below it.
const DefaultStore Store = "/var/lib/ropeway-lab"

const manifestFile = "manifest.json"

// Dir is the directory of a lab.
func (s Store) Dir(lab string) string { return filepath.Join(string(s), lab) }

// List returns the names of the labs that have a directory.
func (s Store) List() ([]string, error) {
	entries, err := os.ReadDir(string(s))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the labs: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && CheckName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Read returns the manifest of a lab without taking its lock. The error is
// os.ErrNotExist when the lab has none.
func (s Store) Read(lab string) (*Manifest, error) {
	path := filepath.Join(s.Dir(lab), manifestFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of lab %q: %w", lab, err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read the manifest of lab %q: %s: %w; `ropeway-lab down --name %s` clears it away", lab, path, err, lab)
	}
	return &m, nil
}

// Write replaces the manifest atomically. The caller holds the lab's lock.
func (s Store) Write(m *Manifest) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the manifest of lab %q: %w", m.Name, err)
	}
	path := filepath.Join(s.Dir(m.Name), manifestFile)
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the manifest of lab %q: %w", m.Name, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write the manifest of lab %q: %w", m.Name, err)
	}
	return nil
}
