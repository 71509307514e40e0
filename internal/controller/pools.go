package controller

import (
	"context"
	"fmt"
	"maps"
	"math"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan"
)

// A pool's verdict follows from all pools, and agents come to the same one by
// themselves (pool.Judge): what is written here is for people.

// The reasons of events on pools, beside those of a verdict, and on what is kept from
// them.
const (
	reasonPoolLow     = "PoolLow"
	reasonMisreserved = "Invalid"
	kindReserved      = "SpiderReservedIP"
)

// poolState is what is known of a pool.
type poolState struct {
	verdict          pool.Verdict
	total, allocated int64
	givable          int64  // of total: those that no SpiderReservedIP keeps from being given
	outside          uint64 // addresses that lie in no node's range: any node gives them
}

// low reports whether the pool runs low, or is used up.
func (s poolState) low() bool { return s.total > 0 && pool.Low(s.givable, s.allocated) }

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
	case s.verdict.Underlay:
		served.Reason, served.Message = "OutsidePodNetwork", "interfaces that another main plugin makes (macvlan, ptp) get its addresses, on every node that may use the pool"
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

// poolWrites bounds the pools' status that one pass writes: many pools at once are for
// people, and nodes do not wait for them.
const poolWrites = 200

// writePools makes the pools' status say what became of them.
func (c *controller) writePools(ctx context.Context, o *observed, m *memory) error {
	m.poolsLeft = false
	if !o.objects.PoolsKnown || o.inForce == nil {
		return nil
	}
	states := poolStates(o)
	c.metrics.setPools(states)
	w := poolWriter{c: c, m: m}
	w.calls.SetLimit(writers)
	for i := range o.objects.AddressPools {
		before := &o.objects.AddressPools[i]
		s := states[pool.ID(pool.KindAddressPool+"/"+before.Name)]
		next := before.DeepCopy()
		next.Status.ObservedGeneration, next.Status.Total, next.Status.Allocated = before.Generation, s.total, s.allocated
		next.Status.Conditions = s.condition(before.Status.Conditions, before.Generation)
		if !equality.Semantic.DeepEqual(before.Status, next.Status) {
			w.write(ctx, before, next)
		}
		c.tellPool(m, poolReference(v1alpha1.GroupVersion.String(), pool.KindAddressPool, before), s)
	}
	for i := range o.objects.SpiderIPPools {
		before := &o.objects.SpiderIPPools[i]
		s := states[pool.ID(pool.KindSpiderIPPool+"/"+before.Name)]
		next := before.DeepCopy()
		setSpiderStatus(next, s)
		if !equality.Semantic.DeepEqual(before.Status, next.Status) {
			w.write(ctx, before, next)
		}
		c.tellPool(m, poolReference(v2beta1.GroupVersion.String(), pool.KindSpiderIPPool, before), s)
	}
	c.tellMisreserved(o, m)
	_ = w.calls.Wait() // the functions report to done
	return w.done.err()
}

// poolWriter writes the status of pools, several at a time.
type poolWriter struct {
	c     *controller
	m     *memory
	calls errgroup.Group
	done  tries

	begun int
	mu    sync.Mutex
}

// write writes a status once: where the CRD is Spiderpool's own, which does not know
// every field of it, the API server drops what it does not know, and the difference
// stays.
func (w *poolWriter) write(ctx context.Context, before, next client.Object) {
	w.mu.Lock()
	written := w.m.poolsWritten[before.GetUID()] == before.GetResourceVersion()
	w.mu.Unlock()
	switch {
	case written, w.done.over():
		return
	case w.begun == poolWrites:
		w.m.poolsLeft = true
		return
	}
	w.begun++
	w.calls.Go(func() error {
		left, err := w.c.patchPool(ctx, before, next)
		w.done.note(err)
		if left {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.m.poolsWritten[before.GetUID()] = next.GetResourceVersion()
		}
		return nil
	})
}

// tellMisreserved records what is to be reserved and is not, since it cannot be read.
func (c *controller) tellMisreserved(o *observed, m *memory) {
	wrong := map[types.UID]bool{}
	for _, r := range o.objects.Misreserved() {
		ref := poolReference(v2beta1.GroupVersion.String(), kindReserved, r.Object)
		wrong[ref.UID] = true
		c.tellIn(m.poolsTold, ref, kindReserved+"/"+string(ref.UID), true, reasonMisreserved, r.Why+": nothing of it is reserved; correct it")
	}
	maps.DeleteFunc(m.poolsTold, func(t told, _ string) bool {
		uid, is := strings.CutPrefix(t.object, kindReserved+"/")
		return is && !wrong[types.UID(uid)]
	})
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
	pools, reserved := o.objects.Pools()
	verdicts := pool.Judge(pools, prefixesOf(o.inForce))
	owned := plan.Apart(o.snapshot.Network, o.snapshot.Nodes)
	states := make(map[pool.ID]poolState, len(pools))
	for _, p := range pools {
		s := poolState{verdict: verdicts[p.ID()], total: counted(p.Size()), givable: counted(pool.Outside(p, reserved))}
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

func counted(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// patchPool writes a status, and says whether that left the object as it was.
func (c *controller) patchPool(ctx context.Context, before, next client.Object) (left bool, err error) {
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	err = c.api.Status().Patch(ctx, next, patch)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return false, nil // the cache is behind: its next change brings the next pass
	}
	if err != nil {
		return false, fmt.Errorf("write the status of pool %s: %w", before.GetName(), err)
	}
	return next.GetResourceVersion() == before.GetResourceVersion(), nil
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
