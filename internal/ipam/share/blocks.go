package share

import (
	"fmt"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// sharedAtOnce bounds the blocks that one decision shares.
const sharedAtOnce = 16

// shareOf shares as many blocks of the ranges as the needs until now take, if
// some are left that are nobody's.
func (d *decider) shareOf(ranges []netip.Prefix) bool {
	for _, l := range d.declared {
		if d.countOn(l.Prefix, ranges) {
			d.goOn(l)
			return true
		}
	}
	for _, p := range d.Share {
		if d.countOn(p, ranges) {
			return true
		}
	}
	left := cidr.Subtract(ranges, slices.Concat(d.taken, d.Reserved, d.Share))
	if len(left) == 0 || len(d.Share) >= sharedAtOnce {
		return d.comes(ranges)
	}
	place := d.place(ranges)
	first := pool.At(left, place)
	for i := range left {
		a := left[(first+i)%len(left)].Addr()
		if i == 0 && left[first].Contains(place) {
			a = place
		}
		if before := len(d.Share); d.share(a) == "" && len(d.Share) > before {
			return d.countOn(d.Share[before], ranges)
		}
	}
	return d.comes(ranges)
}

// comes reports whether some of the ranges are being shared: when that is done,
// there is more to say.
func (d *decider) comes(ranges []netip.Prefix) bool {
	for block := range d.coming {
		if slices.ContainsFunc(ranges, block.Overlaps) {
			return true
		}
	}
	return false
}

// countOn lets a need count on a block that is being shared, if it has an address
// of the ranges for it.
func (d *decider) countOn(block netip.Prefix, ranges []netip.Prefix) bool {
	var size uint64
	for _, p := range cidr.Intersect(cidr.Subtract(ranges, d.Reserved), []netip.Prefix{block}) {
		size += cidr.Size(p)
	}
	if d.coming[block] >= size {
		return false
	}
	d.coming[block]++
	return true
}

// goOn confirms a declaration that whoever made it seems to have left.
func (d *decider) goOn(l Lease) {
	known := slices.ContainsFunc(d.Confirm, func(o Lease) bool { return o.Prefix == l.Prefix })
	if at := d.Declared[l.Prefix].Add(LateDeclaration); at.After(d.Now) {
		d.again(at)
	} else if !known {
		d.Confirm = append(d.Confirm, l)
	}
}

// share declares the block around an address: the largest, up to the size of a
// node's, that overlaps nothing.
func (d *decider) share(a netip.Addr) string {
	for _, l := range d.Leases {
		switch {
		case !l.Prefix.Contains(a):
		case l.Sharing == Declared:
			d.goOn(l)
			return ""
		case l.Sharing == Retired:
			return fmt.Sprintf("the block %s around it is being given back", l.Prefix)
		}
	}
	bits := d.Bits[ipam.FamilyOf(a)]
	if bits <= 0 {
		bits = a.BitLen()
	}
	for ; bits <= a.BitLen(); bits++ {
		p, err := a.Prefix(bits)
		if err != nil || !cidr.CoveredByAny(d.PodCIDRs, p) || len(cidr.Overlapping(d.taken, p)) > 0 {
			continue
		}
		if !slices.Contains(d.Share, p) {
			d.Share = append(d.Share, p)
		}
		return ""
	}
	return fmt.Sprintf("the address %s lies in what is another node's", a)
}

// shareAll shares what is left of ranges of the pod network that is nobody's.
func (d *decider) shareAll(ranges []netip.Prefix) {
	for range sharedAtOnce {
		left := cidr.Subtract(ranges, slices.Concat(d.taken, d.Reserved, d.Share))
		if len(left) == 0 || len(d.Share) >= sharedAtOnce || d.share(left[0].Addr()) != "" {
			return
		}
	}
}
