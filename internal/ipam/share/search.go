package share

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// search is how far a decision has looked for a free address of a pool. What it has
// passed is taken until its end, so that many needs cost hardly more than one.
type search struct {
	inside []netip.Prefix // what it has of the pod network, of the family
	shared []netip.Prefix // what nodes share: of inside, and all that is outside
	// from is where to go on, none that there is nothing any more: first without the
	// addresses that are better avoided, then with them.
	from [2]netip.Addr
	none [2]bool
	// noMore is set once no further block of the pool can be shared.
	noMore bool
	usedUp *bool // nil: not known yet
}

// search returns the one of a pool and family.
func (d *decider) search(p string, f ipam.Family) *search {
	key := string(f) + " " + p
	s := d.searches[key]
	if s == nil {
		ranges, network := ofFamily(d.Pools[p], f), cidr.Aggregate(d.PodCIDRs)
		shared := append(cidr.Intersect(ranges, d.confirmed), cidr.Subtract(ranges, network)...)
		place := d.place(shared) // not of all ranges: nodes whose part is not shared yet would begin at one address
		s = &search{inside: cidr.Intersect(ranges, network), shared: shared, from: [2]netip.Addr{place, place}}
		d.searches[key] = s
	}
	return s
}

// pick leases an address of the first pool that has one free, or shares more of
// a pool.
func (d *decider) pick(n Need) string {
	taken := func(a netip.Addr) bool {
		_, leased := d.singles[a]
		_, lost := d.lost(a)
		return leased || lost
	}
	for pass, avoid := range []bool{true, false} {
		for _, p := range n.Pools {
			s := d.search(p, n.Family)
			if s.none[pass] {
				continue
			}
			a, ok := pool.Free(s.shared, func(a netip.Addr) bool { return taken(a) || avoid && d.Avoid(a) }, d.Reserved, s.from[pass])
			if ok {
				s.from[pass] = a
				d.claim(n, a, p, "")
				return ""
			}
			s.none[pass] = true
		}
	}
	var why []string
	for _, p := range n.Pools {
		s := d.search(p, n.Family)
		if !s.noMore && d.shareOf(s.inside) {
			return ""
		}
		s.noMore = true
		if len(s.shared) > 0 {
			why = append(why, fmt.Sprintf("the addresses of %s that nodes share are all in use, and the pod gets one when it is given back", p))
		} else {
			why = append(why, fmt.Sprintf("every address of %s lies in a range of some node, which alone gives it", p))
		}
	}
	return strings.Join(why, "; ")
}

// usedUp reports whether the pool that an address is leased of has no other: then
// pods of other nodes wait for it, of whom this node does not know.
func (d *decider) usedUp(l Lease) bool {
	if !l.ForAnyone() {
		return false
	}
	s := d.search(l.Pool, ipam.FamilyOf(l.Address()))
	if s.usedUp == nil {
		leased := func(a netip.Addr) bool { _, is := d.singles[a]; return is }
		_, free := pool.Free(s.shared, leased, d.Reserved, s.from[0])
		up := !free && len(cidr.Subtract(s.inside, slices.Concat(d.taken, d.Reserved))) == 0
		s.usedUp = &up
	}
	return *s.usedUp
}
