// Package cidr is the arithmetic of address ranges that the pure core (plan,
// ipam) shares: what covers what, unions, differences, halves. It imports the
// standard library only.
package cidr

import (
	"math"
	"net/netip"
	"slices"
)

// Plain returns p without bits behind the prefix and without the IPv4-in-IPv6
// form, which no route has. The result is invalid if p means nothing.
func Plain(p netip.Prefix) netip.Prefix {
	if !p.IsValid() {
		return netip.Prefix{}
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// Covers reports whether every address of q is one of p; both are Plain.
func Covers(p, q netip.Prefix) bool {
	return p.Bits() <= q.Bits() && p.Contains(q.Addr())
}

// CoveredByAny reports whether one of the prefixes covers q.
func CoveredByAny(prefixes []netip.Prefix, q netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return Covers(p, q) })
}

// Last returns the highest address of a Plain prefix.
func Last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(b); bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Size returns the number of addresses of p, at most math.MaxUint64.
func Size(p netip.Prefix) uint64 {
	if host := p.Addr().BitLen() - p.Bits(); host < 64 {
		return 1 << host
	}
	return math.MaxUint64
}

// Count returns how many addresses the prefixes, which share none, have together: of IPv6
// that may be more than Size can say.
func Count(prefixes []netip.Prefix) (n float64) {
	for _, p := range prefixes {
		n += math.Ldexp(1, p.Addr().BitLen()-p.Bits())
	}
	return n
}

// Parent returns the prefix that a Plain p of at least one bit is a half of.
func Parent(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
}

// Halves splits a Plain prefix of more than one address.
func Halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits() + 1
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), bits), netip.PrefixFrom(upper, bits)
}

// Sibling returns the other half of p's Parent.
func Sibling(p netip.Prefix) netip.Prefix {
	low, high := Halves(Parent(p))
	if p == low {
		return high
	}
	return low
}

// Aggregate returns the fewest prefixes that have exactly the addresses of the
// given ones, Plain and in order. Prefixes that mean nothing count for nothing.
func Aggregate(prefixes []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if p = Plain(p); p.IsValid() {
			sorted = append(sorted, p)
		}
	}
	slices.SortFunc(sorted, netip.Prefix.Compare)
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 && Covers(out[n-1], p) {
			continue
		}
		out = append(out, p)
		// Each merge of two halves may complete the half of something larger.
		for n := len(out); n > 1 && areHalves(out[n-2], out[n-1]); n = len(out) {
			out = append(out[:n-2], Parent(out[n-2]))
		}
	}
	return out
}

func areHalves(p, q netip.Prefix) bool {
	return p.Bits() == q.Bits() && p.Bits() > 0 && p != q && Parent(p) == Parent(q)
}

// Subtract returns the fewest prefixes that have exactly those addresses of
// from that are in none of minus, in order.
func Subtract(from, minus []netip.Prefix) []netip.Prefix {
	holes := Aggregate(minus)
	var out []netip.Prefix
	for _, p := range Aggregate(from) {
		out = subtractOne(out, p, Overlapping(holes, p))
	}
	return out
}

// subtractOne appends p without the holes, which all overlap it.
func subtractOne(out []netip.Prefix, p netip.Prefix, holes []netip.Prefix) []netip.Prefix {
	switch {
	case len(holes) == 0:
		return append(out, p)
	case Covers(holes[0], p):
		return out
	}
	low, high := Halves(p)
	out = subtractOne(out, low, Overlapping(holes, low))
	return subtractOne(out, high, Overlapping(holes, high))
}

// Overlapping returns those of the prefixes, which are as Aggregate returns
// them, that share addresses with p. The result is a part of the same memory.
func Overlapping(aggregated []netip.Prefix, p netip.Prefix) []netip.Prefix {
	from, _ := slices.BinarySearchFunc(aggregated, p, func(q, p netip.Prefix) int {
		if q.Overlaps(p) {
			return 1 // the first of them lies here or to the left
		}
		return q.Compare(p)
	})
	to := from
	for to < len(aggregated) && aggregated[to].Overlaps(p) {
		to++
	}
	return aggregated[from:to]
}

// Intersect returns what two lists of prefixes have in common, as parts of the first
// or of the second, which is as Aggregate returns it.
func Intersect(prefixes, aggregated []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range prefixes {
		for _, q := range Overlapping(aggregated, p) {
			if p.Bits() > q.Bits() {
				q = p
			}
			out = append(out, q)
		}
	}
	return out
}

// FromRange returns the fewest prefixes that have exactly the addresses from
// first to last, in order; none if they are of two families, or last comes
// before first.
func FromRange(first, last netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for first.IsValid() && first.BitLen() == last.BitLen() && first.Compare(last) <= 0 {
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 0 {
			wider := Parent(p)
			if wider.Addr() != first || Last(wider).Compare(last) > 0 {
				break
			}
			p = wider
		}
		out = append(out, p)
		first = Last(p).Next()
	}
	return out
}
