package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/bpf"
	"ropeway.dev/ropeway/internal/plan"
)

// publish makes the fabric lead to a node's ranges, as a VPC's route table does.
func (f *fabric) publish(n *testNode) {
	f.t.Helper()
	f.sh(f.router, fmt.Sprintf("ip route replace %s via %s; ip -6 route replace %s via %s", n.cidr(), n.address(), n.cidr6(), n.address6()))
}

// withdraw takes back what publish did.
func (f *fabric) withdraw(n *testNode) {
	f.t.Helper()
	f.sh(f.router, fmt.Sprintf("ip route del %s; ip -6 route del %s", n.cidr(), n.cidr6()))
}

// prove makes the snapshots say whether peers reach each node by direct.
func (f *fabric) prove(reachable bool) {
	f.probes = nil
	for i, n := range f.nodes {
		by := f.nodes[(i+1)%len(f.nodes)].name()
		for _, family := range []plan.Family{plan.IPv4, plan.IPv6} {
			f.probes = append(f.probes, plan.Probe{From: by, To: n.name(), ToUID: "uid-" + n.name(), Family: family, Transport: plan.Direct, Reachable: reachable})
		}
	}
}

func newDirectFabric(t *testing.T, transports ...plan.Transport) *fabric {
	f := newFabric(t, 2, transports...)
	f.prove(true)
	for _, n := range f.nodes {
		f.publish(n)
		eventually(t, n.name()+" is known by IPv6", func() bool {
			_, err := f.run(n.ns, "ping -q -c 1 -W 1 2001:db8::1")
			return err == nil
		})
	}
	return f
}

// TestNothingArrivesWithoutTheFabricsRoutes: direct is really bare.
func TestNothingArrivesWithoutTheFabricsRoutes(t *testing.T) {
	f := newDirectFabric(t, plan.Direct)
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	f.ping(a.ns, b.v4.String())
	f.ping(a.ns, b.v6.String())
	f.withdraw(f.nodes[1])
	f.noPing(a.ns, b.v4.String())
	f.noPing(a.ns, b.v6.String())
	f.publish(f.nodes[1])
	f.ping(a.ns, b.v4.String())
	f.ping(a.ns, b.v6.String())
}

// TestLiveChangeToDirectAndBack holds invariant 4 for direct: between every two
// transports, node by node, nothing is lost. A destination whose proof is lost
// goes back by itself.
func TestLiveChangeToDirectAndBack(t *testing.T) {
	f := newDirectFabric(t, plan.IPIP)
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	for _, n := range f.nodes {
		f.sh(n.ns, "for d in all default eth0; do sysctl -qw net.ipv4.conf.$d.rp_filter=1; done")
	}
	f.setAll()
	l := f.listen(b.ns, b.v4.String()+":80")
	client, err := f.dial(a.ns, b.v4.String()+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	there, back := f.stream(a, b, 1400), f.stream(b, a, 1400)
	steps := []struct {
		transports []plan.Transport
		proven     bool
		want       plan.Transport
	}{
		{[]plan.Transport{plan.Direct, plan.IPIP}, true, plan.Direct},
		{[]plan.Transport{plan.Direct, plan.IPIP}, false, plan.IPIP},
		{[]plan.Transport{plan.Direct, plan.VXLAN}, true, plan.Direct},
		{[]plan.Transport{plan.Direct, plan.VXLAN}, false, plan.VXLAN},
		{[]plan.Transport{plan.IPIP}, true, plan.IPIP},
		{[]plan.Transport{plan.VXLAN}, true, plan.VXLAN},
		{[]plan.Transport{plan.Direct}, true, plan.Direct},
		{[]plan.Transport{plan.VXLAN}, true, plan.VXLAN},
		{[]plan.Transport{plan.IPIP}, true, plan.IPIP},
	}
	for _, step := range steps {
		f.network.Transports = step.transports
		f.prove(step.proven)
		for _, n := range f.nodes {
			if _, err := n.set(); err != nil {
				t.Fatal(err)
			}
			echo(t, client, server)
			before := there.received.Load()
			eventually(t, "the stream goes on", func() bool { return there.received.Load() > before+50 })
		}
		if got := f.nodes[0].transportTo(f.nodes[1].cidr()); got != step.want {
			t.Errorf("%v, proven %t: %s is in use, want %s", step.transports, step.proven, got, step.want)
		}
	}
	f.end(there)
	f.end(back)
}

// transportTo reads from the kernel how a destination is reached.
func (n *testNode) transportTo(dst netip.Prefix) plan.Transport {
	n.f.t.Helper()
	var got Observed
	if err := n.ns.Do(func() (err error) { got, err = n.dataplane.Observe(n.f.t.Context()); return err }); err != nil {
		n.f.t.Fatal(err)
	}
	for _, r := range got.Routes {
		if r.Dst == dst {
			return r.Transport
		}
	}
	return ""
}

// TestDirectInsideATunnelledRange: a range that is reached bare is no part of
// the wider one of another node that is reached by ipip, nor the other way round.
func TestDirectInsideATunnelledRange(t *testing.T) {
	f := newDirectFabric(t, plan.IPIP)
	f.setAll()
	n, b := f.nodes[0], f.nodes[1].addPod(1500)
	a := n.addPod(1500)
	want := plan.Compute(f.snapshot(n))
	narrow := want.Routes[0]
	if narrow.Dst != f.nodes[1].cidr() {
		t.Fatalf("the first route is %+v", narrow)
	}
	wide := narrow
	// All of 10.244.0.0/20 is another node's, which does not exist.
	wide.Dst, wide.Outer = netip.MustParsePrefix("10.244.0.0/20"), addr(outsideAddress)
	narrow.Transport = plan.Direct
	want.Routes = append(want.Routes[1:], narrow, wide)
	before := n.count(t, "ipip_sent")
	if err := n.ns.Do(func() error { _, err := n.dataplane.Set(t.Context(), want); return err }); err != nil {
		t.Fatal(err)
	}
	f.ping(a.ns, b.v4.String())
	if now := n.count(t, "ipip_sent"); now != before {
		t.Errorf("%d packets to the narrow range were encapsulated", now-before)
	}
	f.run(a.ns, "ping -c 1 -W 1 10.244.9.9")
	if now := n.count(t, "ipip_sent"); now != before+1 {
		t.Errorf("%d packets to the wide range were encapsulated, want 1", now-before)
	}
}

// TestPartOfABareRange: a destination that is to be reached by a tunnel, and was a
// part of a range that is reached bare, stays bare until its route is written.
func TestPartOfABareRange(t *testing.T) {
	bare, tunnel := bpf.Endpoint{Remote: addr("192.168.2.2")}, bpf.Endpoint{Remote: addr("192.168.2.2"), Local: addr("192.168.1.2")}
	prefix := netip.MustParsePrefix
	have := map[netip.Prefix]bpf.Endpoint{
		prefix("10.244.2.0/25"): bare, prefix("10.244.2.64/26"): tunnel, prefix("10.244.3.0/24"): tunnel, prefix("10.244.3.0/26"): bare,
	}
	for dst, want := range map[string]bool{
		"10.244.2.0/25": true, "10.244.2.0/26": true, "10.244.2.64/26": false, "10.244.2.64/32": false, "10.244.2.128/26": false,
		"10.244.3.0/24": false, "10.244.3.64/26": false, "10.244.3.1/32": true, "10.244.0.0/16": false,
	} {
		if got := bareSoFar(have, prefix(dst)); got != want {
			t.Errorf("%s leaves bare: %t, want %t", dst, got, want)
		}
	}

	// On a kernel: the route cannot be written, and the packets stay as they were.
	f := newDirectFabric(t, plan.Direct, plan.IPIP)
	f.setAll()
	n, b := f.nodes[0], f.nodes[1].addPod(1500)
	a := n.addPod(1500)
	f.ping(a.ns, b.v4.String())
	state := plan.Compute(f.snapshot(n))
	whole := slices.IndexFunc(state.Routes, func(r plan.Route) bool { return r.Dst == f.nodes[1].cidr() })
	part := state.Routes[whole]
	part.Dst, part.Transport = netip.MustParsePrefix("10.244.2.0/26"), plan.IPIP
	state.Routes = append(state.Routes, part)
	f.sh(n.ns, "ip route add 10.244.2.0/26 via 192.168.1.1 proto bird")
	before := n.count(t, "ipip_sent")
	err := n.ns.Do(func() error {
		if r, err := n.dataplane.Set(t.Context(), state); err == nil || r.Failed[part.Dst] == "" {
			t.Errorf("Set over a foreign route: %+v, %v", r, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.ping(a.ns, b.v4.String())
	if now := n.count(t, "ipip_sent"); now != before {
		t.Errorf("%d packets were encapsulated before their route was written", now-before)
	}
	f.sh(n.ns, "ip route del 10.244.2.0/26 proto bird")
	if err := n.ns.Do(func() error { _, err := n.dataplane.Set(t.Context(), state); return err }); err != nil {
		t.Fatal(err)
	}
	f.ping(a.ns, b.v4.String())
	if now := n.count(t, "ipip_sent"); now == before {
		t.Error("no packet was encapsulated after its route was written")
	}
}

func (n *testNode) count(t *testing.T, event string) uint64 {
	t.Helper()
	c, err := n.dataplane.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c[event]
}

// TestBareProbes: what is wrapped, marked and sent to a node's address in the
// fabric leaves as what is inside, whatever transport is in use; and without the
// mark as it is, so that nobody takes it in.
func TestBareProbes(t *testing.T) {
	for name, o := range map[string]Options{"tcx": {}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			f := newFabric(t, 2, plan.IPIP)
			f.nodes[0].dataplane = f.nodes[0].open(o)
			f.setAll()
			n, to := f.nodes[0], f.nodes[1]
			wire := tap(t, f.router, "n1")
			inner4 := packet4{ttl: 64, fragment: dontFragment, protocol: unix.IPPROTO_UDP, src: n.source(), dst: to.source(),
				payload: udp(9798, 9798, []byte("bare"))}.bytes()
			inner6 := ipv6UDP(plan.SourceOf(n.cidr6()), plan.SourceOf(to.cidr6()), []byte("bare"))
			for _, c := range []struct {
				family int
				outer  string
				inner  []byte
			}{{unix.AF_INET, to.address(), inner4}, {unix.AF_INET6, to.address6(), inner6}} {
				n.sendMarked(t, c.family, c.outer, bpf.BareMark, c.inner)
				if got := wire.receive(func(p []byte) bool { return string(p) == string(c.inner) }); got == nil {
					t.Errorf("family %d: the probe did not leave bare", c.family)
				}
				n.sendMarked(t, c.family, c.outer, 0, c.inner)
				wrapped := func(p []byte) bool {
					return p[0]>>4 == 4 && p[9] == bpf.BareProtocol || p[0]>>4 == 6 && p[6] == bpf.BareProtocol
				}
				if got := wire.receive(wrapped); got == nil {
					t.Errorf("family %d: without the mark it did not stay wrapped", c.family)
				}
			}
			if got := n.count(t, "probe_sent_bare"); got != 2 {
				t.Errorf("probe_sent_bare = %d, want 2", got)
			}
		})
	}
}

// sendMarked sends a packet wrapped in the protocol of bare probes.
func (n *testNode) sendMarked(t *testing.T, family int, outer string, mark int, inner []byte) {
	t.Helper()
	err := n.ns.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, bpf.BareProtocol)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return err
		}
		a := netip.MustParseAddr(outer)
		if a.Is4() {
			return unix.Sendto(fd, inner, 0, &unix.SockaddrInet4{Addr: a.As4()})
		}
		return unix.Sendto(fd, inner, 0, &unix.SockaddrInet6{Addr: a.As16()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func ipv6UDP(src, dst netip.Addr, payload []byte) []byte {
	datagram := udp(9798, 9798, payload)
	p := make([]byte, 40, 40+len(datagram))
	p[0], p[5], p[6], p[7] = 0x60, byte(len(datagram)), unix.IPPROTO_UDP, 64
	s, d := src.As16(), dst.As16()
	copy(p[8:], s[:])
	copy(p[24:], d[:])
	return append(p, datagram...)
}

// TestPodsCannotSendBareProbes: a pod's mark does not leave its namespace.
func TestPodsCannotSendBareProbes(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP)
	f.setAll()
	a := f.nodes[0].addPod(1500)
	forged := packet4{ttl: 64, protocol: unix.IPPROTO_UDP, src: addr("192.168.2.9"), dst: addr(outsideAddress), payload: udp(1, 2, nil)}.bytes()
	wire := tap(t, f.router, "n1")
	pod := &testNode{f: f, ns: a.ns}
	pod.sendMarked(t, unix.AF_INET, f.nodes[1].address(), bpf.BareMark, forged)
	f.ping(a.ns, outsideAddress) // behind it
	if wire.receive(func(p []byte) bool { return p[0]>>4 == 4 && p[9] == unix.IPPROTO_ICMP }) == nil {
		t.Error("the ping was not on the wire")
	}
	if n := f.nodes[0].count(t, "probe_sent_bare"); n != 0 {
		t.Errorf("%d of a pod's packets lost their outer header", n)
	}
}

// TestBareSources: inside the fabric's ranges a pod is known by its own address
// as long as its range is proven direct, and only there; a flow keeps what it
// began with.
func TestBareSources(t *testing.T) {
	f := newDirectFabric(t, plan.Direct, plan.IPIP)
	f.network.FabricCIDRs = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fd00::/16")}
	// The outside has an address inside the VPC too, such as a database.
	f.sh(f.outside, "ip addr add 192.168.200.1/32 dev lo")
	f.sh(f.router, "ip route add 192.168.200.1 via "+outsideAddress)
	f.setAll()
	n1, n2 := f.nodes[0], f.nodes[1]
	a := n1.addPod(1500)
	check := func(what, address, want string) {
		t.Helper()
		to := f.outside
		if strings.HasPrefix(address, n2.address()) || strings.HasPrefix(address, "["+n2.address6()) {
			to = n2.ns
		}
		if _, seen, err := f.transfer(a.ns, to, address, 1); err != nil || seen != want {
			t.Errorf("%s arrives as %q, want %q (%v)", what, seen, want, err)
		}
	}
	check("proven, to the VPC", "192.168.200.1:80", a.v4.String())
	check("proven, to a node", n2.address()+":80", a.v4.String())
	check("proven, to a node by IPv6", "["+n2.address6()+"]:80", a.v6.String())
	check("proven, to the world", outsideAddress+":80", n1.address())

	l := f.listen(f.outside, "192.168.200.1:81")
	client, err := f.dial(a.ns, "192.168.200.1:81")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	f.prove(false)
	f.setAll()
	echo(t, client, server)
	check("not proven, to the VPC", "192.168.200.1:80", n1.address())
	check("not proven, to a node", n2.address()+":80", n1.address())
	f.prove(true)
	f.network.FabricCIDRs = nil
	f.setAll()
	check("no ranges of the VPC are known", "192.168.200.1:80", n1.address())
	client.SetDeadline(time.Now().Add(time.Second))
}

// TestObserveDirect: the kernel tells direct from ipip.
func TestObserveDirect(t *testing.T) {
	f := newDirectFabric(t, plan.Direct, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	for dst, want := range map[netip.Prefix]plan.Transport{f.nodes[1].cidr(): plan.Direct, f.nodes[1].cidr6(): plan.Direct} {
		if got := n.transportTo(dst); got != want {
			t.Errorf("%s goes by %s, want %s", dst, got, want)
		}
	}
	if r, err := n.set(); err != nil || r.Changed {
		t.Errorf("Set again: changed %v, %v", r.Changed, err)
	}
	f.prove(false)
	f.setAll()
	if got := n.transportTo(f.nodes[1].cidr()); got != plan.IPIP {
		t.Errorf("unproven: %s", got)
	}
	if r, err := n.set(); err != nil || r.Changed {
		t.Errorf("Set again: changed %v, %v", r.Changed, err)
	}
}

// TestDirectOnASwitch: the same plan serves a layer-2 network by host routes, of
// both families, without anybody's route table; where a neighbour is not proven,
// the tunnel carries.
func TestDirectOnASwitch(t *testing.T) {
	f := newSwitchFabric(t, 2, plan.Direct, plan.IPIP)
	f.prove(true)
	f.setAll()
	n1, n2 := f.nodes[0], f.nodes[1]
	a, b := n1.addPod(1500), n2.addPod(1500)
	for _, route := range []string{
		f.sh(n1.ns, "ip route show "+n2.cidr().String()), f.sh(n1.ns, "ip -6 route show "+n2.cidr6().String()),
	} {
		if !strings.Contains(route, " via "+n2.address()+" dev eth0") && !strings.Contains(route, " via "+n2.address6()+" dev eth0") {
			t.Errorf("the route is no host route by the neighbour: %s", route)
		}
	}
	wire := tap(t, f.router, "n1")
	f.ping(a.ns, b.v4.String())
	f.ping(a.ns, b.v6.String())
	wire.receive(func(p []byte) bool {
		if p[0]>>4 == 4 && p[9] == unix.IPPROTO_IPIP || p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP {
			t.Error("a packet between proven neighbours is tunnelled")
		}
		return p[0]>>4 == 6 && p[6] == unix.IPPROTO_ICMPV6 && p[40] == 128
	})
	if _, seen, err := f.transfer(a.ns, b.ns, b.v4.String()+":80", 1<<20); err != nil || seen != a.v4.String() {
		t.Errorf("TCP arrives as %q: %v", seen, err)
	}
	f.ping(a.ns, outsideAddress)

	f.prove(false)
	f.setAll()
	before := n1.count(t, "ipip_sent")
	f.ping(a.ns, b.v4.String())
	if now := n1.count(t, "ipip_sent"); now == before {
		t.Error("an unproven neighbour is sent to bare")
	}
}
