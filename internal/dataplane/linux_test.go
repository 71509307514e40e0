package dataplane

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/plan"
)

func TestPodsReachOneAnother(t *testing.T) {
	for _, tr := range []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN} {
		t.Run(string(tr), func(t *testing.T) {
			f := newDirectFabric(t, tr)
			f.setAll()
			a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
			f.ping(a.ns, b.v4.String())
			f.ping(a.ns, b.v6.String())
			f.ping(f.nodes[0].ns, b.v4.String())
			f.ping(f.nodes[0].ns, b.v6.String())
			f.ping(a.ns, f.nodes[1].source().String())
			f.ping(a.ns, outsideAddress)
			f.ping(a.ns, "2001:db8::1")
			f.ping(a.ns, f.nodes[1].address())
			f.ping(a.ns, f.nodes[0].address())
			f.checkSizes(a, b, tr)
			for _, to := range []string{b.v4.String(), b.v6.String()} {
				took, seen, err := f.transfer(a.ns, b.ns, net.JoinHostPort(to, "80"), 64<<20)
				if err != nil {
					t.Errorf("TCP to %s: %v", to, err)
				}
				if to == b.v4.String() && seen != a.v4.String() || to == b.v6.String() && seen != a.v6.String() {
					t.Errorf("pod sees %s, not the pod that sent", seen)
				}
				t.Logf("64 MiB over TCP to %s in %v", to, took)
			}
			f.checkTransportUsed(tr)
		})
	}
}

// checkSizes sends packets of all sizes around the limits, with and without
// permission to fragment.
func (f *fabric) checkSizes(a, b *testPod, tr plan.Transport) {
	f.t.Helper()
	mtu := plan.RouteMTU(f.network.MTU, tr, plan.IPv4, 1500)
	const headers = 20 + 8
	f.ping(a.ns, b.v4.String(), "-M do", fmt.Sprintf("-s %d", mtu-headers))
	f.ping(a.ns, b.v4.String(), "-M dont", fmt.Sprintf("-s %d", mtu-headers+1))
	f.ping(a.ns, b.v4.String(), "-M dont", "-s 6000") // in fragments
	f.ping(a.ns, b.v4.String(), "-s 0")
	f.ping(a.ns, b.v4.String(), "-R") // with an IP option
	// IPv6 is fragmented by senders only, once both have been told the MTU.
	f.run(a.ns, "ping -q -c 3 -i 0.05 -W 1 -s 4000 "+b.v6.String())
	f.ping(a.ns, b.v6.String(), "-s 4000")
	out, err := f.run(a.ns, fmt.Sprintf("ping -c 1 -W 1 -M do -s %d %s", mtu-headers+1, b.v4))
	if err == nil || !strings.Contains(out, fmt.Sprintf("mtu = %d", mtu)) && !strings.Contains(out, fmt.Sprintf("mtu=%d", mtu)) {
		f.t.Errorf("a packet too large for %s was not answered with the route's MTU %d: %v\n%s", tr, mtu, err, out)
	}
}

// checkTransportUsed fails the test unless packets of IPv4 went the way that
// was configured.
func (f *fabric) checkTransportUsed(tr plan.Transport) {
	f.t.Helper()
	c, err := f.nodes[0].dataplane.Counters()
	if err != nil {
		f.t.Fatal(err)
	}
	if used := c["ipip_sent"] > 1000; used != (tr == plan.IPIP) {
		f.t.Errorf("transport %s, and the counters say %v", tr, c)
	}
	for name, n := range c {
		if strings.Contains(name, "dropped") && n > 0 {
			f.t.Errorf("%s = %d", name, n)
		}
	}
}
