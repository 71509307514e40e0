package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/plan/cidr"
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
	c.held = s.HeldBack
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
		state.Singles = c.apart[self]
		state.VXLAN.MAC = c.vtep(self)
		found := c.learn(s)
		state.Bare = c.bare(self, found)
		c.planPeers(&state, self, found, inUse(s.Now))
	}
	state.Problems = sortProblems(c.problems)
	return state
}

// carriers returns the transports that packets between nodes may be in: the
// allowed ones, the tunnels that lead to singles, and vxlan where nothing else
// carries IPv6.
func (c *cluster) carriers() []Transport {
	out := slices.Clone(c.net.Transports)
	if len(c.apart)+len(c.diverted) > 0 {
		for _, t := range tunnelsOf(out) {
			if !slices.Contains(out, t) {
				out = append(out, t)
			}
		}
	}
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

// use is how a destination is reached now.
type use struct {
	transport Transport
	outer     netip.Addr
}

// ways maps peer -> the routes to it that are in use, which are the Snapshot's.
type ways map[string][]*Route

func inUse(now []Route) ways {
	out := make(ways, len(now))
	for i := range now {
		out[now[i].Peer] = append(out[now[i].Peer], &now[i])
	}
	return out
}

// to returns how the peer's range is reached now: by the longest route that
// covers it.
func (w ways) to(peer string, dst netip.Prefix) use {
	var out use
	longest := -1
	for _, r := range w[peer] {
		if r.Dst.Bits() > longest && cidr.Covers(r.Dst, dst) {
			out, longest = use{r.Transport, r.Outer}, r.Dst.Bits()
		}
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
func (c *cluster) planPeers(state *State, self int, found evidence, now ways) {
	state.Peers, state.Routes = make([]Peer, 0, len(c.nodes)), make([]Route, 0, len(c.nodes))
	for i := range c.nodes {
		n := c.nodes[i]
		if i == self || len(n.Addresses) == 0 {
			continue
		}
		dsts := c.destinations(i)
		state.Peers = append(state.Peers, Peer{
			Name: n.Name, Addresses: n.Addresses, Sources: c.sources(i), CIDRs: append(dsts, c.apart[i]...), VTEP: c.vtep(i),
		})
		state.Routes = append(state.Routes, c.routesTo(self, i, found, now)...)
		state.Routes = append(state.Routes, c.routesToSingles(self, i, found, now)...)
	}
	for _, r := range state.Routes { // one that is allowed no more carries packets all the same
		if !slices.Contains(state.Transports, r.Transport) {
			state.Transports = append(state.Transports, r.Transport)
		}
	}
	slices.SortFunc(state.Peers, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(state.Routes, func(a, b Route) int { return a.Dst.Compare(b.Dst) })
}

// asked is what a transport is chosen by; most ranges of a peer are alike.
type asked struct {
	way
	now use
}

// routesTo returns the routes to one peer's ranges: one for each that cannot be
// merged with another that is reached alike.
func (c *cluster) routesTo(self, peer int, found evidence, now ways) []Route {
	chosen := map[asked]*choice{}
	type kind struct {
		use
		mtu int
	}
	alike := map[kind]*merging{}
	var order []kind
	for _, cl := range c.separate(peer) {
		ask := asked{way{self: self, peer: peer, family: FamilyOf(cl.dst.Addr()), probed: c.probedAt(cl)}, now.to(c.nodes[peer].Name, cl.dst)}
		if _, done := chosen[ask]; !done {
			chosen[ask] = c.choose(ask.way, ask.now, found)
		}
		picked := chosen[ask]
		if picked == nil {
			continue
		}
		by := kind{use{picked.transport, picked.outer}, picked.mtu}
		if alike[by] == nil {
			alike[by] = &merging{}
			order = append(order, by)
		}
		alike[by].add(cl, picked)
	}
	var out []Route
	for _, by := range order {
		for _, dst := range merge(alike[by].claims) {
			out = append(out, c.route(self, peer, dst, *alike[by].choiceOf(dst)))
		}
	}
	return out
}

// merging are ranges of one peer that are reached alike, and why each is.
type merging struct {
	claims  []claim
	choices []*choice
}

func (m *merging) add(cl claim, why *choice) {
	m.claims, m.choices = append(m.claims, cl), append(m.choices, why)
}

// choiceOf returns the choice for the first range of a merged destination.
func (m *merging) choiceOf(dst netip.Prefix) *choice {
	return m.choices[slices.IndexFunc(m.claims, func(cl claim) bool { return cidr.Covers(dst, cl.dst) })]
}

// route returns the route to one of a peer's destinations.
func (c *cluster) route(self, peer int, dst netip.Prefix, picked choice) Route {
	f := FamilyOf(dst.Addr())
	gateway := c.source(peer, f)
	if !gateway.IsValid() {
		gateway = SourceOf(dst)
	}
	return Route{
		Dst: dst, Peer: c.nodes[peer].Name, Transport: picked.transport, Outer: picked.outer,
		Gateway: gateway, Source: c.source(self, f), VTEP: c.vtep(peer),
		MTU: picked.mtu, Reason: picked.reason, OffFabric: picked.offFabric,
	}
}

func sortProblems(in []Problem) []Problem {
	slices.SortFunc(in, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Reason, b.Reason), strings.Compare(a.Message, b.Message))
	})
	return slices.Compact(in)
}
