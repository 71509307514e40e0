package plan_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// podNetwork is small, so that generated ranges meet.
var podNetwork = netip.MustParsePrefix("10.244.0.0/22")

// anyPrefix generates ranges in and a little outside the pod network.
func anyPrefix(t *rapid.T) netip.Prefix {
	bits := rapid.IntRange(20, 28).Draw(t, "bits")
	host := rapid.Uint16Range(0, 0x0fff).Draw(t, "host")
	addr := netip.AddrFrom4([4]byte{10, 244, byte(host >> 8), byte(host)})
	return netip.PrefixFrom(addr, bits).Masked()
}

func anyAddress(t *rapid.T) netip.Addr { return anyPrefix(t).Addr() }

// anyNodes generates nodes that each have an address of their own and any
// ranges, which may overlap in every way.
func anyNodes(t *rapid.T) []plan.Node {
	var nodes []plan.Node
	for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
		nodes = append(nodes, plan.Node{
			Name: fmt.Sprintf("n%d", i), UID: fmt.Sprintf("u%d", i),
			Created:   rapid.Int64Range(0, 3).Draw(t, "created"),
			Silent:    rapid.IntRange(0, 4).Draw(t, "silent") == 0,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)})},
			NodeCIDRs: rapid.SliceOfN(rapid.Custom(anyPrefix), 0, 2).Draw(t, "node CIDRs"),
			Blocks:    rapid.SliceOfN(rapid.Custom(anyPrefix), 0, 3).Draw(t, "blocks"),
			Singles:   rapid.SliceOfN(rapid.Custom(anyAddress), 0, 2).Draw(t, "singles"),
			Asked:     rapid.SliceOfN(rapid.Custom(anyAddress), 0, 1).Draw(t, "asked"),
			Ready:     rapid.Bool().Draw(t, "ready"),
		})
	}
	return nodes
}

func anyNetwork(t *rapid.T) plan.Network {
	return plan.Network{
		PodCIDRs: []netip.Prefix{podNetwork},
		NodeCIDR: rapid.Bool().Draw(t, "node CIDR"),
		Shared:   rapid.SliceOfN(rapid.Custom(anyPrefix), 0, 1).Draw(t, "shared"),
		Diverted: rapid.SliceOfN(rapid.Custom(anyAddress), 0, 3).Draw(t, "diverted"),
		Resting:  rapid.SliceOfN(rapid.Custom(anyAddress), 0, 1).Draw(t, "resting"),
		Transports: rapid.SampledFrom([][]plan.Transport{
			{plan.IPIP, plan.VXLAN}, {plan.VXLAN, plan.IPIP}, {plan.IPIP}, {plan.VXLAN},
			{plan.Direct}, {plan.Direct, plan.IPIP}, {plan.VXLAN, plan.Direct}, {plan.Direct, plan.IPIP, plan.VXLAN},
		}).Draw(t, "transports"),
		Masquerade: true, FabricCIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
	}
}

func anyProbes(t *rapid.T, nodes []plan.Node) []plan.Published {
	return plan.PublishAll(rapid.SliceOfN(rapid.Custom(func(t *rapid.T) plan.Probe {
		to := rapid.SampledFrom(nodes).Draw(t, "to")
		return plan.Probe{
			From: rapid.SampledFrom(nodes).Draw(t, "from").Name, To: to.Name,
			ToUID:     rapid.SampledFrom([]string{to.UID, to.UID, "former"}).Draw(t, "uid"),
			Family:    plan.IPv4,
			Transport: rapid.SampledFrom([]plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN}).Draw(t, "transport"),
			Reachable: rapid.Bool().Draw(t, "reachable"),
			Reason:    rapid.SampledFrom([]string{"", "no answer", "refused"}).Draw(t, "reason"),
			PathMTU:   rapid.SampledFrom([]int{0, 0, 1400}).Draw(t, "path MTU"),
		}
	}), 0, 12).Draw(t, "probes"))
}

func anySnapshot(t *rapid.T) plan.Snapshot {
	nodes := anyNodes(t)
	return plan.Snapshot{Self: rapid.SampledFrom(nodes).Draw(t, "self").Name, Network: anyNetwork(t), Nodes: nodes, Probes: anyProbes(t, nodes)}
}

// TestEveryDestinationHasOneRoute: each range that another node owns has one
// route, to that node; no route leads to a range of this node's own.
func TestEveryDestinationHasOneRoute(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		state := plan.Compute(s)
		routes := map[netip.Prefix]string{}
		for _, r := range state.Routes {
			if other, twice := routes[r.Dst]; twice {
				t.Fatalf("two routes to %s: by %s and %s", r.Dst, other, r.Peer)
			}
			routes[r.Dst] = r.Peer
		}
		singles := singleHolders(s.Nodes)
		for _, n := range s.Nodes {
			owned := destinations(s.Network, n, s.Nodes)
			for a := range singles {
				if singles[a] == n.Name && !slices.ContainsFunc(owned, func(p netip.Prefix) bool { return p.Contains(a) }) {
					owned = append(owned, netip.PrefixFrom(a, 32))
				}
			}
			if n.Name == s.Self {
				for _, dst := range owned {
					if peer, routed := routes[dst]; routed {
						t.Fatalf("own range %s is routed to %s", dst, peer)
					}
				}
				continue
			}
			// Ranges that are reached by different transports have a route each.
			var routed []netip.Prefix
			for dst, peer := range routes {
				if peer == n.Name {
					routed = append(routed, dst)
					delete(routes, dst)
				}
			}
			if got, want := cidr.Aggregate(routed), cidr.Aggregate(owned); !slices.Equal(got, want) {
				t.Fatalf("%v of %s is routed as %v", owned, n.Name, routed)
			}
		}
		if len(routes) != 0 {
			t.Fatalf("routes to what nobody owns: %v", routes)
		}
	})
}

// singleHolders maps address in the pod network -> the node that holds it by
// itself: of several, the oldest.
func singleHolders(nodes []plan.Node) map[netip.Addr]string {
	sorted := slices.Clone(nodes)
	slices.SortFunc(sorted, func(a, b plan.Node) int {
		return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(b.UID, a.UID))
	})
	out := map[netip.Addr]string{}
	for _, n := range sorted {
		for _, a := range n.Singles {
			if podNetwork.Contains(a) {
				out[a] = n.Name
			}
		}
	}
	return out
}

// holder returns which node an address leads to by the longest prefix of a
// node's plan, as the node's kernel reads it.
func holder(s plan.State, a netip.Addr) string {
	longest, name := -1, ""
	consider := func(p netip.Prefix, to string) {
		if p.Contains(a) && p.Bits() > longest {
			longest, name = p.Bits(), to
		}
	}
	for _, p := range slices.Concat(s.CIDRs, s.Singles) {
		consider(p, s.Self)
	}
	for _, r := range s.Routes {
		consider(r.Dst, r.Peer)
	}
	return name
}

// TestNodesAgree: every node sends an address to the same node, however the
// ranges overlap, so that no packet goes round in circles; and the node that may
// give the address to a pod is that one.
func TestNodesAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		network, nodes := anyNetwork(t), anyNodes(t)
		var states []plan.State
		for _, n := range nodes {
			states = append(states, plan.Compute(plan.Snapshot{Self: n.Name, Network: network, Nodes: nodes}))
		}
		givers, singles := map[netip.Addr]string{}, singleHolders(nodes)
		for _, n := range nodes {
			for _, a := range givable(network, n, nodes) {
				if other, taken := givers[a]; taken && other != n.Name {
					t.Fatalf("both %s and %s may give %s", other, n.Name, a)
				}
				givers[a] = n.Name
			}
		}
		for a := podNetwork.Addr(); podNetwork.Contains(a); a = a.Next() {
			to := holder(states[0], a)
			for _, s := range states[1:] {
				if other := holder(s, a); other != to {
					t.Fatalf("%s leads to %q from %s but to %q from %s", a, to, states[0].Self, other, s.Self)
				}
			}
			if giver, may := givers[a]; may && giver != to {
				t.Fatalf("%s may be given by %s but leads to %q", a, giver, to)
			}
			if single := singles[a]; single != "" && to != single {
				t.Fatalf("%s is held by %s and leads to %q", a, single, to)
			}
		}
	})
}

func givable(network plan.Network, n plan.Node, nodes []plan.Node) []netip.Addr {
	var out []netip.Addr
	for _, r := range plan.RangesOf(network, n, nodes) {
		for _, p := range cidr.Subtract([]netip.Prefix{r.CIDR}, r.Except) {
			for a := p.Addr(); p.Contains(a); a = a.Next() {
				out = append(out, a)
			}
		}
	}
	return out
}

// TestSourcesAreOwn: a node's own address leads to that node from everywhere,
// and is at no base of a range.
func TestSourcesAreOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		network, nodes := anyNetwork(t), anyNodes(t)
		for i := range nodes {
			if rapid.Bool().Draw(t, "says") {
				nodes[i].Sources = []netip.Addr{anyPrefix(t).Addr().Next()}
			}
		}
		for _, n := range nodes {
			state := plan.Compute(plan.Snapshot{Self: n.Name, Network: network, Nodes: nodes})
			for _, a := range state.Sources {
				if to := holder(state, a); to != n.Name {
					t.Fatalf("source %s of %s leads to %q", a, n.Name, to)
				}
			}
			for _, p := range state.Peers {
				for _, a := range p.Sources {
					if to := holder(state, a); to != p.Name {
						t.Fatalf("source %s of peer %s leads to %q", a, p.Name, to)
					}
				}
			}
		}
	})
}

// TestOrderDoesNotMatter: Compute gives the same State for every order of nodes
// and probes, and leaves the snapshot as it was.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		before := fmt.Sprintf("%+v", s)
		want := plan.Compute(s)
		if after := fmt.Sprintf("%+v", s); after != before {
			t.Fatalf("the snapshot was changed:\n%s\n%s", before, after)
		}
		shuffled := s
		shuffled.Nodes = rapid.Permutation(s.Nodes).Draw(t, "order of nodes")
		shuffled.Probes = rapid.Permutation(s.Probes).Draw(t, "order of probes")
		got := plan.Compute(shuffled)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("another order, another state:\n%s\n%s", want, got)
		}
		if d := plan.Diff(want, got); len(d) != 0 {
			t.Fatalf("equal states differ: %v", d)
		}
		if want.String() != got.String() {
			t.Fatal("equal states read differently")
		}
	})
}

// TestDiffTellsAll: States differ if and only if Diff says so, and what it says
// leads from one to the other and back.
func TestDiffTellsAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		before := plan.Compute(s)
		s.Network, s.Probes = anyNetwork(t), anyProbes(t, s.Nodes)
		after := plan.Compute(s)
		there, back := plan.Diff(before, after), plan.Diff(after, before)
		if (len(there) == 0) != reflect.DeepEqual(before, after) {
			t.Fatalf("Diff says %v of\n%s\n%s", there, before, after)
		}
		count := map[plan.Action]int{}
		for _, c := range there {
			count[c.Action]++
		}
		for _, c := range back {
			count[map[plan.Action]plan.Action{plan.Added: plan.Removed, plan.Removed: plan.Added, plan.Changed: plan.Changed}[c.Action]]--
		}
		for action, n := range count {
			if n != 0 {
				t.Fatalf("%d more of %s on the way there than back", n, action)
			}
		}
	})
}

// TestRemovedNodeTakesItsRoutes: where ranges do not overlap, a node that goes
// takes its own routes with it and no other.
func TestRemovedNodeTakesItsRoutes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []plan.Node
		for i := range rapid.IntRange(2, 8).Draw(t, "nodes") {
			nodes = append(nodes, plan.Node{
				Name: fmt.Sprintf("n%d", i), UID: fmt.Sprintf("u%d", i), Ready: true,
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)})},
				Blocks:    []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i / 4), byte(i % 4 * 64)}), 26)},
			})
		}
		s := plan.Snapshot{Self: "n0", Network: plan.Network{PodCIDRs: []netip.Prefix{podNetwork}}, Nodes: nodes}
		before := plan.Compute(s)
		gone := rapid.IntRange(1, len(nodes)-1).Draw(t, "gone")
		s.Nodes = slices.Delete(slices.Clone(nodes), gone, gone+1)
		want := slices.DeleteFunc(slices.Clone(before.Routes), func(r plan.Route) bool { return r.Peer == nodes[gone].Name })
		if got := plan.Compute(s).Routes; !slices.Equal(got, want) {
			t.Fatalf("without %s: %v, want %v", nodes[gone].Name, got, want)
		}
	})
}

// TestTransportsAreAllowed: only what the configuration allows is used, and
// nothing that is found failing or refused while something else is not.
func TestTransportsAreAllowed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		for i := range s.Nodes {
			if rapid.IntRange(0, 3).Draw(t, "refuses") == 0 {
				s.Nodes[i].Refuses = map[plan.Transport]string{rapid.SampledFrom([]plan.Transport{plan.IPIP, plan.VXLAN}).Draw(t, "what"): "because"}
			}
		}
		state := plan.Compute(s)
		for _, r := range state.Routes {
			may := s.Network.Transports
			if r.Dst.IsSingleIP() || len(state.Singles) > 0 || hasDiverted(s) {
				may = tunnels(may)
			}
			ranks := map[plan.Transport]int{}
			for _, transport := range may {
				ranks[transport] = rank(s, r.Peer, transport)
			}
			got, allowed := ranks[r.Transport]
			if !allowed {
				t.Fatalf("%s is not allowed, but %s goes by it", r.Transport, r.Dst)
			}
			for i, other := range may {
				if r.Transport == plan.Direct || other == plan.Direct {
					continue // TestDirectNeedsProof
				}
				preferred := i < slices.Index(may, r.Transport)
				if ranks[other] < got || preferred && ranks[other] == got {
					t.Fatalf("%s goes by %s (%d) although %s (%d) is better: %s", r.Dst, r.Transport, got, other, ranks[other], r.Reason)
				}
			}
		}
	})
}

// tunnels are what leads to single addresses, and from nodes that hold some.
func tunnels(allowed []plan.Transport) []plan.Transport {
	out := slices.DeleteFunc(slices.Clone(allowed), func(t plan.Transport) bool { return t == plan.Direct })
	if len(out) == 0 {
		return []plan.Transport{plan.IPIP, plan.VXLAN}
	}
	return out
}

// rank is 3 for a transport that an end refuses, 2 for one that fails, 1 for one
// that nobody has tried, 0 for one that an answer came by, counted anew from the
// words of the design.
func rank(s plan.Snapshot, peer string, transport plan.Transport) int {
	uid := ""
	for _, n := range s.Nodes {
		if n.Name == peer {
			uid = n.UID
		}
		if _, refuses := n.Refuses[transport]; refuses && (n.Name == s.Self || n.Name == peer) {
			return 3
		}
	}
	var selfGood, selfBad, bad bool
	for p := range plan.ProbesOf(s.Probes) {
		if p.To != peer || p.From == peer || p.ToUID != uid || p.Transport != transport {
			continue
		}
		if p.From == s.Self {
			selfGood, selfBad = selfGood || p.Reachable, selfBad || !p.Reachable
		} else {
			bad = bad || !p.Reachable
		}
	}
	switch {
	case selfGood:
		return 0
	case selfBad:
		return 2
	case answers(s, peer, transport, s.Self):
		return 0
	case bad:
		return 2
	default:
		return 1
	}
}

// answers reports whether a node is found to answer by a transport, counted anew:
// a peer that is heard of reached it, or another did and none that is heard of
// says otherwise. Whom nobody reaches by direct itself has no word against others'.
func answers(s plan.Snapshot, to string, transport plan.Transport, besides string) bool {
	nodes := map[string]plan.Node{}
	for _, n := range s.Nodes {
		nodes[n.Name] = n
	}
	said := func(p plan.Probe, of string) bool {
		return p.To == of && p.From != of && p.ToUID == nodes[of].UID && p.Transport == transport
	}
	var good, live, missed bool
	probes := slices.Collect(plan.ProbesOf(s.Probes))
	for _, p := range probes {
		heard := !nodes[p.From].Silent
		stranded := transport == plan.Direct && !slices.ContainsFunc(probes, func(q plan.Probe) bool { return said(q, p.From) && q.Reachable })
		switch {
		case !said(p, to) || p.From == besides:
		case p.Reachable:
			good, live = true, live || heard
		default:
			missed = missed || heard && !stranded
		}
	}
	return good && (live || !missed)
}
