package dataplane

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

// TestChanges: what Set may have to answer is told; what it did itself, and what
// becomes of pods, is not.
func TestChanges(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	n.addPod(1500)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var changes <-chan struct{}
	if err := n.ns.Do(func() error { changes = n.dataplane.Changes(ctx); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, cause := range []string{
		"ip link set eth0 mtu 1400", "ip addr add 192.0.2.9/32 dev eth0", "ip route add 198.51.100.0/24 via 192.168.1.1",
		"ip route del 10.244.2.0/24", "ip route del default", "ip link del rw-vxlan", "ip addr del 10.244.1.1/32 dev lo", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1", "ip link set eth0 down",
	} {
		drain(changes)
		f.sh(n.ns, cause)
		select {
		case <-changes:
		case <-time.After(3 * time.Second):
			t.Errorf("not told: %s", cause)
		}
	}
	// Without duplicate address detection, whose end would be told late.
	f.sh(n.ns, "sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip link set eth0 up mtu 1500; ip route replace default via 192.168.1.1; ip addr replace fd00:1::2/64 dev eth0 nodad; ip -6 route replace default via fd00:1::1")
	f.setAll()
	// Of pods and of routes that are right, nothing is told.
	drain(changes)
	quiet := func() {
		pod := n.addPod(1500)
		f.sh(n.ns, "ip link del "+pod.link+"; ip route replace 10.244.9.0/24 via 192.168.1.1 proto 112")
	}
	for range 3 {
		quiet()
	}
	select {
	case <-changes:
		t.Error("told of pods, or of our own routes")
	case <-time.After(300 * time.Millisecond):
	}
}

// TestStrictReversePathFilter: a filter that is strict at first is loosened and no
// more is said of it; one that somebody sets again is named.
func TestStrictReversePathFilter(t *testing.T) {
	f := newFabric(t, 1, plan.IPIP, plan.VXLAN)
	n := f.nodes[0]
	for i, cause := range []string{"", "eth0", "all", "default"} {
		if i == 0 {
			f.sh(n.ns, "sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
		} else {
			f.sh(n.ns, "sysctl -qw net.ipv4.conf.eth0.rp_filter=0 net.ipv4.conf."+cause+".rp_filter=1")
			n.dataplane.strict = map[string]time.Time{}
		}
		r, err := n.set()
		if err != nil {
			t.Fatal(err)
		}
		said := r.Faults[plan.ReversePathFilter]
		if named := cause == "eth0" || cause == "all"; (said != "") != named {
			t.Errorf("strict for %q: %q", cause, said)
		}
		if cause == "eth0" || cause == "all" {
			if got := f.sh(n.ns, "cat /proc/sys/net/ipv4/conf/eth0/rp_filter"); got != "2\n" {
				t.Errorf("strict for %q: the uplink has %s", cause, got)
			}
		}
		f.sh(n.ns, "sysctl -qw net.ipv4.conf.all.rp_filter=0")
	}
}

// TestAddressOfTheVXLANDeviceOnOldKernels: one that has no mark, as kernels before
// 5.18 leave it, is known as ours: it is not assigned again and again, and goes when
// it is not needed.
func TestAddressOfTheVXLANDeviceOnOldKernels(t *testing.T) {
	f := newFabric(t, 2, plan.VXLAN)
	n := f.nodes[0]
	f.setAll()
	// What Set does for a strict filter, but for the mark.
	f.sh(n.ns, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf."+VXLANDeviceName+".rp_filter=2; "+
		"ip addr add "+n.source().String()+"/32 dev "+VXLANDeviceName)
	if r, err := n.set(); err != nil || r.Changed {
		t.Errorf("Set again: changed %v, %v", r.Changed, err)
	}
	f.sh(n.ns, "sysctl -qw net.ipv4.conf.all.rp_filter=0")
	f.setAll()
	if out := f.sh(n.ns, "ip -4 addr show dev "+VXLANDeviceName); strings.Contains(out, "inet") {
		t.Errorf("it is left:\n%s", out)
	}
}

// TestRouteOfALimitedPath: a route takes no larger packets than its path is found
// to carry, and never larger ones than the uplink.
func TestRouteOfALimitedPath(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	for limit, want := range map[int]int{0: 1480, 1380: 1380, 9000: 1480} {
		state := plan.Compute(f.snapshot(n))
		for i := range state.Routes {
			state.Routes[i].MTU = limit
		}
		if err := n.ns.Do(func() error { _, err := n.dataplane.Set(t.Context(), state); return err }); err != nil {
			t.Fatal(err)
		}
		var o Observed
		if err := n.ns.Do(func() (err error) { o, err = n.dataplane.Observe(t.Context()); return err }); err != nil {
			t.Fatal(err)
		}
		for _, r := range o.Routes {
			if r.Dst.Addr().Is4() && r.MTU != want {
				t.Errorf("limit %d: %+v, want %d bytes", limit, r, want)
			}
		}
	}
}

// drain waits until nothing has been told for a while.
func drain(changes <-chan struct{}) {
	for {
		select {
		case <-changes:
		case <-time.After(100 * time.Millisecond):
			return
		}
	}
}

// TestIPv6Underlay: nodes that have IPv6 only reach one another's pods of both
// families by vxlan.
func TestIPv6Underlay(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.underlay6 = true
	for _, n := range f.nodes {
		f.sh(n.ns, "ip addr flush dev eth0 scope global to 192.168.0.0/16")
		if r, err := n.set(); err != nil || r.Refuses[plan.IPIP] == "" || r.Refuses[plan.VXLAN] != "" || !r.Local {
			t.Fatalf("Set: %v, %+v", err, r)
		}
	}
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	eventually(t, "fresh wires carry IPv6", func() bool { // duplicate address detection takes its time
		_, err := f.run(a.ns, "ping -q -c 1 -W 1 "+b.v6.String())
		return err == nil
	})
	f.ping(a.ns, b.v6.String(), "-M do", "-s", "1382") // 1430 with its headers: 1500 less 70
	if _, _, err := f.transfer(a.ns, b.ns, "["+b.v6.String()+"]:80", 1<<20); err != nil {
		t.Errorf("TCP: %v", err)
	}
	c, err := f.nodes[1].dataplane.Counters()
	if err != nil || c["vxlan_received"] == 0 || c["vxlan_dropped_foreign_source"] > 0 {
		t.Errorf("counters %v, %v", c, err)
	}
	f.forgeOverIPv6(a, b)
}

// forgeOverIPv6 has packets sent to the first node that its guard must drop, as
// TestVXLANGuard does over IPv4: by somebody who is no node, and by a node from
// addresses that are not its own.
func (f *fabric) forgeOverIPv6(a, b *testPod) {
	f.t.Helper()
	frame := func(src string) []byte {
		return vxlanFrame(4096, unix.ETH_P_IPV6, ipv6(src, a.v6.String(), unix.IPPROTO_UDP, udp(1, 2, nil)))
	}
	for _, c := range []struct {
		name, event string
		from        *netnstest.NS
		frame       []byte
	}{
		{"outer source is no node", "vxlan_dropped_not_a_node", f.router, frame(b.v6.String())},
		{"inner source is the node's own", "vxlan_dropped_foreign_source", f.nodes[1].ns, frame(a.v6.String())},
		{"inner source is outside", "vxlan_dropped_foreign_source", f.nodes[1].ns, frame("2001:db8::1")},
	} {
		count := func() uint64 {
			counters, err := f.nodes[0].dataplane.Counters()
			if err != nil {
				f.t.Fatal(err)
			}
			return counters[c.event]
		}
		before := count()
		err := c.from.Do(func() error {
			conn, err := net.Dial("udp", "[fd00:1::2]:4789")
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write(c.frame)
			return err
		})
		if err != nil {
			f.t.Fatal(err)
		}
		eventually(f.t, c.name+": is dropped and counted", func() bool { return count() == before+1 })
	}
	f.ping(b.ns, a.v6.String())
}
