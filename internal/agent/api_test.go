package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/controller"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/test/apiserver"
)

// shared is the real API server of the package's tests.
var shared apiserver.Shared

// TestMain sets controller-runtime's one logger before anything runs: each
// NodeClient sets it, a program has one, and these tests have several.
func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard())
	os.Exit(shared.Main(m))
}

// startOnAPI starts an agent that talks to the real API server.
func (m *machine) startOnAPI() *runningAgent {
	m.t.Helper()
	c, err := kube.NewNodeClient(shared.Config(m.t), m.name, m.config.Log)
	if err != nil {
		m.t.Fatal(err)
	}
	a := m.startOn(parts{dataplane: m.dataplane, client: c, kernel: m.kernel, wire: m.fabric.Wire()})
	a.words = func(p cniwire.Pod) (kube.PodWords, bool) { return c.PodWords(p.Namespace, p.Name, p.UID) }
	return a
}

// TestRealAPIServer: two agents and the controller on a real API server. Nodes
// join in order, a pod is served while the API server is frozen, a restarted
// agent serves from what it kept, and a changed ClusterNetwork is followed.
func TestRealAPIServer(t *testing.T) {
	server := shared.Get(t)
	api, err := kube.NewClient(shared.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	fabric := probe.NewFakeFabric()
	var machines []*machine
	for i := range 2 {
		name := fmt.Sprintf("node-%d", i)
		create(t, api, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		node := &corev1.Node{}
		if err := api.Get(t.Context(), ctrlclient.ObjectKey{Name: name}, node); err != nil {
			t.Fatal(err)
		}
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.%d.10", i)}}
		if err := api.Status().Update(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		m := newMachine(t, nil, fabric, name)
		m.config.timing.addWait = time.Hour
		machines = append(machines, m)
	}
	create(t, api, &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}}})
	startController(t)
	var agents []*runningAgent
	for _, m := range machines {
		agents = append(agents, m.startOnAPI())
	}
	for i, m := range machines {
		eventually(t, func() string { return joined(t, api, m) })
		addMade(t, agents[i], podOn(t, api, m.name, "pod-of-"+m.name))
	}
	late := podOn(t, api, machines[0].name, "while-frozen")
	eventually(t, func() string {
		if _, known := agents[0].words(late); !known {
			return "the agent does not know the pod yet"
		}
		return ""
	})

	frozen := func(f func()) {
		if err := server.Suspend(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := server.Resume(); err != nil {
				t.Fatal(err)
			}
		}()
		f()
	}
	frozen(func() {
		held := addMade(t, agents[0], late) // an ADD that waits now waits for too long
		agents[0].stop()
		agents[0] = machines[0].startOnAPI()
		if again := addMade(t, agents[0], late); !slices.Equal(again, held) {
			t.Errorf("after a restart the pod has %v, and had %v", again, held)
		}
		if machines[0].conflist() == "" {
			t.Error("the conflist is gone")
		}
	})

	eventually(t, func() string { return transportIs(machines[0], plan.IPIP) })
	network := &v1alpha1.ClusterNetwork{}
	if err := api.Get(t.Context(), ctrlclient.ObjectKey{Name: "default"}, network); err != nil {
		t.Fatal(err)
	}
	network.Spec.Transports = []v1alpha1.Transport{v1alpha1.TransportVXLAN}
	if err := api.Update(t.Context(), network); err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		eventually(t, func() string { return transportIs(m, plan.VXLAN) })
	}
}

// podOn makes a pod that is scheduled to a node.
func podOn(t *testing.T, api ctrlclient.Client, node, name string) cniwire.Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	create(t, api, p)
	return cniwire.Pod{Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}
}

// addMade adds a pod that the API server has.
func addMade(t *testing.T, a *runningAgent, p cniwire.Pod) []netip.Addr {
	t.Helper()
	resp, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment(p.Name), IPAM: "ropeway-ipam", Pod: p})
	if err != nil {
		t.Fatalf("ADD %s: %v", p.Name, err)
	}
	return resp.Addresses
}

func create(t *testing.T, api ctrlclient.Client, obj ctrlclient.Object) {
	t.Helper()
	if err := api.Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := api.Delete(context.Background(), obj); err != nil {
			t.Error(err)
		}
	})
}

func startController(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cfg := controller.Config{API: shared.Config(t), Identity: "test", Listen: "off", LeaseDuration: 3 * time.Second, Log: slog.New(slog.DiscardHandler)}
	cfg.Defaults()
	done := make(chan error, 1)
	go func() { done <- controller.Run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the controller ended with %v", err)
		}
	})
}

// joined says what a node still lacks: its lease, its word, the controller's
// condition, or the conflist.
func joined(t *testing.T, api ctrlclient.Client, m *machine) string {
	t.Helper()
	var blocks v1alpha1.AddressBlockList
	if err := api.List(t.Context(), &blocks); err != nil {
		return err.Error()
	}
	if !slices.ContainsFunc(blocks.Items, func(b v1alpha1.AddressBlock) bool { return b.Spec.Node == m.name }) {
		return "a lease of " + m.name
	}
	word := &v1alpha1.NodeNetwork{}
	if err := api.Get(t.Context(), ctrlclient.ObjectKey{Name: m.name}, word); err != nil {
		return err.Error()
	}
	if word.Status.ReadySince == nil || len(word.Status.CIDRs) == 0 || len(word.Status.Probes) != 2 {
		return fmt.Sprintf("the whole word of %s: %+v", m.name, word.Status)
	}
	node := &corev1.Node{}
	if err := api.Get(t.Context(), ctrlclient.ObjectKey{Name: m.name}, node); err != nil {
		return err.Error()
	}
	c := kube.NetworkUnavailable(node)
	if c == nil || c.Status != corev1.ConditionFalse || c.Reason != kube.ReasonProven {
		return fmt.Sprintf("NetworkUnavailable=False of %s: %+v", m.name, c)
	}
	if m.conflist() == "" {
		return "the conflist of " + m.name
	}
	return ""
}
