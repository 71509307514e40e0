// Package lease decides which blocks of pod addresses a node should lease, take
// over from its former self, and give back. It is pure: the caller does what it
// says against the API server, and asks again.
//
// Blocks are leased ahead of need, so that no pod waits for the API server, and
// an address that a pod has is never left outside the node's CIDRs: where a
// lease was lost, or addresses come from another source than before, the block
// around such an address is leased again.
package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

const (
	// EmptyFor is how long a block holds no address before it is given back.
	EmptyFor = 10 * time.Minute
	// A block is leased when less than a quarter of the node's addresses are
	// free, and given back only if half of the rest stay free: in between
	// nothing happens, so that leases do not come and go.
	leaseBelow, releaseAbove = 0.25, 0.5
	// maxDoubling bounds by how much more than one block a node grows at once: by
	// eight of them.
	maxDoubling = 3
)

// Lease is an AddressBlock as one node sees it.
type Lease struct {
	Prefix netip.Prefix
	Mine   bool
	// Stale is true for a lease of a former Node object of this node's name.
	Stale bool
}

// Usage is how much of one of the node's blocks is in use.
type Usage struct {
	Total, Free int // addresses that pods may get
	Held        int // addresses that pods have, others' IPAM included
	// EmptySince is when the last one was freed; zero while there are some.
	EmptySince time.Time
}

// Input is what the decision depends on.
type Input struct {
	Network     plan.Network
	Node        string
	NodeCIDRs   []netip.Prefix // the node's own spec.podCIDRs
	OthersCIDRs []netip.Prefix // other nodes' spec.podCIDRs
	Leases      []Lease        // all nodes'
	Usage       map[netip.Prefix]Usage
	Uncovered   []netip.Addr // that pods have, in none of the node's CIDRs
	Sources     []netip.Addr // the node's own addresses in the pod network
	// Pooled is what address pools state: blocks are leased beside it as long as
	// there is anything beside it.
	Pooled []netip.Prefix
	// Pools are the addresses of each pool that this node gives of. What of them lies
	// in NodeCIDRs no other node gives, so blocks are leased there as pods need them.
	Pools [][]netip.Prefix
	// HeldIn counts the addresses of a range that pods on this node have; it is asked
	// about Pools only.
	HeldIn func(netip.Prefix) int
	Now    time.Time
}

// Decision is what to do, in this order.
type Decision struct {
	Adopt, Claim, Release []netip.Prefix
	// Problems are sentences: what cannot be leased, and what to do.
	Problems []string
}

// Decide compares what the node holds with what it needs.
func Decide(in Input) Decision {
	d := decider{Input: in}
	for _, l := range in.Leases {
		d.taken = append(d.taken, l.Prefix)
		if l.Mine {
			d.owned = append(d.owned, l.Prefix)
		}
		if l.Mine && l.Stale {
			d.Adopt = append(d.Adopt, l.Prefix)
		}
	}
	d.cover()
	if !in.Network.NodeCIDR {
		for _, family := range Families(in.Network.PodCIDRs) {
			d.leaseAhead(family)
			d.leaseForPools(family)
		}
	}
	d.giveBack()
	return d.Decision
}

// Families returns the families of some CIDRs, IPv4 first.
func Families(cidrs []netip.Prefix) []plan.Family {
	var families []plan.Family
	for _, f := range []plan.Family{plan.IPv4, plan.IPv6} {
		if slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return plan.FamilyOf(p.Addr()) == f }) {
			families = append(families, f)
		}
	}
	return families
}

type decider struct {
	Input
	Decision
	owned, taken []netip.Prefix
}

// claim adds a block to what is to be leased.
func (d *decider) claim(block netip.Prefix) {
	d.Claim = append(d.Claim, block)
	d.owned = append(d.owned, block)
	d.taken = append(d.taken, block)
}

// cover leases the blocks around addresses that pods have and that no CIDR of
// the node contains: without that nobody could reach those pods. Where addresses
// come from blocks, the node's own is among them: what goes on with that address
// is not to be cut when the podCIDR that it is of is not the node's any more.
func (d *decider) cover() {
	for _, a := range d.Sources {
		block, err := a.Prefix(d.Network.BlockBits[plan.FamilyOf(a)])
		if d.Network.NodeCIDR || err != nil || contains(d.owned, a) || !contains(d.Network.PodCIDRs, a) {
			continue
		}
		if block.Bits() > 0 && !slices.ContainsFunc(slices.Concat(d.taken, d.OthersCIDRs), block.Overlaps) {
			d.claim(block)
		}
	}
	for _, a := range d.Uncovered {
		if !contains(d.Network.PodCIDRs, a) || contains(d.owned, a) {
			continue
		}
		bits := d.Network.BlockBits[plan.FamilyOf(a)]
		block, err := a.Prefix(bits)
		if err != nil || bits <= 0 {
			continue
		}
		if i := slices.IndexFunc(d.taken, block.Overlaps); i >= 0 {
			d.Problems = append(d.Problems, fmt.Sprintf("a pod on this node has the address %s, and %s is leased to another node: delete the pod, so that it gets another address", a, d.taken[i]))
			continue
		}
		if i := slices.IndexFunc(d.OthersCIDRs, block.Overlaps); i >= 0 && d.Network.NodeCIDR {
			d.Problems = append(d.Problems, fmt.Sprintf("a pod on this node has the address %s, and %s is another node's podCIDR by now: delete the pod, so that it gets another address", a, d.OthersCIDRs[i]))
			continue
		}
		d.claim(block)
	}
}

// leaseAhead leases one more block if the node's addresses run short.
func (d *decider) leaseAhead(family plan.Family) {
	var total, free int
	for _, p := range d.owned {
		if plan.FamilyOf(p.Addr()) == family {
			total += d.Usage[p].Total
			free += d.Usage[p].Free
		}
	}
	justClaimed := slices.ContainsFunc(d.Claim, func(p netip.Prefix) bool { return plan.FamilyOf(p.Addr()) == family })
	if justClaimed || total > 0 && float64(free) >= leaseBelow*float64(total) {
		return
	}
	owned := ofFamily(d.owned, family)
	request := ipam.BlockRequest{
		Family:   ipam.Family(family),
		PodCIDRs: ofFamily(d.Network.PodCIDRs, family), Bits: d.Network.BlockBits[family],
		Owned: owned, Taken: ofFamily(d.taken, family), Preferred: ofFamily(d.NodeCIDRs, family),
		Avoid: ofFamily(slices.Concat(d.OthersCIDRs, d.Pooled), family), Seed: d.Node,
	}
	block, err := ipam.NextBlock(request)
	if errors.Is(err, ipam.ErrNoBlock) && len(d.Pooled) > 0 {
		if len(owned) > 0 && total == 0 {
			return // pools state everything: more blocks would not bring an address
		}
		request.Avoid = ofFamily(d.OthersCIDRs, family)
		block, err = ipam.NextBlock(request)
	}
	if err != nil {
		d.Problems = append(d.Problems, fmt.Sprintf("no %s block can be leased: %v", family, err))
		return
	}
	for _, p := range d.wholly(block, owned, family) {
		d.claim(p)
	}
}

// wholly returns the block, or, where it lies in the other half of what the node's
// blocks would grow into, all blocks of that half: a part of it would be a route more
// in the fabric. That is done where nobody else may lease them, or there is room
// enough for all.
func (d *decider) wholly(block netip.Prefix, owned []netip.Prefix, family plan.Family) []netip.Prefix {
	one := []netip.Prefix{block}
	for _, p := range cidr.Aggregate(owned) {
		if p.Bits() == 0 || p.Bits() > block.Bits() || block.Bits()-p.Bits() > maxDoubling || !cidr.Covers(cidr.Sibling(p), block) {
			continue
		}
		half := cidr.Sibling(p)
		barred := slices.Concat(d.taken, d.OthersCIDRs, d.Pooled)
		if slices.ContainsFunc(barred, half.Overlaps) || !cidr.CoveredByAny(d.Network.PodCIDRs, half) {
			return one
		}
		if cidr.CoveredByAny(d.NodeCIDRs, half) || d.roomy(family) {
			return blocksOf(half, block.Bits())
		}
	}
	return one
}

// roomy reports whether less than half of the pod network is somebody's.
func (d *decider) roomy(family plan.Family) bool {
	network := cidr.Aggregate(d.Network.PodCIDRs)
	size := func(list []netip.Prefix) float64 { return cidr.Count(cidr.Aggregate(ofFamily(list, family))) }
	return size(cidr.Intersect(slices.Concat(d.taken, d.OthersCIDRs, d.Pooled), network)) < size(network)/2
}

// blocksOf cuts a range into blocks.
func blocksOf(p netip.Prefix, bits int) []netip.Prefix {
	if p.Bits() >= bits {
		return []netip.Prefix{p}
	}
	low, high := cidr.Halves(p)
	return append(blocksOf(low, bits), blocksOf(high, bits)...)
}

// leaseForPools leases one more block for each pool that runs short of addresses in
// the node's own podCIDRs, where it has some.
func (d *decider) leaseForPools(family plan.Family) {
	for _, ranges := range d.Pools {
		own := d.alone(ranges, family)
		total, free := d.givenIn(own, d.owned)
		if total > 0 && float64(free) >= leaseBelow*float64(total) {
			continue
		}
		if block, ok := d.nextIn(own, d.Network.BlockBits[family]); ok {
			d.claim(block)
		}
	}
}

// alone returns what of a pool's addresses no other node gives.
func (d *decider) alone(ranges []netip.Prefix, family plan.Family) []netip.Prefix {
	return cidr.Intersect(ofFamily(ranges, family), cidr.Aggregate(d.NodeCIDRs))
}

// givenIn counts addresses in blocks of the node, and those of them that nobody has.
func (d *decider) givenIn(ranges, blocks []netip.Prefix) (total, free uint64) {
	for _, block := range blocks {
		for _, p := range cidr.Intersect(ranges, []netip.Prefix{block}) {
			size := cidr.Size(p)
			if p.Contains(block.Addr()) {
				size-- // which no pod gets
			}
			total += size
			free += size - min(size, uint64(d.HeldIn(p)))
		}
	}
	return total, free
}

// nextIn returns the first block with some of the ranges that nobody has.
func (d *decider) nextIn(ranges []netip.Prefix, bits int) (netip.Prefix, bool) {
	for _, p := range ranges {
		for a := p.Addr(); p.Contains(a); {
			block, err := a.Prefix(bits)
			if err != nil || bits <= 0 || !cidr.CoveredByAny(d.Network.PodCIDRs, block) {
				break
			}
			barred := slices.Concat(d.taken, d.OthersCIDRs)
			i := slices.IndexFunc(barred, block.Overlaps)
			if i < 0 {
				return block, true
			}
			if barred[i].Bits() < block.Bits() {
				block = barred[i]
			}
			a = cidr.Last(block).Next()
		}
	}
	return netip.Prefix{}, false
}

// giveBack releases at most one block of each family that has been empty for
// long, or the half of what the node has together that it is of, if enough stays
// free. In node-CIDR mode no block is needed at all. The block with the node's own
// address stays, and with it at least one.
func (d *decider) giveBack() {
	if len(d.Claim) > 0 {
		return
	}
	for _, family := range []plan.Family{plan.IPv4, plan.IPv6} {
		own := ofFamily(d.owned, family)
		for _, p := range own {
			if !d.unused(p) {
				continue
			}
			if group := d.together(p, own, family); d.surplus(group, own) {
				d.Release = append(d.Release, group...)
				break
			}
		}
	}
}

// together returns the block, or, where the node's others would be more routes without
// it and nobody else may lease them or there is room for all, those that it was leased
// with.
func (d *decider) together(block netip.Prefix, own []netip.Prefix, family plan.Family) []netip.Prefix {
	one := []netip.Prefix{block}
	if d.Network.NodeCIDR || len(cidr.Aggregate(without(own, one))) <= len(cidr.Aggregate(own)) {
		return one
	}
	for _, whole := range cidr.Aggregate(own) {
		if !cidr.Covers(whole, block) {
			continue
		}
		half, other := cidr.Halves(whole)
		if !cidr.Covers(half, block) {
			half = other
		}
		if !cidr.CoveredByAny(d.NodeCIDRs, half) && !d.roomy(family) {
			return one
		}
		return slices.DeleteFunc(slices.Clone(own), func(p netip.Prefix) bool { return !cidr.Covers(half, p) })
	}
	return one
}

// neededForPools is true if a pool's addresses in the node's own podCIDRs would run
// short without the blocks.
func (d *decider) neededForPools(blocks []netip.Prefix) bool {
	rest := without(d.owned, blocks)
	return slices.ContainsFunc(d.Pools, func(ranges []netip.Prefix) bool {
		own := d.alone(ranges, plan.FamilyOf(blocks[0].Addr()))
		if inside, _ := d.givenIn(own, blocks); inside == 0 {
			return false
		}
		total, free := d.givenIn(own, rest)
		return total == 0 || float64(free) < releaseAbove*float64(total)
	})
}

// unused is true if a block has been empty for long, and has not the node's own address.
func (d *decider) unused(block netip.Prefix) bool {
	u, counted := d.Usage[block]
	empty := counted && u.Held == 0 && !u.EmptySince.IsZero() && d.Now.Sub(u.EmptySince) >= EmptyFor
	return empty && !slices.ContainsFunc(d.Sources, block.Contains)
}

// surplus is true if the node, which has all of own, can do without the blocks.
func (d *decider) surplus(blocks, own []netip.Prefix) bool {
	if slices.ContainsFunc(blocks, func(p netip.Prefix) bool { return !d.unused(p) }) {
		return false
	}
	if d.Network.NodeCIDR {
		return true
	}
	var total, free int
	for _, p := range without(own, blocks) {
		total += d.Usage[p].Total
		free += d.Usage[p].Free
	}
	return total > 0 && float64(free) >= releaseAbove*float64(total) && !d.neededForPools(blocks)
}

func without(list, blocks []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool { return slices.Contains(blocks, p) })
}

func ofFamily(prefixes []netip.Prefix, family plan.Family) []netip.Prefix {
	var found []netip.Prefix
	for _, p := range prefixes {
		if plan.FamilyOf(p.Addr()) == family {
			found = append(found, p)
		}
	}
	return found
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
