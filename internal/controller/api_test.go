package controller

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
)

// TestNodeIsAvailableOnlyOnceProven holds invariant 3: the condition is True
// from the start, and False only when a peer has reached this very Node.
func TestNodeIsAvailableOnlyOnceProven(t *testing.T) {
	api := admin(t)
	startReplica(t, "one")
	a := register(t, api, "a", "192.0.2.1")
	eventually(t, "without a network", conditionIs(t, api, "a", "True", kube.ReasonNotProven, "there is no ClusterNetwork named default: create one"))
	cn := network("10.244.0.0/16")
	cn.Generation = 0
	create(t, api, cn)
	eventually(t, "accepted", networkIs(t, api, v1alpha1.ConditionAccepted, "True", reasonAccepted, "10.244.0.0/16"))
	// The first node is the oldest, by seconds: of one second, by UID.
	eventually(t, "a to be the older", func() string {
		if time.Now().Unix() == a.CreationTimestamp.Unix() {
			return "it is still the second in which it was made"
		}
		return ""
	})
	b := register(t, api, "b", "192.0.2.2")
	lease(t, api, "10.244.1.0/26", a)
	lease(t, api, "10.244.2.0/26", b)
	speak(t, api, a, "10.244.1.1")
	eventually(t, "the first node, by its local path", conditionIs(t, api, "a", "False", kube.ReasonProven, "local path"))
	eventually(t, "the second, silent", conditionIs(t, api, "b", "True", kube.ReasonNotProven, "the agent on node b has not yet said"))
	speak(t, api, b, "10.244.2.1", a)
	eventually(t, "the second, not reached", conditionIs(t, api, "b", "True", kube.ReasonNotProven, ""))
	eventually(t, "it is counted", networkIs(t, api, v1alpha1.ConditionNodesReachable, "False", "NotProven", "1 of 2 nodes"))

	predecessor := b.DeepCopy()
	predecessor.UID = "of an earlier b"
	speak(t, api, a, "10.244.1.1", predecessor)
	speak(t, api, a, "10.244.1.1", b)
	eventually(t, "the second, reached", conditionIs(t, api, "b", "False", kube.ReasonProven, "by node a by ipip"))
	eventually(t, "all of them", networkIs(t, api, v1alpha1.ConditionNodesReachable, "True", "AllProven", "2 of 2"))

	speak(t, api, a, "10.244.1.1")
	eventually(t, "the second is not reached any more", networkIs(t, api, v1alpha1.ConditionNodesReachable, "False", "NotProven", "1 of 2"))
	if wrong := conditionIs(t, api, "b", "False", kube.ReasonProven, "by node a by ipip")(); wrong != "" {
		t.Errorf("a node that was available lost it: %s", wrong)
	}
}

// TestNodeMadeAnewStartsUnavailable: what was proven of the predecessor does
// not hold, and the UID is a precondition of every write.
func TestNodeMadeAnewStartsUnavailable(t *testing.T) {
	api := admin(t)
	create(t, api, &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}}})
	n := register(t, api, "a", "192.0.2.1")
	lease(t, api, "10.244.1.0/26", n)
	speak(t, api, n, "10.244.1.1")
	startReplica(t, "one")
	eventually(t, "proven", conditionIs(t, api, "a", "False", kube.ReasonProven, ""))
	if err := api.Delete(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	again := register(t, api, "a", "192.0.2.1")
	eventually(t, "made anew", conditionIs(t, api, "a", "True", kube.ReasonNotProven, "the agent on node a has not yet said"))

	c := &controller{api: api, log: quiet(), metrics: newMetrics(), now: time.Now}
	if err := c.writeNode(t.Context(), n, wanted{status: corev1.ConditionFalse, message: "meant for the old one"}); err != nil {
		t.Errorf("a write to the old Node: %v", err)
	}
	if wrong := conditionIs(t, api, "a", "True", kube.ReasonNotProven, "")(); wrong != "" {
		t.Errorf("a write meant for the Node's predecessor came through: %s", wrong)
	}
	_ = again
}

func TestOnlyTheLeaderWrites(t *testing.T) {
	api := admin(t)
	first := startReplica(t, "first")
	register(t, api, "a", "192.0.2.1")
	eventually(t, "the first replica leads", conditionIs(t, api, "a", "True", kube.ReasonNotProven, ""))
	second := startReplica(t, "second")
	register(t, api, "b", "192.0.2.2")
	eventually(t, "a node under two replicas", conditionIs(t, api, "b", "True", kube.ReasonNotProven, ""))
	if n := second.writes.Load(); n != 0 {
		t.Errorf("the one that does not lead wrote %d times", n)
	}
	first.stop()
	before := first.writes.Load()
	register(t, api, "c", "192.0.2.3")
	start := time.Now()
	eventually(t, "a node under the second", conditionIs(t, api, "c", "True", kube.ReasonNotProven, ""))
	t.Logf("the second replica took over within %s", time.Since(start).Round(10*time.Millisecond))
	if second.writes.Load() == 0 || first.writes.Load() != before {
		t.Errorf("after the first has stopped: it wrote %d times, the second %d", first.writes.Load()-before, second.writes.Load())
	}
}

// TestLeaderThatIsCutOffStopsActing: once the other has taken over, the one that
// comes back writes nothing.
func TestLeaderThatIsCutOffStopsActing(t *testing.T) {
	api := admin(t)
	first := startReplica(t, "first")
	register(t, api, "a", "192.0.2.1")
	eventually(t, "the first replica leads", conditionIs(t, api, "a", "True", kube.ReasonNotProven, ""))
	startReplica(t, "second")
	first.cut.Store(true)
	register(t, api, "b", "192.0.2.2")
	eventually(t, "the second takes over", conditionIs(t, api, "b", "True", kube.ReasonNotProven, ""))
	before := first.writes.Load()
	first.cut.Store(false)
	register(t, api, "c", "192.0.2.3")
	eventually(t, "a node under both", conditionIs(t, api, "c", "True", kube.ReasonNotProven, ""))
	if n := first.writes.Load() - before; n != 0 {
		t.Errorf("the one that had led wrote %d times", n)
	}
}

func TestBlocksOfNodesThatAreGone(t *testing.T) {
	api := admin(t)
	a, b := register(t, api, "a", "192.0.2.1"), register(t, api, "b", "192.0.2.2")
	kept, taken := lease(t, api, "10.244.1.0/26", a), lease(t, api, "10.244.2.0/26", b)
	adopted := lease(t, api, "10.244.3.0/26", b)
	speak(t, api, b, "10.244.2.1")
	startReplica(t, "one")
	eventually(t, "it leads", conditionIs(t, api, "a", "True", kube.ReasonNotProven, ""))
	if err := api.Delete(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	// Somebody else gets one of the leases meanwhile.
	adopted.Spec.Node, adopted.Spec.NodeUID, adopted.Spec.Generation = "a", string(a.UID), 2
	if err := api.Update(t.Context(), adopted); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the block and the words of the node that is gone", func() string {
		left := ""
		for _, obj := range []client.Object{taken.DeepCopy(), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "b"}}} {
			if err := api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj); !apierrors.IsNotFound(err) {
				left += fmt.Sprintf("%T %s is there (%v) ", obj, obj.GetName(), err)
			}
		}
		return left
	})
	for _, obj := range []*v1alpha1.AddressBlock{kept, adopted} {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(obj), obj); err != nil {
			t.Errorf("the block of a node that is there: %v", err)
		}
	}
}

// TestStaleBlockStays: a lease that changed hands after it was seen is not
// deleted, and a node that the API server still knows loses nothing.
func TestStaleBlockStays(t *testing.T) {
	api := admin(t)
	a := register(t, api, "a", "192.0.2.1")
	b := lease(t, api, "10.244.1.0/26", a)
	seen := b.DeepCopy()
	b.Spec.Generation++
	if err := api.Update(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	c := &controller{api: api, log: quiet(), metrics: newMetrics(), now: time.Now, cfg: Config{Grace: time.Minute}}
	if err := c.collectBlock(t.Context(), seen); err != nil {
		t.Error(err)
	}
	// The cache has lost the Node.
	m := newMemory()
	m.missing["a"] = time.Now().Add(-time.Hour)
	o := &observed{objects: &kube.Objects{Nodes: []corev1.Node{node("other", "192.0.2.9")}, Blocks: []v1alpha1.AddressBlock{*b}}}
	if err := c.collect(t.Context(), o, m); err != nil {
		t.Error(err)
	}
	if err := api.Get(t.Context(), client.ObjectKeyFromObject(b), b); err != nil {
		t.Errorf("the lease is gone: %v", err)
	}
	if len(m.missing) != 0 {
		t.Error("the wait does not start anew")
	}
}

func TestNetworkIsJudgedAgainstTheCluster(t *testing.T) {
	api := admin(t)
	startReplica(t, "one")
	cn := network("172.21.0.0/17")
	cn.Generation = 0
	ranges := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "rwt"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"172.21.0.0/17"}}}
	create(t, api, ranges)
	create(t, api, cn)
	eventually(t, "the Services' range", networkIs(t, api, v1alpha1.ConditionAccepted, "False", reasonOverlapsServices, "give pods a range of their own"))
	update := func(cidrs ...string) {
		t.Helper()
		if err := api.Get(t.Context(), client.ObjectKey{Name: "default"}, cn); err != nil {
			t.Fatal(err)
		}
		cn.Spec.PodCIDRs = cidrs
		if err := api.Update(t.Context(), cn); err != nil {
			t.Fatal(err)
		}
	}
	update("10.244.0.0/16")
	eventually(t, "corrected", networkIs(t, api, v1alpha1.ConditionAccepted, "True", reasonAccepted, ""))
	register(t, api, "a", "192.0.2.1")
	update("10.244.0.0/16", "192.0.2.0/24")
	eventually(t, "a node's address", networkIs(t, api, v1alpha1.ConditionAccepted, "False", reasonOverlapsNodes, "the address of node a"))
	if err := api.Get(t.Context(), client.ObjectKey{Name: "default"}, cn); err != nil || len(cn.Status.InForce.PodCIDRs) != 1 {
		t.Errorf("what was in force became %+v, %v", cn.Status.InForce, err)
	}
	eventually(t, "no policies", networkIs(t, api, v1alpha1.ConditionPolicyEnforced, "True", "NoPolicies", ""))
	create(t, api, &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "deny"}})
	eventually(t, "a policy", networkIs(t, api, v1alpha1.ConditionPolicyEnforced, "False", "NotImplemented", "there are 1 (such as default/deny)"))
}

func TestAnotherWriterIsNamed(t *testing.T) {
	api := admin(t)
	create(t, api, &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}}})
	n := register(t, api, "a", "192.0.2.1")
	lease(t, api, "10.244.1.0/26", n)
	foreign := func() {
		t.Helper()
		patch := `{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"NoRouteCreated","message":"theirs"}]}}`
		if err := api.Status().Patch(t.Context(), n.DeepCopy(), client.RawPatch("application/strategic-merge-patch+json", []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
	foreign()
	startReplica(t, "one")
	speak(t, api, n, "10.244.1.1")
	eventually(t, "taken over once", conditionIs(t, api, "a", "False", kube.ReasonProven, ""))
	foreign()
	eventually(t, "the writer's name", func() string {
		var got corev1.Node
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(n), &got); err != nil {
			return err.Error()
		}
		if w := got.Annotations[kube.WriterAnnotation]; w != "NoRouteCreated" {
			return fmt.Sprintf("annotation %q", w)
		}
		return ""
	})
	if wrong := conditionIs(t, api, "a", "True", "NoRouteCreated", "theirs")(); wrong != "" {
		t.Errorf("the other's word was fought: %s", wrong)
	}
}

func TestNodeProblemsAreEvents(t *testing.T) {
	api := admin(t)
	create(t, api, &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.ClusterNetworkSpec{
		PodCIDRs: []string{"10.244.0.0/16"}, AddressSource: v1alpha1.AddressesFromNodeCIDR,
	}})
	startReplica(t, "one")
	register(t, api, "outside", "192.0.2.1", "10.9.0.0/24")
	register(t, api, "first", "192.0.2.2", "10.244.1.0/24")
	eventually(t, "the condition", conditionIs(t, api, "outside", "True", kube.ReasonNotProven, "10.9.0.0/24"))
	eventually(t, "the event", func() string {
		var list corev1.EventList
		if err := api.List(t.Context(), &list); err != nil {
			return err.Error()
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == "outside" && e.Type == "Warning" && strings.Contains(e.Message, "10.9.0.0/24") {
				return ""
			}
		}
		return fmt.Sprintf("none among %d events", len(list.Items))
	})
}

func TestHealthAndMetrics(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{API: shared.Config(t), Identity: "one", Listen: l.Addr().String(), Log: quiet()}
	if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "has the port") {
		t.Errorf("with its port in use: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	get := func(path, want string) func() string {
		return func() string {
			resp, err := http.Get("http://" + cfg.Listen + path)
			if err != nil {
				return err.Error()
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
				return fmt.Sprintf("%s: %s", resp.Status, body)
			}
			return ""
		}
	}
	eventually(t, "healthy", get("/healthz", "ok"))
	eventually(t, "ready", get("/readyz", "ok"))
	eventually(t, "leading", get("/metrics", "ropeway_controller_leader 1"))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestControllerStartsBeforeTheAPIServer: it waits, and is alive but not ready.
func TestControllerStartsBeforeTheAPIServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cfg := Config{API: &rest.Config{Host: "https://" + addr.String()}, Identity: "one", Listen: "127.0.0.1:0", Log: quiet()}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := Run(ctx, cfg); err != nil {
		t.Errorf("it gave up: %v", err)
	}
}
