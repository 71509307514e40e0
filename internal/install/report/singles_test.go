package report

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
)

// single is the lease of one address by itself.
func single(address, node string, change func(*v1alpha1.AddressBlockSpec)) v1alpha1.AddressBlock {
	b := block(netip.PrefixFrom(netip.MustParseAddr(address), netip.MustParseAddr(address).BitLen()).String(), node)
	if node == "" {
		b.Spec.NodeUID = ""
	}
	change(&b.Spec)
	return b
}

// singleWitnesses are scenarioWitnesses' with pods that have single addresses: one of
// a pool that nodes share, one that is kept for a StatefulSet's pod, and a fixed one
// that has moved out of node R's range to node S. Another is kept and rests, and a
// last one is asked for.
func singleWitnesses() Witnesses {
	w := scenarioWitnesses()
	few := func(s *v1alpha1.AddressBlockSpec) { s.Pool = "AddressPool/few" }
	kept := func(pod string) func(*v1alpha1.AddressBlockSpec) {
		return func(s *v1alpha1.AddressBlockSpec) {
			s.KeptFor = &v1alpha1.KeptFor{Namespace: "default", Pod: pod, StatefulSet: "db", UID: "u"}
		}
	}
	from := func(grant v1alpha1.Grant) func(*v1alpha1.AddressBlockSpec) {
		return func(s *v1alpha1.AddressBlockSpec) { s.From, s.Grant = nodeR, grant }
	}
	w.Objects.Blocks = append(w.Objects.Blocks,
		v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: "10.244.200.0/26", Sharing: v1alpha1.SharingConfirmed, Generation: 1}},
		single("10.244.200.11", nodeR, few), single("10.244.200.12", nodeS, kept("db-0")), single("10.244.200.13", "", kept("db-1")),
		single("10.244.236.240", nodeS, from(v1alpha1.Granted)), single("10.244.236.241", nodeS, from("")))
	for name, at := range map[string][2]string{"web": {nodeR, "10.244.200.11"}, "db-0": {nodeS, "10.244.200.12"}, "fixed": {nodeS, "10.244.236.240"}} {
		w.hold(name, at[0], at[1])
		w.Pods = append(w.Pods, apiPod(name, at[0], at[1]))
	}
	return w
}

// hold makes a node hold an address, and route it to a link.
func (w Witnesses) hold(name, node, address string) {
	v := w.Views[node]
	v.Holdings = append(v.Holdings, holding(name, address, addresses.SandboxLives))
	v.Links = append(v.Links, hostLink(name, address))
	w.Views[node] = v
}

// TestCompareSingles: other nodes send a single address to the node that holds it,
// and to no other, whosever range it lies in.
func TestCompareSingles(t *testing.T) {
	c, err := Compare(singleWitnesses())
	if err != nil || c.Failed() || c.Holdings != 5 {
		t.Errorf("nothing differs, and it says %+v %v", c, err)
	}
	for address, node := range map[string]string{
		"10.244.200.20":  nodeR, // of the shared block, and leased to nobody
		"10.244.200.12":  nodeR, // the other node's
		"10.244.236.240": nodeR, // of its own range, and moved away
		"10.244.236.241": nodeS, // asked for, and not granted
	} {
		w := singleWitnesses()
		w.hold("astray", node, address)
		w.Pods = append(w.Pods, apiPod("astray", node, address))
		c, err := Compare(w)
		if err != nil || !c.has(Unreachable, node, address) {
			t.Errorf("%s on node %s is sent elsewhere, and it says %+v %v", address, node, c.Findings, err)
		}
	}
}

func (c Comparison) has(kind, node, address string) bool {
	for _, f := range c.Findings {
		if f.Kind == kind && f.Node == node && f.Address.String() == address {
			return true
		}
	}
	return false
}

// TestWhoHasSingles: each is its holder's, whether a pod of the API server has it or
// not, and one that nobody holds is said to be what it is.
func TestWhoHasSingles(t *testing.T) {
	w := singleWitnesses()
	w.Objects.Blocks = append(w.Objects.Blocks, single("10.244.200.15", "gone", func(s *v1alpha1.AddressBlockSpec) { s.Pool = "AddressPool/few" }))
	w.Objects.PoolsKnown, w.Objects.SpiderIPPools = true, pooled(spiderPool("few", nil, "10.244.201.1-10.244.201.9")).SpiderIPPools
	for address, want := range map[string]struct{ what, node, cidr, pool string }{
		"10.244.200.11":  {"a pod address of node " + nodeR, nodeR, "10.244.200.11/32", ""},
		"10.244.200.12":  {"a pod address of node " + nodeS, nodeS, "10.244.200.12/32", ""},
		"10.244.236.240": {"a pod address of node " + nodeS, nodeS, "10.244.236.240/32", ""},
		"10.244.236.241": {"a pod address of node " + nodeR, nodeR, "10.244.236.192/26", ""},
		"10.244.200.13":  {"kept for pod default/db-1, which does not run: no other pod gets it", "", "", ""},
		"10.244.200.15":  {"leased to node gone, which is not there or may not use it yet: no pod gets it meanwhile", "", "", ""},
		"10.244.200.20":  {"shared by nodes, and sent to none of them now", "", "", ""},
		"10.244.201.5":   {"shared by nodes, and sent to none of them now", "", "", "SpiderIPPool/few"},
	} {
		for _, pods := range [][]kube.PodAddress{w.Pods, nil} {
			who := WhoOf(w.Objects, pods, netip.MustParseAddr(address))
			if who.What != want.what || who.Node != want.node || who.CIDR != want.cidr || who.Pool != want.pool {
				t.Errorf("%s is %+v, want %+v", address, who, want)
			}
			if ask := who.Ask(); want.node != "" && !slices.Contains(ask, want.node) {
				t.Errorf("%s: asks %v, and not node %s", address, ask, want.node)
			}
		}
	}
}

// TestRoutesToSingles: a single address is a destination as a range is, with the
// transport that carries it and why the cloud's tables do not have it.
func TestRoutesToSingles(t *testing.T) {
	o := singleWitnesses().Objects
	o.Network.Spec.Transports = []v1alpha1.Transport{"direct", "ipip"}
	for _, status := range []*routes.Status{nil, cloudStatus()} {
		r, err := RoutesOf(o, status, nodeR)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]RouteRow{}
		for _, row := range r.Routes {
			got[row.Dst] = row
		}
		if len(got) != 5 || len(r.Routes) != 5 {
			t.Errorf("%d rows of %d destinations, want two ranges and three singles: %+v", len(r.Routes), len(got), r.Routes)
		}
		for dst, node := range map[string]string{"10.244.200.11/32": nodeR, "10.244.200.12/32": nodeS, "10.244.236.240/32": nodeS} {
			if row := got[dst]; row.Node != node || row.Transport != "ipip" || !strings.Contains(row.Reason, "the fabric has no route to a single address") {
				t.Errorf("%s: %+v", dst, row)
			}
		}
	}
}

// TestUsageOfSingles: a node's single addresses are among those that it has, as they
// are among those in use, and one that has moved away is not.
func TestUsageOfSingles(t *testing.T) {
	total := map[string]uint64{}
	for i, o := range []*kube.Objects{scenarioObjects(), singleWitnesses().Objects} {
		u, err := UsageOf(o, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range u.Nodes {
			total[n.Node] += n.Total * uint64(2*i-1) // the second less the first
		}
	}
	// Node R has one more, and lacks the one that has moved and the one that is asked for.
	if got, want := int64(total[nodeR]), int64(1-2); got != want {
		t.Errorf("node R has %d more, want %d", got, want)
	}
	if got := int64(total[nodeS]); got != 2 {
		t.Errorf("node S has %d more, want 2", got)
	}
}
