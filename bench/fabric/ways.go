package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/plan"
)

// Way is one way to carry packets between the pods of two nodes, or, as a
// ceiling, between the nodes.
type Way struct {
	Name string
	// From is the namespace of the client, Server that of the server, and At
	// the server's address.
	From, Server string
	At           netip.Addr
	// Service is the ClusterIP before the server, invalid where there is no
	// kube-proxy.
	Service netip.Addr
}

// between is the way from pod to pod over a fabric, once it is proven that
// packets go as they should: match is an nftables expression of them on the wire.
func (f *Fabric) between(ctx context.Context, match string) (Way, error) {
	w := Way{Name: f.Name, From: f.Pod(1), Server: f.Pod(2), At: f.PodAddress(2)}
	seen, err := f.Seen(ctx, match, func() error { return Reach(ctx, w.From, w.At) })
	if err == nil && !seen {
		err = fmt.Errorf("fabric %s: no packet of the kind %q was on the wire", f.Name, match)
	}
	if err != nil {
		return w, err
	}
	return w, f.serve(ctx, &w)
}

// NodeToNode has no pods: what the wires and the router allow.
func NodeToNode(ctx context.Context, name, dir string) (Way, error) {
	f, err := New(ctx, name, dir)
	if err != nil {
		return Way{}, err
	}
	w := Way{Name: name, From: f.Node(1), Server: f.Node(2), At: f.NodeAddress(2)}
	if err := Reach(ctx, w.From, w.At); err != nil {
		return w, err
	}
	return w, f.serve(ctx, &w)
}

// Bare is plain routing on nodes that have not a single rule, not even
// kube-proxy's, and track no connections: no cluster has such nodes.
func Bare(ctx context.Context, name, dir string) (Way, error) {
	f, err := New(ctx, name, dir)
	if err != nil {
		return Way{}, err
	}
	if err := errors.Join(f.addPods(ctx, MTU), f.routePods(ctx)); err != nil {
		return Way{}, err
	}
	w := Way{Name: f.Name, From: f.Pod(1), Server: f.Pod(2), At: f.PodAddress(2)}
	return w, Reach(ctx, w.From, w.At)
}

// Plain is routing by the kernel alone: the router knows where the pods are.
func Plain(ctx context.Context, name, dir string) (Way, error) {
	f, err := New(ctx, name, dir)
	if err != nil {
		return Way{}, err
	}
	if err := f.addPods(ctx, MTU); err != nil {
		return Way{}, err
	}
	if err := f.routePods(ctx); err != nil {
		return Way{}, err
	}
	return f.between(ctx, "ip protocol icmp")
}

// routePods tells the router where the pods are, as a cloud's route table would.
func (f *Fabric) routePods(ctx context.Context) error {
	for i := 1; i <= 2; i++ {
		if err := f.shell(ctx, fmt.Sprintf("ip -n ROUTER route add %s via %s", podCIDR(i), f.NodeAddress(i))); err != nil {
			return err
		}
	}
	return nil
}

// Ropeway is the product's dataplane, allowed to use one transport; match is an
// nftables expression of what is to be seen on the wire.
func Ropeway(ctx context.Context, name, dir string, transport plan.Transport, match string) (Way, error) {
	f, err := New(ctx, name, dir)
	if err != nil {
		return Way{}, err
	}
	mtu := 0
	for i := 1; i <= 2; i++ {
		report, err := f.set(ctx, i, transport)
		if err != nil {
			return Way{}, fmt.Errorf("fabric %s: %w", name, err)
		}
		mtu = report.PodMTU
	}
	if err := f.addPods(ctx, mtu); err != nil {
		return Way{}, err
	}
	if transport == plan.Direct {
		if err := f.routePods(ctx); err != nil {
			return Way{}, err
		}
	}
	return f.between(ctx, match)
}

// set puts the plan of a node into its kernel, as the agent does.
func (f *Fabric) set(ctx context.Context, i int, transport plan.Transport) (report dataplane.Report, err error) {
	l, err := dataplane.New(dataplane.Options{
		BPFPinDir: filepath.Join(f.Dir, "bpf", fmt.Sprint(i)), StateDir: filepath.Join(f.Dir, "state", fmt.Sprint(i)),
	})
	if err != nil {
		return report, err
	}
	defer l.Close()
	if err := os.MkdirAll(filepath.Join(f.Dir, "state", fmt.Sprint(i)), 0o755); err != nil {
		return report, err
	}
	err = f.on(i, func() (err error) {
		report, err = l.Set(ctx, plan.Compute(f.snapshot(i, transport)))
		return err
	})
	if err == nil && len(report.Failed) > 0 {
		err = fmt.Errorf("routes failed: %v", report.Failed)
	}
	return report, err
}

func (f *Fabric) snapshot(self int, transport plan.Transport) plan.Snapshot {
	s := plan.Snapshot{Self: f.Node(self), Network: plan.Network{
		PodCIDRs: []netip.Prefix{allPods()}, NodeCIDR: true, Transports: []plan.Transport{transport},
		VXLANPort: 4789, VXLANVNI: 4096, MTU: plan.MTUPolicy{Mode: plan.MTUPerRoute}, Masquerade: true,
	}}
	for i := 1; i <= 2; i++ {
		s.Nodes = append(s.Nodes, plan.Node{
			Name: f.Node(i), UID: f.Node(i), Ready: true,
			Addresses: []netip.Addr{f.NodeAddress(i)}, NodeCIDRs: []netip.Prefix{podCIDR(i)},
			Sources: []netip.Addr{plan.SourceOf(podCIDR(i))}, VTEP: plan.VTEPMAC(f.Node(i)),
		})
	}
	return s
}

// peerMTU is what flannel tells the pods on a wire of MTU bytes.
const peerMTU = MTU - 50

// Flannel is flannel's vxlan backend, by the program that bench/peers builds.
// The programs run until ctx ends.
func Flannel(ctx context.Context, name, dir, program string) (Way, error) {
	f, err := New(ctx, name, dir)
	if err != nil {
		return Way{}, err
	}
	for i := 1; i <= 2; i++ {
		log, err := os.Create(filepath.Join(f.Dir, fmt.Sprintf("flannel%d.log", i)))
		if err != nil {
			return Way{}, err
		}
		defer log.Close()
		cmd := exec.CommandContext(ctx, "ip", "netns", "exec", f.Node(i), program, "--device", "eth0",
			"--address", f.NodeAddress(i).String(), "--pods", podCIDR(i).String(), "--network", allPods().String(), "--leases", f.Dir)
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			return Way{}, fmt.Errorf("start flannel: %w", err)
		}
		go cmd.Wait()
	}
	if err := f.addPods(ctx, peerMTU); err != nil {
		return Way{}, err
	}
	if err := f.awaitRoutes(ctx, "flannel.1"); err != nil {
		return Way{}, err
	}
	return f.between(ctx, "udp dport 8472")
}

// awaitRoutes waits until each node routes to the other's pods by a device.
func (f *Fabric) awaitRoutes(ctx context.Context, device string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	script := fmt.Sprintf("ip -n NAME-node1 route get %s | grep -q 'dev %s'; ip -n NAME-node2 route get %s | grep -q 'dev %s'",
		f.PodAddress(2), device, f.PodAddress(1), device)
	for {
		err := f.shell(ctx, script)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no route by %s; the logs are in %s: %w", device, f.Dir, err)
		case <-tick.C:
		}
	}
}

// PlainVXLAN is flannel's arrangement by hand, where flannel cannot be built:
// one device, and for the other node a route, a neighbour and a forwarding entry.
func PlainVXLAN(ctx context.Context, name, dir string) (Way, error) {
	f, err := New(ctx, name, dir)
	if err != nil {
		return Way{}, err
	}
	for i := 1; i <= 2; i++ {
		peer := 3 - i
		err := f.shell(ctx, fmt.Sprintf(`
ip -n NAME-node%[1]d link add flannel.1 address 02:00:00:00:00:0%[1]d mtu %[3]d type vxlan id 1 dev eth0 local 192.168.%[1]d.2 dstport 8472 nolearning
ip -n NAME-node%[1]d addr add 10.244.%[1]d.0/32 dev flannel.1
ip -n NAME-node%[1]d link set flannel.1 up
ip -n NAME-node%[1]d neigh add 10.244.%[2]d.0 lladdr 02:00:00:00:00:0%[2]d dev flannel.1 nud permanent
bridge -n NAME-node%[1]d fdb add 02:00:00:00:00:0%[2]d dev flannel.1 dst 192.168.%[2]d.2
ip -n NAME-node%[1]d route add 10.244.%[2]d.0/24 via 10.244.%[2]d.0 dev flannel.1 onlink
ip netns exec NAME-node%[1]d iptables -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE`, i, peer, peerMTU))
		if err != nil {
			return Way{}, err
		}
	}
	if err := f.addPods(ctx, peerMTU); err != nil {
		return Way{}, err
	}
	return f.between(ctx, "udp dport 8472")
}
