package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

// nodesAsked is an API server that knows Nodes, and counts what it is asked.
type nodesAsked struct {
	client.Reader
	mu          sync.Mutex
	nodes       map[string]*corev1.Node
	down        bool
	gets, pages int
}

// put registers a Node, or makes the API server answer no more.
func (n *nodesAsked) put(node *corev1.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[node.Name] = node
}

func (n *nodesAsked) answers(yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = !yes
}

// calls returns how often it was asked for one Node, and for a page of them.
func (n *nodesAsked) calls() (gets, pages int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gets, n.pages
}

func (n *nodesAsked) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gets++
	if n.down {
		return errors.New("refused")
	}
	node, known := n.nodes[key.Name]
	if !known {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, key.Name)
	}
	node.DeepCopyInto(obj.(*corev1.Node))
	return nil
}

// List has one Node on each page.
func (n *nodesAsked) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pages++
	var o client.ListOptions
	o.ApplyOptions(opts)
	at := 0
	if o.Continue != "" {
		fmt.Sscan(o.Continue, &at)
	}
	page := list.(*corev1.NodeList)
	if node := n.nodes[fmt.Sprintf("n%d", at)]; node != nil {
		page.Items = append(page.Items, *node)
	}
	if at+1 < len(n.nodes) {
		page.Continue = fmt.Sprint(at + 1)
	}
	return nil
}

func machineNode(name, uid, address string) *corev1.Node {
	n := newNode(name)
	n.UID = types.UID(uid)
	n.CreationTimestamp = metav1.Unix(100, 0)
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}}
	n.Spec.PodCIDR = "10.244.1.5/24"
	return n
}

// spoken is the NodeNetwork of a node whose agent speaks for a Node, and of which
// the controller has said nothing.
func spoken(name, uid string) *v1alpha1.NodeNetwork {
	return &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.NodeNetworkStatus{NodeUID: uid}}
}

// asking plays a test of elsewhere against an API server, on the bubble's clock.
func asking(t *testing.T, test func(*elsewhere, *nodesAsked)) {
	synctest.Test(t, func(t *testing.T) {
		api := &nodesAsked{nodes: map[string]*corev1.Node{}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		e := newElsewhere(api, quiet(), func() {})
		go e.run(ctx)
		test(e, api)
	})
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestControllerSaysWhichMachines: where the controller has spoken, nothing is
// asked of the API server.
func TestControllerSaysWhichMachines(t *testing.T) {
	asking(t, func(e *elsewhere, api *nodesAsked) {
		told := spoken("b", "ub")
		told.Spec = MachineOf(machineNode("b", "ub", "192.0.2.2"))
		silent := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "c"}} // its agent has not spoken
		silent.Spec = MachineOf(machineNode("c", "uc", "192.0.2.3"))
		silent.Spec.Silent = true
		got, err := e.nodes("a", []*v1alpha1.NodeNetwork{spoken("a", "ua"), told, silent})
		if err != nil || len(got) != 2 {
			t.Fatalf("%v, %v", got, err)
		}
		b := got[0]
		if b.Name != "b" || b.UID != "ub" || b.Created != 100 || b.Silent || len(b.Addresses) != 1 || b.Addresses[0] != netip.MustParseAddr("192.0.2.2") ||
			len(b.NodeCIDRs) != 1 || b.NodeCIDRs[0] != netip.MustParsePrefix("10.244.1.0/24") {
			t.Errorf("%+v", b)
		}
		if !got[1].Silent {
			t.Errorf("%+v", got[1])
		}
		pass(time.Hour)
		if gets, pages := api.calls(); gets+pages != 0 {
			t.Errorf("%d and %d calls", gets, pages)
		}
	})
}

// TestJoinWithoutController (invariant 11): a node whose agent speaks is known
// although no controller says which machine it is.
func TestJoinWithoutController(t *testing.T) {
	asking(t, func(e *elsewhere, api *nodesAsked) {
		objects := []*v1alpha1.NodeNetwork{spoken("b", "ub"), spoken("gone", "ug")}
		api.put(machineNode("b", "ub", "192.0.2.2"))
		if got, err := e.nodes("a", objects); !errors.Is(err, ErrNotSynced) {
			t.Fatalf("before anything was answered: %v, %v", got, err)
		}
		pass(askAfter - time.Millisecond)
		if gets, _ := api.calls(); gets != 0 {
			t.Error("the controller was given no time")
		}
		pass(time.Second)
		got, err := e.nodes("a", objects)
		if gets, _ := api.calls(); err != nil || len(got) != 1 || got[0].UID != "ub" || gets != 2 {
			t.Fatalf("%+v, %v after %d calls", got, err, gets)
		}
		// What changes is heard of, ever more seldom.
		api.put(machineNode("b", "ub", "192.0.2.9"))
		for range 20 {
			pass(time.Minute)
			got, err = e.nodes("a", objects)
		}
		if gets, _ := api.calls(); err != nil || got[0].Addresses[0] != netip.MustParseAddr("192.0.2.9") || gets > 40 {
			t.Errorf("%+v, %v after %d calls", got, err, gets)
		}
		// The controller is back: it has the word.
		objects[0].Spec = MachineOf(machineNode("b", "ub", "192.0.2.7"))
		if got, err = e.nodes("a", objects[:1]); err != nil || got[0].Addresses[0] != netip.MustParseAddr("192.0.2.7") {
			t.Errorf("%+v, %v", got, err)
		}
		before, _ := api.calls()
		pass(time.Hour)
		if gets, _ := api.calls(); gets != before {
			t.Errorf("%d calls after the controller has spoken", gets-before)
		}
	})
}

// TestUnknownMachineAtTheStart: an agent that starts while neither the controller
// nor the API server tells of a node takes it for unknown and not for gone; later
// one that comes does not keep it from anything.
func TestUnknownMachineAtTheStart(t *testing.T) {
	asking(t, func(e *elsewhere, api *nodesAsked) {
		api.answers(false)
		api.put(machineNode("b", "ub", "192.0.2.2"))
		objects := []*v1alpha1.NodeNetwork{spoken("b", "ub")}
		for range 3 {
			if got, err := e.nodes("a", objects); !errors.Is(err, ErrNotSynced) {
				t.Fatalf("%v, %v", got, err)
			}
			pass(time.Minute)
		}
		api.answers(true)
		pass(askAgainMax * 2)
		if got, err := e.nodes("a", objects); err != nil || len(got) != 1 {
			t.Fatalf("%v, %v", got, err)
		}
		if got, err := e.nodes("a", append(objects, spoken("c", "uc"))); err != nil || len(got) != 1 {
			t.Errorf("beside one that came later: %v, %v", got, err)
		}
	})
}

// TestMachineMadeAnew: a node's agent speaks for another Node than the controller
// does: until that is cleared up it is known as before.
func TestMachineMadeAnew(t *testing.T) {
	asking(t, func(e *elsewhere, api *nodesAsked) {
		nn := spoken("b", "new")
		nn.Spec = MachineOf(machineNode("b", "old", "192.0.2.2"))
		if _, err := e.nodes("a", nil); err != nil {
			t.Fatal(err)
		}
		see := func() plan.Node {
			got, err := e.nodes("a", []*v1alpha1.NodeNetwork{nn})
			if err != nil || len(got) != 1 {
				t.Fatalf("%v, %v", got, err)
			}
			return got[0]
		}
		if n := see(); n.UID != "old" {
			t.Errorf("%+v", n)
		}
		api.put(machineNode("b", "new", "192.0.2.3"))
		pass(time.Second)
		if n := see(); n.UID != "new" || n.Addresses[0] != netip.MustParseAddr("192.0.2.3") {
			t.Errorf("%+v", n)
		}
	})
}

// TestWordOfTheControllerIsLost: a downgrade begins with CRDs that do not know what
// the controller says. No node is gone meanwhile; that of which nobody speaks is.
func TestWordOfTheControllerIsLost(t *testing.T) {
	asking(t, func(e *elsewhere, api *nodesAsked) {
		api.put(machineNode("b", "ub", "192.0.2.3"))
		b, c := spoken("b", "ub"), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "c"}}
		b.Spec, c.Spec = MachineOf(machineNode("b", "ub", "192.0.2.2")), MachineOf(machineNode("c", "uc", "192.0.2.4"))
		see := func(want ...string) {
			t.Helper()
			got, err := e.nodes("a", []*v1alpha1.NodeNetwork{b, c})
			if err != nil || len(got) != len(want) {
				t.Fatalf("%+v, %v, want %v", got, err, want)
			}
			for i, n := range got {
				if n.Addresses[0] != netip.MustParseAddr(want[i]) {
					t.Errorf("node %s is at %v, want %s", n.Name, n.Addresses, want[i])
				}
			}
		}
		see("192.0.2.2", "192.0.2.4")
		b, c = spoken("b", "ub"), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "c"}}
		see("192.0.2.2")
		pass(time.Second)
		see("192.0.2.3")
	})
}

// TestManyUnknownMachines are read as a list, in pages.
func TestManyUnknownMachines(t *testing.T) {
	asking(t, func(e *elsewhere, api *nodesAsked) {
		var objects []*v1alpha1.NodeNetwork
		for i := range askOneByOne + 4 {
			name := fmt.Sprintf("n%d", i)
			objects = append(objects, spoken(name, "u"+name))
			api.put(machineNode(name, "u"+name, fmt.Sprintf("192.0.2.%d", i+1)))
		}
		if _, err := e.nodes("a", objects); !errors.Is(err, ErrNotSynced) {
			t.Fatal(err)
		}
		pass(askAfter + askSpread + time.Second)
		got, err := e.nodes("a", objects)
		if _, pages := api.calls(); err != nil || len(got) != len(objects) || pages < len(objects) {
			t.Errorf("%d nodes, %v; %d pages", len(got), err, pages)
		}
		pass(10 * time.Minute)
		gets, pages := api.calls()
		if lists := pages / len(objects); gets != 0 || lists > 12 || pages%len(objects) != 0 {
			t.Errorf("ten minutes later: %d calls one by one, %d lists", gets, lists)
		}
	})
}
