package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
)

// A lease outlives its Node object for Grace: a kubelet that registers anew
// adopts it. It is taken back on evidence only: the Node was missing in the
// cache for Grace, the API server itself says that there is none, and the lease
// still names it when it is deleted. The node's NodeNetwork goes as soon as the
// API server says so: it is what peers know the node by, and an agent that is
// there after all makes it anew.

// overdue returns the nodes that objects speak of and that have been missing for
// grace. It brings m.missing up to date. When no Node at all is known, nobody
// is missing: that is an empty or wrong cache rather than an empty cluster, and
// an empty cluster needs no addresses.
func overdue(o *kube.Objects, m *memory, grace time.Duration, now time.Time) []string {
	named := map[string]bool{}
	if len(o.Nodes) > 0 {
		for i := range o.Blocks {
			if node := o.Blocks[i].Spec.Node; node != "" { // shared blocks, and kept addresses, are nobody's
				named[node] = true
			}
		}
		for i := range o.Nodes {
			delete(named, o.Nodes[i].Name)
		}
	}
	for node := range m.missing {
		if !named[node] {
			delete(m.missing, node) // it came back, or nothing is left of it
		}
	}
	var out []string
	for node := range named {
		since, known := m.missing[node]
		if !known {
			m.missing[node] = now
			continue
		}
		if now.Sub(since) >= grace {
			out = append(out, node)
		}
	}
	slices.Sort(out)
	return out
}

// collect takes back what nodes that are gone have left.
func (c *controller) collect(ctx context.Context, o *observed, m *memory) error {
	networks := c.collectNodeNetworks(ctx, o.objects)
	var done tries
	for _, node := range overdue(o.objects, m, c.cfg.Grace, c.now()) {
		if done.over() {
			break
		}
		gone, err := c.isGone(ctx, node)
		if err != nil {
			done.note(err)
			continue
		}
		if !gone {
			delete(m.missing, node) // the cache was wrong: start anew
			continue
		}
		c.collectBlocks(ctx, o.objects, node, &done)
	}
	return errors.Join(networks, done.err())
}

// isGone asks the API server itself.
func (c *controller) isGone(ctx context.Context, node string) (bool, error) {
	err := c.api.Get(ctx, client.ObjectKey{Name: node}, &corev1.Node{})
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask whether node %s is gone, to take back what it had: %w", node, err)
	}
	return false, nil
}

func (c *controller) collectBlocks(ctx context.Context, o *kube.Objects, node string, done *tries) {
	for i := range o.Blocks {
		if b := &o.Blocks[i]; b.Spec.Node == node && !done.over() {
			done.note(c.collectBlock(ctx, b))
		}
	}
}

// collectNodeNetworks deletes those whose Node is gone. Where no Node at all is
// known, none is: see overdue.
func (c *controller) collectNodeNetworks(ctx context.Context, o *kube.Objects) error {
	there := make(map[string]bool, len(o.Nodes))
	for i := range o.Nodes {
		there[o.Nodes[i].Name] = true
	}
	var done tries
	for _, nn := range o.NodeNetworks {
		if len(there) == 0 || there[nn.Name] || done.over() {
			continue
		}
		if gone, err := c.isGone(ctx, nn.Name); !gone {
			done.note(err)
			continue
		}
		stale := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: nn.Name}}
		err := c.api.Delete(ctx, stale, client.Preconditions{UID: &nn.UID})
		if client.IgnoreNotFound(err) == nil || apierrors.IsConflict(err) {
			done.note(nil)
			continue
		}
		done.note(fmt.Errorf("delete NodeNetwork %s of a node that is gone: %w", nn.Name, err))
	}
	return done.err()
}

// takeBack deletes a lease as it was seen. An address that is kept for a pod is
// left to whoever runs the pod next.
func (c *controller) takeBack(ctx context.Context, b *v1alpha1.AddressBlock) error {
	if b.Spec.KeptFor == nil {
		stale := &v1alpha1.AddressBlock{ObjectMeta: metav1.ObjectMeta{Name: b.Name}}
		return c.api.Delete(ctx, stale, client.Preconditions{UID: &b.UID, ResourceVersion: &b.ResourceVersion})
	}
	next, err := c.asSeen(ctx, b)
	if err != nil {
		return err
	}
	next.Spec.Node, next.Spec.NodeUID, next.Spec.Generation = "", "", b.Spec.Generation+1
	return c.api.Update(ctx, next)
}

// asSeen reads a lease anew, to write it: of what nobody here asks for, the cache has
// nothing (slim.go of package kube), and what others have written there is not to be
// lost. A lease that is not as it was seen any more is a conflict.
func (c *controller) asSeen(ctx context.Context, b *v1alpha1.AddressBlock) (*v1alpha1.AddressBlock, error) {
	now := &v1alpha1.AddressBlock{}
	if err := c.api.Get(ctx, client.ObjectKeyFromObject(b), now); err != nil {
		return nil, err
	}
	if now.UID != b.UID || now.ResourceVersion != b.ResourceVersion {
		return nil, apierrors.NewConflict(v1alpha1.GroupVersion.WithResource("addressblocks").GroupResource(), b.Name, errors.New("it was changed since it was looked at"))
	}
	return now, nil
}

// collectBlock deletes one lease if it is still as it was seen: the version is a
// precondition, so a lease that was adopted meanwhile stays.
func (c *controller) collectBlock(ctx context.Context, b *v1alpha1.AddressBlock) error {
	err := c.takeBack(ctx, b)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil
	case err != nil:
		return fmt.Errorf("take back block %s of node %s, which is gone: %w", b.Spec.CIDR, b.Spec.Node, err)
	}
	c.metrics.blocksCollected.Inc()
	c.log.Info("block taken back: its node is gone", "block", b.Spec.CIDR, "node", b.Spec.Node, "nodeUID", b.Spec.NodeUID)
	return nil
}
