// Package pool is what a person says about pools of addresses, and what
// follows from it: which pools are accepted, which of them serve a pod and in
// which order, and which address of a shared one is free. It is pure, and the
// same for every kind of object that states a pool.
package pool

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// The kinds of objects that state pools. They are equals.
const (
	KindAddressPool  = "AddressPool"
	KindSpiderIPPool = "SpiderIPPool"
)

// ID names a pool among all kinds: Kind/Name.
type ID string

// Pool is one pool as its object states it.
type Pool struct {
	Kind, Name, UID string
	// Created is when the object was made, in seconds since 1970: where two
	// pools contradict one another, the older one stands.
	Created int64
	// Order comes before everything else among pools that a rule does not
	// order: the lower, the earlier.
	Order int
	// Default makes it serve pods that ask for no pool.
	Default bool
	// Disabled stops it from giving addresses; what is held stays held.
	Disabled bool
	// Deleting is true once the object was asked to go.
	Deleting bool
	// Invalid says, as a sentence, what is wrong with the object alone.
	Invalid string

	// Subnets are the networks that the addresses are of, at most one for each
	// family.
	Subnets []netip.Prefix
	// Ranges are the addresses that it gives, excluded ones left out.
	Ranges []netip.Prefix
	// Gateways are routers in Subnets, at most one for each family.
	Gateways []netip.Addr
	Routes   []Route

	// NodeNames, NamespaceNames and their selectors say whom it serves; a name
	// list wins over the selector beside it. Empty means everybody.
	NodeNames      []string
	Nodes          *Selector
	NamespaceNames []string
	Namespaces     *Selector
	Pods           *Selector
	// Networks are names of network attachments: name or namespace/name.
	Networks []string
}

// Route is a route that pods' interfaces get.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// ID returns the pool's name among all kinds.
func (p *Pool) ID() ID { return ID(p.Kind + "/" + p.Name) }

// Has reports whether the pool gives addresses of the family.
func (p *Pool) Has(f ipam.Family) bool {
	return slices.ContainsFunc(p.Ranges, func(r netip.Prefix) bool { return ipam.FamilyOf(r.Addr()) == f })
}

// Contains reports whether the pool gives the address.
func (p *Pool) Contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.Ranges, func(r netip.Prefix) bool { return r.Contains(a) })
}

// Size returns how many addresses the pool gives, at most math.MaxUint64.
func (p *Pool) Size() uint64 {
	var sum uint64
	for _, r := range p.Ranges {
		if sum += cidr.Size(r); sum < cidr.Size(r) {
			return ^uint64(0)
		}
	}
	return sum
}

// Within returns the network that the address is of, which the pool states.
func (p *Pool) Within(a netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(p.Subnets, func(s netip.Prefix) bool { return s.Contains(a) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return p.Subnets[i], true
}

// Gateway returns the router of a family, which may be none.
func (p *Pool) Gateway(f ipam.Family) netip.Addr {
	for _, g := range p.Gateways {
		if ipam.FamilyOf(g) == f {
			return g
		}
	}
	return netip.Addr{}
}

// field is a field of a SpiderIPPool, or what an AddressPool calls the same.
func (p *Pool) field(spider, own string) string {
	if p.Kind == KindAddressPool {
		return own
	}
	return spider
}

func (p *Pool) rangesField() string  { return p.field("spec.ips", "spec.ranges") }
func (p *Pool) subnetsField() string { return p.field("spec.subnet", "spec.subnets") }

// older orders pools by who was there first; those of one second, as one file makes
// them, by kind and name, which are the same wherever the file is applied.
func older(a, b *Pool) int {
	return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(string(a.ID()), string(b.ID())), strings.Compare(a.UID, b.UID))
}

// before orders pools that a rule does not order: by Order, then those that
// say more exactly whom they serve, as Spiderpool's ByPoolPriority has it (pod
// selector, node names, node selector, namespace names, namespace selector,
// networks), then the older.
func before(a, b *Pool) int {
	if order := cmp.Compare(a.Order, b.Order); order != 0 {
		return order
	}
	exact := func(p *Pool) []bool {
		return []bool{p.Pods != nil, len(p.NodeNames) > 0, p.Nodes != nil, len(p.NamespaceNames) > 0, p.Namespaces != nil, len(p.Networks) > 0}
	}
	ea, eb := exact(a), exact(b)
	for i := range ea {
		if ea[i] != eb[i] {
			if ea[i] {
				return -1
			}
			return 1
		}
	}
	return older(a, b)
}

// ParseRange reads one address, or two with a dash between them.
func ParseRange(text string) (first, last netip.Addr, err error) {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	if first, err = parseAddress(from); err == nil {
		last, err = parseAddress(to)
	}
	switch {
	case err != nil:
		return netip.Addr{}, netip.Addr{}, fmt.Errorf("%q is neither an address nor a range such as 10.244.0.10-10.244.0.20", text)
	case first.BitLen() != last.BitLen():
		return netip.Addr{}, netip.Addr{}, fmt.Errorf("%q mixes address families", text)
	case last.Less(first):
		return netip.Addr{}, netip.Addr{}, fmt.Errorf("%q is reversed: write %s-%s", text, last, first)
	}
	return first, last, nil
}

func parseAddress(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err == nil && (a.Zone() != "" || a.Is4In6()) {
		err = fmt.Errorf("%q has a zone, or is IPv4 written as IPv6", text)
	}
	return a, err
}

// ParseRanges reads a list of ranges inside subnet. Its errors begin with the
// field's name.
func ParseRanges(field string, subnet netip.Prefix, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for i, text := range list {
		first, last, err := ParseRange(text)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", field, i, err)
		}
		if !subnet.Contains(first) || !subnet.Contains(last) {
			return nil, fmt.Errorf("%s[%d]: %s is not inside the subnet %s", field, i, text, subnet)
		}
		out = append(out, cidr.FromRange(first, last)...)
	}
	return out, nil
}
