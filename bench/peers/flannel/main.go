// Command flannel makes the network namespace that it is started in a node of
// flannel's vxlan backend: device, routes, neighbours and forwarding entries by
// flannel's own code, and the iptables rules that its manifest asks for
// (--ip-masq). Where flannel keeps leases in etcd or in Node objects, this
// program keeps them as files in a directory that all nodes share.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	n := node{}
	flag.StringVar(&n.device, "device", "eth0", "the uplink")
	flag.StringVar(&n.address, "address", "", "the node's address on it")
	flag.StringVar(&n.pods, "pods", "", "the node's pod CIDR")
	flag.StringVar(&n.network, "network", "", "the cluster's pod CIDR")
	flag.StringVar(&n.leases, "leases", "", "directory that the nodes share")
	flag.Parse()
	if err := n.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "flannel peer:", err)
		os.Exit(1)
	}
}

// node is one node of flannel's.
type node struct{ device, address, pods, network, leases string }

// run sets the node up and keeps it so until ctx ends. What is in the kernel stays.
func (n node) run(ctx context.Context) error {
	pods, err := parse(n.pods)
	if err != nil {
		return err
	}
	network, err := parse(n.network)
	if err != nil {
		return err
	}
	device, err := net.InterfaceByName(n.device)
	if err != nil {
		return fmt.Errorf("find the uplink %s: %w", n.device, err)
	}
	address := net.ParseIP(n.address)
	if address == nil {
		return fmt.Errorf("--address %q is no address", n.address)
	}
	manager := &files{dir: n.leases, own: pods}
	be, err := vxlan.New(manager, &backend.ExternalInterface{
		Iface: device, IfaceName: n.device, IfaceAddr: address, ExtAddr: address,
	})
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	nw, err := be.RegisterNetwork(ctx, &group, &subnet.Config{
		EnableIPv4: true, Network: network, SubnetLen: pods.PrefixLen, BackendType: "vxlan",
		Backend: json.RawMessage(`{"Type":"vxlan"}`),
	})
	if err != nil {
		return err
	}
	if err := translate(ctx, network, nw.Lease()); err != nil {
		return err
	}
	nw.Run(ctx)
	return nil
}

// translate writes the rules of flanneld --ip-masq, its manifest's default.
func translate(ctx context.Context, network ip.IP4Net, own *lease.Lease) error {
	const never = 1 << 20 // seconds until the rules are looked at again
	rules := &iptables.IPTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	if err := rules.SetupAndEnsureMasqRules(ctx, network, own.Subnet, network, ip.IP6Net{}, ip.IP6Net{}, ip.IP6Net{}, own, never, false); err != nil {
		return err
	}
	rules.SetupAndEnsureForwardRules(ctx, network, ip.IP6Net{}, never)
	return nil
}

func parse(cidr string) (ip.IP4Net, error) {
	_, prefix, err := net.ParseCIDR(cidr)
	if err != nil {
		return ip.IP4Net{}, err
	}
	return ip.FromIPNet(prefix), nil
}

// files is a subnet.Manager whose leases are files.
type files struct {
	dir string
	own ip.IP4Net
}

var _ subnet.Manager = (*files)(nil)

func (f *files) path(sn ip.IP4Net) string {
	return filepath.Join(f.dir, subnet.MakeSubnetKey(sn, ip.IP6Net{})+".json")
}

// AcquireLease publishes the node's own lease.
func (f *files) AcquireLease(_ context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	l := &lease.Lease{EnableIPv4: true, Subnet: f.own, Attrs: *attrs, Expiration: time.Now().Add(24 * time.Hour)}
	data, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	temporary := f.path(f.own) + ".new"
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return nil, err
	}
	return l, os.Rename(temporary, f.path(f.own))
}

// WatchLeases tells of each lease once, as it appears.
func (f *files) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	defer close(receiver)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for told := map[string]bool{}; ; {
		found, err := filepath.Glob(filepath.Join(f.dir, "*.json"))
		if err != nil {
			return err
		}
		for _, path := range found {
			if told[path] {
				continue
			}
			event, err := added(path)
			if err != nil {
				return err
			}
			receiver <- []lease.LeaseWatchResult{{Events: []lease.Event{event}}}
			told[path] = true
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func added(path string) (lease.Event, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return lease.Event{}, err
	}
	event := lease.Event{Type: lease.EventAdded}
	return event, json.Unmarshal(data, &event.Lease)
}

// errUnused is the answer of what the vxlan backend does not ask for.
var errUnused = errors.New("the vxlan backend has no use for this")

func (f *files) GetNetworkConfig(context.Context) (*subnet.Config, error) { return nil, errUnused }

func (f *files) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return errUnused
}

func (f *files) RenewLease(context.Context, *lease.Lease) error { return errUnused }

func (f *files) WatchLease(context.Context, ip.IP4Net, ip.IP6Net, chan []lease.LeaseWatchResult) error {
	return errUnused
}

func (f *files) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error {
	return errUnused
}

func (f *files) GetStoredMacAddresses(context.Context) (string, string) { return "", "" }

func (f *files) GetStoredPublicIP(context.Context) (string, string) { return "", "" }

func (f *files) Name() string { return strings.TrimSpace("files in " + f.dir) }
