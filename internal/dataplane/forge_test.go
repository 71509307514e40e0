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
