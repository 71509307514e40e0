package plan_test

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/plan"
)

// TestWhatTheFabricMayLeadElsewhere: packets to an address that the fabric has a route
// of its own to, or of a node that owns one, are never left to the fabric, wherever the
// address is and whatever is proven; the address is its owner's all the same.
func TestWhatTheFabricMayLeadElsewhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		state := plan.Compute(s)
		for _, a := range s.Network.Diverted {
			var longest plan.Route
			for _, r := range state.Routes {
				if r.Dst.Contains(a) && (!longest.Dst.IsValid() || r.Dst.Bits() > longest.Dst.Bits()) {
					longest = r
				}
			}
			if longest.Transport == plan.Direct && rangeOwner(s, a) != "" {
				t.Fatalf("%s, which the fabric may lead elsewhere, is reached by direct: %+v", a, longest)
			}
			without := s
			without.Network.Diverted = nil
			if owner, before := holder(state, a), holder(plan.Compute(without), a); owner != before {
				t.Fatalf("%s leads to %q instead of %q once the fabric may lead it elsewhere", a, owner, before)
			}
		}
		if !hasDiverted(s) {
			return
		}
		for _, a := range s.Network.Diverted {
			if rangeOwner(s, a) == s.Self && slices.ContainsFunc(state.Bare.Sources, func(p netip.Prefix) bool { return p.Contains(a) }) {
				t.Fatalf("the fabric may lead %s elsewhere, and %v leave the node bare", a, state.Bare.Sources)
			}
		}
		for _, r := range state.Routes {
			if r.Transport == plan.Direct {
				t.Fatalf("the node has an address that the fabric may lead elsewhere, and sends to %s by direct", r.Dst)
			}
		}
	})
}

// hasDiverted reports whether the node that is planned for owns an address that the
// fabric may lead elsewhere.
func hasDiverted(s plan.Snapshot) bool {
	return slices.ContainsFunc(s.Network.Diverted, func(a netip.Addr) bool { return rangeOwner(s, a) == s.Self })
}

// rangeOwner returns the node that has the address in a range of several; "" if none
// has, or the address is a single one's, or nobody's.
func rangeOwner(s plan.Snapshot, a netip.Addr) string {
	owner, bits := "", -1
	for name, own := range plan.DestinationsByNode(s.Network, s.Nodes) {
		for _, p := range own {
			if p.Contains(a) && p.Bits() > bits {
				owner, bits = name, p.Bits()
			}
		}
	}
	single := singleHolders(s.Nodes)[a]
	shared := slices.ContainsFunc(s.Network.Shared, func(p netip.Prefix) bool { return p.Contains(a) })
	switch {
	case slices.Contains(s.Network.Resting, a), bits == 32, single != "" && single != owner, shared && single == "":
		return ""
	}
	return owner
}
