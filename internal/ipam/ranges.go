package ipam

import (
	"math"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Range is where addresses are given from.
type Range struct {
	Prefix netip.Prefix
	// Reserved are the parts that no pod gets.
	Reserved []netip.Prefix
}

// Kind is what a range is to its node.
type Kind int

// The kinds.
const (
	// Block is a leased block: a slice of the pod network.
	Block Kind = iota
	// NodeCIDR is a range of spec.podCIDRs, which other software takes for a
	// subnet: its IPv4 broadcast address is not a pod's.
	NodeCIDR
)

// RangeFor returns the range of a node's block or node CIDR, with its base
// address, the broadcast address of an IPv4 node CIDR, and those of the node's
// own addresses that lie in it reserved.
func RangeFor(p netip.Prefix, kind Kind, sources ...netip.Addr) Range {
	p = p.Masked()
	r := Range{Prefix: p}
	if !p.IsValid() {
		return r
	}
	r.reserve(p.Addr())
	if kind == NodeCIDR && p.Addr().Is4() {
		r.reserve(cidr.Last(p))
	}
	for _, s := range sources {
		if p.Contains(s) {
			r.reserve(s)
		}
	}
	return r
}

func (r *Range) reserve(a netip.Addr) {
	r.Reserved = append(r.Reserved, netip.PrefixFrom(a, a.BitLen()))
}

// ranges is what is left of a list of Ranges: segments without reserved
// addresses and without overlap.
type ranges struct {
	// segments are in the order that they are used in.
	segments []*segment
	// sorted holds the same by address.
	sorted []netip.Prefix
}

// segment is a prefix whose addresses may all be given.
type segment struct {
	prefix netip.Prefix
	// next is the first address that may never have been used; it is invalid
	// once there is none.
	next netip.Addr
}

func newRanges(list []Range) ranges {
	var r ranges
	for _, one := range list {
		parts := cidr.Subtract([]netip.Prefix{one.Prefix}, append(slices.Clone(one.Reserved), r.sorted...))
		for _, p := range parts {
			r.segments = append(r.segments, &segment{prefix: p, next: p.Addr()})
		}
		r.sorted = append(r.sorted, parts...)
		slices.SortFunc(r.sorted, netip.Prefix.Compare)
	}
	return r
}

func (r *ranges) contain(a netip.Addr) bool {
	at, exact := slices.BinarySearchFunc(r.sorted, a, func(p netip.Prefix, a netip.Addr) int {
		return p.Addr().Compare(a)
	})
	return exact || at > 0 && r.sorted[at-1].Contains(a)
}

func (r *ranges) size(f Family) uint64 {
	var sum uint64
	for _, p := range r.sorted {
		if FamilyOf(p.Addr()) == f {
			sum = addSaturated(sum, cidr.Size(p))
		}
	}
	return sum
}

// unused returns the first address, in the order of the ranges, that is neither
// held nor among the freed ones.
func (r *ranges) unused(f Family, l *ledger) (netip.Addr, bool) {
	for _, s := range r.segments {
		if FamilyOf(s.prefix.Addr()) != f {
			continue
		}
		if a, ok := s.unused(l); ok {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// rewind makes unused look at every address again.
func (r *ranges) rewind() {
	for _, s := range r.segments {
		s.next = s.prefix.Addr()
	}
}

// unused moves on over used addresses, so that each is looked at once.
func (s *segment) unused(l *ledger) (netip.Addr, bool) {
	freed := l.freed[FamilyOf(s.prefix.Addr())]
	for s.next.IsValid() && s.prefix.Contains(s.next) {
		if _, held := l.holders[s.next]; !held && !freed.has(s.next) {
			return s.next, true
		}
		s.next = s.next.Next()
	}
	s.next = netip.Addr{}
	return netip.Addr{}, false
}

// addSaturated returns a+b, at most math.MaxUint64.
func addSaturated(a, b uint64) uint64 {
	if sum := a + b; sum >= a {
		return sum
	}
	return math.MaxUint64
}
