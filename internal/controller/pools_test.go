package controller

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/ipam/pool"
)

// TestPoolsAreJudged: two pools of different kinds that overlap; the older is
// accepted and counted, the other says which one stands, by condition and event.
func TestPoolsAreJudged(t *testing.T) {
	c := admin(t)
	create(t, c, &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}}})
	n := register(t, c, "pools", "192.0.2.1")
	speak(t, c, n, "10.244.0.1")
	spider := &v2beta1.SpiderIPPool{ObjectMeta: metav1.ObjectMeta{Name: "a-spider"}, Spec: v2beta1.IPPoolSpec{Subnet: "10.244.0.0/16", IPs: []string{"10.244.0.10-10.244.0.19"}}}
	create(t, c, spider)
	// Of two objects of the same second, AddressPools come first: this one begins only
	// once the other is a second old.
	own := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "an-own"}, Spec: v1alpha1.AddressPoolSpec{Subnets: []string{"10.244.0.0/16"}, Ranges: []string{"10.244.0.19-10.244.0.29"}}}
	eventually(t, "a second to pass by the API server's clock", func() string {
		probe := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: "clock-", Namespace: "default"}}
		if err := c.Create(t.Context(), probe); err != nil {
			return err.Error()
		}
		defer c.Delete(t.Context(), probe)
		if !probe.CreationTimestamp.After(spider.CreationTimestamp.Time) {
			return "it is still the same"
		}
		return ""
	})
	create(t, c, own)
	create(t, c, &v2beta1.SpiderReservedIP{ObjectMeta: metav1.ObjectMeta{Name: "mixed"}, Spec: v2beta1.ReservedIPSpec{IPs: []string{"10.244.0.30-fd00::1"}}})
	var nn v1alpha1.NodeNetwork
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(n), &nn); err != nil {
		t.Fatal(err)
	}
	nn.Status.Pools = map[string]int32{"SpiderIPPool/a-spider": 9, "SpiderIPPool/gone": 1}
	if err := c.Status().Update(t.Context(), &nn); err != nil {
		t.Fatal(err)
	}
	startReplica(t, "one")
	eventually(t, "the pools' status", func() string {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(spider), spider); err != nil {
			return err.Error()
		}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(own), own); err != nil {
			return err.Error()
		}
		s := spider.Status
		if s.TotalIPCount == nil || *s.TotalIPCount != 10 || *s.AllocatedIPCount != 9 || *s.IPVersion != 4 || !meta.IsStatusConditionTrue(s.Conditions, "Accepted") {
			return fmt.Sprintf("the SpiderIPPool has %+v", s)
		}
		accepted := meta.FindStatusCondition(own.Status.Conditions, "Accepted")
		if accepted == nil || accepted.Status != metav1.ConditionFalse || !strings.Contains(accepted.Message, "older SpiderIPPool a-spider") {
			return fmt.Sprintf("the AddressPool has %+v", own.Status)
		}
		return ""
	})
	eventually(t, "the events", func() string {
		var events corev1.EventList
		if err := c.List(t.Context(), &events); err != nil {
			return err.Error()
		}
		seen := map[string]bool{}
		for _, e := range events.Items {
			seen[e.InvolvedObject.Name+" "+e.Reason] = true
		}
		if !seen["an-own NotAccepted"] || !seen["a-spider PoolLow"] || !seen["mixed Invalid"] {
			return fmt.Sprint(seen)
		}
		return ""
	})
}

// TestServedSaysWhere: a pool whose addresses nodes have says so, and what to do.
func TestServedSaysWhere(t *testing.T) {
	accepted := pool.Verdict{Accepted: true, Reason: "Accepted"}
	for _, c := range []struct {
		state          poolState
		reason, phrase string
	}{
		{poolState{verdict: accepted, total: 10, outside: 10}, "Shared", "pods on every node"},
		{poolState{verdict: accepted, total: 10, outside: 4}, "PartlyShared", "get 4 of its addresses; each other one lies in a node's podCIDR or block, and is given on that node alone: for pods on any node, state addresses that no node has"},
		{poolState{verdict: accepted, total: 10}, "InNodesRanges", "is given on that node alone: for pods on any node, state addresses that no node has"},
		{poolState{total: 10, outside: 10}, "NotAccepted", "see its condition Accepted"},
	} {
		served := meta.FindStatusCondition(c.state.condition(nil, 1), v1alpha1.ConditionServed)
		if served == nil || served.Reason != c.reason || !strings.Contains(served.Message, c.phrase) {
			t.Errorf("%+v: %+v, want %s: %s", c.state, served, c.reason, c.phrase)
		}
	}
}

// TestLowBeforeItIsFull: that a pool runs low is said while there is something left,
// where there can be.
func TestLowBeforeItIsFull(t *testing.T) {
	for _, c := range []struct {
		total, reserved, allocated int64
		low                        bool
	}{
		{0, 0, 0, false},
		{1, 1, 0, true}, {1, 0, 0, false}, {1, 0, 1, true},
		{5, 0, 3, false}, {5, 0, 4, true},
		{100, 0, 89, false}, {100, 0, 90, true}, {100, 0, 120, true}, // enlarged or shrunk meanwhile
		{100, 50, 44, false}, {100, 50, 45, true}, {5, 5, 0, true}, // what is reserved is not free
	} {
		if got := (poolState{total: c.total, givable: c.total - c.reserved, allocated: c.allocated}).low(); got != c.low {
			t.Errorf("%d of %d in use, %d reserved: low is %t", c.allocated, c.total, c.reserved, got)
		}
	}
}
