package dataplane

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// arpReply says that an address is at a MAC (RFC 826).
func arpReply(a netip.Addr, mac net.HardwareAddr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	b = append(b, mac...)
	b = append(b, a.AsSlice()...)
	b = append(b, mac...)
	return append(b, a.AsSlice()...)
}

// neighbourAdvertisement says the same of an IPv6 address, overriding what was
// known (RFC 4861, section 4.4).
func neighbourAdvertisement(from, a netip.Addr, mac net.HardwareAddr) []byte {
	body := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, a.AsSlice()...)
	body = append(append(body, 2, 1), mac...)
	p := ipv6(from.String(), "ff02::1", unix.IPPROTO_ICMPV6, body)
	p[7] = 255
	pseudo := append(append([]byte{}, p[8:40]...), 0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(p[42:], internetChecksum(append(pseudo, body...)))
	return p
}

// TestNeighboursCannotBeForged: invariant 10: neither ARP nor neighbour discovery
// moves another pod's address, or the node's, to a pod; nor is another's IPv6
// source taken.
func TestNeighboursCannotBeForged(t *testing.T) {
	b := newBench(t, Options{})
	victim := b.node.addPod(1500)
	forger := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	known := func() string { return b.sh(b.node.ns, "ip neigh show nud permanent; ip -6 neigh show nud permanent") }
	before := known()
	if !strings.Contains(before, victim.v4.String()) || !strings.Contains(before, victim.v6.String()) {
		t.Fatalf("the node's neighbours are\n%s", before)
	}
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for _, a := range []netip.Addr{victim.v4, b.pod.v4, addr("192.168.1.2"), addr("192.168.1.1")} {
		b.eth0.send(everybody, unix.ETH_P_ARP, arpReply(a, forger))
	}
	for _, a := range []netip.Addr{victim.v6, b.pod.v6, addr("fd00:1::2"), addr("fe80::1")} {
		b.eth0.send(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, unix.ETH_P_IPV6, neighbourAdvertisement(addr("fe80::66"), a, forger))
	}
	// Behind them, another's IPv6 source: once it is counted, they have been seen.
	b.eth0.send(everybody, unix.ETH_P_IPV6, ipv6(victim.v6.String(), "fd00:244:0:2::a", unix.IPPROTO_UDP, udp(1, 2, nil)))
	eventually(t, "another's IPv6 source is dropped", func() bool { return b.node.counter(t, "from_pods", "not the pod's address") == 1 })
	if after := known(); after != before {
		t.Errorf("the node's neighbours were\n%sand are\n%s", before, after)
	}
	if out := b.sh(b.node.ns, "ip neigh; ip -6 neigh"); strings.Contains(out, forger.String()) {
		t.Errorf("the node believes a pod:\n%s", out)
	}
	b.ping(b.node.ns, victim.v4.String())
	b.ping(b.node.ns, victim.v6.String())
}

// Extension headers of IPv6 (RFC 8200, sections 4.3 to 4.6), each of 8 bytes, in
// front of a payload of the next protocol.
func extended(header, next byte, payload []byte) []byte {
	b := []byte{next, 0, 1, 4, 0, 0, 0, 0} // options: padding
	if header == unix.IPPROTO_FRAGMENT {
		b = []byte{next, 0, 0, 0, 0, 0, 0, 7} // the only fragment
	}
	return append(b, payload...)
}

// TestPodsCannotPretendByIPv6 holds invariant 10 for IPv6: neither an extension
// header nor fragments hide a source that is not the pod's, or a packet of the
// nodes' tunnel.
func TestPodsCannotPretendByIPv6(t *testing.T) {
	b := newBench(t, Options{})
	victim := b.node.addPod(1500)
	hello := udp(1, 2, []byte("hello"))
	inject := udp(1, 4789, vxlanFrame(4096, unix.ETH_P_IP, b.inner().bytes()))
	spoofed, dropped := 0, 0
	for _, header := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_HOPOPTS, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT} {
		wrap := func(payload []byte) []byte {
			if header == unix.IPPROTO_UDP {
				return payload
			}
			return extended(header, unix.IPPROTO_UDP, payload)
		}
		for _, src := range []string{victim.v6.String(), "fd00:244:0:2::a", "fd00:1::2", "2001:db8::1"} {
			b.send6FromPod(ipv6(src, "fd00:244:0:2::a", header, wrap(hello)))
			spoofed++
			eventually(t, "a packet from "+src+" is dropped", func() bool {
				return b.node.counter(t, "from_pods", "not the pod's address") == spoofed
			})
		}
		b.send6FromPod(ipv6(b.pod.v6.String(), "fd00:2::2", header, wrap(inject)))
		dropped++
		eventually(t, "vxlan to a node is dropped", func() bool { return b.node.counter(t, "tunnels", "vxlan to a node") == dropped })
	}
	// In two real fragments, which are one packet where it is looked at.
	first := append([]byte{unix.IPPROTO_UDP, 0, 0, 1, 0, 0, 0, 8}, inject[:16]...)
	rest := append([]byte{unix.IPPROTO_UDP, 0, 0, 16, 0, 0, 0, 8}, inject[16:]...)
	for _, piece := range [][]byte{first, rest} {
		b.send6FromPod(ipv6(b.pod.v6.String(), "fd00:2::2", unix.IPPROTO_FRAGMENT, piece))
	}
	dropped++
	eventually(t, "vxlan to a node in fragments is dropped", func() bool { return b.node.counter(t, "tunnels", "vxlan to a node") == dropped })
	// And what is right still passes.
	b.send6FromPod(ipv6(b.pod.v6.String(), "2001:db8::1", unix.IPPROTO_DSTOPTS, extended(unix.IPPROTO_DSTOPTS, unix.IPPROTO_UDP, hello)))
	b.wire.receive(func(p []byte) bool { return p[0]>>4 == 6 && p[6] == unix.IPPROTO_DSTOPTS })
}
