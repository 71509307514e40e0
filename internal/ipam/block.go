package ipam

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// roomBits bounds the room that a node's first block looks for: 2^roomBits
// blocks, so that the blocks after it can lie beside it and share one route.
const roomBits = 8

// BlockRequest asks for a block to lease.
type BlockRequest struct {
	// Family is which of PodCIDRs count.
	Family Family
	// PodCIDRs are the ranges of the pod network. The first one with a free
	// block gives it.
	PodCIDRs []netip.Prefix
	// Bits is the prefix length of the block.
	Bits int
	// Owned are the node's own leases.
	Owned []netip.Prefix
	// Taken are all leases of the cluster, of any size.
	Taken []netip.Prefix
	// Preferred are the node's own spec.podCIDRs.
	Preferred []netip.Prefix
	// Avoid are the other nodes' spec.podCIDRs.
	Avoid []netip.Prefix
	// Seed is the node's name: nodes of different names start in different
	// parts of the pod network.
	Seed string
}

// NextBlock returns the block that a node should lease next: inside its own
// podCIDRs where it has them, else outside everybody's; beside its other blocks
// where that is free, so that they aggregate into one route, else in a part of
// the pod network that follows from the seed and has room around it. It looks
// at the given prefixes only, not at the blocks between them, so that a /48
// costs no more than a /16. Errors wrap ErrNoBlock or ErrInvalid.
func NextBlock(r BlockRequest) (netip.Prefix, error) {
	if err := r.check(); err != nil {
		return netip.Prefix{}, err
	}
	cidrs := r.podCIDRs()
	barred := cidr.Aggregate(slices.Concat(r.Owned, r.Taken, r.Avoid))
	own := cidr.Intersect(cidrs, cidr.Aggregate(r.Preferred))
	if block, ok := r.beside(own, barred); ok {
		return block, nil
	}
	for _, region := range own {
		if block, ok := firstFree(region, r.Bits, barred); ok {
			return block, nil
		}
	}
	if block, ok := r.beside(cidrs, barred); ok {
		return block, nil
	}
	for _, region := range cidrs {
		if block, ok := r.faraway(region, barred); ok {
			return block, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("the pod network %v has no free /%d block left for node %s (%d leases, %d podCIDRs of other nodes): add a range to ClusterNetwork's podCIDRs, or make its blockSize a longer prefix: %w",
		cidrs, r.Bits, r.Seed, len(r.Taken), len(r.Avoid), ErrNoBlock)
}

func (r BlockRequest) check() error {
	most := 32
	if r.Family == IPv6 {
		most = 128
	}
	switch {
	case r.Family != IPv4 && r.Family != IPv6:
		return fmt.Errorf("a block of family %q: want %s or %s: %w", r.Family, IPv4, IPv6, ErrInvalid)
	case r.Bits < 1 || r.Bits > most:
		return fmt.Errorf("a block of %s with a prefix length of %d: want 1 to %d in ClusterNetwork's blockSize: %w", r.Family, r.Bits, most, ErrInvalid)
	}
	for _, p := range r.podCIDRs() {
		if p.Bits() <= r.Bits {
			return nil
		}
	}
	return fmt.Errorf("the pod network %v has no %s range that a /%d block fits in: correct ClusterNetwork's podCIDRs or blockSize: %w", r.PodCIDRs, r.Family, r.Bits, ErrNoBlock)
}

// podCIDRs returns those of the family, in the order given.
func (r BlockRequest) podCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range r.PodCIDRs {
		if q := cidr.Plain(p); q.IsValid() && FamilyOf(q.Addr()) == r.Family {
			out = append(out, q)
		}
	}
	return out
}

// beside returns a free block in the other half of what an owned range would
// grow into, the smallest range first: it completes soonest.
func (r BlockRequest) beside(regions, barred []netip.Prefix) (netip.Prefix, bool) {
	owned := cidr.Aggregate(r.Owned)
	slices.SortStableFunc(owned, func(p, q netip.Prefix) int { return cmp.Compare(q.Bits(), p.Bits()) })
	for _, p := range owned {
		if p.Bits() == 0 || p.Bits() > r.Bits {
			continue
		}
		if buddy := cidr.Sibling(p); cidr.CoveredByAny(regions, buddy) {
			if block, ok := firstFree(buddy, r.Bits, barred); ok {
				return block, true
			}
		}
	}
	return netip.Prefix{}, false
}

// faraway returns a block of the region at a place that follows from the seed.
// It looks for a place with much free room first, then with less.
func (r BlockRequest) faraway(region netip.Prefix, barred []netip.Prefix) (netip.Prefix, bool) {
	if region.Bits() > r.Bits {
		return netip.Prefix{}, false
	}
	seed := sha256.Sum256([]byte("ropeway block\x00" + r.Seed))
	for room := min(roomBits, (r.Bits-region.Bits())/2); room >= 0; room-- {
		if place, ok := findFree(region, r.Bits-room, cidr.Overlapping(barred, region), seed[:]); ok {
			return netip.PrefixFrom(place.Addr(), r.Bits), true
		}
	}
	return netip.Prefix{}, false
}

// firstFree returns the lowest free block of the region.
func firstFree(region netip.Prefix, bits int, barred []netip.Prefix) (netip.Prefix, bool) {
	if region.Bits() > bits {
		return netip.Prefix{}, false
	}
	return findFree(region, bits, cidr.Overlapping(barred, region), nil)
}

// findFree returns a prefix of the length inside the region that overlaps none
// of the barred ones, which all overlap the region. It walks the halves of the
// region, at each level the one that the seed's bit says first; without a seed,
// the lower one. A half that is wholly free is not searched, and one that is
// wholly barred is left at once, so the time follows the number of barred ones.
func findFree(region netip.Prefix, bits int, barred []netip.Prefix, seed []byte) (netip.Prefix, bool) {
	switch {
	case len(barred) > 0 && (region.Bits() == bits || cidr.Covers(barred[0], region)):
		return netip.Prefix{}, false
	case region.Bits() == bits:
		return region, true
	}
	first, second := cidr.Halves(region)
	if bitOf(seed, region.Bits()) {
		first, second = second, first
	}
	if found, ok := findFree(first, bits, cidr.Overlapping(barred, first), seed); ok {
		return found, true
	}
	return findFree(second, bits, cidr.Overlapping(barred, second), seed)
}

func bitOf(seed []byte, bit int) bool {
	return len(seed) > 0 && seed[bit/8%len(seed)]&(0x80>>(bit%8)) != 0
}
