package pool

import (
	"fmt"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// The reasons of a Verdict.
const (
	ReasonAccepted          = "Accepted"
	ReasonInvalid           = "Invalid"
	ReasonOverlap           = "Overlap"
	ReasonOutsidePodNetwork = "OutsidePodNetwork"
)

// Verdict is whether a pool serves at all.
type Verdict struct {
	Accepted bool
	// Underlay is true of an accepted pool whose addresses are not of the pod
	// network, but of one that nodes are on as well: no node routes them, and they
	// are for interfaces that another main plugin makes.
	Underlay        bool
	Reason, Message string
}

func refused(reason, format string, args ...any) Verdict {
	return Verdict{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Judge says of each pool whether it is accepted. What needs one object alone
// was found by whoever read it (Pool.Invalid). Of two pools that have addresses
// in common, the older one stands; a subnet may be stated by many pools, but may
// not overlap another one. Agents and the controller judge alike, so nobody
// waits for anybody's verdict.
func Judge(pools []*Pool, podCIDRs []netip.Prefix) map[ID]Verdict {
	out := make(map[ID]Verdict, len(pools))
	byAge := slices.SortedFunc(slices.Values(pools), older)
	var rest []*Pool
	for _, p := range byAge {
		v := judgeAlone(p, podCIDRs)
		if out[p.ID()] = v; v.Accepted {
			rest = append(rest, p)
		}
	}
	stated, subnets := newGround(rest), clashingSubnets(rest)
	first := map[netip.Prefix]*Pool{} // subnet -> the oldest pool that stands in it
	for i, p := range rest {
		v := out[p.ID()]
		if at := stated.taken(p.Ranges); at >= 0 {
			o := rest[at]
			v = refused(ReasonOverlap, "%s: has addresses in common with the older %s %s: take them out of one of the two", p.rangesField(), o.Kind, o.Name)
		} else if o, s := standingIn(p, subnets, first); o != nil {
			v = refused(ReasonOverlap, "%s: overlaps %s of the older %s %s: pools of one network state the same subnet", p.subnetsField(), s, o.Kind, o.Name)
		}
		if v.Accepted {
			stated.take(p.Ranges, i)
		}
		for _, s := range p.Subnets {
			if v.Accepted && first[s] == nil {
				first[s] = p
			}
		}
		out[p.ID()] = v
	}
	return out
}

// Low reports whether no more than a tenth of what a pool may give is free, or one
// address: early enough for somebody to enlarge it.
func Low[T int64 | uint64](givable, used T) bool {
	spare := max(givable/10, 1)
	if givable <= 1 { // there is no less than none
		spare = 0
	}
	return used >= givable-spare
}

// Outside counts the addresses of a pool that lie in none of the ranges, which
// are as cidr.Aggregate returns them.
func Outside(p *Pool, ranges []netip.Prefix) uint64 {
	var rest Pool
	for _, r := range p.Ranges {
		// Few of the ranges concern a pool; they are one or more for each node.
		rest.Ranges = append(rest.Ranges, cidr.Subtract([]netip.Prefix{r}, cidr.Overlapping(ranges, r))...)
	}
	return rest.Size()
}

func judgeAlone(p *Pool, podCIDRs []netip.Prefix) Verdict {
	if p.Invalid != "" {
		return refused(ReasonInvalid, "%s: correct it", p.Invalid)
	}
	v := Verdict{Accepted: true, Reason: ReasonAccepted, Message: "gives " + sizeOf(p)}
	if p.underlay(podCIDRs) {
		v.Underlay = true
		v.Message += fmt.Sprintf(", outside the pod network %v: to interfaces that another main plugin makes (macvlan, ptp), and no node routes them", podCIDRs)
		return v
	}
	for _, r := range p.Ranges {
		if !cidr.CoveredByAny(podCIDRs, r) {
			return refused(ReasonOutsidePodNetwork, "%s: %s is outside the pod network %v, and others of the pool are not, so no node would route it: add its range to the ClusterNetwork's podCIDRs, or make a pool of its own of it", p.rangesField(), r, podCIDRs)
		}
	}
	return v
}

// underlay reports whether none of the pool's addresses is of the pod network.
func (p *Pool) underlay(podCIDRs []netip.Prefix) bool {
	inside := func(r netip.Prefix) bool { return slices.ContainsFunc(podCIDRs, r.Overlaps) }
	return len(podCIDRs) > 0 && len(p.Ranges) > 0 && !slices.ContainsFunc(p.Ranges, inside)
}

func sizeOf(p *Pool) string {
	if n := p.Size(); n != 1 {
		return fmt.Sprintf("%d addresses", n)
	}
	return "1 address"
}

// standingIn returns an older pool that stands in a subnet which overlaps one
// of p's and is not the same.
func standingIn(p *Pool, subnets map[netip.Prefix][]netip.Prefix, first map[netip.Prefix]*Pool) (*Pool, netip.Prefix) {
	for _, own := range p.Subnets {
		for _, other := range subnets[own] {
			if o := first[other]; o != nil {
				return o, other
			}
		}
	}
	return nil, netip.Prefix{}
}

// ground is all that pools state, and which of it is taken. Prefixes either nest or
// share nothing: what a range has addresses in common with lies on the way up from
// it, or below it.
type ground struct {
	at    map[netip.Prefix]int // range -> its position
	plots []plot
}

// plot is one range that pools state. Pools are named by their positions; -1 is none.
type plot struct {
	around int // the position of the narrowest range around it; -1 if there is none
	taken  int // the pool that has it
	within int // the oldest pool that has something narrower inside it
}

func newGround(pools []*Pool) *ground {
	var all []netip.Prefix
	for _, p := range pools {
		all = append(all, p.Ranges...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	all = slices.Compact(all)
	g := &ground{at: make(map[netip.Prefix]int, len(all)), plots: make([]plot, len(all))}
	around := -1
	for i, r := range all {
		for around >= 0 && !cidr.Covers(all[around], r) {
			around = g.plots[around].around
		}
		g.at[r], g.plots[i] = i, plot{around: around, taken: -1, within: -1}
		around = i
	}
	return g
}

// taken returns the oldest pool that has some of the ranges; -1 if none has.
func (g *ground) taken(ranges []netip.Prefix) int {
	oldest := -1
	consider := func(pool int) {
		if pool >= 0 && (oldest < 0 || pool < oldest) {
			oldest = pool
		}
	}
	for _, r := range ranges {
		i := g.at[r]
		consider(g.plots[i].within)
		for ; i >= 0; i = g.plots[i].around {
			consider(g.plots[i].taken)
		}
	}
	return oldest
}

// take gives ranges, of which nobody has any, to a pool that is younger than all that
// have some.
func (g *ground) take(ranges []netip.Prefix, pool int) {
	for _, r := range ranges {
		i := g.at[r]
		g.plots[i].taken = pool
		for i = g.plots[i].around; i >= 0 && g.plots[i].within < 0; i = g.plots[i].around {
			g.plots[i].within = pool
		}
	}
}

// clashingSubnets maps each subnet -> the others that overlap it.
func clashingSubnets(pools []*Pool) map[netip.Prefix][]netip.Prefix {
	var all []netip.Prefix
	for _, p := range pools {
		all = append(all, p.Subnets...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	out := map[netip.Prefix][]netip.Prefix{}
	var around []netip.Prefix
	for _, s := range slices.Compact(all) {
		for len(around) > 0 && !cidr.Covers(around[len(around)-1], s) {
			around = around[:len(around)-1]
		}
		for _, a := range around {
			out[a], out[s] = append(out[a], s), append(out[s], a)
		}
		around = append(around, s)
	}
	return out
}
