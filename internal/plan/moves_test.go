package plan_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

// stormy is a cluster of so many peers, all of which are reached by ipip, and by
// direct as the function says.
func stormy(nodes int, direct bool) plan.Snapshot {
	s := largeSnapshot(nodes)
	s.Network.Transports = []plan.Transport{plan.Direct, plan.IPIP}
	s.Probes = nil
	for i, n := range s.Nodes {
		from := s.Nodes[(i+1)%len(s.Nodes)].Name
		for _, t := range s.Network.Transports {
			s.Probes = append(s.Probes, plan.Publish(from, plan.Probe{To: n.Name, ToUID: n.UID, Family: plan.IPv4, Transport: t, Reachable: direct || t != plan.Direct, Reason: "no answer"}))
		}
	}
	return s
}

// passing is a node that makes passes.
type passing struct {
	self   int
	nodes  int
	now    time.Time
	moves  plan.Moves
	routes []plan.Route
}

// pass returns the peers whose transport has changed.
func (p *passing) pass(direct bool) []string {
	s := stormy(p.nodes, direct)
	s.Self, s.Now = s.Nodes[p.self].Name, p.routes
	s.HeldBack = p.moves.Hold(p.now, s)
	next := plan.Compute(s)
	p.moves.Note(p.now, s, next)
	var moved []string
	for i, r := range next.Routes {
		if p.routes != nil && r.Transport != p.routes[i].Transport {
			moved = append(moved, r.Peer)
		}
	}
	p.routes = next.Routes
	return moved
}

// TestManyReturnsAreSpread: all leave at once, and come back some at a time, the
// same ones first on every node.
func TestManyReturnsAreSpread(t *testing.T) {
	const nodes = 200
	var first [][]string
	for self := range 2 {
		p := &passing{self: self, nodes: nodes, now: time.Unix(1_000_000, 0)}
		p.pass(true)
		p.now = p.now.Add(time.Minute)
		if moved := p.pass(false); len(moved) != nodes-1 {
			t.Fatalf("%d of %d routes left what fails at once", len(moved), nodes-1)
		}
		began := p.now
		var returned []string
		for len(returned) < nodes-1 && p.now.Sub(began) < 10*time.Minute {
			moved := p.pass(true)
			if len(moved) > 10 {
				t.Fatalf("%d returned at the same time", len(moved))
			}
			if returned = append(returned, moved...); p.moves.Next().IsZero() && len(returned) < nodes-1 {
				t.Fatalf("%d wait, and nobody wakes them", nodes-1-len(returned))
			}
			p.now = p.now.Add(5 * time.Second)
		}
		if took := p.now.Sub(began); len(returned) != nodes-1 || took > 3*time.Minute || took < time.Minute {
			t.Errorf("%d of %d returned in %s", len(returned), nodes-1, took)
		}
		slices.Sort(returned[:50])
		first = append(first, returned[:50])
		p.now = p.now.Add(2 * time.Minute)
		if p.pass(true); !p.moves.Next().IsZero() {
			t.Error("there is still something to wait for")
		}
	}
	same := 0
	for _, peer := range first[0] {
		if slices.Contains(first[1], peer) {
			same++
		}
	}
	if same < 48 { // each leaves out itself
		t.Errorf("of the first 50 that return, %d are the same on two nodes", same)
	}
}

// TestFewReturnAtOnce: in a small cluster nothing waits for its turn.
func TestFewReturnAtOnce(t *testing.T) {
	p := &passing{nodes: 10, now: time.Unix(1_000_000, 0)}
	for i, direct := range []bool{true, false, true} {
		p.pass(direct)
		p.now = p.now.Add(3 * time.Second)
		for _, r := range p.routes {
			if (r.Transport == plan.Direct) != direct {
				t.Errorf("pass %d: %s goes by %s (%s)", i, r.Dst, r.Transport, r.Reason)
			}
		}
	}
}

// TestHeldBackMovesNothingThatFails: whatever is held back, a destination whose
// way in use is not found working goes where it would go otherwise.
func TestHeldBackMovesNothingThatFails(t *testing.T) {
	s := stormy(5, true)
	before := plan.Compute(s)
	probes := slices.Collect(plan.ProbesOf(s.Probes))
	for i := range probes {
		if p := &probes[i]; p.Transport == plan.Direct && p.To != s.Nodes[1].Name && p.To != s.Self {
			p.Reachable = false
		}
	}
	s.Probes = plan.PublishAll(probes)
	s.Now = before.Routes
	free := plan.Compute(s)
	s.HeldBack = map[plan.PeerWay]string{}
	for _, n := range s.Nodes[1:] {
		for _, t := range s.Network.Transports {
			s.HeldBack[plan.PeerWay{Peer: n.Name, Family: plan.IPv4, Transport: t}] = "held"
		}
	}
	if changes := plan.Diff(free, plan.Compute(s)); len(changes) != 0 {
		t.Errorf("%v", changes)
	}
	s.Now = free.Routes
	for i := range probes {
		probes[i].Reachable = true
	}
	s.Probes = plan.PublishAll(probes)
	for _, r := range plan.Compute(s).Routes {
		if held := r.Peer != s.Nodes[1].Name; held != (r.Transport == plan.IPIP && strings.Contains(r.Reason, "held")) {
			t.Errorf("%s goes by %s (%s)", r.Dst, r.Transport, r.Reason)
		}
	}
}
