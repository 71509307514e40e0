package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

// newDirectPair is newPair where bare packets are allowed too.
func newDirectPair(t *testing.T, blocked bool) *pair {
	p := newPair(t)
	p.fabric.Block(plan.Direct, blocked)
	p.viewA.Transports = []plan.Transport{plan.Direct, plan.IPIP}
	p.viewB.Transports = p.viewA.Transports
	p.b.Set(p.viewB)
	p.a.Set(p.viewA)
	return p
}

// within fails the test unless direct's result becomes that in time; it returns
// how long it took.
func (p *pair) within(t *testing.T, want string, most time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	for p.reachable(plan.Direct) != want {
		if time.Since(start) > most {
			t.Fatalf("direct is %q after %v, want %q", p.reachable(plan.Direct), most, want)
		}
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(start)
}

// TestDirectFollowsTheFabric: a route that appears is used within a second, one
// that is gone is left within three, and one that comes back is trusted only
// after several answers.
func TestDirectFollowsTheFabric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, true)
		defer p.cancel()
		p.within(t, "no", 3*time.Second)
		if r := p.a.Results()[0]; r.Transport != plan.Direct || !strings.Contains(r.Reason, "route for 10.244.1.1 to 192.168.1.10") {
			t.Errorf("the result does not say what to look at: %+v", r)
		}
		p.fabric.Block(plan.Direct, false)
		p.within(t, "yes", time.Second)
		for range 20 {
			time.Sleep(777 * time.Millisecond)
			p.fabric.Block(plan.Direct, true)
			p.within(t, "no", 2900*time.Millisecond)
			p.fabric.Block(plan.Direct, false)
			if took := p.within(t, "yes", 3*time.Second); took < 500*time.Millisecond {
				t.Errorf("trusted again after %v: one answer was enough", took)
			}
		}
	})
}

// TestDirectThatComesAndGoes is not trusted again.
func TestDirectThatComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.within(t, "yes", time.Second)
		p.fabric.Block(plan.Direct, true)
		p.within(t, "no", 3*time.Second)
		for range 30 {
			p.fabric.Block(plan.Direct, false)
			carried := p.fabric.Carried(plan.Direct)
			for p.fabric.Carried(plan.Direct) < carried+2 { // a request and its answer
				time.Sleep(10 * time.Millisecond)
			}
			p.fabric.Block(plan.Direct, true)
			time.Sleep(1200 * time.Millisecond)
			synctest.Wait()
			if p.reachable(plan.Direct) != "no" {
				t.Fatal("a path that loses two of three probes is trusted")
			}
		}
	})
}

// TestDirectIsProvenOneWay: the prober's own range may have no route (a full
// table), and what it proves is the other's.
func TestDirectIsProvenOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.fabric.BlockTo(p.nodeA.Sources[0], plan.Direct)
		p.within(t, "yes", time.Second)
		p.fabric.BlockTo(p.nodeB.Sources[0], plan.Direct)
		p.within(t, "no", 3*time.Second)
	})
}

// TestDirectAloneIsProvenOneWay: also where no tunnel is allowed, by plain UDP
// between the nodes' own addresses.
func TestDirectAloneIsProvenOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.viewA.Transports = []plan.Transport{plan.Direct}
		p.viewB.Transports = p.viewA.Transports
		p.a.Set(p.viewA)
		p.b.Set(p.viewB)
		p.fabric.BlockTo(p.nodeA.Sources[0], plan.Direct)
		p.within(t, "yes", 3*time.Second)
		if n := p.fabric.Carried(plan.IPIP) + p.fabric.Carried(plan.VXLAN); n > 4 { // from before
			t.Errorf("%d packets in tunnels", n)
		}
	})
}

// TestEachAddressIsProvenAlone: a route of the fabric leads to each range of a
// node, and what is known of one says nothing of the others.
func TestEachAddressIsProvenAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		second := netip.MustParseAddr("10.244.9.0")
		p.nodeB.Sources = append(p.nodeB.Sources, second)
		p.viewB.Self = p.nodeB
		p.viewA.Nodes = []Node{p.nodeB}
		p.b.Set(p.viewB)
		p.a.Set(p.viewA)
		known := func() string {
			var out []string
			for _, r := range p.a.Results() {
				if r.Transport == plan.Direct {
					out = append(out, fmt.Sprint(r.Address, r.Reachable))
				}
			}
			return strings.Join(out, " ")
		}
		becomes := func(want string) {
			t.Helper()
			for start := time.Now(); known() != want; synctest.Wait() {
				if time.Since(start) > 4*time.Second {
					t.Fatalf("%s, want %s", known(), want)
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		becomes("10.244.1.1 true 10.244.9.0 true")
		p.fabric.BlockTo(second, plan.Direct)
		becomes("10.244.1.1 true 10.244.9.0 false")
		p.fabric.BlockTo(second, "")
		becomes("10.244.1.1 true 10.244.9.0 true")
	})
}

// TestDirectOfAnotherAddress: what is known of one address of a node says
// nothing of another.
func TestDirectOfAnotherAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.within(t, "yes", time.Second)
		moved := p.nodeB
		moved.Sources = []netip.Addr{netip.MustParseAddr("10.244.9.1")}
		p.viewA.Nodes = []Node{moved}
		p.a.Set(p.viewA)
		if got := p.reachable(plan.Direct); got != "" {
			t.Errorf("the new address is %q before it was tried", got)
		}
	})
}

// TestWays: the paths that are probed are those that the plan may choose.
func TestWays(t *testing.T) {
	six := func(n Node, outer bool) Node {
		n.Sources = append(slices.Clone(n.Sources), netip.MustParseAddr("fd00:10:244::1"))
		if outer {
			n.Outer = append(slices.Clone(n.Outer), netip.MustParseAddr("2001:db8::1"))
		}
		return n
	}
	a, b := testNode("a", "192.168.0.10", "10.244.0.1"), testNode("b", "192.168.1.10", "10.244.1.1")
	tests := []struct {
		name       string
		transports []plan.Transport
		a, b       Node
		want       string
	}{
		{"direct only", []plan.Transport{plan.Direct}, a, b, "direct/IPv4"},
		{"direct with ipip", []plan.Transport{plan.Direct, plan.IPIP}, a, b, "direct/IPv4 ipip/IPv4"},
		{"IPv6 of one fabric address", []plan.Transport{plan.Direct, plan.IPIP}, six(a, true), six(b, false), "direct/IPv4 ipip/IPv4 vxlan/IPv6"},
		{"IPv6 of both", []plan.Transport{plan.Direct, plan.IPIP}, six(a, true), six(b, true), "direct/IPv4 ipip/IPv4 direct/IPv6 vxlan/IPv6"},
		{"direct only, IPv6 of both", []plan.Transport{plan.Direct}, six(a, true), six(b, true), "direct/IPv4 direct/IPv6"},
		{"direct only, IPv6 of none", []plan.Transport{plan.Direct}, six(a, false), six(b, false), "direct/IPv4 vxlan/IPv6"},
		{"all", []plan.Transport{plan.VXLAN, plan.Direct, plan.IPIP}, six(a, true), six(b, true), "vxlan/IPv4 direct/IPv4 ipip/IPv4 vxlan/IPv6 direct/IPv6"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range (View{Self: tt.a, Nodes: []Node{tt.b}, Transports: tt.transports}).paths(tt.b) {
				got = append(got, string(p.Transport)+"/"+string(plan.FamilyOf(p.InnerDst)))
				if p.Transport == plan.Direct && plan.FamilyOf(p.OuterDst) != plan.FamilyOf(p.InnerDst) {
					t.Errorf("a bare packet to %s has the next hop %s", p.InnerDst, p.OuterDst)
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("%s, want %s", s, tt.want)
			}
		})
	}
}
