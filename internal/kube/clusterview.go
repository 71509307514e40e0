package kube

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

// Cluster is what a person at a terminal sees: the objects as they are, and the
// snapshot that any node's agent computes from them.
type Cluster struct {
	Objects
}

// ClusterView reads the cluster once, directly from the API server, in eight
// calls.
func ClusterView(ctx context.Context, cfg *rest.Config) (*Cluster, error) {
	api, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	var networks v1alpha1.NodeNetworkList
	objects, err := readObjects(ctx, api)
	if err == nil {
		err = errors.Join(api.List(ctx, &networks), objects.readPools(ctx, api))
	}
	if err != nil {
		return nil, fmt.Errorf("read the cluster from %s: %w", cfg.Host, err)
	}
	for i := range networks.Items {
		objects.NodeNetworks = append(objects.NodeNetworks, &networks.Items[i])
	}
	return &Cluster{Objects: *objects}, nil
}

// Conditions maps node -> its condition NetworkUnavailable, whoever wrote it;
// nodes without one are missing.
func (c *Cluster) Conditions() map[string]corev1.NodeCondition {
	out := map[string]corev1.NodeCondition{}
	for i := range c.Nodes {
		if nc := NetworkUnavailable(&c.Nodes[i]); nc != nil {
			out[c.Nodes[i].Name] = *nc
		}
	}
	return out
}

// SnapshotFor is the plan's input on the named node; the error says that there
// is no such node, or why no network is in force.
func (c *Cluster) SnapshotFor(node string) (plan.Snapshot, error) {
	s, problem := c.Snapshot(node)
	for i := range s.Nodes {
		if s.Nodes[i].Name == node {
			if problem != "" {
				return s, fmt.Errorf("no pod network is in force: %s", problem)
			}
			return s, nil
		}
	}
	return s, fmt.Errorf("there is no node %q; kubectl get nodes lists them", node)
}
