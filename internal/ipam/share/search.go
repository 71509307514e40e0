package share

import (
	"fmt"
	"math"
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
	// shared is what nodes share: of inside, and all that is outside. Of a small pool, a
	// block that is just being shared is part of it.
	shared []netip.Prefix
	// own is this node's part of a small pool, which is shared or can be, and ownFrom
	// where to go on in it.
	own     []netip.Prefix
	ownFrom netip.Addr
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
		outside := cidr.Subtract(ranges, network)
		shared := append(cidr.Intersect(ranges, d.confirmed), outside...)
		s = &search{inside: cidr.Intersect(ranges, network)}
		// A part of all that can be shared stays the same while that is being done.
		coming := append(cidr.Intersect(ranges, d.comingToo()), outside...)
		if all := cidr.Aggregate(slices.Concat(coming, cidr.Subtract(s.inside, d.taken))); d.isSmall(all, f) {
			s.own, s.ownFrom, shared = d.partOf(all), d.place(all), coming
		}
		s.shared = shared
		place := d.place(shared) // not of all ranges: nodes whose part is not shared yet would begin at one address
		if len(s.own) > 0 && containsAddr(shared, s.own[0].Addr()) {
			place = s.own[0].Addr()
		}
		s.from = [2]netip.Addr{place, place}
		d.searches[key] = s
	}
	return s
}

// comingToo are the shared blocks, those that are just being shared among them.
func (d *decider) comingToo() []netip.Prefix {
	blocks := slices.Clone(d.shared)
	for _, l := range d.declared {
		blocks = append(blocks, l.Prefix)
	}
	return cidr.Aggregate(blocks)
}

// pick leases an address of the first pool that has one free, or shares more of
// a pool.
func (d *decider) pick(n Need) string {
	taken := func(a netip.Addr) bool {
		_, leased := d.singles[a]
		_, lost := d.lost(a)
		return leased || lost || d.expected[a]
	}
	for pass, avoid := range []bool{true, false} {
		for _, p := range n.Pools {
			s := d.search(p, n.Family)
			if avoid && d.inOwn(n, p, s, taken) {
				return ""
			}
			if s.none[pass] {
				continue
			}
			a, ok := pool.Free(s.shared, func(a netip.Addr) bool { return taken(a) || avoid && d.Avoid(a) }, d.Reserved, s.from[pass])
			if ok {
				s.from[pass] = a
				if !d.expect(a) {
					d.claim(n, a, p, "")
				}
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

// smallPool is how many blocks a pool has at most that is divided among the nodes. Of a
// larger one not all will be needed, and to share a block costs a look at all Nodes.
const smallPool = 64

func (d *decider) isSmall(ranges []netip.Prefix, f ipam.Family) bool {
	blocks := 0.0
	for _, p := range ranges {
		block := 1.0
		if bits := d.Bits[f]; bits > 0 {
			block = math.Exp2(float64(p.Addr().BitLen() - bits))
		}
		blocks += max(1, float64(cidr.Size(p))/block)
	}
	return len(ranges) > 0 && blocks <= smallPool
}

// partOf is this node's part of ranges that all nodes share.
func (d *decider) partOf(ranges []netip.Prefix) []netip.Prefix {
	first, last := d.place(ranges), cidr.Last(ranges[len(ranges)-1])
	if d.part+1 < d.parts {
		last = pool.Place(ranges, d.part+1, d.parts).Prev()
	}
	return cidr.Intersect(ranges, cidr.FromRange(first, last))
}

// inOwn has a need served in the node's part of a small pool, which is shared as a
// whole at the first. So nodes whose pods start together are not in each other's way;
// who needs more goes on elsewhere.
func (d *decider) inOwn(n Need, p string, s *search, taken func(netip.Addr) bool) bool {
	if len(s.own) == 0 {
		return false
	}
	a, ok := pool.Free(s.own, func(a netip.Addr) bool { return taken(a) || d.Avoid(a) }, d.Reserved, s.ownFrom)
	if s.ownFrom = a; !ok {
		s.own = nil
		return false
	}
	switch {
	case d.expect(a):
	case containsAddr(s.shared, a):
		d.claim(n, a, p, "")
	default:
		d.shareAll(cidr.Intersect(s.own, s.inside))
		d.expect(a)
	}
	return true
}

// expect reports whether an address is of a block that is just being shared, and lets
// a need wait for it: to lease another node's part meanwhile would be in that node's
// way, whose pods probably start just now.
func (d *decider) expect(a netip.Addr) bool {
	if i := slices.IndexFunc(d.Share, func(p netip.Prefix) bool { return p.Contains(a) }); i >= 0 {
		d.coming[d.Share[i]]++
		d.expected[a] = true
		return true
	}
	i := slices.IndexFunc(d.declared, func(l Lease) bool { return l.Prefix.Contains(a) })
	if i < 0 {
		return false
	}
	d.coming[d.declared[i].Prefix]++
	d.expected[a] = true
	d.goOn(d.declared[i])
	return true
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
