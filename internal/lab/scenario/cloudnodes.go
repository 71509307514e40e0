package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/openapi"
)

// ecsVersion is that of the cloud's API for instances.
const ecsVersion = "2014-05-26"

// silence is how long Kubernetes waits for a kubelet, and Ropeway for two looks,
// with room.
const silence = 4 * time.Minute

// cloudNodes plays a cluster whose kubelets wait for a cloud controller, with no
// other one than Ropeway: what every node gets, and what becomes of the last one
// when its instance is stopped, started and released.
func (s *stage) cloudNodes(ctx context.Context) error {
	if !s.l.ExternalCloud() {
		return errors.New("this scenario is about kubelets that wait for a cloud controller: bring a lab up with --cloud-provider external")
	}
	cloud, err := s.l.Cloud()
	if err != nil {
		return err
	}
	snapshot, err := cloud.Snapshot(ctx)
	if err != nil {
		return err
	}
	if err := s.r.Step(ctx, "every node has its providerID, zone, type and addresses, and waits no more", func(ctx context.Context) error {
		return s.until(ctx, time.Minute, func() error { return s.allKnown(ctx, snapshot) })
	}); err != nil {
		return err
	}
	victim := s.nodes()[len(s.nodes())-1]
	at := slices.IndexFunc(snapshot.Instances, func(in openapi.Instance) bool { return in.Host == victim })
	if at < 0 {
		return fmt.Errorf("the cloud has no instance for %s", victim)
	}
	id := snapshot.Instances[at].ID
	console := func(action string, more ...string) error {
		params := map[string]string{"InstanceId": id}
		for i := 0; i+1 < len(more); i += 2 {
			params[more[i]] = more[i+1]
		}
		s.note("at the console: %s %s", action, id)
		_, err := cloud.Call(ctx, ecsVersion, action, params)
		return err
	}
	_ = s.r.Step(ctx, "an instance that is stopped: its silent node is tainted as shut down", func(ctx context.Context) error {
		if err := errors.Join(console("StopInstance"), s.freeze(ctx, victim, "STOP")); err != nil {
			return err
		}
		return s.until(ctx, silence, func() error { return s.tainted(ctx, victim, "node.cloudprovider.kubernetes.io/shutdown", true) })
	})
	_ = s.r.Step(ctx, "started again: the taint goes", func(ctx context.Context) error {
		if err := errors.Join(console("StartInstance"), s.freeze(ctx, victim, "CONT")); err != nil {
			return err
		}
		return s.until(ctx, silence, func() error { return s.tainted(ctx, victim, "node.cloudprovider.kubernetes.io/shutdown", false) })
	})
	return s.r.Step(ctx, "released: its Node is removed after two looks, and no other", func(ctx context.Context) error {
		if err := errors.Join(s.freeze(ctx, victim, "STOP"), console("DeleteInstance", "Force", "true")); err != nil {
			return err
		}
		return s.until(ctx, silence, func() error { return s.removed(ctx, victim) })
	})
}

// cloudNow is what the cloud has.
func (s *stage) cloudNow(ctx context.Context) (openapi.Snapshot, error) {
	cloud, err := s.l.Cloud()
	if err != nil {
		return openapi.Snapshot{}, err
	}
	return cloud.Snapshot(ctx)
}

// freeze stops a node's kubelet, or lets it go on: so a machine falls silent.
func (s *stage) freeze(ctx context.Context, node, signal string) error {
	_, err := s.l.NodeExec(ctx, node, "sh", "-c", "kill -"+signal+" $(pidof kubelet)")
	return err
}

// cloudNode is what a cloud controller says in a Node.
type cloudNode struct {
	Metadata struct {
		Name   string
		Labels map[string]string
	}
	Spec struct {
		ProviderID string
		Taints     []struct{ Key string }
	}
	Status struct {
		Addresses []struct{ Type, Address string }
	}
}

func (s *stage) cloudNodesNow(ctx context.Context) ([]cloudNode, error) {
	out, err := s.quiet(ctx, "get", "nodes", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []cloudNode }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("reading Nodes: %w", err)
	}
	return list.Items, nil
}

// allKnown says what is missing in a node.
func (s *stage) allKnown(ctx context.Context, cloud openapi.Snapshot) error {
	nodes, err := s.cloudNodesNow(ctx)
	if err != nil {
		return err
	}
	if len(nodes) != len(s.nodes()) {
		return fmt.Errorf("%d of %d nodes are there", len(nodes), len(s.nodes()))
	}
	for _, n := range nodes {
		at := slices.IndexFunc(cloud.Instances, func(in openapi.Instance) bool { return in.Host == n.Metadata.Name })
		if at < 0 {
			return fmt.Errorf("the cloud has no instance for %s", n.Metadata.Name)
		}
		in := cloud.Instances[at]
		if want := cloud.Spec.Region + "." + in.ID; n.Spec.ProviderID != want {
			return fmt.Errorf("node %s has the providerID %q, want %s", n.Metadata.Name, n.Spec.ProviderID, want)
		}
		for label, want := range map[string]string{"topology.kubernetes.io/region": cloud.Spec.Region, "node.kubernetes.io/instance-type": in.Type} {
			if got := n.Metadata.Labels[label]; got != want {
				return fmt.Errorf("node %s has %s=%q, want %s", n.Metadata.Name, label, got, want)
			}
		}
		if zone := n.Metadata.Labels["topology.kubernetes.io/zone"]; !strings.HasPrefix(zone, cloud.Spec.Region+"-") {
			return fmt.Errorf("node %s is in the zone %q", n.Metadata.Name, zone)
		}
		if text := fmt.Sprint(n.Status.Addresses); !strings.Contains(text, "{InternalIP "+in.Addresses[0].String()+"}") {
			return fmt.Errorf("node %s has the addresses %s, want %s", n.Metadata.Name, text, in.Addresses[0])
		}
		if err := hasTaint(n, "node.cloudprovider.kubernetes.io/uninitialized", false); err != nil {
			return err
		}
	}
	_, err = s.kubectl(ctx, "get", "nodes", "-o", "custom-columns=NAME:.metadata.name,PROVIDER:.spec.providerID,ZONE:.metadata.labels.topology\\.kubernetes\\.io/zone,TYPE:.metadata.labels.node\\.kubernetes\\.io/instance-type")
	return err
}

func hasTaint(n cloudNode, key string, want bool) error {
	if slices.ContainsFunc(n.Spec.Taints, func(t struct{ Key string }) bool { return t.Key == key }) != want {
		return fmt.Errorf("node %s has the taints %v: %s should be there: %t", n.Metadata.Name, n.Spec.Taints, key, want)
	}
	return nil
}

func (s *stage) tainted(ctx context.Context, node, key string, want bool) error {
	nodes, err := s.cloudNodesNow(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(nodes, func(n cloudNode) bool { return n.Metadata.Name == node })
	if at < 0 {
		return fmt.Errorf("node %s is gone", node)
	}
	return hasTaint(nodes[at], key, want)
}

func (s *stage) removed(ctx context.Context, node string) error {
	nodes, err := s.cloudNodesNow(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(nodes, func(n cloudNode) bool { return n.Metadata.Name == node }) {
		return fmt.Errorf("node %s is still there", node)
	}
	if len(nodes) != len(s.nodes())-1 {
		return fmt.Errorf("%d nodes are left of %d", len(nodes), len(s.nodes()))
	}
	return nil
}
