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
	Accepted        bool
	Reason, Message string
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
		if v := judgeAlone(p, podCIDRs); v.Accepted {
			rest = append(rest, p)
		} else {
			out[p.ID()] = v
		}
	}
	clashes, subnets := overlaps(rest), clashingSubnets(rest)
	stands := make([]bool, len(rest))
	first := map[netip.Prefix]*Pool{} // subnet -> the oldest pool that stands in it
	for i, p := range rest {
		v := Verdict{true, ReasonAccepted, "gives " + sizeOf(p)}
		if at := slices.IndexFunc(clashes[i], func(o int) bool { return stands[o] }); at >= 0 {
			o := rest[clashes[i][at]]
			v = Verdict{false, ReasonOverlap, fmt.Sprintf("spec.ips: has addresses in common with the older %s %s: take them out of one of the two", o.Kind, o.Name)}
		} else if o, s := standingIn(p, subnets, first); o != nil {
			v = Verdict{false, ReasonOverlap, fmt.Sprintf("spec.subnet: overlaps %s of the older %s %s: pools of one network state the same subnet", s, o.Kind, o.Name)}
		}
		stands[i] = v.Accepted
		for _, s := range p.Subnets {
			if v.Accepted && first[s] == nil {
				first[s] = p
			}
		}
		out[p.ID()] = v
	}
	return out
}

// Outside counts the addresses of a pool that lie in none of the ranges, which
// are those that nodes own: no node can give them.
func Outside(p *Pool, owned []netip.Prefix) uint64 {
	rest := Pool{Ranges: cidr.Subtract(p.Ranges, owned)}
	return rest.Size()
}

func judgeAlone(p *Pool, podCIDRs []netip.Prefix) Verdict {
	if p.Invalid != "" {
		return Verdict{false, ReasonInvalid, p.Invalid + ": correct it"}
	}
	for _, r := range p.Ranges {
		if !cidr.CoveredByAny(podCIDRs, r) {
			return Verdict{false, ReasonOutsidePodNetwork, fmt.Sprintf("spec.ips: %s is outside the pod network %v, so no node would route it: add its range to the ClusterNetwork's podCIDRs", r, podCIDRs)}
		}
	}
	return Verdict{Accepted: true}
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

// overlaps returns, for each pool, the older pools (lower positions) that have
// addresses in common with it. Prefixes either nest or share nothing, so one
// pass over them in order, with the stack of those around, finds all.
func overlaps(pools []*Pool) [][]int {
	type one struct {
		p  netip.Prefix
		at int
	}
	var all []one
	for i, p := range pools {
		for _, r := range p.Ranges {
			all = append(all, one{r, i})
		}
	}
	slices.SortStableFunc(all, func(a, b one) int { return a.p.Compare(b.p) })
	out := make([][]int, len(pools))
	var around []one
	for _, o := range all {
		for len(around) > 0 && !cidr.Covers(around[len(around)-1].p, o.p) {
			around = around[:len(around)-1]
		}
		for _, a := range around {
			if a.at != o.at {
				young, old := max(a.at, o.at), min(a.at, o.at)
				out[young] = append(out[young], old)
			}
		}
		around = append(around, o)
	}
	for i := range out {
		slices.Sort(out[i])
		out[i] = slices.Compact(out[i])
	}
	return out
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
