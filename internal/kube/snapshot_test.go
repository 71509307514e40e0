package kube

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

func node(name, uid string, addresses ...string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(uid), CreationTimestamp: metav1.Unix(1000, 0)}}
	for _, a := range addresses {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

func block(cidr, node, uid string) v1alpha1.AddressBlock {
	b := v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: cidr, Node: node, NodeUID: uid, Generation: 1}}
	b.Name = v1alpha1.BlockName(netip.MustParsePrefix(cidr))
	return b
}

func said(name, uid string) *v1alpha1.NodeNetwork {
	since := metav1.Unix(2000, 0)
	return &v1alpha1.NodeNetwork{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: v1alpha1.NodeNetworkStatus{
			NodeUID: uid, ReadySince: &since, Sources: []string{"10.244.1.1"}, VTEP: "02:00:00:00:00:01",
			Transports: []v1alpha1.TransportStatus{{Name: "ipip", Reason: "no tcx"}, {Name: "vxlan", Supported: true}},
			Probes:     []v1alpha1.ProbeResult{{Node: "a", NodeUID: "ua", Family: "IPv4", Transport: "ipip", Reachable: true, Fault: "MTUBlackHole", PathMTU: 1400, Reason: "r"}},
			Faults:     []v1alpha1.NodeFault{{Fault: "ReversePathFilter", Message: "strict"}},
		},
	}
}

func TestSnapshot(t *testing.T) {
	a := node("a", "ua", "192.0.2.1", "2001:db8::1", "192.0.2.99")
	a.Status.Addresses = append([]corev1.NodeAddress{{Type: corev1.NodeExternalIP, Address: "198.51.100.1"}, {Type: corev1.NodeHostName, Address: "a"}}, a.Status.Addresses...)
	a.Spec.PodCIDRs = []string{"10.244.7.0/24", "fd00:7::/64"}
	o := &Objects{
		ClusterID:    "cluster",
		Network:      network("10.244.0.0/16"),
		Nodes:        []corev1.Node{node("c", "uc", "::ffff:192.0.2.3"), node("b", "ub", "192.0.2.2", "nonsense"), a},
		NodeNetworks: []*v1alpha1.NodeNetwork{said("b", "ub"), said("c", "of an earlier c"), said("gone", "ug")},
		Blocks:       []v1alpha1.AddressBlock{block("10.244.2.0/26", "b", "ub"), block("10.244.1.0/26", "b", "of an earlier b"), block("10.244.9.0/26", "gone", "ug")},
	}
	got, problem := o.Snapshot("a")
	if problem != "" || got.Self != "a" || got.Network.ClusterID != "cluster" {
		t.Fatalf("problem %q, snapshot %+v", problem, got)
	}
	addr, cidr := netip.MustParseAddr, netip.MustParsePrefix
	want := []plan.Node{
		{
			Name: "a", UID: "ua", Created: 1000, Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1")},
			NodeCIDRs: []netip.Prefix{cidr("10.244.7.0/24"), cidr("fd00:7::/64")},
		},
		{
			Name: "b", UID: "ub", Created: 1000, Addresses: []netip.Addr{addr("192.0.2.2")},
			Blocks: []netip.Prefix{cidr("10.244.1.0/26"), cidr("10.244.2.0/26")},
			Ready:  true, Sources: []netip.Addr{addr("10.244.1.1")}, VTEP: plan.MAC{2, 0, 0, 0, 0, 1},
			Refuses: map[plan.Transport]string{plan.IPIP: "no tcx"},
			Faults:  map[plan.Fault]string{plan.ReversePathFilter: "strict"},
		},
		{Name: "c", UID: "uc", Created: 1000, Addresses: []netip.Addr{addr("192.0.2.3")}},
	}
	if !reflect.DeepEqual(got.Nodes, want) {
		t.Errorf("nodes\n%+v\nwant\n%+v", got.Nodes, want)
	}
	probes := []plan.Published{plan.Publish("b", plan.Probe{To: "a", ToUID: "ua", Family: plan.IPv4, Transport: plan.IPIP, Reachable: true, Fault: plan.MTUBlackHole, PathMTU: 1400, Reason: "r"})}
	if !reflect.DeepEqual(got.Probes, probes) {
		t.Errorf("probes %+v, want %+v: those of c's predecessor and of a node that is gone say nothing", got.Probes, probes)
	}
	var leases []string
	for _, l := range o.Leases() {
		leases = append(leases, l.Prefix.String()+" "+l.Node)
	}
	if want := []string{"10.244.1.0/26 b", "10.244.2.0/26 b", "10.244.9.0/26 gone"}; !reflect.DeepEqual(leases, want) {
		t.Errorf("leases %v, want %v", leases, want)
	}
}

func TestSnapshotWithoutANetwork(t *testing.T) {
	o := &Objects{Nodes: []corev1.Node{node("a", "ua")}}
	got, problem := o.Snapshot("a")
	if problem == "" || got.Network.PodCIDRs != nil || len(got.Nodes) != 1 {
		t.Errorf("problem %q, snapshot %+v", problem, got)
	}
}

func TestNodeIsReadyOnceItWasProgrammed(t *testing.T) {
	nn := said("b", "ub")
	nn.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionFalse, Message: "one route"}}
	o := &Objects{Nodes: []corev1.Node{node("b", "ub")}, NodeNetworks: []*v1alpha1.NodeNetwork{nn}}
	if s, _ := o.Snapshot(""); !s.Nodes[0].Ready {
		t.Error("a later failure made the node not ready: its peers would drop what still works")
	}
	o.NodeNetworks[0].Status.ReadySince = nil
	if s, _ := o.Snapshot(""); s.Nodes[0].Ready {
		t.Error("ready without ever having been programmed")
	}
}

func TestNodeCondition(t *testing.T) {
	with := func(status corev1.ConditionStatus, reason, writer string) *corev1.Node {
		n := node("a", "ua")
		if writer != "" {
			n.Annotations = map[string]string{WriterAnnotation: writer}
		}
		n.Status.Conditions = []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: ReasonProven},
			{Type: corev1.NodeNetworkUnavailable, Status: status, Reason: reason, Message: "m"},
		}
		return &n
	}
	none := node("a", "ua")
	for name, tc := range map[string]struct {
		node *corev1.Node
		want *NodeCondition
	}{
		"none":                         {&none, nil},
		"ours, unavailable":            {with(corev1.ConditionTrue, ReasonNotProven, ""), &NodeCondition{true, ReasonNotProven, "m"}},
		"ours, available":              {with(corev1.ConditionFalse, ReasonProven, ""), &NodeCondition{false, ReasonProven, "m"}},
		"somebody else's":              {with(corev1.ConditionFalse, "RouteCreated", ""), nil},
		"left to somebody else by us":  {with(corev1.ConditionFalse, "RouteCreated", "RouteCreated"), &NodeCondition{false, "RouteCreated", "m"}},
		"unknown counts as not usable": {with(corev1.ConditionUnknown, ReasonProven, ""), &NodeCondition{true, ReasonProven, "m"}},
	} {
		if got := nodeCondition(tc.node); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestSlimming(t *testing.T) {
	n := node("a", "ua", "192.0.2.1")
	n.ResourceVersion = "7"
	n.Labels = map[string]string{"l": "v"}
	n.Annotations = map[string]string{"big": "x", WriterAnnotation: "Other"}
	n.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
	n.Spec = corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}, Taints: []corev1.Taint{{Key: "t"}}}
	n.Status.Images = []corev1.ContainerImage{{Names: []string{"image"}}}
	n.Status.Conditions = []corev1.NodeCondition{
		{Type: corev1.NodeMemoryPressure}, {Type: corev1.NodeReady, LastHeartbeatTime: metav1.Now()}, {Type: corev1.NodeNetworkUnavailable, Reason: "r"},
	}
	out, err := slimNode("")(&n)
	if err != nil {
		t.Fatal(err)
	}
	want := corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "a", UID: "ua", ResourceVersion: "7", CreationTimestamp: metav1.Unix(1000, 0), Annotations: map[string]string{WriterAnnotation: "Other"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady}, {Type: corev1.NodeNetworkUnavailable, Reason: "r"}},
		},
	}
	if !reflect.DeepEqual(out, &want) {
		t.Errorf("kept %+v\nwant %+v", out, want)
	}

	own, other := said("a", "ua"), said("b", "ub")
	own.Status.Pods, own.Status.Peers = 3, map[string]int32{"ipip": 1}
	other.Status.Pods, other.Status.Peers = own.Status.Pods, own.Status.Peers
	o, a := slimmed(t, "a", own), slimmed(t, "a", other)
	if o.Status.Pods != 3 || a.Status.Pods != 0 || a.Status.Peers != nil || len(slices.Collect(a.published.Probes())) != 1 {
		t.Errorf("own %+v, other %+v", o, a)
	}

	pod := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{configHashAnnotation: "h", "other": "x"}, OwnerReferences: []metav1.OwnerReference{{}}}}
	if _, err := slimPod(pod); err != nil || !reflect.DeepEqual(pod.Annotations, map[string]string{configHashAnnotation: "h"}) || pod.OwnerReferences != nil {
		t.Errorf("pod kept %+v, %v", pod, err)
	}
	pod.OwnerReferences = []metav1.OwnerReference{{Kind: "Node", Name: "n"}, {Kind: "StatefulSet", Name: "web"}}
	if _, err := slimPod(pod); err != nil || len(pod.OwnerReferences) != 1 || pod.OwnerReferences[0].Name != "web" {
		t.Errorf("of its owners a pod kept %+v, %v", pod.OwnerReferences, err)
	}
}

// slimmed is what the cache of a node keeps.
func slimmed(t *testing.T, self string, nn *v1alpha1.NodeNetwork) *keptNodeNetwork {
	t.Helper()
	obj, err := slimNodeNetwork(self)(nn)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := slimNodeNetwork(self)(obj); err != nil || again != obj {
		t.Errorf("slimmed twice: %v, %v", again, err)
	}
	return obj.(*keptNodeNetwork)
}

func TestHeartbeatsWakeNobody(t *testing.T) {
	before := node("a", "ua", "192.0.2.1")
	after := *before.DeepCopy()
	before.ResourceVersion, after.ResourceVersion = "1", "2"
	if !sameForUs(&before, &after) {
		t.Error("a heartbeat counted as a change")
	}
	after.Spec.PodCIDRs = []string{"10.244.1.0/24"}
	if sameForUs(&before, &after) {
		t.Error("a podCIDR did not count as a change")
	}
	again := node("a", "another", "192.0.2.1")
	if sameForUs(&before, &again) {
		t.Error("a Node made anew did not count as a change")
	}
	nn := said("b", "ub")
	changed := nn.DeepCopy()
	changed.Status.Probes[0].Reachable = false
	if kept := slimmed(t, "", nn); !sameForUs(kept, slimmed(t, "", nn.DeepCopy())) || sameForUs(kept, slimmed(t, "", changed)) {
		t.Error("NodeNetwork: only the flip of a probe is a change")
	}
	b := block("10.244.1.0/26", "a", "ua")
	adopted := *b.DeepCopy()
	adopted.Spec.NodeUID = "new"
	if !sameForUs(&b, b.DeepCopy()) || sameForUs(&b, &adopted) {
		t.Error("AddressBlock: only the change of hands is a change")
	}
	cn := network("10.244.0.0/16")
	told, inForce := cn.DeepCopy(), cn.DeepCopy()
	told.Status.ReachableNodes, told.Status.Conditions = 7, []metav1.Condition{{Type: v1alpha1.ConditionNodesReachable}}
	inForce.Status.InForce = &v1alpha1.ClusterNetworkSpec{Transports: []v1alpha1.Transport{v1alpha1.TransportVXLAN}}
	refused, written := cn.DeepCopy(), cn.DeepCopy()
	refused.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionFalse}}
	written.Generation++
	if !sameForUs(cn, told) || sameForUs(cn, inForce) || sameForUs(cn, refused) || sameForUs(cn, written) {
		t.Error("ClusterNetwork: what is in force is a change, and what the controller tells of its progress is none")
	}
	gone := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "p", DeletionTimestamp: &metav1.Time{Time: time.Unix(1, 0)}}}
	if sameForUs(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "p"}}, gone) {
		t.Error("a pod that is asked to go is a change")
	}
}
