package controller

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
)

// actions counts the calls of one replica's to the cloud.
type actions struct {
	mu     sync.Mutex
	counts map[string]int
}

func (a *actions) provide(c *Config) {
	c.Providers = map[string]cloud.New{"alibaba": func(ctx context.Context, s cloud.Settings) (cloud.Provider, error) {
		called := s.Called
		s.Called = func(action string, took time.Duration, err error) {
			a.mu.Lock()
			a.counts[action]++
			a.mu.Unlock()
			called(action, took, err)
		}
		return alibaba.New(ctx, s)
	}}
}

// of returns how often the actions were called.
func (a *actions) of(names ...string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range names {
		n += a.counts[name]
	}
	return n
}

// TestTakeOverWritesNothing: a replica that takes over a cluster in which
// everything is in order reads the cloud and the API server, and writes to neither
// of them, events included.
func TestTakeOverWritesNothing(t *testing.T) {
	names := []string{"a", "b", "c"}
	e := newECSClusterWith(t, func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud.Routes = v1alpha1.DutyRopeway }, names...)
	var nodes []*corev1.Node
	for i, name := range names {
		e.join(name, i, func(n *corev1.Node) { n.Spec.PodCIDRs = []string{fmt.Sprintf("10.244.%d.0/24", i)} })
		n := &corev1.Node{}
		if err := e.api.Get(t.Context(), client.ObjectKey{Name: name}, n); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	for i, n := range nodes {
		speak(t, e.api, n, fmt.Sprintf("10.244.%d.1", i), nodes[(i+1)%len(nodes)])
	}
	for i, n := range nodes {
		eventually(t, "known", e.is(n.Name, settled("i-"+n.Name, "cn-chengdu.i-"+n.Name, addressNumber(i).String())))
		eventually(t, "available", conditionIs(t, e.api, n.Name, "False", kube.ReasonProven, ""))
	}
	eventually(t, "published", networkIs(t, e.api, routes.ConditionPublished, "True", "Published", "3 of 3"))
	eventually(t, "instances", networkIs(t, e.api, v1alpha1.ConditionNodesKnown, "True", "Known", "3 of 3 nodes"))
	eventually(t, "rights", networkIs(t, e.api, v1alpha1.ConditionCloudRights, "True", reasonAllowed, ""))
	eventually(t, "paths", networkIs(t, e.api, v1alpha1.ConditionPathsSound, "True", "NoFaults", ""))
	e.first.stop()

	calls := &actions{counts: map[string]int{}}
	second := e.startReplica("two", calls.provide)
	var looks int64
	eventually(t, "the second has looked at everything", func() string {
		listed, instances := calls.of("DescribeRouteEntryList"), calls.of("DescribeInstances")
		if listed == 0 || instances == 0 {
			looks = second.looks.Load()
		}
		// Passes enough for whatever those answers have it write.
		if n := second.looks.Load() - looks; n < 3 {
			return fmt.Sprintf("%d listings of the table, %d of instances, %d pairs of passes since", listed, instances, n)
		}
		return ""
	})
	if n := calls.of("CreateRouteEntries", "DeleteRouteEntries", "ModifyRouteEntry", "ModifyNetworkInterfaceAttribute"); n != 0 {
		t.Errorf("%d calls of actions that write: %v", n, calls.counts)
	}
	if w, ev := second.writes.Load(), second.events.Load(); w != 0 || ev != 0 {
		t.Errorf("%d writes and %d events", w, ev)
	}
}
