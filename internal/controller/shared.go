package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/ipam/pool"
)

// What nodes share is nobody's, so nobody but the controller gives it back: shared
// blocks that no pool has addresses in, and addresses that are kept for pods which
// are never made again. Each is taken back as it was seen, so that a node which
// takes it up at the same moment has it.

// tendShared gives back what nodes share and need no more.
func (c *controller) tendShared(ctx context.Context, o *observed, m *memory) error {
	if !o.objects.PoolsKnown || o.inForce == nil {
		return nil
	}
	used := o.sharedUse()
	there := map[types.UID]bool{}
	sets := statefulSets{}
	var errs []error
	for i := range o.objects.Blocks {
		b := &o.objects.Blocks[i]
		if b.Spec.Node != "" {
			continue
		}
		there[b.UID] = true
		if p, err := netip.ParsePrefix(b.Spec.CIDR); err == nil && b.Spec.Sharing != "" && used(p) {
			delete(m.unused, b.UID)
			errs = append(errs, c.shareAgain(ctx, b))
			continue
		}
		since, known := m.unused[b.UID]
		if !known {
			m.unused[b.UID] = c.now()
		}
		if known && c.now().Sub(since) >= c.cfg.Grace {
			m.unused[b.UID] = c.now() // what stays is looked at again as long after
			errs = append(errs, c.endSharing(ctx, b, sets))
		}
	}
	for uid := range m.unused {
		if !there[uid] {
			delete(m.unused, uid)
		}
	}
	return few.Errors(errs...)
}

// sharedUse says whether a block has a part of an accepted pool, or an address
// that is leased by itself.
func (o *observed) sharedUse() func(netip.Prefix) bool {
	pools, _ := o.objects.Pools()
	verdicts := pool.Judge(pools, prefixesOf(o.inForce))
	var used []netip.Prefix
	for _, p := range pools {
		if verdicts[p.ID()].Accepted && !p.Deleting {
			used = append(used, p.Ranges...)
		}
	}
	for _, l := range o.objects.Leases() {
		if l.IsSingle() {
			used = append(used, l.Prefix)
		}
	}
	return func(p netip.Prefix) bool { return slices.ContainsFunc(used, p.Overlaps) }
}

// endSharing takes back a lease of nobody's, if nobody needs it.
func (c *controller) endSharing(ctx context.Context, b *v1alpha1.AddressBlock, sets statefulSets) error {
	var err error
	switch b.Spec.Sharing {
	case "":
		err = c.forgetKept(ctx, b, sets)
	case v1alpha1.SharingDeclared:
		err = c.deleteBlock(ctx, b)
	default:
		err = c.retire(ctx, b)
	}
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // somebody else changed it: the next pass sees how
	}
	if err != nil {
		return fmt.Errorf("give back %s, which nobody uses: %w", b.Spec.CIDR, err)
	}
	return nil
}

// shareAgain lets nodes lease from a block that was being given back, and is needed
// after all: who began with that may have stopped half-way.
func (c *controller) shareAgain(ctx context.Context, b *v1alpha1.AddressBlock) error {
	if b.Spec.Sharing != v1alpha1.SharingRetired {
		return nil
	}
	next, err := c.asSeen(ctx, b)
	if err == nil {
		next.Spec.Sharing = v1alpha1.SharingConfirmed
		err = c.api.Update(ctx, next)
	}
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // somebody else changed it: the next pass sees how
	}
	if err != nil {
		return fmt.Errorf("share block %s again, which a pool needs: %w", b.Spec.CIDR, err)
	}
	return nil
}

func (c *controller) deleteBlock(ctx context.Context, b *v1alpha1.AddressBlock) error {
	c.log.Info("lease of nobody's given back", "block", b.Spec.CIDR, "sharing", b.Spec.Sharing)
	return c.api.Delete(ctx, b.DeepCopy(), client.Preconditions{UID: &b.UID, ResourceVersion: &b.ResourceVersion})
}

// retire gives a shared block back in two steps. A node that leases an address of
// it at the same moment either finds it retired, and gives the address up, or has
// leased it before the leases are read here.
func (c *controller) retire(ctx context.Context, b *v1alpha1.AddressBlock) error {
	next, err := c.asSeen(ctx, b)
	if err != nil {
		return err
	}
	next.Spec.Sharing = v1alpha1.SharingRetired
	if err := c.api.Update(ctx, next); err != nil {
		return err
	}
	var live v1alpha1.AddressBlockList
	if err := c.api.List(ctx, &live); err != nil {
		return fmt.Errorf("read the leases: %w", err)
	}
	p, err := netip.ParsePrefix(b.Spec.CIDR)
	if err != nil {
		return err
	}
	for i := range live.Items {
		if a, err := netip.ParsePrefix(live.Items[i].Spec.CIDR); err == nil && a.IsSingleIP() && p.Contains(a.Addr()) {
			next.Spec.Sharing = v1alpha1.SharingConfirmed
			return c.api.Update(ctx, next)
		}
	}
	return c.deleteBlock(ctx, next)
}

// forgetKept deletes an address that is kept for a pod, if its StatefulSet is gone
// or makes no such pod any more.
func (c *controller) forgetKept(ctx context.Context, b *v1alpha1.AddressBlock, sets statefulSets) error {
	k := b.Spec.KeptFor
	if k == nil {
		return nil
	}
	set, err := sets.get(ctx, c.api, client.ObjectKey{Namespace: k.Namespace, Name: k.StatefulSet})
	if err != nil {
		return err
	}
	if set != nil && string(set.UID) == k.UID && set.DeletionTimestamp == nil && makes(set, k.Pod) {
		return nil
	}
	return c.deleteBlock(ctx, b)
}

// statefulSets are those that were asked for in one pass: many addresses are kept for
// the pods of one. One that is not there is nil.
type statefulSets map[client.ObjectKey]*appsv1.StatefulSet

func (s statefulSets) get(ctx context.Context, api client.Reader, key client.ObjectKey) (*appsv1.StatefulSet, error) {
	if set, asked := s[key]; asked {
		return set, nil
	}
	set := &appsv1.StatefulSet{}
	switch err := api.Get(ctx, key, set); {
	case apierrors.IsNotFound(err):
		set = nil
	case err != nil:
		return nil, fmt.Errorf("ask whether StatefulSet %s is there: %w", key, err)
	}
	s[key] = set
	return set, nil
}

// makes reports whether the StatefulSet has a pod of that name.
func makes(set *appsv1.StatefulSet, pod string) bool {
	ordinal, err := strconv.Atoi(strings.TrimPrefix(pod, set.Name+"-"))
	if err != nil {
		return false
	}
	first, replicas := 0, 1
	if set.Spec.Ordinals != nil {
		first = int(set.Spec.Ordinals.Start)
	}
	if set.Spec.Replicas != nil {
		replicas = int(*set.Spec.Replicas)
	}
	return ordinal >= first && ordinal < first+replicas
}

// unusedSince is what memory keeps for tendShared: lease -> since when nobody is
// seen to need it.
type unusedSince map[types.UID]time.Time
