package kube

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

// wordsOfAnother is a NodeNetwork with everything that the plan and the
// controller ask of a node.
func wordsOfAnother() *v1alpha1.NodeNetwork {
	return &v1alpha1.NodeNetwork{
		ObjectMeta: metav1.ObjectMeta{Name: "b"},
		Status: v1alpha1.NodeNetworkStatus{
			NodeUID: "uid-b", CIDRs: []string{"10.244.2.0/24"}, Sources: []string{"10.244.2.1", "10.244.9.0"},
			NetworkGeneration: 7, Peers: map[string]int32{"direct": 40, "ipip": 2},
			Probes: []v1alpha1.ProbeResult{{Node: "c", NodeUID: "uid-c", Family: "IPv4", Transport: "direct", Address: "10.244.9.0",
				Fault: string(plan.RouteMissing), PathMTU: 1400, Since: metav1.Now()}},
		},
	}
}

// TestSlimmedWordsAreEnough: what an agent keeps of another node is what its
// plan asks for, and the controller keeps also who has left which transport.
func TestSlimmedWordsAreEnough(t *testing.T) {
	for _, self := range []string{"a", ""} {
		nn := slimmed(t, self, wordsOfAnother())
		spec := v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}}
		node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "b", UID: "uid-b"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.2.0/24"}}}
		o := Objects{Network: &v1alpha1.ClusterNetwork{Spec: spec}, Nodes: []corev1.Node{node}}
		o.keep(nn)
		s, problem := o.Snapshot(self)
		if problem != "" {
			t.Fatal(problem)
		}
		if got := s.Nodes[0]; len(got.Sources) != 2 || !slices.Equal(got.Holds, []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}) {
			t.Errorf("self %q: sources %v, holds %v", self, got.Sources, got.Holds)
		}
		want := plan.Probe{From: "b", To: "c", ToUID: "uid-c", Family: plan.IPv4, Transport: plan.Direct,
			Address: netip.MustParseAddr("10.244.9.0"), Fault: plan.RouteMissing, PathMTU: 1400}
		if got := slices.Collect(plan.ProbesOf(s.Probes)); len(got) != 1 || got[0] != want {
			t.Errorf("self %q: %+v, want %+v", self, got, want)
		}
		_, direct := nn.Status.Peers["direct"]
		if controller := self == ""; direct != controller || (nn.Status.NetworkGeneration == 7) != controller {
			t.Errorf("self %q: peers %v, generation %d", self, nn.Status.Peers, nn.Status.NetworkGeneration)
		}
	}
}
