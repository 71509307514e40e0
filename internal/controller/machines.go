package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
)

// Agents do not watch the Nodes: the controller copies the little that they need
// of each into its NodeNetwork, and writes only when that changes. A kubelet's
// heartbeat thus reaches the controller alone.

// machine is what was written of one Node.
type machine struct {
	spec v1alpha1.NodeNetworkSpec
	at   time.Time
}

// writeMachines makes each Node's NodeNetwork say what machine it is.
func (c *controller) writeMachines(ctx context.Context, o *observed, m *memory) error {
	said := make(map[string]*v1alpha1.NodeNetwork, len(o.objects.NodeNetworks))
	for _, nn := range o.objects.NodeNetworks {
		said[nn.Name] = nn
	}
	now := c.now()
	maps.DeleteFunc(m.machines, func(_ types.UID, w machine) bool { return now.Sub(w.at) >= settle })
	var (
		g    errgroup.Group
		mu   sync.Mutex
		done tries
	)
	g.SetLimit(writers)
	for i := range o.objects.Nodes {
		node := &o.objects.Nodes[i]
		want, have := kube.MachineOf(node), said[node.Name]
		mu.Lock()
		written := m.machines[node.UID]
		mu.Unlock()
		if have != nil && equality.Semantic.DeepEqual(have.Spec, want) || equality.Semantic.DeepEqual(written.spec, want) {
			continue // the second: written already, and the cache is behind
		}
		if done.over() {
			break
		}
		g.Go(func() error {
			wrote, err := c.writeMachine(ctx, node, have, want)
			mu.Lock()
			defer mu.Unlock()
			if wrote {
				m.machines[node.UID] = machine{want, now}
			}
			done.note(err)
			return nil
		})
	}
	_ = g.Wait() // the functions report to done
	return done.err()
}

// writeMachine writes one; have is nil where there is no NodeNetwork yet. That one was
// made, deleted or written meanwhile is no error, and nothing was written then: the
// next pass sees it.
func (c *controller) writeMachine(ctx context.Context, node *corev1.Node, have *v1alpha1.NodeNetwork, want v1alpha1.NodeNetworkSpec) (wrote bool, err error) {
	owners := kube.OwnedByNode(node.Name, string(node.UID))
	if have == nil {
		nn := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: node.Name, OwnerReferences: owners}, Spec: want}
		err := c.api.Create(ctx, nn)
		if client.IgnoreAlreadyExists(err) != nil {
			return false, fmt.Errorf("create NodeNetwork %s: %w", node.Name, err)
		}
		return err == nil, nil
	}
	// Null removes what is not there any more. The owner is the Node that this
	// speaks of, or what it says would go with an earlier one.
	spec := map[string]any{"nodeUID": want.NodeUID, "nodeCreated": want.NodeCreated, "addresses": want.Addresses, "podCIDRs": want.PodCIDRs, "silent": nil}
	if want.Silent {
		spec["silent"] = true
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": have.UID, "ownerReferences": owners}, "spec": spec})
	if err != nil {
		return false, fmt.Errorf("write down the machine of node %s: %w", node.Name, err)
	}
	target := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
	err = c.api.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch))
	switch {
	case err == nil:
		return true, nil
	case apierrors.IsNotFound(err), apierrors.IsConflict(err), isAnotherObject(err):
		return false, nil
	default:
		return false, fmt.Errorf("write the machine of node %s in its NodeNetwork: %w", node.Name, err)
	}
}
