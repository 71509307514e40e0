package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/bench/scale"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/test/apiserver"
)

const (
	nodes     = 3
	namespace = "default"
	atOnce    = 10 // pods that are worked on

	callLimit   = time.Second // of a pod's call to the API server, which is tried again
	changeLimit = time.Minute // of a person's, which is not
)

// world is a cluster and what is done to it.
type world struct {
	t          *testing.T
	ctx        context.Context
	cancel     context.CancelFunc
	dir        string
	random     *rand.Rand
	server     *apiserver.Server
	access     scale.Access
	api        client.Client
	controller *scale.Controller // nil while it is dead
	nodes      []*node
	slots      []*slot
	set        metav1.OwnerReference

	apiFault string      // what is wrong with the API server
	disk     atomic.Bool // a disk is full, or was since the last checkpoint
	serial   atomic.Int64
	working  chan struct{}  // holds a value for each pod that is worked on
	beside   sync.WaitGroup // what goes on beside the schedule without a slot
	undo     []undo
	step     int

	mu      sync.Mutex
	log     *os.File
	holders map[netip.Addr]*sandbox // from the end of an ADD to the begin of a DEL
	ended   []*sandbox
	counts  map[string]int // what was done -> how often
	failed  bool
}

// undo is the end of a fault, due at a step.
type undo struct {
	at   int
	name string
	do   func() error
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, dir: directory(t), random: rand.New(rand.NewPCG(seed, 0)), working: make(chan struct{}, atOnce),
		holders: map[netip.Addr]*sandbox{}, counts: map[string]int{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	t.Cleanup(w.cancel)
	var err error
	if w.log, err = os.Create(filepath.Join(w.dir, "schedule.log")); err != nil {
		t.Fatal(err)
	}
	alone(t)
	if err := leftovers(); err != nil {
		t.Fatal(err)
	}
	if err := programs(w.dir); err != nil {
		t.Fatal(err)
	}
	numbers := make([]int, nodes)
	for i := range numbers {
		numbers[i] = i
	}
	hosts, err := scale.LayHosts(w.ctx, "crash", numbers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hosts.Down(); err != nil {
			t.Error(err)
		}
	})
	w.server = startServer(t)
	w.makeCluster(hosts)
	w.makeNodes(hosts)
	for _, k := range kinds() {
		for i := range k.pods {
			s := &slot{kind: k, number: i, lock: make(chan struct{}, 1)}
			s.lock <- struct{}{}
			w.slots = append(w.slots, s)
		}
	}
	return w
}

// makeCluster makes the objects that people make.
func (w *world) makeCluster(hosts *scale.Hosts) {
	cfg, err := w.server.Config()
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 5000, 5000
	if w.access, err = scale.NewAccess(cfg, filepath.Join(w.dir, "ropeway"), w.dir); err != nil {
		w.t.Fatal(err)
	}
	hosts.Use(w.access)
	if w.api, err = kube.NewClient(cfg); err != nil {
		w.t.Fatal(err)
	}
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "kept"}}
	labels := map[string]string{"app": "kept"}
	replicas := int32(100)
	set.Spec = appsv1.StatefulSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, ServiceName: "kept",
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}}}}
	network := &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterNetworkName}}
	network.Spec = v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{podNetwork().String()}, BlockSize: v1alpha1.BlockSize{IPv4: 28},
		Transports: []v1alpha1.Transport{v1alpha1.TransportIPIP}}
	objects := []client.Object{set, network}
	for _, k := range kinds() {
		if k.pool == "" {
			continue
		}
		p := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: k.pool}}
		p.Spec = v1alpha1.AddressPoolSpec{Subnets: []string{k.from.String()}, Ranges: []string{k.ranges()}}
		objects = append(objects, p)
	}
	for i := range nodes {
		objects = append(objects, newNode(i))
	}
	for _, o := range objects {
		if err := w.api.Create(w.ctx, o); err != nil {
			w.t.Fatalf("create %T %s: %v", o, o.GetName(), err)
		}
	}
	yes := true
	w.set = metav1.OwnerReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: set.Name, UID: set.UID, Controller: &yes}
}

func newNode(i int) *corev1.Node {
	cidr := scale.PodCIDR(i).String()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: scale.NodeName(i)}, Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: scale.Address(i).String()}}
	return n
}

// makeNodes starts everything that runs.
func (w *world) makeNodes(hosts *scale.Hosts) {
	w.t.Cleanup(w.end)
	if err := w.startController(); err != nil {
		w.t.Fatal(err)
	}
	for i := range nodes {
		n := &node{number: i, hosts: hosts, dir: filepath.Join(w.dir, scale.NodeName(i))}
		w.nodes = append(w.nodes, n)
		if err := n.mount(); err != nil {
			w.t.Fatal(err)
		}
		if err := n.start(w.ctx); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) startController() (err error) {
	if w.controller != nil && w.controller.Alive() == nil {
		return nil
	}
	w.controller, err = scale.StartController(w.ctx, w.access)
	return err
}

// end takes everything down, whatever state it is in: after a failure faults are
// still there, and pods are worked on.
func (w *world) end() {
	w.cancel()
	w.beside.Wait()
	if w.controller != nil {
		if err := w.controller.Kill(); err != nil {
			w.t.Error(err)
		}
	}
	for _, n := range w.nodes {
		if err := n.kill(); err != nil {
			w.t.Error(err)
		}
	}
	for range atOnce { // plugins that wait for an agent give up by themselves
		w.working <- struct{}{}
	}
	for _, n := range w.nodes {
		if err := n.unmount(); err != nil {
			w.t.Error(err)
		}
	}
	for _, s := range w.slots {
		for _, b := range append(s.zombies, s.sandbox) {
			if b != nil {
				w.dropNetns(b)
			}
		}
	}
	w.log.Close()
	if found, err := races(w.dir); found != "" || err != nil {
		w.t.Errorf("a data race: %s, %v", found, err)
	}
}

// note writes down what happens, for whoever looks for the cause of a failure.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(w.log, "%s %d "+format+"\n", append([]any{time.Now().Format("15:04:05.000"), w.step}, args...)...)
}

// next begins a step. The schedule alone does so; who works beside it notes which
// step it was.
func (w *world) next() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step++
}

// fail is a promise that was not kept. The schedule ends after the step.
func (w *world) fail(format string, args ...any) {
	w.note("FAILED: "+format, args...)
	w.mu.Lock()
	w.failed = true
	w.mu.Unlock()
	w.t.Errorf(format, args...)
}

func (w *world) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

func (w *world) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// patience is how long the schedule waits for pods before it ends a fault early:
// a pod on a node without an agent waits for a minute.
const patience = 500 * time.Millisecond

// on works on a slot beside the schedule, once nobody else does.
func (w *world) on(s *slot, what string, do func() error) {
	w.take(s.lock)
	w.give(w.working)
	go func() {
		defer func() { s.lock <- struct{}{}; <-w.working }()
		began := time.Now()
		err := do()
		w.note("%s %s: %v, after %s: %v", what, s.name(), s.sandbox, time.Since(began).Round(time.Millisecond), err)
		if err != nil {
			w.count(what + " (failed)")
		}
	}()
}

func (w *world) take(from chan struct{}) {
	for {
		select {
		case <-from:
			return
		case <-time.After(patience):
			w.undoNext()
		}
	}
}

func (w *world) give(to chan struct{}) {
	for {
		select {
		case to <- struct{}{}:
			return
		case <-time.After(patience):
			w.undoNext()
		}
	}
}

// quiet waits until nobody works on any slot, calls do, and lets work go on.
func (w *world) quiet(do func() error) error {
	for range atOnce {
		w.give(w.working)
	}
	defer func() {
		for range atOnce {
			<-w.working
		}
	}()
	return do()
}

// later ends a fault so many steps from now.
func (w *world) later(steps int, name string, do func() error) {
	w.undo = append(w.undo, undo{w.step + steps, name, do})
}

// undoDue ends the faults whose time has come.
func (w *world) undoDue() {
	for {
		due := -1
		for i, u := range w.undo {
			if u.at <= w.step && (due < 0 || u.at < w.undo[due].at) {
				due = i
			}
		}
		if due < 0 {
			return
		}
		w.undoOne(due)
	}
}

// undoNext ends the fault that is to end first.
func (w *world) undoNext() {
	first := -1
	for i, u := range w.undo {
		if first < 0 || u.at < w.undo[first].at {
			first = i
		}
	}
	if first >= 0 {
		w.undoOne(first)
	}
}

func (w *world) undoOne(i int) {
	u := w.undo[i]
	w.undo = append(w.undo[:i:i], w.undo[i+1:]...)
	err := u.do()
	w.note("end of %s: %v", u.name, err)
	if err != nil {
		w.fail("end of %s: %v", u.name, err)
	}
}
