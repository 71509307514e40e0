// Package lab is a real Kubernetes cluster in a box: etcd, the control plane
// and nodes with containerd, kubelet and kube-proxy, each in namespaces of its
// own on one Linux machine, joined by a network that behaves like a cloud's
// VPC (package vpc).
//
// What a lab makes on the machine: named network namespaces and one cgroup in
// each hierarchy, both called rwlab-<name>..., and one directory in the Store.
// Everything else (mounts, links, rules, BPF programs) lives in those
// namespaces and goes with them. Package ledger keeps the books; Down needs
// nothing but the lab's name.
package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"ropeway.dev/ropeway/internal/lab/ledger"
)

// Lab is a lab that exists. It holds no resources: what it knows is on disk,
// and any number of Labs may be open on one lab.
type Lab struct {
	store    ledger.Store
	manifest *ledger.Manifest
}

// ErrNotFound means that there is no lab of that name.
var ErrNotFound = errors.New("there is no such lab; `ropeway-lab up` boots one")

// Open finds a lab by its name in the default store. The error is ErrNotFound
// when there is none.
func Open(name string) (*Lab, error) { return OpenIn(ledger.DefaultStore, name) }

// OpenIn is Open for another store.
func OpenIn(store ledger.Store, name string) (*Lab, error) {
	if err := ledger.CheckName(name); err != nil {
		return nil, err
	}
	m, err := store.Read(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lab %q: %w", name, ErrNotFound)
	}
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return nil, fmt.Errorf("look at lab %q as root (sudo): %w", name, err)
	}
	if err != nil {
		return nil, err
	}
	return &Lab{store: store, manifest: m}, nil
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.manifest.Name }

// Orphaned says that the process which booted the lab has ended, as `up` does and a
// test that was interrupted.
func (l *Lab) Orphaned() bool { return !l.manifest.Maker.Alive() }

// Dir is the lab's directory.
func (l *Lab) Dir() string { return l.store.Dir(l.manifest.Name) }

// Kubeconfig is the path of the administrator's kubeconfig. The address in it
// is reachable from the control plane's network namespace and from the nodes.
func (l *Lab) Kubeconfig() string { return l.manifest.Kubeconfig }

// APIServer is the URL of the API server.
func (l *Lab) APIServer() string { return l.manifest.APIServer }

// PodCIDRs and ServiceCIDRs are the cluster's, one for each family, IPv4 first.
func (l *Lab) PodCIDRs() []netip.Prefix { return l.manifest.PodCIDRs }

// ServiceCIDRs are the ranges of Services' addresses.
func (l *Lab) ServiceCIDRs() []netip.Prefix { return l.manifest.ServiceCIDRs }

// Node is one node of a lab.
type Node struct {
	Name string
	// Netns is the name of its network namespace.
	Netns string
	// Addresses carry the prefix length of the vSwitch, IPv4 first.
	Addresses []netip.Prefix
	// Logs is the directory with a log for each of its programs.
	Logs string
	// Init is its first process, as the machine numbers it.
	Init int
}

// Nodes lists the lab's nodes in the order of their names.
func (l *Lab) Nodes() []Node {
	var nodes []Node
	for _, h := range l.manifest.Hosts {
		if h.Role == ledger.Node {
			nodes = append(nodes, Node{Name: h.Name, Netns: h.Netns, Addresses: h.Addresses, Logs: h.Logs(), Init: h.Init.PID})
		}
	}
	return nodes
}

// Fabric is what connects the lab's hosts.
func (l *Lab) Fabric() Fabric {
	if l.manifest.Switch {
		return Switch
	}
	return VPC
}

// ExternalCloud says whether kubelets wait for a cloud controller.
func (l *Lab) ExternalCloud() bool { return l.manifest.ExternalCloud }

// ControlPlaneNetns is the network namespace in which the API server runs.
func (l *Lab) ControlPlaneNetns() string { return l.manifest.Hosts[0].Netns }

// LogDirs are the directories with the logs of each host's programs: host
// name -> directory.
func (l *Lab) LogDirs() map[string]string {
	dirs := map[string]string{}
	for _, h := range l.manifest.Hosts {
		dirs[h.Name] = h.Logs()
	}
	return dirs
}

// Binary is the path, on the machine, of one of the lab's programs (kubectl,
// ctr, runc, ...).
func (l *Lab) Binary(program string) string { return filepath.Join(binDir(l.Dir()), program) }
