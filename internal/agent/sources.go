package agent

import (
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// chooseSources keeps the node's own addresses while they are the node's, and
// chooses others that no pod has. plan.Compute makes the same choice where no
// pod is in the way.
func (n *node) chooseSources(own plan.Node, ranges []plan.Range, destinations []netip.Prefix) []netip.Addr {
	var sources []netip.Addr
	for _, f := range []plan.Family{plan.IPv4, plan.IPv6} {
		now := sendsFrom(own, f)
		if !slices.ContainsFunc(destinations, func(p netip.Prefix) bool { return p.Contains(now) }) || n.book.IsHeld(now) {
			now = n.freeSource(ranges, f)
		}
		if now.IsValid() {
			sources = append(sources, now)
		}
	}
	return sources
}

// freeSource returns the first address behind a range's base that no pod holds.
func (n *node) freeSource(ranges []plan.Range, f plan.Family) netip.Addr {
	const most = 4096 // addresses looked at in each range
	for _, r := range ranges {
		if plan.FamilyOf(r.CIDR.Addr()) != f {
			continue
		}
		a := plan.SourceOf(r.CIDR)
		for tried := 0; tried < most && r.CIDR.Contains(a); tried++ {
			if !n.book.IsHeld(a) && !slices.ContainsFunc(r.Except, func(p netip.Prefix) bool { return p.Contains(a) }) {
				return a
			}
			a = a.Next()
		}
	}
	return netip.Addr{}
}

// sendsFrom returns the address of a family that the node sends from now: the
// first that is not one of those for probes.
func sendsFrom(own plan.Node, f plan.Family) netip.Addr {
	ranges := slices.Concat(own.NodeCIDRs, own.Blocks)
	return plan.OfFamily(slices.DeleteFunc(slices.Clone(own.Sources), func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return !r.IsSingleIP() && r.Masked().Addr() == a })
	}), f)
}

// sendingFrom returns the first address of each family: the others are there to
// be probed.
func sendingFrom(sources []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, f := range []plan.Family{plan.IPv4, plan.IPv6} {
		if a := plan.OfFamily(sources, f); a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// probedAddresses returns where the node's further ranges are to be probed, for
// direct: their base addresses, which no pod gets. own.Sources are those that it
// sends from.
func (n *node) probedAddresses(network plan.Network, own plan.Node) []netip.Addr {
	if !slices.Contains(network.Transports, plan.Direct) {
		return nil
	}
	var out []netip.Addr
	for _, r := range slices.Concat(own.NodeCIDRs, own.Blocks) {
		base := r.Masked().Addr()
		if !r.IsSingleIP() && !slices.ContainsFunc(own.Sources, r.Contains) && !n.book.IsHeld(base) {
			out = append(out, base)
		}
	}
	return out
}

// holds returns those of the node's podCIDRs that are still in use although
// addresses come from blocks: others keep their routes to them. An address that
// a lease covers needs it no more; but all others must have heard of the lease.
func (n *node) holds(s plan.Snapshot, own plan.Node) []netip.Prefix {
	if s.Network.NodeCIDR {
		n.needed = nil
		return nil
	}
	if n.needed == nil {
		n.needed = map[netip.Prefix]time.Time{}
	}
	covered := slices.Clone(own.Blocks)
	for _, a := range own.Singles {
		covered = append(covered, netip.PrefixFrom(a, a.BitLen()))
	}
	uncovered := n.book.Outside(covered)
	for _, a := range sendingFrom(n.last.Sources) {
		if !slices.ContainsFunc(own.Blocks, func(b netip.Prefix) bool { return b.Contains(a) }) {
			uncovered = append(uncovered, a)
		}
	}
	now := time.Now()
	var out []netip.Prefix
	for _, p := range own.NodeCIDRs {
		since, known := n.needed[p]
		if slices.ContainsFunc(uncovered, p.Contains) || !known && cidr.CoveredByAny(n.last.Plan.CIDRs, p) {
			since, known = now, true
			n.needed[p] = now
		}
		if known && now.Sub(since) < n.config.timing.resync {
			out = append(out, p)
		}
	}
	return out
}
