package plan

import (
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// claim is a range that a node owns: a lease, or its node CIDR.
type claim struct {
	node  int // position in cluster.nodes: the lower, the older
	dst   netip.Prefix
	lease bool
	// contested is true if it overlaps a claim of another node.
	contested bool
}

// Range is a part of the pod network that a node may give addresses from.
type Range struct {
	CIDR netip.Prefix
	// NodeCIDR is true for the node's spec.podCIDRs, false for a leased block.
	NodeCIDR bool
	// Except are the parts that belong to other nodes.
	Except []netip.Prefix
}

// RangesOf returns where the node may give addresses from, in the order that
// they are to be used. A range that other nodes hold parts of says so: two
// nodes never may give the same address, whatever the objects say.
func RangesOf(network Network, node Node, all []Node) []Range {
	ranges, _ := Owned(network, node, all)
	return ranges
}

// Owned is RangesOf, and the destinations by which others reach the node: its
// blocks, and its podCIDRs if the network's addresses come from these, without
// what lies outside the pod network or is another node's, and aggregated. The node
// is looked up in all by its name.
func Owned(network Network, node Node, all []Node) (ranges []Range, destinations []netip.Prefix) {
	c := check("", network, withNode(node, all))
	i, known := c.index[node.Name]
	if !known {
		return nil, nil
	}
	for _, own := range c.claims[i] {
		if own.lease == network.NodeCIDR {
			continue // from before the source of addresses was changed
		}
		r := Range{CIDR: own.dst, NodeCIDR: !own.lease}
		for _, other := range c.contested {
			if other.node != i && other.lease && other.dst.Overlaps(own.dst) {
				r.Except = append(r.Except, other.dst)
			}
		}
		r.Except = append(r.Except, c.keptFrom(i, own.dst)...)
		ranges = append(ranges, r)
	}
	return ranges, c.destinations(i)
}

func withNode(node Node, all []Node) []Node {
	if slices.ContainsFunc(all, func(n Node) bool { return n.Name == node.Name }) {
		return all
	}
	return append(slices.Clone(all), node)
}

// collectClaims fills c.claims and c.contested.
func (c *cluster) collectClaims() {
	var nodeCIDRs, blocks []claim
	for i, n := range c.nodes {
		if c.net.NodeCIDR {
			nodeCIDRs = append(nodeCIDRs, c.usableClaims(i, n.NodeCIDRs, false)...)
			if len(n.NodeCIDRs) == 0 {
				c.problem(n.Name, ReasonNoNodeCIDR, "node %s has no podCIDR, so its pods get no addresses: start kube-controller-manager with --allocate-node-cidrs=true, or set ClusterNetwork's addressSource to Blocks", n.Name)
			}
		} else if len(n.Holds) > 0 {
			nodeCIDRs = append(nodeCIDRs, c.usableClaims(i, n.held(), false)...)
		}
		blocks = append(blocks, c.usableClaims(i, n.Blocks, true)...)
	}
	all := append(c.settleNodeCIDRs(nodeCIDRs), blocks...)
	all = c.settleBlocks(all)
	c.claims = make([][]claim, len(c.nodes))
	for _, cl := range all {
		c.claims[cl.node] = append(c.claims[cl.node], cl)
		if cl.contested {
			c.contested = append(c.contested, cl)
		}
	}
	for _, own := range c.claims {
		slices.SortStableFunc(own, nodeCIDRFirst)
	}
}

// held returns those of the node's podCIDRs that it says are in use, without what its
// blocks make up: that is the node's as blocks, and a node's word does not tell these
// from a podCIDR.
func (n *Node) held() []netip.Prefix {
	var blocks []netip.Prefix
	for _, b := range n.Blocks {
		if b = cidr.Plain(b); b.IsValid() {
			blocks = append(blocks, b)
		}
	}
	blocks = cidr.Aggregate(blocks)
	return slices.DeleteFunc(slices.Clone(n.NodeCIDRs), func(p netip.Prefix) bool {
		return !p.IsValid() || !cidr.CoveredByAny(n.Holds, p.Masked()) || cidr.CoveredByAny(blocks, p.Masked())
	})
}

func nodeCIDRFirst(a, b claim) int {
	switch {
	case a.lease == b.lease:
		return a.dst.Compare(b.dst)
	case b.lease:
		return -1
	default:
		return 1
	}
}

// usableClaims returns those of one node's ranges that lie in the pod network.
func (c *cluster) usableClaims(node int, ranges []netip.Prefix, lease bool) []claim {
	name, what := c.nodes[node].Name, "podCIDR"
	if lease {
		what = "block"
	}
	var out []claim
	for _, r := range ranges {
		p := cidr.Plain(r)
		switch {
		case !p.IsValid():
			c.problem(name, ReasonInvalidCIDR, "node %s has the %s %s, which is no CIDR; it is not used", name, what, r)
		case len(c.net.PodCIDRs) == 0: // one problem, not one per node
		case !cidr.CoveredByAny(c.net.PodCIDRs, p):
			c.problem(name, ReasonOutsidePodNetwork, "node %s has the %s %s outside the pod network %s; it is not used: add its range to ClusterNetwork's podCIDRs, or give the node another (kube-controller-manager's --cluster-cidr)",
				name, what, p, join(c.net.PodCIDRs))
		default:
			out = append(out, claim{node: node, dst: p, lease: lease})
		}
	}
	return out
}

// settleNodeCIDRs leaves out the node CIDRs that overlap an older node's.
func (c *cluster) settleNodeCIDRs(claims []claim) []claim {
	markContested(claims)
	var kept, disputed []claim
	for _, cl := range claims {
		if cl.contested {
			cl.contested = false
			disputed = append(disputed, cl)
		} else {
			kept = append(kept, cl)
		}
	}
	slices.SortStableFunc(disputed, func(a, b claim) int { return a.node - b.node })
	var won []claim
	for _, cl := range disputed {
		older := slices.IndexFunc(won, func(o claim) bool { return o.node != cl.node && o.dst.Overlaps(cl.dst) })
		if older < 0 {
			won = append(won, cl)
			continue
		}
		name, holder := c.nodes[cl.node].Name, won[older]
		c.problem(name, ReasonOverlap, "node %s has the podCIDR %s, which overlaps %s of the older node %s; it is not used: delete the Node object of %s and let it register again for another range",
			name, cl.dst, holder.dst, c.nodes[holder.node].Name, name)
	}
	return append(kept, won...)
}

// settleBlocks marks what overlaps among leases, and between leases and node
// CIDRs. Of two equal ranges, and of a node CIDR inside another node's lease,
// the lease of the older node stays: there may be pods in it. Otherwise both
// stay, and the longer prefix owns what they share, as a router reads it.
func (c *cluster) settleBlocks(claims []claim) []claim {
	markContested(claims)
	var disputed []claim
	for _, cl := range claims {
		if cl.contested {
			disputed = append(disputed, cl)
		}
	}
	if len(disputed) == 0 {
		return claims
	}
	out := slices.DeleteFunc(claims, func(cl claim) bool {
		if !cl.contested {
			return false
		}
		i := slices.IndexFunc(disputed, func(o claim) bool { return displaces(o, cl) })
		if i >= 0 {
			c.nameLoser(cl, disputed[i])
			return true
		}
		c.nameOverlap(cl, disputed)
		return false
	})
	markContested(out)
	return out
}

// displaces reports whether nothing is left of cl beside the other claim.
func displaces(other, cl claim) bool {
	switch {
	case other.node == cl.node || !other.lease:
		return false
	case !cl.lease:
		return cidr.Covers(other.dst, cl.dst)
	default:
		return other.dst == cl.dst && other.node < cl.node
	}
}

func (c *cluster) nameLoser(cl, winner claim) {
	name, holder, what := c.nodes[cl.node].Name, c.nodes[winner.node].Name, "podCIDR"
	if cl.lease {
		what = "block"
	}
	c.problem(name, ReasonOverlap, "node %s has the %s %s, but node %s holds the block %s; it is not used: delete the AddressBlock that is wrong when no pod of its node has an address of it",
		name, what, cl.dst, holder, winner.dst)
}

// nameOverlap tells of two leases that share addresses, once for each pair.
func (c *cluster) nameOverlap(cl claim, disputed []claim) {
	if !cl.lease {
		return
	}
	for _, other := range disputed {
		if other.lease && other.node < cl.node && other.dst != cl.dst && other.dst.Overlaps(cl.dst) {
			name := c.nodes[cl.node].Name
			c.problem(name, ReasonOverlap, "node %s holds the block %s, which overlaps %s of node %s; neither gives addresses from what they share: delete the AddressBlock that no pod has an address of",
				name, cl.dst, other.dst, c.nodes[other.node].Name)
		}
	}
}

// markContested sorts the claims by range and sets contested on those that
// overlap a claim of another node. Prefixes either nest or share nothing, so
// one pass with the stack of enclosing ones finds all.
func markContested(claims []claim) {
	slices.SortStableFunc(claims, func(a, b claim) int {
		if order := a.dst.Compare(b.dst); order != 0 {
			return order
		}
		return a.node - b.node
	})
	var enclosing []int
	for i := range claims {
		claims[i].contested = false
		for len(enclosing) > 0 && !cidr.Covers(claims[enclosing[len(enclosing)-1]].dst, claims[i].dst) {
			enclosing = enclosing[:len(enclosing)-1]
		}
		for _, e := range enclosing {
			if claims[e].node != claims[i].node {
				claims[e].contested, claims[i].contested = true, true
			}
		}
		enclosing = append(enclosing, i)
	}
}

// destinations returns what the node at position i owns, aggregated.
func (c *cluster) destinations(i int) []netip.Prefix { return merge(c.claims[i]) }

// separate returns node i's claims without those inside another of its own (a
// block of its podCIDR): they are reached as that one is.
func (c *cluster) separate(i int) []claim {
	own := c.claims[i]
	if len(own) < 2 {
		return own
	}
	var out []claim
	for at, cl := range own {
		inside := slices.ContainsFunc(own, func(o claim) bool { return o.dst != cl.dst && !o.contested && cidr.Covers(o.dst, cl.dst) })
		twice := slices.ContainsFunc(own[:at], func(o claim) bool { return o.dst == cl.dst })
		if cl.contested || !inside && !twice {
			out = append(out, cl)
		}
	}
	return out
}

// merge returns the ranges of one node's claims, aggregated. A range that
// overlaps another node's stays as it is: merged, it might be as long as the
// other's, and no router could tell them apart.
func merge(claims []claim) []netip.Prefix {
	var out, contested []netip.Prefix
	for _, cl := range claims {
		if cl.contested {
			contested = append(contested, cl.dst)
		} else {
			out = append(out, cl.dst)
		}
	}
	out = append(cidr.Aggregate(out), contested...)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// owns reports whether the address is node i's: it is in a range of the node,
// and in no longer one of another node.
func (c *cluster) owns(i int, a netip.Addr) bool {
	longest := -1
	for _, cl := range c.claims[i] {
		if cl.dst.Contains(a) {
			longest = max(longest, cl.dst.Bits())
		}
	}
	if longest < 0 || c.isKept(i, a) {
		return false
	}
	return !slices.ContainsFunc(c.contested, func(cl claim) bool {
		return cl.node != i && cl.dst.Contains(a) && cl.dst.Bits() > longest
	})
}

// source returns the node's own pod-network address of the family: what its
// agent has said, if that is the node's, or else the first one behind the base
// address of its first range.
func (c *cluster) source(i int, f Family) netip.Addr {
	if said := OfFamily(c.nodes[i].Sources, f).Unmap(); said.IsValid() && c.owns(i, said) {
		return said
	}
	for _, cl := range c.claims[i] {
		if FamilyOf(cl.dst.Addr()) != f {
			continue
		}
		if a := c.firstOwn(i, cl); a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// firstOwn returns the first address behind the base address of the claim that
// no other node's claim takes away.
func (c *cluster) firstOwn(i int, cl claim) netip.Addr {
	a := SourceOf(cl.dst)
	for cl.dst.Contains(a) {
		taker := slices.IndexFunc(c.contested, func(o claim) bool {
			return o.node != i && o.dst.Contains(a) && o.dst.Bits() > cl.dst.Bits()
		})
		switch {
		case taker >= 0:
			a = cidr.Last(c.contested[taker].dst).Next()
		case c.isKept(i, a):
			a = a.Next()
		default:
			return a
		}
	}
	return netip.Addr{}
}

// sources returns the node's own pod-network addresses: for each family the
// one that it sends from, and then those that its further ranges are probed at.
func (c *cluster) sources(i int) []netip.Addr {
	var out []netip.Addr
	for _, f := range []Family{IPv4, IPv6} {
		if a := c.source(i, f); a.IsValid() {
			out = append(out, a)
		}
	}
	if len(c.nodes[i].Sources) <= len(out) {
		return out
	}
	for _, cl := range c.separate(i) {
		if a := c.probedAt(cl); a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
