package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// choice is how one peer's destinations of one family are reached.
type choice struct {
	transport Transport
	outer     netip.Addr // the peer's
	reason    string
}

// option is a transport that could be chosen, and what speaks against it.
type option struct {
	choice
	rank    int      // the lower the better
	flaw    string   // why not; empty for rank fit
	skipped []string // why more preferred ones are no options at all
}

// Ranks of options: what may carry, what is found failing, what has yet to be
// proven (direct only), and what one of the two ends cannot do at all.
const (
	fit = iota
	failing
	unproven
	refused
)

// way is what a transport is chosen for: the destinations of one family, from
// one node to another.
type way struct {
	self, peer int
	family     Family
	// provable is true for the range that probes speak of: direct may be used
	// for it alone, since the fabric has a route of its own for each range.
	provable bool
}

// reasonPreferred is a Route's reason where nothing stands against the most
// preferred transport.
const reasonPreferred = "preferred"

// choose returns the most preferred of the transports with nothing against
// them. If there is something against each, the one in use stays (now; without
// it, the most preferred of those that both ends can use): an outage that is
// everywhere must not move traffic. It returns nil if the nodes have no address
// family in common.
func (c *cluster) choose(w way, now Transport, found evidence) *choice {
	options := c.options(w, found)
	if len(options) == 0 {
		self, peer := c.nodes[w.self].Name, c.nodes[w.peer].Name
		c.problem(peer, ReasonNoTransport, "nodes %s and %s have no address of the same family, so there is no route to %s's %s destinations: give both nodes an address of one family",
			self, peer, peer, w.family)
		return nil
	}
	best := 0
	for i, o := range options {
		if o.rank < options[best].rank {
			best = i
		}
	}
	inUse := -1
	if options[best].rank != fit {
		inUse = slices.IndexFunc(options, func(o option) bool { return o.transport == now && o.rank != refused })
		if inUse >= 0 {
			best = inUse
		}
	}
	picked := options[best]
	if slices.ContainsFunc(options, func(o option) bool { return o.rank == failing || o.rank == refused }) && picked.rank != fit {
		c.nameOutage(w, options)
	}
	if picked.reason = explain(options, best); inUse >= 0 {
		picked.reason = "all allowed transports fail, the one in use stays: " + strings.Join(flaws(options), "; ")
	}
	return &picked.choice
}

// options returns the allowed transports that can carry the family between the
// two nodes. In the place of ipip that cannot, vxlan does.
func (c *cluster) options(w way, found evidence) []option {
	var out []option
	var skipped []string
	add := func(t Transport) bool {
		outer, ok := c.underlay(w.self, w.peer, t, w.family)
		if ok && !slices.ContainsFunc(out, func(o option) bool { return o.transport == t }) {
			o := c.assess(w, t, outer, found)
			o.skipped = slices.Clone(skipped)
			out = append(out, o)
		}
		return ok
	}
	for _, t := range c.net.Transports {
		switch {
		case add(t):
		case t == IPIP:
			skipped = append(skipped, "ipip carries IPv4 over IPv4 only")
			if !slices.Contains(c.net.Transports, VXLAN) {
				add(VXLAN)
			}
		case t == Direct:
			skipped = append(skipped, fmt.Sprintf("direct needs an %s address of both nodes in the fabric", w.family))
		}
	}
	if len(out) == 0 {
		add(VXLAN)
	}
	return out
}

// underlay returns the peer's address that a transport sends to. Two nodes with
// both families use IPv4, so that all of a cluster's vxlan devices agree. Direct
// needs a next hop of the packets' own family.
func (c *cluster) underlay(self, peer int, t Transport, inner Family) (netip.Addr, bool) {
	families := []Family{IPv4, IPv6}
	switch {
	case t == IPIP && inner != IPv4:
		return netip.Addr{}, false
	case t == IPIP, t == Direct:
		families = []Family{inner}
	}
	for _, f := range families {
		to := OfFamily(c.nodes[peer].Addresses, f)
		if to.IsValid() && OfFamily(c.nodes[self].Addresses, f).IsValid() {
			return to, true
		}
	}
	return netip.Addr{}, false
}

func (c *cluster) assess(w way, t Transport, outer netip.Addr, found evidence) option {
	o := option{choice: choice{transport: t, outer: outer}}
	for _, end := range []int{w.self, w.peer} {
		if why, refuses := c.nodes[end].Refuses[t]; refuses {
			o.rank = refused
			o.flaw = fmt.Sprintf("%s: node %s cannot use it: %s", t, c.nodes[end].Name, why)
			return o
		}
	}
	name := c.nodes[w.peer].Name
	if why, fails := found.failing(name, w.family, t); fails {
		o.rank = failing
		o.flaw = fmt.Sprintf("%s: %s", t, why)
	} else if why := c.lacksProof(w, found); t == Direct && why != "" {
		o.rank = unproven
		o.flaw = fmt.Sprintf("%s: %s", t, why)
	}
	return o
}

// lacksProof says what keeps direct from being trusted where nothing is known
// against it; "" if it is proven.
func (c *cluster) lacksProof(w way, found evidence) string {
	switch {
	case !w.provable:
		return fmt.Sprintf("only the range of the node's own address (%s) can be proven", c.source(w.peer, w.family))
	case !found.proves(c.nodes[w.peer].Name, w.family):
		return "not proven: no node has reached it yet"
	default:
		return ""
	}
}

// provable reports whether probes to the node's own address prove the
// destination: it has the address, and is one range of the node, for which the
// fabric has one route.
func (c *cluster) provable(i int, dst netip.Prefix) bool {
	source := c.source(i, FamilyOf(dst.Addr()))
	return source.IsValid() && dst.Contains(source) &&
		slices.ContainsFunc(c.claims[i], func(cl claim) bool { return cl.dst == dst })
}

// bare returns what may leave the node untranslated: the fabric must lead back
// to the node by itself, as others have proven.
func (c *cluster) bare(self int, found evidence) Bare {
	n := c.nodes[self]
	var out Bare
	if _, refuses := n.Refuses[Direct]; refuses || !c.net.Masquerade || !slices.Contains(c.net.Transports, Direct) {
		return out
	}
	for _, dst := range c.destinations(self) {
		f := FamilyOf(dst.Addr())
		if c.provable(self, dst) && OfFamily(n.Addresses, f).IsValid() && found.proves(n.Name, f) {
			out.Sources = append(out.Sources, dst)
		}
	}
	out.Destinations = c.net.FabricCIDRs
	if len(out.Sources) == 0 || len(out.Destinations) == 0 {
		return Bare{}
	}
	return out
}

func (c *cluster) nameOutage(w way, options []option) {
	name := c.nodes[w.peer].Name
	reason, where := ReasonAllTransportsFail, "at security groups and firewalls between the nodes"
	if !slices.ContainsFunc(options, func(o option) bool { return o.rank < refused }) {
		reason = ReasonNoTransport
	}
	if slices.ContainsFunc(options, func(o option) bool { return o.transport == Direct }) {
		where = "at the fabric's routes, " + where
	}
	c.problem(name, reason, "every allowed transport to node %s fails for %s (%s): look %s, and at the agent on %s",
		name, w.family, strings.Join(flaws(options), "; "), where, name)
}

func flaws(options []option) []string {
	var out []string
	for _, o := range options {
		if o.flaw != "" {
			out = append(out, o.flaw)
		}
	}
	return out
}

// explain says why the option at best was picked.
func explain(options []option, best int) string {
	switch options[best].rank {
	case fit:
	case unproven:
		return "nothing else is allowed or works: " + strings.Join(flaws(options), "; ")
	default:
		return "all allowed transports fail, the most preferred usable one stays: " + strings.Join(flaws(options), "; ")
	}
	notes := append(options[best].skipped, flaws(options[:best])...)
	if len(notes) == 0 {
		return reasonPreferred
	}
	return strings.Join(notes, "; ")
}
