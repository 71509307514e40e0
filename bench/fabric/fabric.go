// Package fabric makes two nodes with a pod each, joined by a router, out of
// network namespaces, so that ways to carry packets between pods can be measured
// side by side. The wires carry packets of a wire's size.
//
// Namespaces are named as `ip netns` does. The caller runs in a mount namespace
// of its own with an empty /run/netns (see Isolate), so that names clash with
// nobody's and everything goes with the process, however it ends.
package fabric

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

const netnsDir = "/run/netns"

// Isolate hides the machine's named network namespaces from this process, whose
// mount namespace must be its own.
func Isolate() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", netnsDir, err)
	}
	if err := unix.Mount("none", netnsDir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("hide the machine's network namespaces: %w", err)
	}
	return nil
}

// MTU of the wires in bytes.
const MTU = 1500

// Fabric is one pair of nodes.
type Fabric struct {
	Name string
	Dir  string // for files
}

// New makes router, wires and nodes; the nodes have no pods yet, and no way to
// each other's.
func New(ctx context.Context, name, dir string) (*Fabric, error) {
	f := &Fabric{Name: name, Dir: filepath.Join(dir, name)}
	if err := os.MkdirAll(f.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of fabric %s: %w", name, err)
	}
	script := `
ip netns add ROUTER
ip netns exec ROUTER sysctl -qw net.ipv4.ip_forward=1
for i in 1 2; do
	ip netns add NAME-node$i
	ip -n ROUTER link add n$i mtu MTU type veth peer name eth0 mtu MTU netns NAME-node$i
	ip -n ROUTER addr add 192.168.$i.1/24 dev n$i
	ip -n ROUTER link set n$i up
	ip -n NAME-node$i link set lo up
	ip -n NAME-node$i addr add 192.168.$i.2/24 dev eth0
	ip -n NAME-node$i link set eth0 up
	ip -n NAME-node$i route add default via 192.168.$i.1
	ip netns exec NAME-node$i sysctl -qw net.ipv4.ip_forward=1
	ip netns exec ROUTER ethtool -K n$i tso off gso off gro on
	ip netns exec NAME-node$i ethtool -K eth0 tso off gso off gro on
done`
	return f, f.shell(ctx, script)
}

// shell runs a script in which ROUTER, NAME and MTU stand for the fabric's.
func (f *Fabric) shell(ctx context.Context, script string) error {
	script = strings.NewReplacer("ROUTER", f.Name+"-router", "NAME", f.Name, "MTU", fmt.Sprint(MTU)).Replace(script)
	out, err := exec.CommandContext(ctx, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fabric %s: %w: %s", f.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Node is the name of the network namespace of node 1 or 2.
func (f *Fabric) Node(i int) string { return fmt.Sprintf("%s-node%d", f.Name, i) }

// Pod is the name of the network namespace of the pod on node 1 or 2.
func (f *Fabric) Pod(i int) string { return fmt.Sprintf("%s-pod%d", f.Name, i) }

// NodeAddress is the address of a node.
func (f *Fabric) NodeAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, byte(i), 2})
}

// PodAddress is the address of the pod on a node.
func (f *Fabric) PodAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, byte(i), 10}) }

// podCIDR is the range of a node's pods.
func podCIDR(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24)
}

// allPods is the pod network.
func allPods() netip.Prefix { return netip.MustParsePrefix("10.244.0.0/16") }

// addPods wires a pod to each node as Ropeway's plugin does, whatever carries
// its packets further: only the ways between the nodes are to differ.
func (f *Fabric) addPods(ctx context.Context, mtu int) error {
	for i := 1; i <= 2; i++ {
		if err := f.shell(ctx, fmt.Sprintf("ip netns add NAME-pod%d; ip -n NAME-pod%d link set lo up", i, i)); err != nil {
			return err
		}
		err := f.on(i, func() error {
			_, err := podlink.Add(podlink.Config{
				Attachment: cniwire.Attachment{Network: "rwbench", ContainerID: f.Pod(i), IfName: "eth0"},
				Netns:      netnsPath(f.Pod(i)), MTU: mtu, Addresses: []netip.Addr{f.PodAddress(i)},
			})
			return err
		})
		if err != nil {
			return fmt.Errorf("fabric %s: %w", f.Name, err)
		}
	}
	return nil
}

// on runs do in the namespace of a node.
func (f *Fabric) on(i int, do func() error) error {
	return ns.WithNetNSPath(netnsPath(f.Node(i)), func(ns.NetNS) error { return do() })
}

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// Reach checks that an address answers from a namespace.
func Reach(ctx context.Context, from string, to netip.Addr) error {
	out, err := exec.CommandContext(ctx, "ip", "netns", "exec", from, "ping", "-q", "-c", "2", "-i", "0.1", "-W", "2", to.String()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s is not reached from %s: %w: %s", to, from, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Seen counts packets that the router forwards, by the nftables expression
// match, while do runs.
func (f *Fabric) Seen(ctx context.Context, match string, do func() error) (bool, error) {
	rules := "nft add table ip seen; nft add chain ip seen f '{ type filter hook forward priority 0; }'; nft add rule ip seen f " + match + " counter"
	if err := f.shell(ctx, "ip netns exec ROUTER sh -ec \""+rules+"\""); err != nil {
		return false, err
	}
	doErr := do()
	out, err := exec.CommandContext(ctx, "ip", "netns", "exec", f.Name+"-router", "nft", "list", "chain", "ip", "seen", "f").Output()
	if err != nil {
		return false, fmt.Errorf("fabric %s: count what the router forwards: %w", f.Name, err)
	}
	if doErr != nil {
		return false, doErr
	}
	// A rule in the way would cost what is measured later.
	return !strings.Contains(string(out), "packets 0"), f.shell(ctx, "ip netns exec ROUTER nft delete table ip seen")
}
