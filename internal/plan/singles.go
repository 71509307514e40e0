package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Addresses that a node holds one by one (Node.Singles): of a range that pods on
// any node share, or a fixed one that moved away from the range it lies in. A
// single is a destination like any other, but nothing is built on it: no address
// of the node's own lies in it, it is merged with nothing, and it takes nothing
// from what is known of the range around it. The fabric has no route to it, so
// what goes to it, and whatever leaves the node that holds one (its source may
// be it), goes by tunnels, also where nothing but direct is allowed. One outside the
// pod network is an underlay's: it is not for us to route, and is left out.
//
// Where the fabric has a route of its own to an address after all
// (Network.Diverted), that is for the fabric's other machines. Nodes go on using
// tunnels, so they need not know where the route leads: not while the address moves
// to its third node, and not once it is back in its range and the route still leads
// to where it was. A pod gets it at once, whenever the cloud takes the route away.

// single is an address that one node holds.
type single struct {
	node int // position in cluster.nodes
	dst  netip.Prefix
}

// collectSingles fills c.singles and c.asked, by address. What two nodes claim
// is the older one's: the API server lets nobody make two leases of one
// address.
func (c *cluster) collectSingles() {
	c.singles = c.gatherSingles(func(n *Node) []netip.Addr { return n.Singles })
	c.asked = c.gatherSingles(func(n *Node) []netip.Addr { return n.Asked })
	c.apart = make(map[int][]netip.Prefix, len(c.singles))
	for _, s := range c.singles {
		inside := slices.ContainsFunc(c.claims[s.node], func(cl claim) bool { return !cl.contested && cidr.Covers(cl.dst, s.dst) })
		if !inside {
			c.apart[s.node] = append(c.apart[s.node], s.dst)
		}
	}
}

func (c *cluster) gatherSingles(of func(*Node) []netip.Addr) []single {
	var out []single
	for i := range c.nodes {
		for _, a := range of(&c.nodes[i]) {
			if a = a.Unmap().WithZone(""); containedInAny(c.net.PodCIDRs, a) {
				out = append(out, single{i, netip.PrefixFrom(a, a.BitLen())})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b single) int { return a.dst.Compare(b.dst) })
	return slices.CompactFunc(out, func(a, b single) bool { return a.dst == b.dst })
}

// collectDiverted fills c.diverted.
func (c *cluster) collectDiverted() {
	c.diverted = map[int][]netip.Prefix{}
	if len(c.net.Diverted) == 0 {
		return
	}
	all := make([]netip.Addr, 0, len(c.net.Diverted))
	for _, a := range c.net.Diverted {
		if !slices.Contains(c.net.Resting, a) {
			all = append(all, a.Unmap().WithZone(""))
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	all = slices.Compact(all)
	for i, own := range c.claims {
		for _, cl := range own {
			at, _ := slices.BinarySearchFunc(all, cl.dst.Addr(), netip.Addr.Compare)
			for ; at < len(all) && cl.dst.Contains(all[at]); at++ {
				dst := netip.PrefixFrom(all[at], all[at].BitLen())
				// A range that is one address has no other route than its own.
				if !cl.dst.IsSingleIP() && c.has(i, all[at]) && !slices.Contains(c.apart[i], dst) && !slices.Contains(c.diverted[i], dst) {
					c.diverted[i] = append(c.diverted[i], dst)
				}
			}
		}
	}
}

// has reports whether an address in a range of node i is there: as one of the range, or
// as a single one of the node's.
func (c *cluster) has(i int, a netip.Addr) bool {
	if holder, single := c.singleHolder(a); single {
		return holder == i
	}
	return c.owns(i, a)
}

// singleHolder returns which node holds an address by itself, if one does.
func (c *cluster) singleHolder(a netip.Addr) (int, bool) {
	i, found := slices.BinarySearchFunc(c.singles, a, func(s single, a netip.Addr) int { return s.dst.Addr().Compare(a) })
	if !found {
		return 0, false
	}
	return c.singles[i].node, true
}

// keptFrom returns the parts of a range of node i that it gives no pod: those
// that other nodes hold or ask for by themselves, and those that are leased
// address by address.
func (c *cluster) keptFrom(i int, dst netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, list := range [][]single{c.singles, c.asked} {
		for _, s := range list {
			if s.node != i && dst.Overlaps(s.dst) {
				out = append(out, s.dst)
			}
		}
	}
	for _, p := range c.net.Shared {
		if p = cidr.Plain(p); dst.Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// isKept reports whether an address is no node's own although a range of node i
// has it.
func (c *cluster) isKept(i int, a netip.Addr) bool {
	holder, single := c.singleHolder(a)
	return single && holder != i || containedInAny(c.net.Shared, a)
}

// noFabric says why the fabric cannot carry a way's packets: it knows neither
// where a single is, nor where one that sends is at home.
func (c *cluster) noFabric(w way) string {
	switch {
	case w.diverted:
		return "the fabric may lead it elsewhere than the range around it"
	case w.single:
		return "the fabric has no route to a single address"
	case len(c.apart[w.self]) > 0:
		return fmt.Sprintf("node %s holds single addresses, which the fabric would not let send", c.nodes[w.self].Name)
	case len(c.diverted[w.self]) > 0:
		return fmt.Sprintf("the fabric may lead %s of node %s elsewhere, and would not let it send", c.diverted[w.self][0].Addr(), c.nodes[w.self].Name)
	default:
		return ""
	}
}

// mayUse returns the transports that may carry a way's packets, the most
// preferred first.
func (c *cluster) mayUse(w way) []Transport {
	if c.noFabric(w) == "" {
		return c.net.Transports
	}
	return tunnelsOf(c.net.Transports)
}

// tunnelsOf returns the tunnels among the transports, or where there are none,
// those that an empty configuration means.
func tunnelsOf(all []Transport) []Transport {
	tunnels := slices.DeleteFunc(slices.Clone(all), func(t Transport) bool { return t == Direct })
	if len(tunnels) == 0 {
		return []Transport{IPIP, VXLAN}
	}
	return tunnels
}

// routesToSingles returns a route to each address that the peer holds by itself, or
// that the fabric may lead elsewhere.
func (c *cluster) routesToSingles(self, peer int, found evidence, now ways) []Route {
	chosen := map[asked]*choice{}
	var out []Route
	apart := len(c.apart[peer])
	for i, dst := range slices.Concat(c.apart[peer], c.diverted[peer]) {
		w := way{self: self, peer: peer, family: FamilyOf(dst.Addr()), single: true, diverted: i >= apart}
		ask := asked{w, now.to(c.nodes[peer].Name, dst)}
		if _, done := chosen[ask]; !done {
			chosen[ask] = c.choose(ask.way, ask.now, found)
		}
		if picked := chosen[ask]; picked != nil {
			out = append(out, c.route(self, peer, dst, *picked))
		}
	}
	return out
}
