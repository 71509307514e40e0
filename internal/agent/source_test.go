package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/plan"
)

func leadsTo(s plan.State, a netip.Addr) bool {
	return slices.ContainsFunc(s.Routes, func(r plan.Route) bool { return r.Dst.Contains(a) })
}

// TestChangeOfTheAddressSource: while a cluster moves from podCIDRs to blocks and
// back, the other node has a route to a running pod at every moment, and the pod's
// node keeps the address that it sends from.
func TestChangeOfTheAddressSource(t *testing.T) {
	api := newFakeAPI()
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	api.addNode("a", "10.244.7.0/24")
	api.addNode("b", "10.244.8.0/24")
	ma, mb := newMachine(t, api, nil, "a"), newMachine(t, api, nil, "b")
	fabric := probe.NewFakeFabric()
	ma.fabric, mb.fabric = fabric, fabric
	a, b := ma.start(), mb.start()
	a.waitServing()
	b.waitServing()
	pod := a.add("p1")[0]
	before := 0 // how many times b has set its kernel
	eventually(t, func() string {
		states := mb.dataplane.States()
		if before = len(states); !leadsTo(states[before-1], pod) {
			return "a route to " + pod.String()
		}
		if len(api.status("a").CIDRs) == 0 { // as on any node with a conflist
			return "a to have spoken"
		}
		return ""
	})
	source := a.node.look().State.Sources

	check := func(done func() string) {
		t.Helper()
		eventually(t, done)
		a.waitPasses()
		b.waitPasses()
		for _, s := range mb.dataplane.States()[before:] {
			if !leadsTo(s, pod) {
				t.Fatalf("b once had no route to %s:\n%s", pod, s)
			}
		}
		if now := a.node.look().State.Sources; !slices.Equal(now, source) {
			t.Errorf("a sends from %v, and sent from %v", now, source)
		}
	}
	podCIDR := netip.MustParsePrefix("10.244.7.0/24")
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = false })
	check(func() string {
		if got := api.status("a").CIDRs; len(got) == 0 || slices.Contains(got, podCIDR) {
			return fmt.Sprintf("a to be left with blocks, not %v", got)
		}
		return ""
	})
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	check(func() string {
		if got := api.status("a").CIDRs; !slices.Contains(got, podCIDR) {
			return fmt.Sprintf("a to have its podCIDR again, not %v", got)
		}
		return ""
	})
}
