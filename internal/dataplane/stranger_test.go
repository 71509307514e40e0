package dataplane

import (
	"testing"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// stranger is a workload on the bench's node that another program made: its link
// is none of Ropeway's. The address is routed to it.
func (b *bench) stranger(link, address, address6 string) *bench {
	b.t.Helper()
	p := &testPod{node: b.node, ns: netnstest.New(b.t), v4: addr(address), v6: addr(address6), link: link}
	b.sh(b.node.ns, "ip link add "+link+" type veth peer name eth0 netns "+p.ns.Path()+"; ip link set "+link+" up; "+
		"ip route add "+address+" dev "+link+"; ip -6 route add "+address6+" dev "+link)
	b.sh(p.ns, "ip link set eth0 up")
	return &bench{fabric: b.fabric, t: b.t, node: b.node, pod: p, wire: b.wire, eth0: tap(b.t, p.ns, "eth0"), mac: b.mac}
}

// TestStrangersCannotInject holds invariant 10 for workloads that are not Ropeway's
// pods: what they send would be masqueraded, and leave as if the node had sent it.
// Neither ours (a pod under another main plugin) nor another program's (a
// container) makes tunnel packets of a node; and what another node sends is passed
// on by one that lies between.
func TestStrangersCannotInject(t *testing.T) {
	b := newBench(t, Options{})
	b.sh(b.node.ns, "nft add table inet docker; nft add chain inet docker post '{ type nat hook postrouting priority 100; }'; "+
		"nft add rule inet docker post ip saddr 172.17.0.0/16 masquerade; nft add rule inet docker post ip6 saddr fd00:17::/64 masquerade")
	node, node6 := addr("192.168.2.2"), "fd00:2::2"
	inject := b.inner()
	inject.src = b.pod.v4
	frame := vxlanFrame(4096, unix.ETH_P_IP, inject.bytes())
	for i, s := range []*bench{b.stranger("veth1", "10.244.1.77", "fd00:244:0:1::77"), b.stranger("docker1", "172.17.0.2", "fd00:17::2")} {
		s.sendFromPod(packet4{id: 1, ttl: 64, protocol: unix.IPPROTO_IPIP, src: s.pod.v4, dst: node, payload: inject.bytes()})
		eventually(t, s.pod.link+": ipip to a node is dropped", func() bool { return b.node.counter(t, "tunnels", "ipip to a node") == i+1 })
		s.sendFromPod(packet4{id: 1, ttl: 64, protocol: unix.IPPROTO_UDP, src: s.pod.v4, dst: node, payload: udp(1, 4789, frame)})
		eventually(t, s.pod.link+": vxlan to a node is dropped", func() bool { return b.node.counter(t, "tunnels", "vxlan to a node") == 2*i+1 })
		s.send6FromPod(ipv6(s.pod.v6.String(), node6, unix.IPPROTO_UDP, udp(1, 4789, frame)))
		eventually(t, s.pod.link+": vxlan to a node by IPv6 is dropped", func() bool { return b.node.counter(t, "tunnels", "vxlan to a node") == 2*i+2 })
		// What is right still leaves.
		s.sendFromPod(packet4{id: 1, ttl: 64, protocol: unix.IPPROTO_UDP, src: s.pod.v4, dst: node, payload: udp(1, 4790, frame)})
		got := b.wire.receive(func(p []byte) bool { return p[0]>>4 == 4 && (p[9] == unix.IPPROTO_UDP || p[9] == unix.IPPROTO_IPIP) })
		if port := int(got[22])<<8 | int(got[23]); got[9] != unix.IPPROTO_UDP || port != 4790 || string(got[12:16]) != string(addr("192.168.1.2").AsSlice()) {
			t.Errorf("%s: on the wire is\n%s", s.pod.link, hexDump(got))
		}
	}
	passing := b.ipip(inject.bytes())
	passing.src, passing.dst = addr("192.168.3.2"), node
	b.sendIn(passing)
	b.wire.receive(func(p []byte) bool { return p[0]>>4 == 4 && p[9] == unix.IPPROTO_IPIP })
}
