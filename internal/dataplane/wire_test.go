package dataplane

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/plan"
)

// bench is one real node with one pod, and nodes 2 and 3 of which only the
// addresses exist: the test is the wire.
type bench struct {
	*fabric
	t    *testing.T
	node *testNode
	pod  *testPod
	wire *wireTap // the router's end of the node's wire
	eth0 *wireTap // the pod's end of its veth
	mac  net.HardwareAddr
}

func newBench(t *testing.T, options Options) *bench {
	f := newFabric(t, 1, plan.IPIP, plan.VXLAN)
	node := f.nodes[0]
	node.dataplane = node.open(options)
	f.nodes = append(f.nodes, &testNode{f: f, index: 2}, &testNode{f: f, index: 3})
	if r, err := node.set(); err != nil || len(r.Refuses) > 0 {
		t.Fatalf("Set: %v; %+v", err, r)
	}
	b := &bench{fabric: f, t: t, node: node, pod: node.addPod(1500)}
	b.wire, b.eth0 = tap(t, f.router, "n1"), tap(t, b.pod.ns, "eth0")
	err := node.ns.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil {
			b.mac = i.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// inner is a packet of a pod of node 2 to the pod.
func (b *bench) inner() packet4 {
	return packet4{tos: 0xb8, id: 0x1234, fragment: dontFragment, ttl: 61, protocol: unix.IPPROTO_UDP,
		src: addr("10.244.2.10"), dst: b.pod.v4, payload: udp(1000, 2000, []byte("through the tunnel"))}
}

// ipip wraps a packet as node 2 does.
func (b *bench) ipip(inner []byte) packet4 {
	return packet4{tos: 0xb8, id: 7, fragment: dontFragment, ttl: 60, protocol: unix.IPPROTO_IPIP,
		src: addr("192.168.2.2"), dst: addr("192.168.1.2"), payload: inner}
}

// vxlan wraps a packet as node 2 does, but for the inner MAC addresses.
func (b *bench) vxlan(inner []byte) packet4 {
	frame := vxlanFrame(4096, unix.ETH_P_IP, inner)
	vtep := plan.VTEPMAC("uid-node-1")
	copy(frame[8:], vtep[:])
	p := b.ipip(udp(50000, 4789, frame))
	p.protocol = unix.IPPROTO_UDP
	return p
}

func (b *bench) sendIn(p packet4) { b.wire.send(b.mac, unix.ETH_P_IP, p.bytes()) }

// expect fails the test unless the next IPv4 packet at the pod is this one.
func (b *bench) expect(what string, want []byte) {
	b.t.Helper()
	got := b.eth0.receive(func(p []byte) bool { return p[0]>>4 == 4 })
	if !bytes.Equal(got[:min(len(got), len(want))], want) {
		b.t.Errorf("%s: the pod got\n%s\nwant\n%s", what, hexDump(got), hexDump(want))
	}
}

func (b *bench) count(event string) uint64 {
	b.t.Helper()
	c, err := b.node.dataplane.Counters()
	if err != nil {
		b.t.Fatal(err)
	}
	n, known := c[event]
	if !known {
		b.t.Fatalf("no counter %q", event)
	}
	return n
}

// TestIPIPReceived puts hand-made protocol-4 packets on the wire and looks at
// what comes out, byte by byte (RFC 2003, section 3.1: the inner packet is
// untouched but for the hop).
func TestIPIPReceived(t *testing.T) {
	for _, clsact := range []bool{false, true} {
		t.Run(fmt.Sprintf("clsact=%v", clsact), func(t *testing.T) {
			b := newBench(t, Options{Clsact: clsact})
			plain := b.inner()
			mayFragment := b.inner()
			mayFragment.fragment = 0
			options := b.inner()
			options.options = []byte{7, 7, 4, 0, 0, 0, 0, 0} // record route, RFC 791
			options.ttl = 1 + 1
			fromNode := b.inner()
			fromNode.src = addr("10.244.2.1")
			unmarked := b.inner()
			unmarked.tos = 0
			for name, p := range map[string]packet4{
				"DF": plain, "no DF": mayFragment, "unmarked": unmarked, "from a node": fromNode,
			} {
				b.sendIn(b.ipip(p.bytes()))
				b.expect(name, forwarded(p.bytes()))
			}
			b.sendIn(b.ipip(options.bytes()))
			got := b.eth0.receive(func(p []byte) bool { return p[0] == 0x47 })
			if !bytes.Equal(got[28:], options.bytes()[28:]) {
				t.Errorf("with options: the pod got %s", hexDump(got))
			}
			if n := b.count("ipip_received"); n != 5 {
				t.Errorf("ipip_received = %d", n)
			}
		})
	}
}

// TestIPIPRefused: what is not between nodes, about addresses that they own, is
// not decapsulated. A good packet behind each bad one shows that the bad one did
// not arrive, without waiting.
func TestIPIPRefused(t *testing.T) {
	b := newBench(t, Options{})
	good := b.inner()
	bad := func(change func(outer, inner *packet4)) packet4 {
		inner := b.inner()
		inner.id = 0xbad
		outer := b.ipip(nil)
		change(&outer, &inner)
		if outer.payload == nil {
			outer.payload = inner.bytes()
		}
		return outer
	}
	for _, c := range []struct {
		name, event string
		packet      packet4
	}{
		{"outer source is no node", "ipip_dropped_not_a_node", bad(func(o, _ *packet4) { o.src = addr("192.168.9.9") })},
		{"inner source is another node's", "ipip_dropped_foreign_source", bad(func(_, i *packet4) { i.src = addr("10.244.3.10") })},
		{"inner source is our own", "ipip_dropped_foreign_source", bad(func(_, i *packet4) { i.src = addr("10.244.1.99") })},
		{"inner source is nobody's", "ipip_dropped_foreign_source", bad(func(_, i *packet4) { i.src = addr("10.244.77.1") })},
		{"inner source is outside", "ipip_dropped_foreign_source", bad(func(_, i *packet4) { i.src = addr(outsideAddress) })},
		{"inner source is the node's fabric address", "ipip_dropped_foreign_source", bad(func(_, i *packet4) { i.src = addr("192.168.2.2") })},
		{"outer source is us", "ipip_dropped_foreign_source", bad(func(o, _ *packet4) { o.src = addr("192.168.1.2") })},
		{"outer checksum", "ipip_dropped_malformed", bad(func(o, _ *packet4) { o.badSum = true })},
		{"inner header cut", "ipip_dropped_malformed", bad(func(o, i *packet4) { o.payload = i.bytes()[:12] })},
		{"inner version 6", "ipip_dropped_malformed", bad(func(o, i *packet4) { o.payload = i.bytes(); o.payload[0] = 0x65 })},
		{"inner header length", "ipip_dropped_malformed", bad(func(o, i *packet4) { o.payload = i.bytes(); o.payload[0] = 0x44 })},
		{"first fragment", "ipip_fragment_to_stack", bad(func(o, _ *packet4) { o.fragment = moreFragments })},
		{"last fragment", "ipip_fragment_to_stack", bad(func(o, _ *packet4) { o.fragment = 8 })},
		{"outer options", "ipip_fragment_to_stack", bad(func(o, _ *packet4) { o.options = []byte{1, 1, 1, 0} })},
	} {
		before := b.count(c.event)
		b.sendIn(c.packet)
		good.id++
		b.sendIn(b.ipip(good.bytes()))
		b.expect("after "+c.name, forwarded(good.bytes()))
		if n := b.count(c.event); n != before+1 {
			t.Errorf("%s: %s went from %d to %d", c.name, c.event, before, n)
		}
	}
	// Another's tunnel is not ours to judge: the stack has it.
	foreign := bad(func(o, i *packet4) { o.src, i.dst = addr("192.168.9.9"), addr("198.51.100.7") })
	b.sendIn(foreign)
	b.sendIn(b.ipip(good.bytes()))
	b.expect("after a foreign tunnel's", forwarded(good.bytes()))
	if n := b.count("ipip_dropped_not_a_node"); n != 1 {
		t.Errorf("a foreign tunnel's packet was counted as dropped")
	}
}

// TestIPIPCongestionReceived is the table of RFC 6040, section 4.2.
func TestIPIPCongestionReceived(t *testing.T) {
	const notECT, ect1, ect0, ce, lost = 0, 1, 2, 3, -1
	b := newBench(t, Options{})
	for inner, row := range map[byte][4]int{ // outer: Not-ECT, ECT(1), ECT(0), CE
		notECT: {notECT, notECT, notECT, lost},
		ect0:   {ect0, ect1, ect0, ce},
		ect1:   {ect1, ect1, ect1, ce},
		ce:     {ce, ce, ce, ce},
	} {
		for outer, want := range row {
			p := b.inner()
			p.tos = 46<<2 | inner
			wrapped := b.ipip(p.bytes())
			wrapped.tos = 10<<2 | byte(outer)
			b.sendIn(wrapped)
			if want == lost {
				p.id++
				b.sendIn(b.ipip(p.bytes()))
			} else {
				p.tos = 46<<2 | byte(want)
			}
			b.expect(fmt.Sprintf("inner %d, outer %d", inner, outer), forwarded(p.bytes()))
		}
	}
	if n := b.count("ipip_dropped_congestion_mark"); n != 1 {
		t.Errorf("ipip_dropped_congestion_mark = %d", n)
	}
}

// TestIPIPSent looks at every byte of what a node puts on the wire for a pod's
// packet (RFC 2003, section 3.1; RFC 6040, section 4.1).
func TestIPIPSent(t *testing.T) {
	b := newBench(t, Options{})
	for _, c := range []struct {
		name     string
		tos      byte
		fragment uint16
		options  []byte
	}{
		{"plain", 0, dontFragment, nil},
		{"DSCP and ECT(0)", 46<<2 | 2, dontFragment, nil},
		{"CE", 3, dontFragment, nil},
		{"may be fragmented", 0, 0, nil},
		{"options", 0, dontFragment, []byte{1, 1, 1, 0}},
	} {
		inner := packet4{tos: c.tos, id: 0x4242, fragment: c.fragment, ttl: 33, protocol: unix.IPPROTO_UDP,
			src: b.pod.v4, dst: addr("10.244.3.10"), options: c.options, payload: udp(1, 2, []byte(c.name))}
		b.sendFromPod(inner)
		got := b.wire.receive(func(p []byte) bool { return p[0]>>4 == 4 && p[9] == unix.IPPROTO_IPIP })
		want := packet4{tos: c.tos, id: 0x4242, fragment: dontFragment, ttl: 64, protocol: unix.IPPROTO_IPIP,
			src: addr("192.168.1.2"), dst: addr("192.168.3.2"), payload: forwarded(inner.bytes())}
		if !bytes.Equal(got, want.bytes()) {
			t.Errorf("%s: the wire has\n%s\nwant\n%s", c.name, hexDump(got), hexDump(want.bytes()))
		}
	}
}

// sendFromPod puts a packet of the pod's on its veth.
func (b *bench) sendFromPod(p packet4) {
	b.t.Helper()
	b.eth0.send(b.gateway(), unix.ETH_P_IP, p.bytes())
}

// send6FromPod is sendFromPod for a packet of IPv6.
func (b *bench) send6FromPod(p []byte) {
	b.t.Helper()
	b.eth0.send(b.gateway(), unix.ETH_P_IPV6, p)
}

// gateway returns the MAC address of the node's end of the pod's veth.
func (b *bench) gateway() net.HardwareAddr {
	b.t.Helper()
	var gateway net.HardwareAddr
	err := b.node.ns.Do(func() error {
		i, err := net.InterfaceByName(b.pod.link)
		if err == nil {
			gateway = i.HardwareAddr
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return gateway
}

// TestVXLANGuard: the same as TestIPIPRefused for packets that the kernel's
// device decapsulates.
func TestVXLANGuard(t *testing.T) {
	b := newBench(t, Options{})
	good := b.inner()
	bad := func(change func(outer, inner *packet4)) packet4 {
		inner := b.inner()
		inner.id = 0xbad
		changed := packet4{}
		change(&changed, &inner)
		outer := b.vxlan(inner.bytes())
		if changed.src.IsValid() {
			outer.src = changed.src
		}
		outer.fragment = changed.fragment
		return outer
	}
	frame := func(f []byte) packet4 {
		p := b.vxlan(nil)
		p.payload = udp(50000, 4789, f)
		return p
	}
	for _, c := range []struct {
		name, event string
		packet      packet4
	}{
		{"outer source is no node", "vxlan_dropped_not_a_node", bad(func(o, _ *packet4) { o.src = addr("192.168.9.9") })},
		{"inner source is another node's", "vxlan_dropped_foreign_source", bad(func(_, i *packet4) { i.src = addr("10.244.3.10") })},
		{"inner source is our own", "vxlan_dropped_foreign_source", bad(func(_, i *packet4) { i.src = addr("10.244.1.99") })},
		{"inner source is outside", "vxlan_dropped_foreign_source", bad(func(_, i *packet4) { i.src = addr(outsideAddress) })},
		{"first fragment", "vxlan_dropped_malformed", bad(func(o, _ *packet4) { o.fragment = moreFragments })},
		{"inner ARP", "vxlan_dropped_malformed", frame(vxlanFrame(4096, unix.ETH_P_ARP, make([]byte, 28)))},
		{"inner header cut", "vxlan_dropped_malformed", frame(vxlanFrame(4096, unix.ETH_P_IP, make([]byte, 8)))},
		{"inner IPv6 of another node", "vxlan_dropped_foreign_source", frame(vxlanFrame(4096, unix.ETH_P_IPV6, ipv6("fd00:244:0:3::1", "fd00:244:0:1::a", 17, udp(1, 2, nil))))},
	} {
		before := b.count(c.event)
		b.sendIn(c.packet)
		good.id++
		b.sendIn(b.vxlan(good.bytes()))
		b.expect("after "+c.name, forwarded(good.bytes()))
		if n := b.count(c.event); n != before+1 {
			t.Errorf("%s: %s went from %d to %d", c.name, c.event, before, n)
		}
	}
	// Addressed to the node's pod-network address, it would pass by the guard:
	// the device listens on all addresses.
	other := b.vxlan(good.bytes())
	other.dst = b.node.source()
	b.sendIn(other)
	good.id++
	b.sendIn(b.vxlan(good.bytes()))
	b.expect("after one to another address of the node", forwarded(good.bytes()))
	if out := b.sh(b.node.ns, "nft list chain inet ropeway vxlan_guard"); !strings.Contains(out, "counter packets 1 ") {
		t.Errorf("nftables did not drop vxlan to another address of the node:\n%s", out)
	}
}
