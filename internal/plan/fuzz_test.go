package plan_test

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// wildSnapshot generates what no cluster would have.
func wildSnapshot(t *rapid.T) plan.Snapshot {
	addr := rapid.Custom(func(t *rapid.T) netip.Addr {
		a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), 0, 16).Draw(t, "bytes"))
		if rapid.IntRange(0, 9).Draw(t, "zone") == 0 {
			a = a.WithZone("eth0")
		}
		return a
	})
	prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.Bool().Draw(t, "plausible") {
			return anyPrefix(t)
		}
		return netip.PrefixFrom(addr.Draw(t, "addr"), rapid.IntRange(-1, 129).Draw(t, "bits"))
	})
	name := rapid.SampledFrom([]string{"", "a", "b", "c", "d"})
	transport := rapid.SampledFrom([]plan.Transport{"", plan.Local, plan.Direct, plan.IPIP, plan.VXLAN, "gre"})
	node := rapid.Custom(func(t *rapid.T) plan.Node {
		return plan.Node{
			Name: name.Draw(t, "name"), UID: name.Draw(t, "uid"), Created: rapid.Int64().Draw(t, "created"),
			Addresses: rapid.SliceOfN(addr, 0, 3).Draw(t, "addresses"),
			NodeCIDRs: rapid.SliceOfN(prefix, 0, 3).Draw(t, "node CIDRs"),
			Blocks:    rapid.SliceOfN(prefix, 0, 3).Draw(t, "blocks"),
			Sources:   rapid.SliceOfN(addr, 0, 3).Draw(t, "sources"),
			Ready:     rapid.Bool().Draw(t, "ready"),
			Refuses:   rapid.MapOfN(transport, rapid.String(), 0, 2).Draw(t, "refuses"),
		}
	})
	probe := rapid.Custom(func(t *rapid.T) plan.Probe {
		return plan.Probe{From: name.Draw(t, "from"), To: name.Draw(t, "to"), ToUID: name.Draw(t, "uid"),
			Family: rapid.SampledFrom([]plan.Family{plan.IPv4, plan.IPv6, "IPX"}).Draw(t, "family"), Transport: transport.Draw(t, "transport"),
			Reachable: rapid.Bool().Draw(t, "reachable"), Reason: rapid.String().Draw(t, "reason"),
			Fault: plan.Fault(rapid.String().Draw(t, "fault")), PathMTU: rapid.IntRange(0, 9000).Draw(t, "path MTU")}
	})
	return plan.Snapshot{
		Self: name.Draw(t, "self"),
		Network: plan.Network{
			PodCIDRs:   rapid.SliceOfN(prefix, 0, 4).Draw(t, "pod CIDRs"),
			NodeCIDR:   rapid.Bool().Draw(t, "node CIDR"),
			Transports: rapid.SliceOfN(transport, 0, 4).Draw(t, "transports"),
			Masquerade: rapid.Bool().Draw(t, "masquerade"), FabricCIDRs: rapid.SliceOfN(prefix, 0, 2).Draw(t, "fabric CIDRs"),
			VXLANPort: rapid.Uint16().Draw(t, "port"), VXLANVNI: rapid.Uint32().Draw(t, "vni"),
			MTU: plan.MTUPolicy{Mode: rapid.SampledFrom([]string{"", plan.MTUPerRoute, plan.MTUSmallest, plan.MTUFixed, "x"}).Draw(t, "mtu"), Bytes: rapid.Int().Draw(t, "bytes")},
		},
		Nodes: rapid.SliceOfN(node, 0, 6).Draw(t, "nodes"), Probes: plan.PublishAll(rapid.SliceOfN(probe, 0, 8).Draw(t, "probes")),
	}
}

// totality holds for any input at all.
func totality(t *rapid.T) {
	s := wildSnapshot(t)
	state := plan.Compute(s)
	if state.String() == "" {
		t.Fatal("a state reads as nothing")
	}
	var seen []netip.Prefix
	for _, r := range state.Routes {
		switch {
		case !r.Dst.IsValid() || r.Dst != r.Dst.Masked() || !r.Outer.IsValid() || !r.Gateway.IsValid():
			t.Fatalf("no kernel takes the route %+v", r)
		case plan.FamilyOf(r.Gateway) != plan.FamilyOf(r.Dst.Addr()):
			t.Fatalf("the gateway of %+v is of another family", r)
		case r.Transport == plan.Direct && plan.FamilyOf(r.Outer) != plan.FamilyOf(r.Dst.Addr()):
			t.Fatalf("%+v has a next hop of another family", r)
		case r.OffFabric && r.Transport == plan.Direct:
			t.Errorf("%s goes by the fabric, which cannot carry it: %+v", r.Dst, r)
		case r.Transport != plan.Direct && r.Transport != plan.IPIP && r.Transport != plan.VXLAN || r.Reason == "":
			t.Fatalf("how is %+v to be reached?", r)
		case slices.Contains(seen, r.Dst) || slices.Contains(state.CIDRs, r.Dst):
			t.Fatalf("%s has two ways", r.Dst)
		case slices.ContainsFunc(state.Addresses, func(a netip.Addr) bool { return a == r.Outer }):
			t.Fatalf("%+v leads to the node itself", r)
		case !cidr.CoveredByAny(state.PodCIDRs, r.Dst) || slices.ContainsFunc(state.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(r.Outer) }):
			t.Fatalf("%+v leaves the pod network or enters itself", r)
		}
		seen = append(seen, r.Dst)
	}
	for _, p := range state.Bare.Sources {
		if !slices.Contains(state.CIDRs, p) || len(state.Bare.Destinations) == 0 {
			t.Fatalf("%+v leaves bare, and the node owns %v", state.Bare, state.CIDRs)
		}
	}
	for _, p := range state.Problems {
		if p.Reason == "" || !strings.Contains(p.Message, " ") {
			t.Fatalf("problem without words: %+v", p)
		}
	}
	if !slices.IsSortedFunc(state.Problems, func(a, b plan.Problem) int { return cmp.Compare(a.Node, b.Node) }) {
		t.Fatalf("problems out of order: %v", state.Problems)
	}
	for _, n := range s.Nodes {
		plan.Reachable(s, n.Name)
		plan.RangesOf(s.Network, n, s.Nodes)
		destinations(s.Network, n, s.Nodes)
		plan.Provers(s.Nodes, n.Name)
		plan.ProvenBy(s.Nodes, n.Name)
	}
	if d := plan.Diff(plan.State{}, state); len(d) == 0 {
		t.Fatal("a computed state does not differ from nothing")
	}
}

func TestComputeTakesAnything(t *testing.T) { rapid.Check(t, totality) }

func FuzzCompute(f *testing.F) { f.Fuzz(rapid.MakeFuzz(totality)) }
