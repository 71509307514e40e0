package pool

import (
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Free returns an address of the ranges that is not taken and in none of the
// barred prefixes, which are as cidr.Aggregate returns them: the first one at or
// behind from, or else the first of all. The time follows what is taken and
// barred, not the size.
func Free(ranges []netip.Prefix, taken func(netip.Addr) bool, barred []netip.Prefix, from netip.Addr) (netip.Addr, bool) {
	ranges = cidr.Subtract(ranges, barred)
	if len(ranges) == 0 {
		return netip.Addr{}, false
	}
	first := At(ranges, from)
	for i := range len(ranges) + 1 {
		r := ranges[(first+i)%len(ranges)]
		a := r.Addr()
		if i == 0 && r.Contains(from) {
			a = from
		}
		for ; a.IsValid() && r.Contains(a); a = a.Next() {
			if !taken(a) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// At returns which of the ranges, which are as cidr.Aggregate returns them, has
// the address, or is the next behind it; the first one if there is none.
func At(ranges []netip.Prefix, a netip.Addr) int {
	i := slices.IndexFunc(ranges, func(r netip.Prefix) bool { return !cidr.Last(r).Less(a) })
	return max(i, 0)
}

// Place returns where the part of that number begins, counted from 0, if the
// ranges are divided evenly into parts; the zero Addr if there are no ranges. Of
// one range at most 2^32 addresses count.
func Place(ranges []netip.Prefix, part, parts int) netip.Addr {
	ranges = cidr.Aggregate(ranges)
	var total uint64
	for _, r := range ranges {
		total += countable(r)
	}
	at := uint64(float64(total) * float64(part) / float64(parts))
	for _, r := range ranges {
		if n := countable(r); at >= n {
			at -= n
			continue
		}
		return offset(r, at)
	}
	return netip.Addr{}
}

func countable(p netip.Prefix) uint64 { return min(cidr.Size(p), 1<<32) }

// offset returns the n-th address of the prefix.
func offset(p netip.Prefix, n uint64) netip.Addr {
	b := p.Addr().AsSlice()
	for i := len(b) - 1; n > 0 && i >= 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
