package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/test/apiserver"
)

// shared is the API server of the package's tests. A test leaves the cluster as
// empty as it found it, and tests do not run in parallel.
var shared apiserver.Shared

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func admin(t *testing.T) client.Client {
	t.Helper()
	c, err := kube.NewClient(shared.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// replica is a controller that runs in a test.
type replica struct {
	writes atomic.Int64 // writes of anything but Leases and events
	events atomic.Int64 // writes of events
	looks  atomic.Int64 // at the Lease of a vendor's controller, one every other pass
	cut    atomic.Bool  // no request of its gets through
	stop   func()       // ends it and waits
}

func startReplica(t *testing.T, identity string, options ...func(*Config)) *replica {
	t.Helper()
	r := &replica{}
	cfg := Config{
		API: rest.CopyConfig(shared.Config(t)), Identity: identity, Listen: "off", Log: quiet(),
		Grace: time.Second, Resync: 300 * time.Millisecond, LeaseDuration: 3 * time.Second,
	}
	for _, o := range options {
		o(&cfg)
	}
	cfg.API.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if r.cut.Load() {
				return nil, errors.New("cut off by the test")
			}
			r.count(req)
			return next.RoundTrip(req)
		})
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("replica %s: %v", identity, err)
		}
	}
	t.Cleanup(r.stop)
	return r
}

func (r *replica) count(req *http.Request) {
	path, reads := req.URL.Path, req.Method == http.MethodGet
	switch {
	case reads && strings.HasSuffix(path, "/leases/"+kube.VendorLease):
		r.looks.Add(1)
	case reads, strings.Contains(path, "/leases"):
	case strings.Contains(path, "/events"):
		r.events.Add(1)
	default:
		r.writes.Add(1)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// eventually polls until nothing is wrong.
func eventually(t *testing.T, what string, wrong func() string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(30 * time.Second)
	for {
		problem := wrong()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s: %s", what, problem)
		}
		<-tick.C
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

// register creates a Node with its address, as a kubelet does.
func register(t *testing.T, c client.Client, name, address string, cidrs ...string) *corev1.Node {
	t.Helper()
	n := node(name, address, cidrs...)
	n.UID = ""
	status := n.Status
	create(t, c, &n)
	before := n.DeepCopy()
	n.Status = status // a patch: a controller that runs may have written the condition already
	if err := c.Status().Patch(t.Context(), &n, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	return &n
}

// speak writes a node's NodeNetwork as its agent does, with probes that reached
// the given Nodes.
func speak(t *testing.T, c client.Client, n *corev1.Node, source string, reached ...*corev1.Node) {
	t.Helper()
	nn := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
	if err := c.Create(t.Context(), nn); apierrors.IsAlreadyExists(err) {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(nn), nn); err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	} else {
		t.Cleanup(func() { _ = c.Delete(context.Background(), nn) })
	}
	now, before := metav1.Now(), nn.DeepCopy()
	nn.Status = v1alpha1.NodeNetworkStatus{NodeUID: string(n.UID), ReadySince: &now, Sources: []string{source}}
	for _, r := range reached {
		nn.Status.Probes = append(nn.Status.Probes, v1alpha1.ProbeResult{
			Node: r.Name, NodeUID: string(r.UID), Family: "IPv4", Transport: "ipip", Reachable: true, Since: now,
		})
	}
	// A patch: a controller that runs may have written the spec meanwhile.
	if err := c.Status().Patch(t.Context(), nn, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
}

func lease(t *testing.T, c client.Client, cidr string, n *corev1.Node) *v1alpha1.AddressBlock {
	t.Helper()
	b := block(cidr, n.Name)
	b.Spec.NodeUID = string(n.UID)
	create(t, c, &b)
	return &b
}

// conditionIs says what is wrong when a node's condition is not as wanted.
func conditionIs(t *testing.T, c client.Client, name, status, reason, message string) func() string {
	return func() string {
		var n corev1.Node
		if err := c.Get(t.Context(), client.ObjectKey{Name: name}, &n); err != nil {
			return err.Error()
		}
		cond := kube.NetworkUnavailable(&n)
		if cond == nil || string(cond.Status) != status || cond.Reason != reason || !strings.Contains(cond.Message, message) {
			return fmt.Sprintf("node %s has %+v", name, cond)
		}
		return ""
	}
}

func networkIs(t *testing.T, c client.Client, kind, status, reason, message string) func() string {
	return func() string {
		var cn v1alpha1.ClusterNetwork
		if err := c.Get(t.Context(), client.ObjectKey{Name: "default"}, &cn); err != nil {
			return err.Error()
		}
		cond := meta.FindStatusCondition(cn.Status.Conditions, kind)
		if cond == nil || string(cond.Status) != status || cond.Reason != reason || !strings.Contains(cond.Message, message) {
			return fmt.Sprintf("%s is %+v", kind, cond)
		}
		return ""
	}
}
