package report

import (
	"net/netip"
	"testing"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent/addresses"
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
