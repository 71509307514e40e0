package dataplane

import (
	"testing"

	"ropeway.dev/ropeway/internal/plan"
)

// TestTunnelInPods: an overlay of the pods' own travels in ours.
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
			// A packet that says it is a tunnel's cannot say so twice (the kernel
			// would drop segments of it), so pods' interfaces must not hold back
			// segmentation of their own tunnels' packets.
			for _, p := range []*testPod{a, b} {
				f.sh(p.ns, "ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off")
			}
			f.ping(a.ns, "172.16.0.2")
			f.ping(a.ns, "172.16.0.2", "-s 1300", "-M do")
			if _, _, err := f.transfer(a.ns, b.ns, "172.16.0.2:80", 16<<20); err != nil {
				t.Errorf("TCP: %v", err)
			}
		})
	}
}
