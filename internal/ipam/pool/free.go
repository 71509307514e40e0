package pool

import (
	"hash/fnv"
	"net/netip"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Free returns an address of the ranges that is not taken and in none of the
// barred prefixes, which are as cidr.Aggregate returns them. Where it begins to
// look follows from the seed, so that nodes of different names seldom choose the
// same one; the time follows what is taken and barred, not the size.
func Free(ranges []netip.Prefix, taken func(netip.Addr) bool, barred []netip.Prefix, seed string) (netip.Addr, bool) {
	ranges = cidr.Subtract(ranges, barred)
	if len(ranges) == 0 {
		return netip.Addr{}, false
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(seed))
	sum := h.Sum64()
	first := int(sum % uint64(len(ranges)))
	for i := range len(ranges) + 1 {
		r := ranges[(first+i)%len(ranges)]
		a := r.Addr()
		if i == 0 {
			a = offset(r, sum>>8)
		}
		for ; a.IsValid() && r.Contains(a); a = a.Next() {
			if !taken(a) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// offset returns the n-th address of the prefix, modulo its size and 2^32.
func offset(p netip.Prefix, n uint64) netip.Addr {
	n = n % min(cidr.Size(p), 1<<32)
	b := p.Addr().AsSlice()
	for i := len(b) - 1; n > 0 && i >= 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
