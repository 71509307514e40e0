package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/ipam/share"
)

// Single addresses, and the blocks that they are leased of: what package share
// decides, done at the API server. Every write has the object as it was seen for
// a condition, so that a call that arrives late changes nothing.

// ErrNotShareable says that a block cannot be shared: a part of it is a node's.
var ErrNotShareable = errors.New("a part of the block is a node's")

// LiveLeases returns all leases as the API server itself has them now.
func (c *NodeClient) LiveLeases(ctx context.Context) ([]Lease, error) {
	var list v1alpha1.AddressBlockList
	if err := c.api.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("read the leases of addresses: %w", err)
	}
	o := Objects{Blocks: list.Items}
	return o.Leases(), nil
}

// ShareBlocks declares blocks shared, and confirms those that the API server's own
// Nodes and leases, read after all are declared, are found to have no part of; the
// others are taken back (ErrNotShareable). That another node has declared one is
// success: that node goes on with it.
func (c *NodeClient) ShareBlocks(ctx context.Context, blocks []netip.Prefix) error {
	errs, declared := make([]error, len(blocks)), make([]*v1alpha1.AddressBlock, len(blocks))
	var calls errgroup.Group
	calls.SetLimit(callsAtOnce)
	for i, p := range blocks {
		declared[i] = blockOf(Lease{Prefix: p, Generation: 1, Sharing: share.Declared})
		declared[i].Labels = map[string]string{v1alpha1.SharedLabel: ""}
		calls.Go(func() error { errs[i] = c.api.Create(ctx, declared[i]); return nil })
	}
	_ = calls.Wait()
	var mine []Lease
	for i, p := range blocks {
		switch err := errs[i]; {
		case apierrors.IsAlreadyExists(err):
			errs[i] = nil
		case err != nil:
			errs[i] = fmt.Errorf("share block %s: %w", p, err)
		default:
			l, _ := leaseOf(declared[i])
			mine = append(mine, l)
		}
	}
	return errors.Join(errors.Join(errs...), c.ConfirmShared(ctx, mine))
}

// ConfirmShared is the second half of ShareBlocks.
func (c *NodeClient) ConfirmShared(ctx context.Context, declared []Lease) error {
	if len(declared) == 0 {
		return nil
	}
	owned, err := c.owned(ctx)
	if err != nil {
		return fmt.Errorf("share block %s: %w", declared[0].Prefix, err)
	}
	errs := make([]error, len(declared))
	var calls errgroup.Group
	calls.SetLimit(callsAtOnce)
	for i, l := range declared {
		calls.Go(func() error {
			at := slices.IndexFunc(owned, func(o ownedRange) bool { return o.prefix.Overlaps(l.Prefix) })
			if at >= 0 {
				errs[i] = errors.Join(fmt.Errorf("share block %s: %w: %s", l.Prefix, ErrNotShareable, owned[at].how), c.Unshare(ctx, l))
				return nil
			}
			l.Sharing = share.Confirmed
			errs[i] = c.change(ctx, "share block", l)
			return nil
		})
	}
	_ = calls.Wait()
	return errors.Join(errs...)
}

// ownedRange is a podCIDR or a lease of a node's, and how that is said.
type ownedRange struct {
	prefix netip.Prefix
	how    string
}

// owned reads what nodes own from the API server itself.
func (c *NodeClient) owned(ctx context.Context) (out []ownedRange, err error) {
	var nodes corev1.NodeList
	if err := c.api.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("read the nodes: %w", err)
	}
	for i := range nodes.Items {
		n := planNode(&nodes.Items[i])
		for _, p := range n.NodeCIDRs {
			out = append(out, ownedRange{p, fmt.Sprintf("%s is the podCIDR of node %s", p, n.Name)})
		}
	}
	leases, err := c.LiveLeases(ctx)
	for _, l := range leases {
		if l.Sharing == "" && !l.IsSingle() {
			out = append(out, ownedRange{l.Prefix, fmt.Sprintf("%s is leased to node %s", l.Prefix, l.Node)})
		}
	}
	return out, err
}

// Unshare takes a declaration back.
func (c *NodeClient) Unshare(ctx context.Context, l Lease) error {
	return c.remove(ctx, "take back shared block", l)
}

// Claimed is what came of a claim: the lease, or why there is none.
type Claimed struct {
	Lease Lease
	Err   error
}

// strict makes a write fail of which the API server would drop a part: a CRD of the
// version before does not know for which interface an address is kept, and the address
// would be nobody's.
const strict = client.FieldValidation(metav1.FieldValidationStrict)

// callsAtOnce bounds the calls of one batch that are under way together.
const callsAtOnce = 8

// ClaimAddresses leases single addresses, and says of each claim, in their order,
// what came of it. Those of a shared block hold only if the block is shared still
// once they are made, which is asked once for all of them. IsTaken tells that
// another node was first. After any other error an address is not this node's,
// whatever the API server then shows.
func (c *NodeClient) ClaimAddresses(ctx context.Context, claims []share.Claim) []Claimed {
	out, blocks := make([]Claimed, len(claims)), make([]*v1alpha1.AddressBlock, len(claims))
	uid, err := c.nodeUID()
	var calls errgroup.Group
	calls.SetLimit(callsAtOnce)
	for i, claim := range claims {
		if out[i].Err = err; err != nil {
			continue
		}
		claim.Node, claim.NodeUID = c.node, uid
		blocks[i] = blockOf(claim.Lease)
		calls.Go(func() error { out[i].Err = c.api.Create(ctx, blocks[i], strict); return nil })
	}
	_ = calls.Wait()
	shared := map[netip.Prefix]error{}
	for i, claim := range claims {
		if _, asked := shared[claim.Within]; !asked && out[i].Err == nil && claim.Within.IsValid() {
			shared[claim.Within] = c.stillShared(ctx, claim.Within)
		}
	}
	for i, claim := range claims {
		if out[i].Err == nil && shared[claim.Within] != nil {
			out[i].Err = errors.Join(shared[claim.Within], client.IgnoreNotFound(c.api.Delete(ctx, blocks[i], client.Preconditions{UID: &blocks[i].UID})))
		}
		switch err := out[i].Err; {
		case err == nil:
			out[i].Lease = c.hold(blocks[i])
		case apierrors.IsAlreadyExists(err):
			out[i].Err = &TakenError{Prefix: claim.Prefix, Node: "another"}
		default:
			out[i].Err = fmt.Errorf("lease address %s: %w", claim.Address(), err)
		}
	}
	return out
}

// stillShared fails if the API server does not say that a block is shared.
func (c *NodeClient) stillShared(ctx context.Context, block netip.Prefix) error {
	var within v1alpha1.AddressBlock
	err := c.api.Get(ctx, client.ObjectKey{Name: v1alpha1.BlockName(block)}, &within)
	if err == nil && within.Spec.Sharing != v1alpha1.SharingConfirmed {
		err = fmt.Errorf("block %s is shared no more", block)
	}
	return err
}

// TakeAddress makes an address that is kept for a pod, and that no node holds,
// this node's.
func (c *NodeClient) TakeAddress(ctx context.Context, l Lease) (Lease, error) {
	uid, err := c.nodeUID()
	if err != nil {
		return Lease{}, fmt.Errorf("take address %s: %w", l.Address(), err)
	}
	l.Node, l.NodeUID, l.Generation = c.node, uid, l.Generation+1
	block := blockOf(l)
	if err := c.api.Update(ctx, block, strict); err != nil {
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			return Lease{}, &TakenError{Prefix: l.Prefix, Node: "another"}
		}
		return Lease{}, fmt.Errorf("take address %s: %w", l.Address(), err)
	}
	return c.hold(block), nil
}

// ReleaseAddress gives a single address back; one that is kept for a pod is left
// to whoever runs the pod next.
func (c *NodeClient) ReleaseAddress(ctx context.Context, l Lease) error {
	if l.KeptFor == (share.Kept{}) || l.Node == "" {
		return c.remove(ctx, "give back address", l)
	}
	l.Node, l.NodeUID, l.Generation = "", "", l.Generation+1
	return c.change(ctx, "let go of address", l)
}

// AnswerAddress says whether another node may have an address of this one's.
func (c *NodeClient) AnswerAddress(ctx context.Context, a share.Answer) error {
	l := a.Lease
	l.Grant, l.Reason = a.Grant, a.Reason
	return c.change(ctx, "answer for address", l)
}

// change writes a lease that was seen. That somebody else has changed it since is
// no error: the next View shows how.
func (c *NodeClient) change(ctx context.Context, what string, l Lease) error {
	block := blockOf(l)
	if l.Sharing != "" {
		block.Labels = map[string]string{v1alpha1.SharedLabel: ""}
	}
	switch err := c.api.Update(ctx, block, strict); {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("%s %s: %w", what, l.Prefix, err)
	}
	c.hold(block)
	return nil
}

// remove deletes a lease that was seen, as it was seen.
func (c *NodeClient) remove(ctx context.Context, what string, l Lease) error {
	block, uid := blockOf(l), types.UID(l.ObjectUID)
	err := c.api.Delete(ctx, block, client.Preconditions{UID: &uid, ResourceVersion: &l.Version})
	if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("%s %s: %w", what, l.Prefix, err)
	}
	if err == nil || apierrors.IsNotFound(err) {
		c.claims.drop(block.Name, uid)
	}
	c.observer.touchFor(block)
	return nil
}
