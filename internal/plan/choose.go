package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// choice is how one peer's destinations of one family are reached.
type choice struct {
	transport Transport
	outer     netip.Addr // the peer's
	mtu       int        // in bytes: what was found to pass, 0 if everything does
	offFabric bool
	reason    string
}

// option is a transport that could be chosen, and what speaks against it.
type option struct {
	choice
	rank    int      // the lower the better
	flaw    string   // why not; empty for rank fit
	skipped []string // why more preferred ones are no options at all
}

// Ranks of options: what an answer came by, what nothing is known of, what is
// found working but is held back beside another that works, what is found
// failing, what has yet to be proven (direct only), and what one of the two ends
// cannot do at all.
const (
	proven = iota
	untried
	damped
	failing
	unproven
	refused
)

// way is what a transport is chosen for: a range, from one node to another.
type way struct {
	self, peer int
	family     Family
	// probed is where the range is probed; invalid if it cannot be. Direct is
	// proven by that alone, since the fabric has a route of its own for each range.
	probed netip.Addr
	single bool // to an address that the peer holds by itself, or that is diverted
	// diverted is true for an address of a range that the fabric may lead elsewhere.
	diverted bool
}

// reasonPreferred is a Route's reason where nothing stands against the most
// preferred transport.
const reasonPreferred = "preferred"

// choose returns the most preferred of the transports that are proven, or else
// of those that nothing is known of. If there is something against each, the one
// in use stays (without it, the most preferred of those that both ends can use):
// an outage that is everywhere must not move traffic. What is in use stays as
// well while nothing that is allowed is proven in its place. It returns nil if
// the nodes have no address family in common.
func (c *cluster) choose(w way, now use, found evidence) *choice {
	options := c.options(w, found)
	if len(options) == 0 {
		self, peer := c.nodes[w.self].Name, c.nodes[w.peer].Name
		c.problem(peer, ReasonNoTransport, "nodes %s and %s have no address of the same family, so there is no route to %s's %s destinations: give both nodes an address of one family",
			self, peer, peer, w.family)
		return nil
	}
	inUse := slices.IndexFunc(options, func(o option) bool { return o.transport == now.transport && o.outer == now.outer })
	c.heldBack(w, options, inUse)
	best := 0
	for i, o := range options {
		if o.rank < options[best].rank {
			best = i
		}
	}
	if options[best].rank != proven {
		if held := c.hold(w, now, options, found); held != nil {
			return held
		}
	}
	stays := inUse >= 0 && inUse != best && options[best].mayGiveWay(options[inUse])
	if stays {
		best = inUse
	}
	picked := options[best]
	if picked.rank > untried && slices.ContainsFunc(options, func(o option) bool { return o.rank == failing || o.rank == refused }) {
		c.nameOutage(w, options)
	}
	switch {
	case stays && picked.rank == untried:
		picked.reason = "in use, and nothing that is preferred is proven: " + strings.Join(flaws(options[:best]), "; ")
	case inUse == best && picked.rank > untried && len(options) > 1:
		picked.reason = "all allowed transports fail, the one in use stays: " + strings.Join(flaws(options), "; ")
	default:
		picked.reason = explain(options, best)
	}
	return &picked.choice
}

// mayGiveWay reports whether what is best is no reason to leave what is in use.
func (best option) mayGiveWay(inUse option) bool {
	switch {
	case inUse.rank == refused, best.rank == proven:
		return false
	case best.rank == untried:
		return inUse.rank == untried
	default:
		return true
	}
}

// hold returns the way in use if it is allowed no more, but nothing that is
// allowed is proven in its place: a change of the configuration takes nothing
// away that works.
func (c *cluster) hold(w way, now use, options []option, found evidence) *choice {
	if now.transport == "" || slices.ContainsFunc(options, func(o option) bool { return o.transport == now.transport }) {
		return nil
	}
	if now.transport == Direct && c.noFabric(w) != "" {
		return nil
	}
	outer, ok := c.underlay(w.self, w.peer, now.transport, w.family)
	if !ok || outer != now.outer {
		return nil // another machine: what was known of the way is known no more
	}
	held := c.assess(w, now.transport, outer, found)
	if held.rank == failing || held.rank == refused {
		return nil
	}
	name, why := c.nodes[w.peer].Name, strings.Join(flaws(options), "; ")
	c.problem(name, ReasonTransportHeld, "pods of node %s are still reached by %s, which ClusterNetwork's transports allow no more: what they allow is not proven yet (%s); it is used as soon as it is",
		name, now.transport, why)
	held.reason = fmt.Sprintf("%s is allowed no more and stays in use until another is proven: %s", now.transport, why)
	return &held.choice
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
	allowed := c.mayUse(w)
	if why := c.noFabric(w); why != "" && slices.Contains(c.net.Transports, Direct) {
		skipped = append(skipped, "direct: "+why)
	}
	for _, t := range allowed {
		switch {
		case add(t):
		case t == IPIP:
			skipped = append(skipped, "ipip carries IPv4 over IPv4 only")
			if !slices.Contains(allowed, VXLAN) {
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
	o := option{choice: choice{transport: t, outer: outer, offFabric: slices.Contains(c.net.Transports, Direct) && c.noFabric(w) != ""}}
	for _, end := range []int{w.self, w.peer} {
		if why, refuses := c.nodes[end].Refuses[t]; refuses {
			o.rank = refused
			o.flaw = fmt.Sprintf("%s: node %s cannot use it: %s", t, c.nodes[end].Name, why)
			return o
		}
	}
	f := found.of(probedBy(w, c.nodes[w.peer].Name, t))
	o.mtu = f.largest()
	switch why, fails := f.failing(t); {
	case fails:
		o.rank, o.flaw = failing, fmt.Sprintf("%s: %s", t, why)
	case f.works(t) && t == Direct && c.astray[w.family] != "":
		o.rank, o.flaw = unproven, fmt.Sprintf("%s: %s", t, c.astray[w.family])
	case f.works(t):
		o.rank = proven
	case t == Direct:
		o.rank, o.flaw = unproven, fmt.Sprintf("%s: %s", t, c.lacksProof(w))
	default:
		o.rank, o.flaw = untried, fmt.Sprintf("%s: not proven yet", t)
	}
	return o
}

// learn weighs the probes, also for what they say of this node itself. A fabric
// takes bare packets only from addresses that it leads back to their sender: so
// where others do not reach this node's ranges by direct, what it sends by direct
// does not arrive either, however well its destination is reached by others.
func (c *cluster) learn(s Snapshot) evidence {
	found := weigh(c, s.Probes, s.Own)
	c.astray = map[Family]string{}
	self, known := c.index[c.self]
	if !known {
		return found
	}
	for _, cl := range c.separate(self) {
		f, at := FamilyOf(cl.dst.Addr()), c.probedAt(cl)
		own := found.of(probed{c.self, f, Direct, at})
		if at.IsValid() && !own.works(Direct) && c.astray[f] == "" { // what cannot be probed says nothing
			c.astray[f] = fmt.Sprintf("the fabric is not proven to lead back to this node's %s, so it may drop what comes from there", cl.dst)
		}
	}
	return found
}

// probedBy names what the way's packets by the transport are proven by.
func probedBy(w way, peer string, t Transport) probed {
	key := probed{to: peer, family: w.family, transport: t}
	if t == Direct {
		key.address = w.probed
	}
	return key
}

// lacksProof says what keeps direct from being trusted where nothing is known
// against it.
func (c *cluster) lacksProof(w way) string {
	if !w.probed.IsValid() {
		return fmt.Sprintf("node %s has no address in this range that could be probed", c.nodes[w.peer].Name)
	}
	return "not proven: no node has reached it yet"
}

// probedAt returns the node's own address in one of its ranges: what is known of
// that address is known of the range, for which the fabric has one route. It is
// invalid if the node has none, or the range is not its alone.
func (c *cluster) probedAt(cl claim) netip.Addr {
	if cl.contested {
		return netip.Addr{}
	}
	if source := c.source(cl.node, FamilyOf(cl.dst.Addr())); cl.dst.Contains(source) {
		return source
	}
	for _, a := range c.nodes[cl.node].Sources {
		if a = a.Unmap(); cl.dst.Contains(a) {
			return a
		}
	}
	return netip.Addr{}
}

// bare returns what may leave the node untranslated: the fabric must lead back
// to the node by itself, as others have proven.
func (c *cluster) bare(self int, found evidence) Bare {
	n := c.nodes[self]
	if _, refuses := n.Refuses[Direct]; refuses || !c.net.Masquerade || !slices.Contains(c.net.Transports, Direct) {
		return Bare{}
	}
	var proven []claim
	for _, cl := range c.separate(self) {
		f := FamilyOf(cl.dst.Addr())
		at := c.probedAt(cl)
		if known := found.of(probed{n.Name, f, Direct, at}); at.IsValid() && OfFamily(n.Addresses, f).IsValid() && known.works(Direct) {
			proven = append(proven, cl)
		}
	}
	out := Bare{Sources: cidr.Subtract(merge(proven), c.diverted[self]), Destinations: c.net.FabricCIDRs}
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
	case proven, untried:
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
