package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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

// ShareBlock declares a block shared, and confirms it once the API server's own
// Nodes and leases are found to have no part of it; if they have, it is taken
// back (ErrNotShareable). That another node has declared it is success: that
// node goes on with it.
func (c *NodeClient) ShareBlock(ctx context.Context, p netip.Prefix) error {
	block := blockOf(Lease{Prefix: p, Generation: 1, Sharing: share.Declared})
	block.Labels = map[string]string{v1alpha1.SharedLabel: ""}
	switch err := c.api.Create(ctx, block); {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return fmt.Errorf("share block %s: %w", p, err)
	}
	l, _ := leaseOf(block)
	return c.ConfirmShared(ctx, l)
}

// ConfirmShared is the second half of ShareBlock.
func (c *NodeClient) ConfirmShared(ctx context.Context, l Lease) error {
	owner, err := c.ownerIn(ctx, l.Prefix)
	if err != nil {
		return fmt.Errorf("share block %s: %w", l.Prefix, err)
	}
	if owner != "" {
		return errors.Join(fmt.Errorf("share block %s: %w: %s", l.Prefix, ErrNotShareable, owner), c.Unshare(ctx, l))
	}
	l.Sharing = share.Confirmed
	return c.change(ctx, "share block", l)
}

// ownerIn says which node owns a part of a range, "" if none does.
func (c *NodeClient) ownerIn(ctx context.Context, p netip.Prefix) (string, error) {
	var nodes corev1.NodeList
	if err := c.api.List(ctx, &nodes); err != nil {
		return "", fmt.Errorf("read the nodes: %w", err)
	}
	for i := range nodes.Items {
		n := planNode(&nodes.Items[i])
		for _, own := range n.NodeCIDRs {
			if own.Overlaps(p) {
				return fmt.Sprintf("%s is the podCIDR of node %s", own, n.Name), nil
			}
		}
	}
	leases, err := c.LiveLeases(ctx)
	for _, l := range leases {
		if l.Sharing == "" && !l.IsSingle() && l.Prefix.Overlaps(p) {
			return fmt.Sprintf("%s is leased to node %s", l.Prefix, l.Node), nil
		}
	}
	return "", err
}

// Unshare takes a declaration back.
func (c *NodeClient) Unshare(ctx context.Context, l Lease) error {
	return c.remove(ctx, "take back shared block", l)
}

// ClaimAddress leases a single address. If it is of a shared block, the lease
// holds only if the block is shared still once it is made. IsTaken tells that
// another node was first. After any other error it is not this node's, whatever
// the API server then shows.
func (c *NodeClient) ClaimAddress(ctx context.Context, claim share.Claim) (Lease, error) {
	uid, err := c.nodeUID()
	if err != nil {
		return Lease{}, fmt.Errorf("lease address %s: %w", claim.Address(), err)
	}
	claim.Node, claim.NodeUID = c.node, uid
	block := blockOf(claim.Lease)
	switch err := c.api.Create(ctx, block); {
	case apierrors.IsAlreadyExists(err):
		return Lease{}, &TakenError{Prefix: claim.Prefix, Node: "another"}
	case err != nil:
		return Lease{}, fmt.Errorf("lease address %s: %w", claim.Address(), err)
	}
	if claim.From == "" {
		var within v1alpha1.AddressBlock
		err := c.api.Get(ctx, client.ObjectKey{Name: v1alpha1.BlockName(claim.Within)}, &within)
		if err == nil && within.Spec.Sharing != v1alpha1.SharingConfirmed {
			err = fmt.Errorf("block %s is shared no more", claim.Within)
		}
		if err != nil {
			return Lease{}, errors.Join(fmt.Errorf("lease address %s: %w", claim.Address(), err), client.IgnoreNotFound(c.api.Delete(ctx, block, client.Preconditions{UID: &block.UID})))
		}
	}
	return c.hold(block), nil
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
	if err := c.api.Update(ctx, block); err != nil {
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
	switch err := c.api.Update(ctx, block); {
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
	c.observer.Touch()
	return nil
}
