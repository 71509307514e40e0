package probe

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

// fault returns what a says is wrong with the path to b by the transport.
func (p *pair) fault(transport plan.Transport) plan.Fault {
	for _, r := range p.a.Results() {
		if r.Transport == transport {
			return r.Fault
		}
	}
	return ""
}

// named waits until the fault has its name.
func (p *pair) named(t *testing.T, transport plan.Transport, want plan.Fault) {
	t.Helper()
	start := time.Now()
	for p.fault(transport) != want {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("the fault of %s is %q, want %q: %+v", transport, p.fault(transport), want, p.a.Results())
		}
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
	}
}

// TestFaultsGetTheirNames: each fault of a fabric gets its name within 5 s of
// the path's failure, and loses it when the fabric is sound again.
func TestFaultsGetTheirNames(t *testing.T) {
	pods := func(a netip.Addr) bool { return netip.MustParsePrefix("10.244.0.0/16").Contains(a) }
	bare := func(drop func(p Path) bool) func(*pair) {
		return func(p *pair) {
			p.fabric.Drop(func(path Path, _ []byte) bool { return path.Transport == plan.Direct && drop(path) })
		}
	}
	tests := []struct {
		name      string
		inject    func(*pair)
		transport plan.Transport
		want      plan.Fault
		says      string
	}{
		{"protocol 4", func(p *pair) { p.fabric.Block(plan.IPIP, true) }, plan.IPIP, plan.Protocol4Blocked, "does not arrive at 192.168.1.10"},
		{"vxlan", func(p *pair) { p.fabric.Block(plan.VXLAN, true) }, plan.VXLAN, plan.VXLANBlocked, "does not arrive at 192.168.1.10"},
		{"vxlan, answers only", func(p *pair) { p.fabric.BlockTo(p.nodeA.Sources[0], plan.VXLAN) }, plan.VXLAN, plan.VXLANBlocked, "answers inside UDP 4789 do not come back"},
		{"route missing", bare(func(path Path) bool { return path.InnerDst == netip.MustParseAddr("10.244.1.1") }), plan.Direct, plan.RouteMissing, "10.244.1.1"},
		{"pod CIDR not allowed", bare(func(path Path) bool { return pods(path.InnerSrc) }), plan.Direct, plan.PodCIDRNotAllowed, "from 10.244.0.1 do not"},
		{"both", bare(func(path Path) bool { return pods(path.InnerSrc) || pods(path.InnerDst) }), plan.Direct, plan.DirectBlocked, "neither from 10.244.0.1 nor at 10.244.1.1"},
		{"wrong next hop", func(p *pair) {
			p.fabric.Stray(func(path Path) netip.Addr {
				if pods(path.InnerDst) {
					return netip.MustParseAddr("10.244.2.1")
				}
				return netip.Addr{}
			})
			bare(func(path Path) bool { return pods(path.InnerDst) })(p)
		}, plan.Direct, plan.WrongNextHop, "arrive at node c (10.244.2.1)"},
		{"silent", func(p *pair) { p.fabric.Drop(func(Path, []byte) bool { return true }) }, plan.IPIP, plan.NodeSilent, "192.168.1.10"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newDirectPair(t, false)
				defer p.cancel()
				third := testNode("c", "192.168.2.10", "10.244.2.1")
				p.viewA.Transports = []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN}
				p.viewA.Nodes, p.viewB.Transports = append(p.viewA.Nodes, third), p.viewA.Transports
				p.a.Set(p.viewA)
				p.b.Set(p.viewB)
				p.named(t, tt.transport, "")
				time.Sleep(3 * time.Second)
				tt.inject(p)
				start := time.Now()
				for p.reachable(tt.transport) != "no" {
					if time.Since(start) > 20*time.Second {
						t.Fatalf("%s does not fail: %+v", tt.transport, p.a.Results())
					}
					time.Sleep(20 * time.Millisecond)
				}
				failed := time.Now()
				p.named(t, tt.transport, tt.want)
				if took := time.Since(failed); took > 5*time.Second {
					t.Errorf("it took %v until it had its name, after %v until it was seen", took, failed.Sub(start))
				}
				for _, r := range p.a.Results() {
					if r.Transport == tt.transport && !strings.Contains(r.Reason, tt.says) {
						t.Errorf("the sentence does not say %q: %s", tt.says, r.Reason)
					}
				}
				p.fabric.Block(tt.transport, false)
				p.fabric.BlockTo(p.nodeA.Sources[0], "")
				p.fabric.Drop(nil)
				p.fabric.Stray(nil)
				p.named(t, tt.transport, "")
			})
		})
	}
}

// statefulGroup drops what comes bare from pods' addresses, except for answers to
// what the other end has sent: as a security group does without a rule for them.
func statefulGroup(pods func(netip.Addr) bool) func(Path, []byte) bool {
	type connection struct{ from, to netip.AddrPort }
	known := map[connection]bool{}
	return func(p Path, _ []byte) bool {
		if p.Transport != plan.Direct {
			return false
		}
		from, to := netip.AddrPortFrom(p.InnerSrc, cmp.Or(p.SrcPort, Port)), netip.AddrPortFrom(p.InnerDst, Port)
		known[connection{from, to}] = true
		return pods(p.InnerSrc) && !known[connection{to, from}]
	}
}

// TestGroupThatKnowsConnections: two nodes that probe one another open no way for one
// another, neither for the probes nor for what tells their fault.
func TestGroupThatKnowsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.viewB.Targets = []string{"a"}
		p.b.Set(p.viewB)
		p.within(t, "yes", 3*time.Second)
		p.fabric.Drop(statefulGroup(netip.MustParsePrefix("10.244.0.0/16").Contains))
		p.within(t, "no", 3*time.Second)
		p.named(t, plan.Direct, plan.PodCIDRNotAllowed)
		for range 60 {
			time.Sleep(time.Second)
			synctest.Wait()
			if got := p.fault(plan.Direct); got != plan.PodCIDRNotAllowed || p.reachable(plan.Direct) != "no" {
				t.Fatalf("the fault of direct became %q: %+v", got, p.a.Results())
			}
		}
	})
}

// TestSourcePorts: in turn, from anywhere, and again only when all were used.
func TestSourcePorts(t *testing.T) {
	const all = lastSource - firstSource + 1
	var ports sourcePorts
	first := ports.take()
	used := map[uint16]bool{first: true}
	for range all - 1 {
		used[ports.take()] = true
	}
	for port := range used {
		if port < firstSource {
			t.Errorf("port %d is not a dynamic one", port)
		}
	}
	if again := ports.take(); len(used) != all || again != first {
		t.Errorf("%d of %d ports were used before the first came again, which is %d, not %d", len(used), all, first, again)
	}
}

// TestSizeOfThePath: packets that the fabric does not carry are found out, and
// how large those are that it does; and that it carries all again.
func TestSizeOfThePath(t *testing.T) {
	for _, transport := range []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN} {
		for _, limit := range []int{1400, 1499, 80} {
			t.Run(fmt.Sprint(transport, limit), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := newDirectPair(t, false)
					defer p.cancel()
					p.viewA.MTU = plan.MTUPolicy{Mode: plan.MTUPerRoute}
					p.viewA.Transports = []plan.Transport{transport}
					p.viewA.UplinkMTUs = map[netip.Addr]int{p.nodeB.Outer[0]: 1500}
					p.a.Set(p.viewA)
					p.within(t, "", time.Second)
					time.Sleep(30 * time.Second)
					synctest.Wait()
					if r := p.a.Results(); len(r) != 1 || !r[0].Reachable || r[0].PathMTU != 0 || r[0].Fault != "" {
						t.Fatalf("a sound path: %+v", r)
					}
					over := plan.Overhead(transport, plan.IPv4)
					wire := max(limit, 76+over)
					p.fabric.Drop(func(path Path, message []byte) bool { return path.headers()+len(message)+over > wire })
					p.named(t, transport, plan.MTUBlackHole)
					if r := p.a.Results()[0]; r.PathMTU != wire-over || !r.Reachable {
						t.Errorf("found %+v, want %d bytes", r, wire-over)
					}
					time.Sleep(5 * time.Minute)
					p.named(t, transport, plan.MTUBlackHole)
					p.fabric.Drop(nil)
					time.Sleep(40 * time.Second)
					synctest.Wait()
					if r := p.a.Results()[0]; r.PathMTU != 0 || r.Fault != "" {
						t.Errorf("the path is sound again: %+v", r)
					}
				})
			})
		}
	}
}

// TestLossIsNoSize: where small packets of a burst are lost too, nothing is
// concluded from the large ones, nor from those without their checksum.
func TestLossIsNoSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.viewA.Transports = []plan.Transport{plan.Direct, plan.VXLAN}
		p.viewA.MTU, p.viewA.UplinkMTUs = plan.MTUPolicy{Mode: plan.MTUPerRoute}, map[netip.Addr]int{p.nodeB.Outer[0]: 1500}
		p.a.Set(p.viewA)
		var dropped atomic.Int64
		p.fabric.Drop(func(_ Path, text []byte) bool {
			m, err := parseMessage(text)
			lose := err == nil && (m.leg == legSize || m.leg == legChecksum)
			if lose {
				dropped.Add(1)
			}
			return lose
		})
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if dropped.Load() == 0 || len(p.a.Results()) != 2 {
			t.Fatalf("%d dropped, results %v", dropped.Load(), p.a.Results())
		}
		for _, r := range p.a.Results() {
			if !r.Reachable || r.PathMTU != 0 || r.Fault != "" {
				t.Errorf("%+v", r)
			}
		}
	})
}

// TestLegsAreTriedAnew: what legs found of a fault that is over says nothing of
// the next, also where they go on because a router lies between the nodes.
func TestLegsAreTriedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.fabric.Routers(1)
		p.fabric.Drop(func(path Path, _ []byte) bool {
			return path.Transport == plan.Direct && path.InnerDst == p.nodeB.Sources[0]
		})
		p.named(t, plan.Direct, plan.RouteMissing)
		p.fabric.Drop(nil)
		p.named(t, plan.Direct, "")
		time.Sleep(time.Minute)
		p.fabric.Drop(func(path Path, _ []byte) bool {
			return path.Transport == plan.Direct && path.InnerSrc == p.nodeA.Sources[0]
		})
		for p.reachable(plan.Direct) != "no" {
			time.Sleep(10 * time.Millisecond)
		}
		for end := time.Now().Add(5 * time.Second); p.fault(plan.Direct) != plan.PodCIDRNotAllowed; {
			if f := p.fault(plan.Direct); f != "" || time.Now().After(end) {
				t.Fatalf("the next fault is %q", f)
			}
			time.Sleep(10 * time.Millisecond)
		}
		p.fabric.Drop(func(path Path, _ []byte) bool {
			return path.Transport == plan.Direct && path.InnerDst == p.nodeB.Sources[0]
		})
		changed := time.Now()
		p.named(t, plan.Direct, plan.RouteMissing)
		if took := time.Since(changed); took > 15*time.Second {
			t.Errorf("it took %v until a fault that became another had its name", took)
		}
	})
}

// TestDetour: bare packets that take more hops than those to the node itself have
// been elsewhere.
func TestDetour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.fabric.Routers(1)
		time.Sleep(20 * time.Second)
		p.named(t, plan.Direct, "")
		p.fabric.Detour(p.nodeB.Sources[0])
		p.named(t, plan.Direct, plan.WrongNextHop)
		if p.reachable(plan.Direct) != "yes" {
			t.Error("a detour counts as failing")
		}
	})
}

// TestEverythingFailsAtOnce: where all that a node probes stops to answer at the
// same moment, its results stay, and it raises an alarm; as soon as anybody
// answers, what fails is believed.
func TestEverythingFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		third := testNode("c", "192.168.2.10", "10.244.2.1")
		c := New(p.fabric.Wire(), slog.New(slog.DiscardHandler))
		viewC := p.viewB
		viewC.Self, viewC.Nodes = third, []Node{p.nodeA, p.nodeB}
		c.Set(viewC)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.Run(ctx)
		p.viewA.Nodes, p.viewA.Targets = []Node{p.nodeB, third}, []string{"b", "c"}
		p.a.Set(p.viewA)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		unreachable := func() (out []string) {
			for _, r := range p.a.Results() {
				if !r.Reachable {
					out = append(out, r.To+"/"+string(r.Transport))
				}
			}
			return out
		}
		if got := unreachable(); got != nil || len(p.a.Results()) != 4 {
			t.Fatalf("before anything is wrong: %v", got)
		}
		p.fabric.Drop(func(Path, []byte) bool { return true })
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := unreachable(); got != nil || p.a.Faults()[plan.ProberFault] == "" {
			t.Errorf("all fails: %v changed, and the alarm says %q", got, p.a.Faults())
		}
		p.fabric.Drop(func(path Path, _ []byte) bool { return path.OuterDst == p.nodeB.Outer[0] })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := unreachable(); fmt.Sprint(got) != "[b/direct b/ipip]" || len(p.a.Faults()) != 0 {
			t.Errorf("one node fails: %v, alarm %v", got, p.a.Faults())
		}
		// What failed before is no reason for no alarm, nor is a node that is new.
		blocked := func(path Path) bool { return path.OuterDst == p.nodeB.Outer[0] && path.Transport == plan.IPIP }
		p.fabric.Drop(func(path Path, _ []byte) bool { return blocked(path) })
		time.Sleep(20 * time.Second)
		p.fabric.Drop(func(Path, []byte) bool { return true })
		p.viewA.Nodes, p.viewA.Targets = append(p.viewA.Nodes, testNode("d", "192.168.3.10", "10.244.3.1")), []string{"b", "c", "d"}
		p.a.Set(p.viewA)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := unreachable(); fmt.Sprint(got) != "[b/ipip d/direct d/ipip]" || !strings.Contains(p.a.Faults()[plan.ProberFault], "(3 paths)") {
			t.Errorf("all fails where one path did before: %v, and the alarm says %q", got, p.a.Faults())
		}
	})
}

// TestPacketsAreFew counts what one path costs, sound and broken.
func TestPacketsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDirectPair(t, false)
		defer p.cancel()
		p.viewA.MTU, p.viewA.UplinkMTUs = plan.MTUPolicy{Mode: plan.MTUPerRoute}, map[netip.Addr]int{p.nodeB.Outer[0]: 1500}
		p.a.Set(p.viewA)
		var sent atomic.Int64
		count := func(lose func(Path) bool) int {
			p.fabric.Drop(func(path Path, _ []byte) bool {
				if path.OuterDst == p.nodeB.Outer[0] {
					sent.Add(1)
				}
				return lose(path)
			})
			time.Sleep(10 * time.Second)
			synctest.Wait()
			before := sent.Load()
			time.Sleep(100 * time.Second)
			synctest.Wait()
			return int(sent.Load() - before)
		}
		// Direct each second, ipip each 5 s, a large packet by each in 10 s.
		if n := count(func(Path) bool { return false }); n < 110 || n > 170 {
			t.Errorf("%d packets in 100 s by two sound paths, want about 140", n)
		}
		// Direct each 0.4 s, and four legs in 10 s.
		if n := count(func(path Path) bool { return path.Transport == plan.Direct && path.InnerDst != path.OuterDst }); n < 200 || n > 350 {
			t.Errorf("%d packets in 100 s where direct fails, want about 320", n)
		}
	})
}

// TestBadOffload: packets whose checksum is left to the interface are found not to
// arrive, and a path that fails altogether says nothing of them.
func TestBadOffload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		defer p.cancel()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if f := p.fault(plan.VXLAN); f != "" {
			t.Errorf("a sound path has the fault %s", f)
		}
		p.fabric.Drop(func(path Path, _ []byte) bool { return path.Transport == plan.VXLAN })
		time.Sleep(30 * time.Second)
		p.fabric.Drop(nil)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if f := p.fault(plan.VXLAN); f != "" {
			t.Errorf("after all was lost for a while, the path has the fault %s", f)
		}
		p.fabric.Drop(func(path Path, _ []byte) bool { return path.Offload })
		p.named(t, plan.VXLAN, plan.ChecksumOffload)
		if p.reachable(plan.VXLAN) != "yes" {
			t.Error("the path counts as failing")
		}
		p.fabric.Drop(nil)
		p.named(t, plan.VXLAN, "")
	})
}

// TestTheFirstLostPacketIsEnough: whichever request is the first that a fault takes, the
// path is looked at from then on, and not only when its next probe is due.
func TestTheFirstLostPacketIsEnough(t *testing.T) {
	for wait := time.Duration(0); wait < 10*time.Second; wait += 500 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			p := newDirectPair(t, false)
			defer p.cancel()
			p.viewA.MTU, p.viewA.UplinkMTUs = plan.MTUPolicy{Mode: plan.MTUPerRoute}, map[netip.Addr]int{p.nodeB.Outer[0]: 1500}
			p.a.Set(p.viewA)
			time.Sleep(20*time.Second + wait)
			var first atomic.Int64
			p.fabric.Drop(func(path Path, data []byte) bool {
				if path.Transport != plan.IPIP {
					return false
				}
				// What goes by direct is answered by ipip as well.
				if m, err := parseMessage(data); err == nil && m.kind == request && m.transport == plan.IPIP {
					first.CompareAndSwap(0, time.Now().UnixNano())
				}
				return true
			})
			p.named(t, plan.IPIP, plan.Protocol4Blocked)
			if took := time.Since(time.Unix(0, first.Load())); took > 5*time.Second {
				t.Errorf("blocked after %s, the fault was named %s after the first lost packet", wait, took)
			}
		})
	}
}
