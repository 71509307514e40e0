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
	rank int    // the lower the better
	flaw string // why not; empty for rank fit
}

// Ranks of options: what may carry, what is found failing, and what one of the
// two ends cannot do at all.
const (
	fit = iota
	failing
	refused
)

// reasonPreferred is a Route's reason where nothing stands against the most
// preferred transport.
const reasonPreferred = "preferred"

// choose returns the most preferred of the transports with nothing against
// them. If there is something against each, the most preferred of those that
// both ends can use stays: an outage that is everywhere must not move traffic.
// It returns nil if the nodes have no address family in common.
func (c *cluster) choose(self, peer int, f Family, found evidence) *choice {
	options, skipped := c.options(self, peer, f, found)
	if len(options) == 0 {
		c.problem(c.nodes[peer].Name, ReasonNoTransport, "nodes %s and %s have no address of the same family, so there is no route to %s's %s destinations: give both nodes an address of one family",
			c.nodes[self].Name, c.nodes[peer].Name, c.nodes[peer].Name, f)
		return nil
	}
	best := 0
	for i, o := range options {
		if o.rank < options[best].rank {
			best = i
		}
	}
	picked := options[best]
	if picked.rank != fit {
		c.nameOutage(peer, f, options)
	}
	picked.reason = explain(options, best, skipped)
	return &picked.choice
}

// options returns the allowed transports that can carry the family between the
// two nodes, and what is to be said of those that cannot.
func (c *cluster) options(self, peer int, f Family, found evidence) (out []option, skipped []string) {
	allowed := c.net.Transports
	for _, t := range allowed {
		outer, ok := c.underlay(self, peer, t, f)
		if !ok {
			if t == IPIP {
				skipped = append(skipped, "ipip carries IPv4 over IPv4 only")
			}
			continue
		}
		out = append(out, c.assess(self, peer, t, f, outer, found))
	}
	if len(out) == 0 && !slices.Contains(allowed, VXLAN) {
		if outer, ok := c.underlay(self, peer, VXLAN, f); ok {
			out = append(out, c.assess(self, peer, VXLAN, f, outer, found))
		}
	}
	return out, skipped
}

// underlay returns the peer's address that a transport sends to. Two nodes with
// both families use IPv4, so that all of a cluster's vxlan devices agree.
func (c *cluster) underlay(self, peer int, t Transport, inner Family) (netip.Addr, bool) {
	families := []Family{IPv4, IPv6}
	if t == IPIP {
		if inner != IPv4 {
			return netip.Addr{}, false
		}
		families = families[:1]
	}
	for _, f := range families {
		to := OfFamily(c.nodes[peer].Addresses, f)
		if to.IsValid() && OfFamily(c.nodes[self].Addresses, f).IsValid() {
			return to, true
		}
	}
	return netip.Addr{}, false
}

func (c *cluster) assess(self, peer int, t Transport, f Family, outer netip.Addr, found evidence) option {
	o := option{choice: choice{transport: t, outer: outer}}
	for _, end := range []int{self, peer} {
		if why, refuses := c.nodes[end].Refuses[t]; refuses {
			o.rank = refused
			o.flaw = fmt.Sprintf("%s: node %s cannot use it: %s", t, c.nodes[end].Name, why)
			return o
		}
	}
	if why, fails := found.failing(c.nodes[peer].Name, f, t); fails {
		o.rank = failing
		o.flaw = fmt.Sprintf("%s: %s", t, why)
	}
	return o
}

func (c *cluster) nameOutage(peer int, f Family, options []option) {
	name := c.nodes[peer].Name
	reason := ReasonAllTransportsFail
	if !slices.ContainsFunc(options, func(o option) bool { return o.rank < refused }) {
		reason = ReasonNoTransport
	}
	c.problem(name, reason, "every allowed transport to node %s fails for %s (%s): look at security groups and firewalls between the nodes, and at the agent on %s",
		name, f, strings.Join(flaws(options), "; "), name)
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
func explain(options []option, best int, skipped []string) string {
	if options[best].rank != fit {
		return "all allowed transports fail, the most preferred usable one stays: " + strings.Join(flaws(options), "; ")
	}
	notes := append(skipped, flaws(options[:best])...)
	if len(notes) == 0 {
		return reasonPreferred
	}
	return strings.Join(notes, "; ")
}
