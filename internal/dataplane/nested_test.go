package dataplane

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/plan"
)

// TestTunnelInPods: an overlay of the pods' own travels in ours, bulk TCP
// included: a packet that says it is a tunnel's cannot say so twice, so pods'
// interfaces do not hold back segmentation of their own tunnels' packets.
func TestTunnelInPods(t *testing.T) {
	for _, tr := range []plan.Transport{plan.IPIP, plan.VXLAN} {
		t.Run(string(tr), func(t *testing.T) {
			f := newFabric(t, 2, tr)
			f.setAll()
			a, b := f.nodes[0].addPod(1400), f.nodes[1].addPod(1400)
			for i, p := range []*testPod{a, b} {
				remote := []*testPod{b, a}[i].v4.String()
				f.sh(p.ns, "ip link add x type vxlan id 7 dstport 8472 local "+p.v4.String()+" remote "+remote+" dev eth0; "+
					"ip addr add 172.16.0."+[]string{"1", "2"}[i]+"/24 dev x; ip link set x up")
			}
			f.ping(a.ns, "172.16.0.2")
			f.ping(a.ns, "172.16.0.2", "-s 1300", "-M do")
			if _, _, err := f.transfer(a.ns, b.ns, "172.16.0.2:80", 16<<20); err != nil {
				t.Errorf("TCP: %v", err)
			}
		})
	}
}

// TestNestedProtocol4: a pod's own protocol-4 packet to another pod arrives as it
// was sent (RFC 2003, section 3.1), by each transport.
func TestNestedProtocol4(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	inner := packet4{ttl: 9, protocol: unix.IPPROTO_UDP, src: addr("172.16.0.1"), dst: addr("172.16.0.2"), payload: udp(1, 2, []byte("nested"))}
	send := &bench{fabric: f, t: t, node: f.nodes[0], pod: a, eth0: tap(t, a.ns, "eth0")}
	in := tap(t, b.ns, "eth0")
	for i := range 2 {
		outer := packet4{id: uint16(i), ttl: 64, fragment: dontFragment, protocol: unix.IPPROTO_IPIP, src: a.v4, dst: b.v4, payload: inner.bytes()}
		send.sendFromPod(outer)
		want := forwarded(forwarded(outer.bytes())) // two nodes forward it
		got := in.receive(func(p []byte) bool { return p[0]>>4 == 4 && p[9] == unix.IPPROTO_IPIP })
		if !bytes.Equal(got, want) {
			t.Errorf("by %s the pod got\n%s\nwant\n%s", f.network.Transports[0], hexDump(got), hexDump(want))
		}
		f.network.Transports[0], f.network.Transports[1] = f.network.Transports[1], f.network.Transports[0]
		f.setAll()
	}
}

// TestSuperPackets: where the uplink takes packets of up to 64 KiB and segments
// them itself, they are encapsulated whole.
func TestSuperPackets(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	on := "ethtool -K eth0 tso on gso on gro on"
	for i, n := range f.nodes {
		f.sh(n.ns, on)
		f.sh(f.router, "ethtool -K n"+[]string{"1", "2"}[i]+" tso on gso on gro on")
	}
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	for range 2 {
		large := tap(t, f.router, "n1")
		if _, _, err := f.transfer(a.ns, b.ns, b.v4.String()+":80", 32<<20); err != nil {
			t.Errorf("TCP by %s: %v", f.network.Transports[0], err)
		}
		large.receive(func(p []byte) bool { return len(p) > 3000 }) // or the test shows nothing
		f.network.Transports[0], f.network.Transports[1] = f.network.Transports[1], f.network.Transports[0]
		f.setAll()
	}
}
