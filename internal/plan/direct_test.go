package plan_test

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/plan"
)

// proof counts anew, by the words of docs/modes.md, whether anybody who counts has
// reached the peer by direct.
func proof(s plan.Snapshot, peer string) bool {
	silent, uids := map[string]bool{}, map[string]string{}
	for _, n := range s.Nodes {
		silent[n.Name], uids[n.Name] = n.Silent, n.UID
	}
	said := func(p plan.Probe) bool {
		return p.From != p.To && uids[p.From] != "" && p.ToUID == uids[p.To] && p.Transport == plan.Direct
	}
	reached := map[string]bool{} // others' packets do not come back to the rest
	for p := range plan.ProbesOf(s.Probes) {
		if said(p) && p.Reachable {
			reached[p.To] = true
		}
	}
	var selfGood, selfBad bool
	var good, live, bad int
	for p := range plan.ProbesOf(s.Probes) {
		if p.To != peer || !said(p) || p.From != s.Self && !p.Reachable && reached[peer] && !reached[p.From] {
			continue
		}
		switch own := p.From == s.Self; {
		case own && p.Reachable:
			selfGood = true
		case own:
			selfBad = true
		case !p.Reachable:
			bad++
		default:
			good++
			if !silent[p.From] {
				live++
			}
		}
	}
	return selfGood || !selfBad && good > 0 && (bad == 0 || live >= bad)
}

// TestDirectNeedsProof: nothing goes bare to where nobody has been by the
// fabric's routes, as long as a tunnel is not found failing; and what leaves
// untranslated is proven.
func TestDirectNeedsProof(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		state := plan.Compute(s)
		for _, r := range state.Routes {
			if r.Transport != plan.Direct || proof(s, r.Peer) && r.Dst.Contains(r.Gateway) {
				continue
			}
			for _, other := range s.Network.Transports {
				if other != plan.Direct && rank(s, r.Peer, other) <= 1 {
					t.Fatalf("%s goes bare to %s, unproven, although %s works: %s", r.Dst, r.Peer, other, r.Reason)
				}
			}
		}
		if len(state.Bare.Sources) > 0 && !(slices.Contains(s.Network.Transports, plan.Direct) && proof(s, s.Self)) {
			t.Fatalf("pods of %v leave bare, and nobody has come back to them", state.Bare.Sources)
		}
	})
}

// TestAnOutageMovesNothing: from whatever state the plan was in, when all
// probes begin to fail at once, each destination stays on its transport.
func TestAnOutageMovesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		before := plan.Compute(s)
		s.Now = before.Routes
		s.Probes = nil
		for _, n := range s.Nodes {
			for _, transport := range []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN} {
				s.Probes = append(s.Probes, plan.Publish(s.Self, plan.Probe{To: n.Name, ToUID: n.UID, Family: plan.IPv4, Transport: transport}))
			}
		}
		after := plan.Compute(s).Routes
		for _, was := range before.Routes {
			// Neighbours whose paths carried packets of another size may be one
			// destination now.
			now := plan.Route{}
			for _, r := range after {
				if r.Dst.Overlaps(was.Dst) && r.Dst.Bits() <= was.Dst.Bits() && (!now.Dst.IsValid() || r.Dst.Bits() > now.Dst.Bits()) {
					now = r
				}
			}
			if now.Peer != was.Peer || now.Transport != was.Transport {
				t.Fatalf("%s of %s moved from %s to %s of %s: %s", was.Dst, was.Peer, was.Transport, now.Transport, now.Peer, now.Reason)
			}
		}
	})
}

// TestDirectIsUsedWhereProven: a node with one range goes direct as soon as one
// other has reached it, and only it; and from none that nobody has reached, since
// the fabric drops what it does not lead back to.
func TestDirectIsUsedWhereProven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := plan.Snapshot{Self: "n0", Network: plan.Network{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
			NodeCIDR: true, Transports: []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN}}}
		proven := map[string]bool{}
		names := []string{"n0", "n1", "n2", "n3", "n4"}
		for i, name := range names {
			s.Nodes = append(s.Nodes, plan.Node{Name: name, UID: "u" + name, Ready: true,
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)})},
				NodeCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24)}})
			if proven[name] = rapid.Bool().Draw(t, "proven"); proven[name] {
				by := rapid.SampledFrom(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })).Draw(t, "by")
				s.Probes = append(s.Probes, plan.Publish(by, plan.Probe{To: name, ToUID: "u" + name, Family: plan.IPv4, Transport: plan.Direct, Reachable: true}))
			}
		}
		for _, r := range plan.Compute(s).Routes {
			if (r.Transport == plan.Direct) != (proven[r.Peer] && proven[s.Self]) {
				t.Fatalf("%s goes by %s, proven %t (the sender %t): %s", r.Dst, r.Transport, proven[r.Peer], proven[s.Self], r.Reason)
			}
		}
	})
}
