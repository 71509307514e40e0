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
	// Pool is whose addresses they are; empty for what serves by itself.
	Pool string `json:",omitempty"`
	// Reserved are the parts that no pod gets.
	Reserved []netip.Prefix
	// Single is true for an address that the node holds by itself, outside its
	// own ranges.
	Single bool `json:",omitempty"`
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

// ranges is what is left of a list of Ranges: for each pool, segments without
// reserved addresses, and none of them in two.
type ranges struct {
	groups map[string]*group // pool -> what it gives
}

// group is what one pool gives.
type group struct {
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

// newRanges lets a pool have what it states; what serves by itself is the rest.
func newRanges(list []Range) ranges {
	r := ranges{groups: map[string]*group{"": {}}}
	var taken []netip.Prefix
	for _, own := range []bool{false, true} {
		for _, one := range list {
			if (one.Pool == "") != own {
				continue
			}
			parts := cidr.Subtract([]netip.Prefix{one.Prefix}, slices.Concat(one.Reserved, taken))
			g := r.groups[one.Pool]
			if g == nil {
				g = &group{}
				r.groups[one.Pool] = g
			}
			for _, p := range parts {
				g.segments = append(g.segments, &segment{prefix: p, next: p.Addr()})
			}
			g.sorted = append(g.sorted, parts...)
			taken = append(taken, parts...)
		}
	}
	for _, g := range r.groups {
		slices.SortFunc(g.sorted, netip.Prefix.Compare)
	}
	return r
}

// group returns what a pool gives; of an unknown one, nothing.
func (r *ranges) group(pool string) *group {
	if g := r.groups[pool]; g != nil {
		return g
	}
	return &group{}
}

func (r *ranges) contain(a netip.Addr) bool {
	for _, g := range r.groups {
		if g.contain(a) {
			return true
		}
	}
	return false
}

func (g *group) contain(a netip.Addr) bool {
	at, exact := slices.BinarySearchFunc(g.sorted, a, func(p netip.Prefix, a netip.Addr) int {
		return p.Addr().Compare(a)
	})
	return exact || at > 0 && g.sorted[at-1].Contains(a)
}

func (g *group) size(f Family) uint64 {
	var sum uint64
	for _, p := range g.sorted {
		if FamilyOf(p.Addr()) == f {
			sum = addSaturated(sum, cidr.Size(p))
		}
	}
	return sum
}

// unused returns the first address, in the order of the ranges, that is neither
// held nor among the freed ones.
func (g *group) unused(f Family, l *ledger) (netip.Addr, bool) {
	for _, s := range g.segments {
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
	for _, g := range r.groups {
		for _, s := range g.segments {
			s.next = s.prefix.Addr()
		}
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
