package probe

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

func testNode(name, outer, source string) Node {
	return Node{Name: name, UID: "uid-" + name, Outer: []netip.Addr{netip.MustParseAddr(outer)},
		Sources: []netip.Addr{netip.MustParseAddr(source)}, VTEP: plan.VTEPMAC("uid-" + name)}
}

// pair starts two probers that see one another; only a proves b.
type pair struct {
	fabric        *FakeFabric
	a, b          *Prober
	viewA, viewB  View
	cancel        context.CancelFunc
	nodeA, nodeB  Node
	allTransports []plan.Transport
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{fabric: NewFakeFabric(), nodeA: testNode("a", "192.168.0.10", "10.244.0.1"), nodeB: testNode("b", "192.168.1.10", "10.244.1.1")}
	p.allTransports = []plan.Transport{plan.IPIP, plan.VXLAN}
	common := View{ClusterID: "cluster", Transports: p.allTransports, VXLANPort: 4789, VXLANVNI: 4096}
	p.viewA, p.viewB = common, common
	p.viewA.Self, p.viewA.Nodes, p.viewA.Targets = p.nodeA, []Node{p.nodeB}, []string{"b"}
	p.viewB.Self, p.viewB.Nodes = p.nodeB, []Node{p.nodeA}
	p.a, p.b = New(p.fabric.Wire(), slog.New(slog.DiscardHandler)), New(p.fabric.Wire(), slog.New(slog.DiscardHandler))
	p.a.Set(p.viewA)
	p.b.Set(p.viewB)
	ctx, cancel := context.WithCancel(t.Context())
	p.cancel = cancel
	go p.a.Run(ctx)
	go p.b.Run(ctx)
	return p
}

// reachable returns what a knows of b by the transport: "", "yes" or "no".
func (p *pair) reachable(transport plan.Transport) string {
	for _, r := range p.a.Results() {
		if r.Transport == transport {
			if r.Reachable {
				return "yes"
			}
			return "no"
		}
	}
	return ""
}

func TestProbesEachTransportByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		p.fabric.Block(plan.IPIP, true)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := p.reachable(plan.VXLAN); got != "yes" {
			t.Errorf("vxlan: %q, want yes", got)
		}
		if got := p.reachable(plan.IPIP); got != "" {
			t.Errorf("ipip after 2 s: %q, want nothing known yet", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := p.reachable(plan.IPIP); got != "no" {
			t.Errorf("ipip after three misses: %q, want no", got)
		}
		r := p.a.Results()[0]
		if r.Transport != plan.IPIP || r.To != "b" || r.ToUID != "uid-b" || r.From != "a" || !strings.Contains(r.Reason, "protocol 4") {
			t.Errorf("the result does not say what was seen: %+v", r)
		}
		if len(p.b.Results()) != 0 {
			t.Error("b was not asked to prove anything, and did")
		}
	})
}

func TestHysteresis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if p.reachable(plan.IPIP) != "yes" {
			t.Fatal("not proven within two seconds")
		}
		p.drain()
		p.fabric.Block(plan.IPIP, true)
		start := time.Now()
		<-p.a.Changed()
		synctest.Wait()
		took := time.Since(start)
		if p.reachable(plan.IPIP) != "no" {
			t.Fatal("a change was told that is none")
		}
		if took < 2*time.Second || took > 9*time.Second {
			t.Errorf("it took %v to see the failure, want three misses after at most one long interval", took)
		}
		p.fabric.Block(plan.IPIP, false)
		start = time.Now()
		for p.reachable(plan.IPIP) != "yes" {
			<-p.a.Changed() // or what is wrong got its name
			if took := time.Since(start); took > 2*time.Second {
				t.Fatalf("one answer is enough to come back; it took %v", took)
			}
		}
	})
}

func TestTwoMissesChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		p.drain()
		for range 20 {
			p.fabric.Lose(plan.IPIP, 2)
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		if p.fabric.Losing(plan.IPIP) != 0 {
			t.Fatal("the fabric was not asked to carry anything")
		}
		select {
		case <-p.a.Changed():
			t.Errorf("two misses in a row flipped the result: %+v", p.a.Results())
		default:
		}
	})
}

// drain takes the flips that were told already.
func (p *pair) drain() {
	for {
		select {
		case <-p.a.Changed():
		default:
			return
		}
	}
}

func TestQuietWhenProven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		before := p.fabric.Carried(plan.IPIP)
		time.Sleep(60 * time.Second)
		synctest.Wait()
		if sent := (p.fabric.Carried(plan.IPIP) - before) / 2; sent < 10 || sent > 15 {
			t.Errorf("%d probes in a minute of a path that works, want about 12", sent)
		}
	})
}

func TestAnotherNodeOfTheSameNameIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		// a hears that b was made anew; b's agent does not know it yet.
		anew := p.nodeB
		anew.UID = "uid-b2"
		p.viewA.Nodes = []Node{anew}
		p.a.Set(p.viewA)
		if got := p.a.Results(); len(got) != 0 {
			t.Fatalf("results of the former node were kept: %v", got)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := p.reachable(plan.VXLAN); got != "no" {
			t.Errorf("the former node answered for the new one: %q", got)
		}
		p.nodeB.UID = "uid-b2"
		p.viewB.Self = p.nodeB
		p.b.Set(p.viewB)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := p.reachable(plan.VXLAN); got != "yes" {
			t.Errorf("the new node was not proven: %q", got)
		}
	})
}

func TestAnswersKnownNodesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		p.viewB.Nodes = nil
		p.b.Set(p.viewB)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := p.reachable(plan.VXLAN); got != "no" {
			t.Errorf("b answered somebody that it does not know: %q", got)
		}
		p.viewB.Nodes, p.viewB.ClusterID = []Node{p.nodeA}, "another cluster"
		p.b.Set(p.viewB)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := p.reachable(plan.VXLAN); got != "no" {
			t.Errorf("b answered a node of another cluster: %q", got)
		}
	})
}

func TestForgedAnswersProveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		p.fabric.Mangle(func(m []byte) []byte {
			if kind(m[4]) == answer {
				m[16] ^= 0xff // another nonce
			}
			return m
		})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := p.reachable(plan.IPIP); got != "no" {
			t.Errorf("an answer to no request of ours was believed: %q", got)
		}
	})
}

func TestSendErrorsAreReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		p.fabric.Fail(errors.New("network is unreachable"))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for _, r := range p.a.Results() {
			if r.Reachable || !strings.Contains(r.Reason, "network is unreachable") {
				t.Errorf("got %+v, want the reason of the send error", r)
			}
		}
		if len(p.a.Results()) != 2 {
			t.Errorf("got %d results, want 2", len(p.a.Results()))
		}
	})
}

func TestSeed(t *testing.T) {
	p := New(NewFakeFabric().Wire(), slog.New(slog.DiscardHandler))
	b := testNode("b", "192.168.1.10", "10.244.1.1")
	v := View{Self: testNode("a", "192.168.0.10", "10.244.0.1"), Nodes: []Node{b}, Targets: []string{"b"}, Transports: []plan.Transport{plan.IPIP, plan.VXLAN}}
	p.Set(v)
	published := []plan.Probe{
		{From: "a", To: "b", ToUID: "uid-b", Family: plan.IPv4, Transport: plan.IPIP, Reason: "filtered"},
		{From: "a", To: "b", ToUID: "uid-old", Family: plan.IPv4, Transport: plan.VXLAN, Reachable: true},
		{From: "c", To: "b", ToUID: "uid-b", Family: plan.IPv4, Transport: plan.VXLAN, Reachable: true},
		{From: "a", To: "gone", ToUID: "uid-gone", Family: plan.IPv4, Transport: plan.IPIP, Reachable: true},
	}
	p.Seed(published)
	got := p.Results()
	if len(got) != 1 || got[0] != published[0] {
		t.Errorf("got %v, want only the result of this node about this node", got)
	}
	p.Seed([]plan.Probe{{From: "a", To: "b", ToUID: "uid-b", Family: plan.IPv4, Transport: plan.VXLAN, Reachable: true}})
	if len(p.Results()) != 1 {
		t.Error("a second Seed did something")
	}
}

func TestPaths(t *testing.T) {
	dual := func(n Node, outer6, source6 string) Node {
		n.Outer = append(n.Outer, netip.MustParseAddr(outer6))
		n.Sources = append(n.Sources, netip.MustParseAddr(source6))
		return n
	}
	a4, b4 := testNode("a", "192.168.0.10", "10.244.0.1"), testNode("b", "192.168.1.10", "10.244.1.1")
	a46, b46 := dual(a4, "fd01::a", "fd00::1"), dual(b4, "fd01::b", "fd00::1:1")
	a6, b6 := a46, b46
	a6.Outer, b6.Outer = a46.Outer[1:], b46.Outer[1:]
	refusing := b4
	refusing.Refuses = map[plan.Transport]string{plan.IPIP: "no BPF"}
	both, ipipOnly := []plan.Transport{plan.IPIP, plan.VXLAN}, []plan.Transport{plan.IPIP}
	tests := []struct {
		name       string
		self, to   Node
		transports []plan.Transport
		want       string
	}{
		{"IPv4", a4, b4, both, "IPv4/ipip/192.168.1.10 IPv4/vxlan/192.168.1.10"},
		{"strict", a4, b4, ipipOnly, "IPv4/ipip/192.168.1.10"},
		{"dual: IPv6 by vxlan, over IPv4", a46, b46, both, "IPv4/ipip/192.168.1.10 IPv4/vxlan/192.168.1.10 IPv6/vxlan/192.168.1.10"},
		{"dual, ipip only: IPv6 by vxlan all the same", a46, b46, ipipOnly, "IPv4/ipip/192.168.1.10 IPv6/vxlan/192.168.1.10"},
		{"IPv6 fabric", a6, b6, both, "IPv4/vxlan/fd01::b IPv6/vxlan/fd01::b"},
		{"IPv6 fabric, ipip only", a6, b6, ipipOnly, "IPv4/vxlan/fd01::b IPv6/vxlan/fd01::b"},
		{"refused by the peer", a4, refusing, both, "IPv4/vxlan/192.168.1.10"},
		{"refused by this node", refusing, a4, both, "IPv4/vxlan/192.168.0.10"},
		{"no address yet", a4, Node{Name: "b", Outer: b4.Outer}, both, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := View{Self: tt.self, Transports: tt.transports}
			var got []string
			for _, p := range v.paths(tt.to) {
				got = append(got, string(plan.FamilyOf(p.InnerDst))+"/"+string(p.Transport)+"/"+p.OuterDst.String())
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}

// TestStandingStillIsNoMiss: answers that nobody read while this process stood still do
// not count as missing before there was time to read them; after that they do.
func TestStandingStillIsNoMiss(t *testing.T) {
	fabric := NewFakeFabric()
	a, b := testNode("a", "192.168.0.10", "10.244.0.1"), testNode("b", "192.168.1.10", "10.244.1.1")
	p := New(fabric.Wire(), slog.New(slog.DiscardHandler))
	p.Set(View{ClusterID: "cluster", Transports: []plan.Transport{plan.IPIP}, VXLANPort: 4789, VXLANVNI: 4096, Self: a, Nodes: []Node{b}, Targets: []string{"b"}})
	misses := func() int {
		for _, s := range p.states {
			return s.misses
		}
		return -1
	}
	now := time.Now()
	p.tick(now)
	now = now.Add(time.Minute)
	if p.tick(now); misses() != 0 {
		t.Errorf("%d misses at once after a minute's standstill", misses())
	}
	if p.tick(now.Add(readAgain)); misses() != 1 {
		t.Errorf("%d misses once there was time to read, want 1", misses())
	}
}

// TestAnswerThatIsThere: an answer that has arrived is taken before misses are counted.
func TestAnswerThatIsThere(t *testing.T) {
	fabric := NewFakeFabric()
	a, b := testNode("a", "192.168.0.10", "10.244.0.1"), testNode("b", "192.168.1.10", "10.244.1.1")
	view := View{ClusterID: "cluster", Transports: []plan.Transport{plan.IPIP}, VXLANPort: 4789, VXLANVNI: 4096}
	probers := map[string]*Prober{}
	for _, self := range []Node{a, b} {
		v := view
		v.Self, v.Nodes = self, []Node{a, b}
		if self.Name == "a" {
			v.Targets = []string{"b"}
		}
		p := New(fabric.Wire(), slog.New(slog.DiscardHandler))
		p.Set(v)
		p.listen()
		probers[self.Name] = p
	}
	probers["a"].tick(time.Now())
	probers["b"].drain() // answers
	probers["a"].drain()
	if got := probers["a"].Results(); len(got) != 1 || !got[0].Reachable {
		t.Errorf("results %+v, want b to be reachable", got)
	}
}
