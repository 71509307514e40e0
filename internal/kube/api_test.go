package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/test/apiserver"
)

// shared is the API server of the package's tests. Each test uses names of its
// own.
var shared apiserver.Shared

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func admin(t *testing.T) client.Client {
	t.Helper()
	c, err := NewClient(shared.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// startNode runs a NodeClient and waits until it has read the API server.
func startNode(t *testing.T, cfg *rest.Config, name string) *NodeClient {
	t.Helper()
	c, err := NewNodeClient(cfg, name, quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	eventually(t, c, "the first view", func(View) bool { return true })
	return c
}

// eventually waits, by the client's own signal, for a view that fits.
func eventually(t *testing.T, c *NodeClient, what string, fits func(View) bool) View {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		v, err := c.View()
		if err == nil && fits(v) {
			return v
		}
		select {
		case <-c.Changed():
		case <-deadline:
			t.Fatalf("%s: not within 30 s; the last view: %+v, %v", what, v, err)
		}
	}
}

func create(t *testing.T, c client.Client, obj client.Object) {
	t.Helper()
	if err := c.Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.Background(), obj); client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
}

func newNode(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func TestOneOfManyNodesGetsTheBlock(t *testing.T) {
	api := admin(t)
	p := netip.MustParsePrefix("10.50.1.0/26")
	const n = 5
	var clients []*NodeClient
	for i := range n {
		name := fmt.Sprintf("race-%d", i)
		create(t, api, newNode(name))
		clients = append(clients, startNode(t, shared.Config(t), name))
		eventually(t, clients[i], "its own Node", func(v View) bool { return v.NodeUID != "" })
	}
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i, c := range clients {
		wg.Go(func() { _, errs[i] = c.ClaimBlock(t.Context(), p) })
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Errorf("race-%d and race-%d both hold %s", winner, i, p)
		case err == nil:
			winner = i
		case !IsTaken(err):
			t.Errorf("race-%d: %v", i, err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody holds the block")
	}
	c := clients[winner]
	v, err := c.View()
	if err != nil || !holds(v, p, fmt.Sprintf("race-%d", winner)) {
		t.Errorf("the view after the claim lacks it: %+v, %v", v.Leases, err)
	}
	if _, err := c.ClaimBlock(t.Context(), p); err != nil {
		t.Errorf("to claim what one holds: %v", err)
	}
	loser := clients[(winner+1)%n]
	if err := loser.ReleaseBlock(t.Context(), p); !IsTaken(err) {
		t.Errorf("another gave the block back: %v", err)
	}
	if _, err := loser.AdoptBlock(t.Context(), p); !IsTaken(err) {
		t.Errorf("another adopted the block: %v", err)
	}
	for range 2 {
		if err := c.ReleaseBlock(t.Context(), p); err != nil {
			t.Errorf("give back: %v", err)
		}
	}
	if v, _ := c.View(); holds(v, p, "") {
		t.Errorf("the view after giving back has it: %+v", v.Leases)
	}
	if _, err := loser.ClaimBlock(t.Context(), p); err != nil {
		t.Errorf("claim what was given back: %v", err)
	}
	if err := loser.ReleaseBlock(t.Context(), p); err != nil {
		t.Error(err)
	}
}

// holds says whether the view has the lease, of the node if one is given.
func holds(v View, p netip.Prefix, node string) bool {
	for _, l := range v.Leases {
		if l.Prefix == p && (node == "" || l.Node == node) {
			return true
		}
	}
	return false
}

func TestNodeMadeAnewAdoptsItsLeases(t *testing.T) {
	api := admin(t)
	first := newNode("anew")
	create(t, api, first)
	c := startNode(t, shared.Config(t), "anew")
	eventually(t, c, "its own Node", func(v View) bool { return v.NodeUID == string(first.UID) })
	p := netip.MustParsePrefix("10.51.1.0/26")
	if _, err := c.ClaimBlock(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := c.Publish(t.Context(), NodeStatus{Programmed: Condition{Status: true}}); err != nil {
		t.Fatal(err)
	}
	if err := api.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	second := newNode("anew")
	create(t, api, second)
	v := eventually(t, c, "the new Node", func(v View) bool { return v.NodeUID == string(second.UID) })
	if !holds(v, p, "anew") {
		t.Errorf("the lease was lost: %+v", v.Leases)
	}
	if n := self(v); n.Ready || len(n.Blocks) != 1 {
		t.Errorf("the new Node is ready %v by the word of the old, with blocks %v", n.Ready, n.Blocks)
	}
	if _, err := c.ClaimBlock(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	v, _ = c.View()
	for _, l := range v.Leases {
		if l.Prefix == p && (l.NodeUID != string(second.UID) || l.Generation != 2) {
			t.Errorf("adopted as %+v", l)
		}
	}
	if err := c.Publish(t.Context(), NodeStatus{Programmed: Condition{Status: true}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "to be ready again", func(v View) bool { return self(v).Ready })
	var nn v1alpha1.NodeNetwork
	if err := api.Get(t.Context(), client.ObjectKey{Name: "anew"}, &nn); err != nil || len(nn.OwnerReferences) != 1 || nn.OwnerReferences[0].UID != second.UID {
		t.Errorf("owned by %+v, %v", nn.OwnerReferences, err)
	}
	if err := c.ReleaseBlock(t.Context(), p); err != nil {
		t.Error(err)
	}
}

func self(v View) plan.Node {
	for _, n := range v.Snapshot.Nodes {
		if n.Name == v.Snapshot.Self {
			return n
		}
	}
	return plan.Node{}
}

// countWrites returns a configuration whose writes are counted.
func countWrites(cfg *rest.Config) (*rest.Config, *atomic.Int64) {
	var n atomic.Int64
	cfg = rest.CopyConfig(cfg)
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && !strings.Contains(r.URL.Path, "/events") {
				n.Add(1)
			}
			return next.RoundTrip(r)
		})
	})
	return cfg, &n
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestPublishWritesOnlyWhatChanged(t *testing.T) {
	api := admin(t)
	create(t, api, newNode("speaker"))
	create(t, api, newNode("listener"))
	cfg, writes := countWrites(shared.Config(t))
	c := startNode(t, cfg, "speaker")
	v := eventually(t, c, "its own Node", func(v View) bool { return v.NodeUID != "" })
	status := exampleStatus()
	status.NodeUID = ""
	publish := func(what string, want int64) {
		t.Helper()
		before := writes.Load()
		if err := c.Publish(t.Context(), status); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := writes.Load() - before; got != want {
			t.Errorf("%s: %d writes, want %d", what, got, want)
		}
	}
	publish("the first time: create, status", 2)
	publish("the same", 0)
	status.Pods++
	publish("a count", 0)
	status.Probes[0].Reachable = false
	publish("a flip", 1)
	publish("the same", 0)

	listener := startNode(t, shared.Config(t), "listener")
	eventually(t, listener, "the other's words", func(v View) bool {
		for _, n := range v.Snapshot.Nodes {
			if n.Name == "speaker" && n.Ready && n.VTEP == status.VTEP && n.Refuses[plan.IPIP] != "" {
				return len(slices.Collect(plan.ProbesOf(v.Snapshot.Probes))) >= 2
			}
		}
		return false
	})

	// A new agent on the node says the same as the one before: no write.
	again := startNode(t, cfg, "speaker")
	eventually(t, again, "its own Node", func(View) bool { return true })
	before := writes.Load()
	if err := again.Publish(t.Context(), status); err != nil || writes.Load() != before {
		t.Errorf("after a restart: %v, %d writes", err, writes.Load()-before)
	}
	// Somebody deletes it: it comes back.
	if err := api.Delete(t.Context(), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "speaker"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, again, "to see it gone", func(v View) bool { return !self(v).Ready })
	status.NodeUID = v.NodeUID
	if err := again.Publish(t.Context(), status); err == nil {
		t.Log("written at once")
	} else if err := again.Publish(t.Context(), status); err != nil {
		t.Errorf("after it was deleted: %v", err)
	}
	eventually(t, again, "to be back", func(v View) bool { return self(v).Ready })
}

func TestViewOfTheNetworkAndTheController(t *testing.T) {
	api := admin(t)
	n := newNode("viewer")
	create(t, api, n)
	c := startNode(t, shared.Config(t), "viewer")
	v := eventually(t, c, "a view without a network", func(v View) bool { return v.Problem != "" })
	if v.ControllerAlive || v.Condition != nil || v.Snapshot.Network.PodCIDRs != nil {
		t.Errorf("%+v", v)
	}
	cn := network("10.244.0.0/16")
	cn.Generation = 0
	create(t, api, cn)
	v = eventually(t, c, "a network", func(v View) bool { return v.Problem == "" })
	if v.Snapshot.Network.ClusterID == "" || v.Snapshot.Network.PodCIDRs[0] != netip.MustParsePrefix("10.244.0.0/16") {
		t.Errorf("%+v", v.Snapshot.Network)
	}

	holder, renewed := "c1", metav1.NowMicro()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: SystemNamespace, Name: ControllerLease}}
	lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &renewed}
	create(t, api, lease)
	eventually(t, c, "a controller", func(v View) bool { return v.ControllerAlive })

	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: ReasonNotProven, Message: "m"}}
	if err := api.Status().Update(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	eventually(t, c, "the controller's word", func(v View) bool { return v.Condition != nil && v.Condition.Status && v.Condition.Message == "m" })

	whole, err := ClusterView(t.Context(), shared.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	s, err := whole.SnapshotFor("viewer")
	if err != nil || s.Network.ClusterID != v.Snapshot.Network.ClusterID || whole.Conditions()["viewer"].Message != "m" {
		t.Errorf("the terminal's view: %v, %+v", err, s)
	}
	if _, err := whole.SnapshotFor("nobody"); err == nil || !strings.Contains(err.Error(), `no node "nobody"`) {
		t.Errorf("a view of nobody: %v", err)
	}
}

func TestPodsOfTheNode(t *testing.T) {
	api := admin(t)
	create(t, api, newNode("pods"))
	for name, node := range map[string]string{"mine": "pods", "another": "elsewhere"} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: SystemNamespace, Name: name, Annotations: map[string]string{configHashAnnotation: "h"}}}
		pod.Spec = corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}}
		create(t, api, pod)
	}
	c := startNode(t, shared.Config(t), "pods")
	var pods []Pod
	eventually(t, c, "its pod", func(View) bool {
		var synced bool
		pods, synced = c.Pods()
		return synced && len(pods) > 0
	})
	if len(pods) != 1 || pods[0].Name != "mine" || pods[0].UID == "" || pods[0].ConfigHash != "h" || pods[0].Deleting {
		t.Errorf("%+v", pods)
	}
}

func TestEventsAreFoundByTheirNode(t *testing.T) {
	api := admin(t)
	create(t, api, newNode("eventful"))
	c := startNode(t, shared.Config(t), "eventful")
	c.NodeEvent(true, "Something", "what, where, what to do")
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var list corev1.EventList
		if err := api.List(t.Context(), &list); err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			// kubectl describe node selects by the name in place of the UID.
			if e.InvolvedObject.Name == "eventful" && e.InvolvedObject.UID == "eventful" && e.Type == "Warning" && e.Reason == "Something" {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no event among %d", len(list.Items))
		}
		<-tick.C
	}
}

// TestAPIServerAway shows a node that keeps its view while the API server does
// not answer, and one that starts then.
func TestAPIServerAway(t *testing.T) {
	api := admin(t)
	create(t, api, newNode("alone"))
	c := startNode(t, shared.Config(t), "alone")
	eventually(t, c, "its own Node", func(v View) bool { return v.NodeUID != "" })
	server := shared.Get(t)
	if err := server.Suspend(); err != nil {
		t.Fatal(err)
	}
	resumed := false
	resume := func() {
		if resumed {
			return
		}
		resumed = true
		if err := server.Resume(); err != nil {
			t.Error(err)
		}
	}
	defer resume()
	if v, err := c.View(); err != nil || v.NodeUID == "" {
		t.Errorf("the view was lost: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.ClaimBlock(ctx, netip.MustParsePrefix("10.52.1.0/26")); err == nil || IsTaken(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a claim: %v", err)
	}
	late, err := NewNodeClient(shared.Config(t), "alone", quiet())
	if err != nil {
		t.Fatalf("to start: %v", err)
	}
	lateCtx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- late.Run(lateCtx) }()
	if _, err := late.View(); !errors.Is(err, ErrNotSynced) {
		t.Errorf("the view of one that knows nothing: %v", err)
	}
	if _, synced := late.Pods(); synced {
		t.Error("its pods count as read")
	}
	resume()
	eventually(t, late, "the first view after all", func(v View) bool { return v.NodeUID != "" })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRESTConfigSaysWhatToDo(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	if _, err := RESTConfig(missing, ""); err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("a kubeconfig that is not there: %v", err)
	}
	if _, err := NewNodeClient(&rest.Config{}, "", quiet()); err == nil || !strings.Contains(err.Error(), "NODE_NAME") {
		t.Errorf("a node without a name: %v", err)
	}
}

// TestBlocksOfAnotherSize: where the size of blocks was changed a moment ago, another
// node may have leased what overlaps under another name, and a cache may not show it yet.
func TestBlocksOfAnotherSize(t *testing.T) {
	api := admin(t)
	a, b := twoNodes(t, "size-a", "size-b")
	wide, narrow := netip.MustParsePrefix("10.66.0.0/25"), netip.MustParsePrefix("10.66.0.64/26")
	if _, err := a.ClaimBlock(t.Context(), wide); err != nil {
		t.Fatal(err)
	}
	_, err := b.ClaimBlock(t.Context(), narrow)
	if !IsTaken(err) || !strings.Contains(err.Error(), "10.66.0.0/25 is leased to node size-a") || remains(t, api, narrow) {
		t.Errorf("inside another's block: %v", err)
	}
	if _, err := a.ClaimBlock(t.Context(), narrow); err != nil {
		t.Errorf("inside its own: %v", err)
	}
	if err := a.ReleaseBlock(t.Context(), wide); err != nil {
		t.Error(err)
	}
	if _, err := b.ClaimBlock(t.Context(), wide); !IsTaken(err) || remains(t, api, wide) {
		t.Errorf("around another's block: %v", err)
	}
	if err := a.ReleaseBlock(t.Context(), narrow); err != nil {
		t.Error(err)
	}
}
