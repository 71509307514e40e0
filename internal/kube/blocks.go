package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// Leases are claimed by the agent itself: the object's name is the range, so
// the API server lets exactly one node create it. The controller is not needed,
// and no two nodes can hold one range.

// TakenError says that another node holds a range.
type TakenError struct {
	Prefix netip.Prefix
	Node   string // the holder
}

// sharedHolder stands for the holder of a shared block, which nobody is.
const sharedHolder = "none: pods on all nodes share it"

func holderOf(b *v1alpha1.AddressBlock) string {
	if b.Spec.Sharing != "" {
		return sharedHolder
	}
	return b.Spec.Node
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("the block %s is leased to node %s: choose another", e.Prefix, e.Node)
}

// IsTaken says whether an error is, or wraps, a TakenError.
func IsTaken(err error) bool {
	var taken *TakenError
	return errors.As(err, &taken)
}

// ClaimBlock leases the range to this node. When it returns nil, the lease is
// committed and the next View has it. It is idempotent: a lease that this node
// holds already is success, also one of an earlier Node object of the same name,
// which is adopted. IsTaken tells that another node was first. Any other error
// leaves open whether the lease was made; claim again.
//
// What this node has not heard of yet may be of another size and have another
// name: a shared block (see package share), or a block of another node's where
// the size of blocks was changed a moment ago. It is looked for once the lease is
// made, and the lease given up if there is one. Of two nodes that lease at the same
// moment at least one finds the other's.
func (c *NodeClient) ClaimBlock(ctx context.Context, p netip.Prefix) (Lease, error) {
	uid, err := c.nodeUID()
	if err != nil {
		return Lease{}, fmt.Errorf("lease block %s: %w", p, err)
	}
	p = p.Masked()
	block := blockOf(Lease{Prefix: p, Node: c.node, NodeUID: uid, Generation: 1})
	switch err := c.api.Create(ctx, block); {
	case apierrors.IsAlreadyExists(err):
		return c.AdoptBlock(ctx, p)
	case err != nil:
		return Lease{}, fmt.Errorf("lease block %s: %w", p, err)
	}
	if err := c.aloneIn(ctx, p); err != nil {
		return Lease{}, errors.Join(err, c.api.Delete(ctx, block, client.Preconditions{UID: &block.UID}))
	}
	return c.hold(block), nil
}

// aloneIn fails if a part of the range is shared by all nodes, or another node's, as
// the API server itself has it.
func (c *NodeClient) aloneIn(ctx context.Context, p netip.Prefix) error {
	leases, err := c.LiveLeases(ctx)
	if err != nil {
		return fmt.Errorf("lease block %s: look for others' in it: %w", p, err)
	}
	for _, l := range leases {
		switch {
		case !l.Prefix.Overlaps(p):
		case l.Sharing != "":
			return &TakenError{Prefix: l.Prefix, Node: sharedHolder}
		case !l.IsSingle() && l.Node != c.node:
			return &TakenError{Prefix: l.Prefix, Node: l.Node}
		}
	}
	return nil
}

// hold remembers a lease that this node has just written.
func (c *NodeClient) hold(b *v1alpha1.AddressBlock) Lease {
	c.claims.hold(b)
	c.observer.touchFor(b)
	l, _ := leaseOf(b)
	return l
}

// AdoptBlock takes over a lease that names this node with another UID: its Node
// object was deleted and made anew. The generation grows by one. A lease that
// is this node's already is left as it is; IsTaken tells that it names another
// node.
func (c *NodeClient) AdoptBlock(ctx context.Context, p netip.Prefix) (Lease, error) {
	uid, err := c.nodeUID()
	if err != nil {
		return Lease{}, fmt.Errorf("adopt block %s: %w", p, err)
	}
	var block v1alpha1.AddressBlock
	if err := c.api.Get(ctx, client.ObjectKey{Name: v1alpha1.BlockName(p)}, &block); err != nil {
		return Lease{}, fmt.Errorf("adopt block %s: %w", p, err)
	}
	if block.Spec.Node != c.node {
		return Lease{}, &TakenError{Prefix: p, Node: holderOf(&block)}
	}
	if block.DeletionTimestamp != nil {
		return Lease{}, fmt.Errorf("adopt block %s: it is being deleted; try again", p)
	}
	if block.Spec.NodeUID != uid {
		block.Spec.NodeUID = uid
		block.Spec.Generation++
		// The resourceVersion that was read makes this fail if anybody else
		// was faster.
		if err := c.api.Update(ctx, &block); err != nil {
			return Lease{}, fmt.Errorf("adopt block %s: %w", p, err)
		}
	}
	return c.hold(&block), nil
}

// ReleaseBlock gives a lease back. The caller has made sure that no pod holds
// an address of it, and hands none out. A lease that is gone already is
// success; one of another node is left alone, and IsTaken tells so.
func (c *NodeClient) ReleaseBlock(ctx context.Context, p netip.Prefix) error {
	name := v1alpha1.BlockName(p)
	var block v1alpha1.AddressBlock
	if err := c.api.Get(ctx, client.ObjectKey{Name: name}, &block); err != nil {
		if apierrors.IsNotFound(err) {
			c.claims.drop(name, "")
			return nil
		}
		return fmt.Errorf("give back block %s: %w", p, err)
	}
	if block.Spec.Node != c.node {
		return &TakenError{Prefix: p, Node: block.Spec.Node}
	}
	err := c.api.Delete(ctx, &block, client.Preconditions{UID: &block.UID, ResourceVersion: &block.ResourceVersion})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("give back block %s: %w", p, err)
	}
	c.claims.drop(name, block.UID)
	c.observer.Touch()
	return nil
}

// claims are this node's own latest writes that the cache may not show yet, so
// that a View after ClaimBlock has the lease and one after ReleaseBlock has not.
type claims struct {
	mu    sync.Mutex
	held  map[string]claim     // by name: made or changed here
	freed map[string]freeClaim // by name: deleted here
}

type claim struct {
	block v1alpha1.AddressBlock
	until time.Time
}

type freeClaim struct {
	uid   types.UID
	until time.Time
}

// claimMemory bounds how long a write is remembered that the cache never shows,
// because somebody else undid it at once. A cache is behind for milliseconds.
const claimMemory = 10 * time.Second

func (c *claims) hold(b *v1alpha1.AddressBlock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = map[string]claim{}
	}
	c.held[b.Name] = claim{block: *b.DeepCopy(), until: time.Now().Add(claimMemory)}
	delete(c.freed, b.Name)
}

func (c *claims) drop(name string, uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.freed == nil {
		c.freed = map[string]freeClaim{}
	}
	delete(c.held, name)
	if uid != "" {
		c.freed[name] = freeClaim{uid: uid, until: time.Now().Add(claimMemory)}
	}
}

// apply lays the claims over what the cache has, and forgets those that it
// shows.
func (c *claims) apply(o *Objects) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	blocks := make([]v1alpha1.AddressBlock, 0, len(o.Blocks)+len(c.held))
	for _, b := range o.Blocks {
		if f, ok := c.freed[b.Name]; ok && f.uid == b.UID && now.Before(f.until) {
			continue
		}
		if h, ok := c.held[b.Name]; ok {
			if h.block.UID == b.UID && h.block.Spec.Generation <= b.Spec.Generation {
				delete(c.held, b.Name) // the cache has caught up
			} else if now.Before(h.until) {
				continue // an older state; the claim is added below
			}
		}
		blocks = append(blocks, b)
	}
	for name, h := range c.held {
		if now.Before(h.until) {
			blocks = append(blocks, h.block)
		} else {
			delete(c.held, name)
		}
	}
	o.Blocks = blocks
	for name, f := range c.freed {
		if !now.Before(f.until) {
			delete(c.freed, name)
		}
	}
}
