package controller

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan"
)

// A pool's verdict follows from all pools, and agents come to the same one by
// themselves (pool.Judge): what is written here is for people.

// The reasons of events on pools, beside those of a verdict.
const reasonPoolLow = "PoolLow"

// poolState is what is known of a pool.
type poolState struct {
	verdict          pool.Verdict
	total, allocated int64
	outside          uint64 // addresses that lie in no node's range: any node gives them
}

// low reports whether no more than a tenth of the pool is free, or one address.
func (s poolState) low() bool {
	spare := max(s.total/10, 1)
	if s.total == 1 { // there is no less than none
		spare = 0
	}
	return s.total > 0 && s.allocated >= s.total-spare
}

// onThatNodeAlone says what to do about a pool that is made inside what nodes have
// leased by then.
const onThatNodeAlone = "on that node alone: for pods on any node, state addresses that no node has (kubectl get ablock; spec.podCIDRs of Nodes)"

func (s poolState) condition(before []metav1.Condition, generation int64) []metav1.Condition {
	after := append([]metav1.Condition(nil), before...)
	status := metav1.ConditionFalse
	if s.verdict.Accepted {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&after, metav1.Condition{Type: v1alpha1.ConditionAccepted, Status: status,
		Reason: s.verdict.Reason, Message: s.verdict.Message, ObservedGeneration: generation})
	served := metav1.Condition{Type: v1alpha1.ConditionServed, Status: metav1.ConditionTrue, Reason: "InNodesRanges",
		Message: "every address lies in a node's podCIDR or block, and is given " + onThatNodeAlone, ObservedGeneration: generation}
	switch {
	case !s.verdict.Accepted:
		served.Status, served.Reason, served.Message = metav1.ConditionFalse, "NotAccepted", "the pool gives no address: see its condition Accepted"
	case s.outside >= uint64(s.total):
		served.Reason, served.Message = "Shared", "pods on every node that may use the pool get its addresses"
	case s.outside > 0:
		served.Reason = "PartlyShared"
		served.Message = fmt.Sprintf("pods on every node that may use the pool get %d of its addresses; each other one lies in a node's podCIDR or block, and is given %s", s.outside, onThatNodeAlone)
	}
	meta.SetStatusCondition(&after, served)
	return after
}

// writePools makes the pools' status say what became of them.
func (c *controller) writePools(ctx context.Context, o *observed, m *memory) error {
	if !o.objects.PoolsKnown || o.inForce == nil {
		return nil
	}
	states := poolStates(o)
	c.metrics.setPools(states)
	var errs []error
	for i := range o.objects.AddressPools {
		before := &o.objects.AddressPools[i]
		s := states[pool.ID(pool.KindAddressPool+"/"+before.Name)]
		next := before.DeepCopy()
		next.Status.ObservedGeneration, next.Status.Total, next.Status.Allocated = before.Generation, s.total, s.allocated
		next.Status.Conditions = s.condition(before.Status.Conditions, before.Generation)
		if !equality.Semantic.DeepEqual(before.Status, next.Status) {
			errs = append(errs, c.patchPool(ctx, before, next, m))
		}
		c.tellPool(m, poolReference(v1alpha1.GroupVersion.String(), pool.KindAddressPool, before), s)
	}
	for i := range o.objects.SpiderIPPools {
		before := &o.objects.SpiderIPPools[i]
		s := states[pool.ID(pool.KindSpiderIPPool+"/"+before.Name)]
		next := before.DeepCopy()
		setSpiderStatus(next, s)
		if !equality.Semantic.DeepEqual(before.Status, next.Status) {
			errs = append(errs, c.patchPool(ctx, before, next, m))
		}
		c.tellPool(m, poolReference(v2beta1.GroupVersion.String(), pool.KindSpiderIPPool, before), s)
	}
	return few.Errors(errs...)
}

func setSpiderStatus(p *v2beta1.SpiderIPPool, s poolState) {
	version := int64(4)
	if strings.Contains(p.Spec.Subnet, ":") {
		version = 6
	}
	p.Status.IPVersion, p.Status.TotalIPCount, p.Status.AllocatedIPCount = &version, &s.total, &s.allocated
	p.Status.Conditions = s.condition(p.Status.Conditions, p.Generation)
}

// poolStates judges the pools and counts what nodes say is in use of them.
func poolStates(o *observed) map[pool.ID]poolState {
	pools, _ := o.objects.Pools()
	verdicts := pool.Judge(pools, prefixesOf(o.inForce))
	var owned []netip.Prefix
	for _, dsts := range plan.DestinationsByNode(o.snapshot.Network, o.snapshot.Nodes) {
		owned = append(owned, dsts...)
	}
	for _, n := range o.snapshot.Nodes { // also where they are not in use, nothing of them is shared
		owned = append(owned, n.NodeCIDRs...)
	}
	states := make(map[pool.ID]poolState, len(pools))
	for _, p := range pools {
		s := poolState{verdict: verdicts[p.ID()], total: int64(min(p.Size(), math.MaxInt64))}
		if s.verdict.Accepted {
			s.outside = pool.Outside(p, owned)
		}
		states[p.ID()] = s
	}
	for i := range o.objects.NodeNetworks {
		for id, n := range o.objects.NodeNetworks[i].Status.Pools {
			if s, known := states[pool.ID(id)]; known {
				s.allocated += int64(n)
				states[pool.ID(id)] = s
			}
		}
	}
	return states
}

// patchPool writes a status once: where the CRD is Spiderpool's own, which does
// not know every field of it, the API server drops what it does not know, and
// the difference stays.
func (c *controller) patchPool(ctx context.Context, before, next client.Object, m *memory) error {
	if m.poolsWritten[before.GetUID()] == before.GetResourceVersion() {
		return nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	err := c.api.Status().Patch(ctx, next, patch)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // the cache is behind: its next change brings the next pass
	}
	if err != nil {
		return fmt.Errorf("write the status of pool %s: %w", before.GetName(), err)
	}
	if next.GetResourceVersion() == before.GetResourceVersion() {
		m.poolsWritten[before.GetUID()] = next.GetResourceVersion()
	}
	return nil
}

func poolReference(apiVersion, kind string, p client.Object) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: apiVersion, Kind: kind, Name: p.GetName(), UID: p.GetUID()}
}

// tellPool records why a pool is refused, and that it runs low.
func (c *controller) tellPool(m *memory, ref *corev1.ObjectReference, s poolState) {
	object := ref.Kind + "/" + ref.Name + "/" + string(ref.UID)
	if !s.verdict.Accepted {
		c.tellIn(m.poolsTold, ref, object, true, "NotAccepted", s.verdict.Message)
	} else {
		delete(m.poolsTold, told{object, "NotAccepted"})
	}
	if s.low() {
		// One event for a while of being low: the numbers are in the status.
		c.tellIn(m.poolsTold, ref, object, true, reasonPoolLow, "a tenth of the pool's addresses are free, or fewer: enlarge it, or add another beside it")
	} else {
		delete(m.poolsTold, told{object, reasonPoolLow})
	}
}
