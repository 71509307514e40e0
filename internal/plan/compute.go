package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Compute returns what the kernel of the node s.Self should hold. It is a total
// function: input that makes no sense becomes a Problem, is left out, and
// everything else is planned for. It does not modify s, and the State shares no
// memory with it. The order of s.Nodes and s.Probes does not matter.
//
// If s.Self is not among s.Nodes, the State has the Problem ReasonUnknownNode
// and no routes; it is not to be set, nor is one of a network without PodCIDRs.
func Compute(s Snapshot) State {
	c := check(s.Self, s.Network, s.Nodes)
	state := State{
		Self:       s.Self,
		PodCIDRs:   c.net.PodCIDRs,
		Transports: c.carriers(),
		VXLAN:      VXLANDevice{VNI: c.net.VXLANVNI, Port: c.net.VXLANPort, Checksums: s.BadOffload},
		MTU:        c.net.MTU,
		Masquerade: c.net.Masquerade,
		Metadata:   c.metadata(s.Pods),
	}
	if self, known := c.index[s.Self]; known {
		state.Addresses = c.nodes[self].Addresses
		state.Sources = c.sources(self)
		state.CIDRs = c.destinations(self)
		state.VXLAN.MAC = c.vtep(self)
		found := weigh(c, s.Probes)
		state.Bare = c.bare(self, found)
		c.planPeers(&state, self, found, inUse(s.Now))
	}
	state.Problems = sortProblems(c.problems)
	return state
}

// carriers returns the transports that packets between nodes may be in: the
// allowed ones, and vxlan where nothing else carries IPv6.
func (c *cluster) carriers() []Transport {
	out := slices.Clone(c.net.Transports)
	isIPv6 := func(p netip.Prefix) bool { return FamilyOf(p.Addr()) == IPv6 }
	if slices.ContainsFunc(c.net.PodCIDRs, isIPv6) && !slices.Contains(out, VXLAN) {
		out = append(out, VXLAN)
	}
	return out
}

// Allowed returns the transports that may carry packets of the family, the
// most preferred first. In an IPv6 packet's way ipip stands for vxlan: protocol
// 41 is not spoken.
func Allowed(network Network, f Family) []Transport {
	c := &cluster{}
	var out []Transport
	for _, t := range c.checkTransports(network.Transports) {
		if f == IPv6 && t == IPIP {
			t = VXLAN
		}
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

// use is what a route in use is looked up by: a destination of a node.
type use struct {
	peer string
	dst  netip.Prefix
}

// inUse maps routes' destinations -> the transport that they go by.
func inUse(now []Route) map[use]Transport {
	out := make(map[use]Transport, len(now))
	for _, r := range now {
		out[use{r.Peer, r.Dst}] = r.Transport
	}
	return out
}

// vtep returns the MAC of the node's vxlan device, which its agent derives
// from the node's UID as well.
func (c *cluster) vtep(i int) MAC {
	n := c.nodes[i]
	if n.VTEP != (MAC{}) && n.Name != c.self {
		return n.VTEP
	}
	return VTEPMAC(cmp.Or(n.UID, n.Name))
}

// planPeers fills the State's Peers and Routes. A node that is not Ready gets
// routes too: they harm nobody, and its first pod is reached at once.
func (c *cluster) planPeers(state *State, self int, found evidence, now map[use]Transport) {
	for i := range c.nodes {
		n := c.nodes[i]
		if i == self || len(n.Addresses) == 0 {
			continue
		}
		dsts := c.destinations(i)
		state.Peers = append(state.Peers, Peer{
			Name: n.Name, Addresses: n.Addresses, Sources: c.sources(i), CIDRs: dsts, VTEP: c.vtep(i),
		})
		state.Routes = append(state.Routes, c.routesTo(self, i, dsts, found, now)...)
	}
	slices.SortFunc(state.Peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(state.Routes, func(a, b Route) int { return a.Dst.Compare(b.Dst) })
}

// routesTo returns the routes to one peer's destinations.
func (c *cluster) routesTo(self, peer int, dsts []netip.Prefix, found evidence, now map[use]Transport) []Route {
	name := c.nodes[peer].Name
	type asked struct {
		way
		now Transport
	}
	chosen := map[asked]*choice{} // most destinations of a peer are alike
	var out []Route
	for _, dst := range dsts {
		f := FamilyOf(dst.Addr())
		ask := asked{way{self, peer, f, c.provable(peer, dst)}, now[use{name, dst}]}
		if _, done := chosen[ask]; !done {
			chosen[ask] = c.choose(ask.way, ask.now, found)
		}
		picked := chosen[ask]
		if picked == nil {
			continue
		}
		gateway := c.source(peer, f)
		if !gateway.IsValid() {
			gateway = SourceOf(dst)
		}
		out = append(out, Route{
			Dst: dst, Peer: name, Transport: picked.transport, Outer: picked.outer,
			Gateway: gateway, Source: c.source(self, f), VTEP: c.vtep(peer),
			MTU: found.pathMTU(name, f, picked.transport), Reason: picked.reason,
		})
	}
	return out
}

func sortProblems(in []Problem) []Problem {
	slices.SortFunc(in, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Reason, b.Reason), strings.Compare(a.Message, b.Message))
	})
	return slices.Compact(in)
}
