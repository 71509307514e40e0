package crash

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// draw is what the random numbers say of one operation. All of it is drawn for
// each, whatever becomes of it, so that a random start stands for one schedule; but
// for pods that are still worked on: the next one is taken for them.
type draw struct {
	operation string
	slot      *slot
	node      *node
	n         int // for variants
	last      int // how many operations a fault lasts
}

// operation is something that happens.
type operation struct {
	name   string
	weight int
	do     func(*world, draw)
}

func schedule() []operation {
	return []operation{
		{"pod", 100, (*world).pod},
		{"pod replaced", 8, (*world).replace},
		{"pod object removed", 4, (*world).forget},
		{"zombie buried", 8, func(w *world, d draw) { w.bury(d.slot, d.operation) }},
		{"ADD killed", 6, (*world).killedAdd},
		{"ADD again", 5, (*world).addAgain},
		{"DEL late", 5, (*world).lateDel},
		{"sandbox lost", 2, (*world).lose},
		{"GC", 1, func(w *world, d draw) { w.must(w.quiet(func() error { return w.gc(d.node) })) }},
		{"agent killed", 6, (*world).killAgent},
		{"agent replaced", 4, (*world).replaceAgent},
		{"state wiped", 2, (*world).wipe},
		{"reboot", 1, (*world).reboot},
		{"disk full", 2, (*world).fillDisk},
		{"node cut off", 3, (*world).cut},
		{"controller killed", 2, (*world).killController},
		{"API server stopped", 2, (*world).stopAPI},
		{"API server slow", 2, (*world).slowAPI},
		{"node registered anew", 1, (*world).registerAnew},
		{"other source", 1, (*world).otherSource},
	}
}

// play plays the schedule.
func (w *world) play(operations int, most time.Duration) {
	all, total := schedule(), 0
	for _, o := range all {
		total += o.weight
	}
	every := checkEvery
	if operations > short {
		every = short
	}
	w.must(w.checkpoint(true)) // every pod runs
	began := time.Now()
	for w.next(); w.step <= operations && !w.over() && (most == 0 || time.Since(began) < most); w.next() {
		at := w.random.IntN(total)
		i := 0
		for ; at >= all[i].weight; i++ {
			at -= all[i].weight
		}
		d := draw{operation: all[i].name, slot: w.vacant(w.random.IntN(len(w.slots))), node: w.nodes[w.random.IntN(nodes)],
			n: w.random.IntN(64), last: 3 + w.random.IntN(20)}
		w.undoDue()
		w.note("%s (%s, %s)", d.operation, d.slot.name(), d.node.name())
		all[i].do(w, d)
		w.count("operations")
		w.count(d.operation)
		w.must(w.check(w.step%10 == 0))
		if w.step%every == 0 && w.step < operations && !w.over() {
			w.must(w.checkpoint(operations <= short || w.step%(2*every) == 0))
		}
	}
	if !w.over() {
		w.must(w.checkpoint(true))
	}
	w.report(time.Since(began))
}

const (
	checkEvery = 250  // steps between checkpoints
	short      = 1000 // operations; in a longer schedule so many between checkpoints
)

// vacant is the first slot from i on that nobody works on, or that one: a pod may
// have to wait for long, and the schedule goes on meanwhile.
func (w *world) vacant(i int) *slot {
	for n := range w.slots {
		if s := w.slots[(i+n)%len(w.slots)]; len(s.lock) > 0 {
			return s
		}
	}
	return w.slots[i]
}

func (w *world) must(err error) {
	if err != nil {
		w.fail("step %d: %v", w.step, err)
	}
}

func (w *world) report(took time.Duration) {
	w.mu.Lock() // after a failure pods are still worked on
	defer w.mu.Unlock()
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(w.counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", what, w.counts[what]))
	}
	w.t.Logf("%d operations in %s: %s", w.counts["operations"], took.Round(time.Second), strings.Join(parts, ", "))
}

// pod starts the pod, or ends it.
func (w *world) pod(d draw) {
	s := d.slot
	w.on(s, d.operation, func() error {
		if s.sandbox == nil {
			return w.try(s, d.node, 0)
		}
		b := s.sandbox
		s.sandbox = nil
		w.delete(b, d.n)
		if d.n&object != 0 && s.uid != "" {
			return w.remove(s)
		}
		return nil
	})
}

// try makes the pod's object where there is none, and tries its ADD once.
func (w *world) try(s *slot, n *node, killAfter time.Duration) error {
	if err := w.ensure(s, n); err != nil {
		return err
	}
	return w.begin(s, killAfter)
}

// replace deletes a pod by force and makes its successor, maybe elsewhere, while
// its sandbox lives.
func (w *world) replace(d draw) {
	s := d.slot
	w.on(s, d.operation, func() error {
		if s.uid != "" {
			if err := w.remove(s); err != nil {
				return err
			}
		}
		if s.sandbox != nil {
			s.zombies = append(s.zombies, s.sandbox)
			s.sandbox = nil
		}
		return w.try(s, d.node, 0)
	})
}

// forget deletes a pod's object by force; its sandbox lives, and keeps its address.
func (w *world) forget(d draw) {
	s := d.slot
	w.on(s, d.operation, func() error {
		if s.uid == "" {
			return nil
		}
		if err := w.remove(s); err != nil {
			return err
		}
		if s.sandbox != nil {
			s.zombies = append(s.zombies, s.sandbox)
			s.sandbox = nil
		}
		return nil
	})
}

func (w *world) killedAdd(d draw) {
	s := d.slot
	w.on(s, d.operation, func() error {
		if s.sandbox != nil {
			return nil
		}
		return w.try(s, d.node, time.Duration(1+d.n)*time.Millisecond)
	})
}

// addAgain repeats an ADD that was answered, which must not disturb the pod.
func (w *world) addAgain(d draw) {
	s := d.slot
	w.on(s, d.operation, func() error {
		if s.sandbox == nil {
			return nil
		}
		if out, err := w.run(s.sandbox, "ADD", nil, 0); err == nil {
			return fmt.Errorf("was answered: %s", out)
		}
		return nil
	})
}

// lateDel deletes a sandbox once more that has ended long ago.
func (w *world) lateDel(d draw) {
	w.mu.Lock()
	var b *sandbox
	if len(w.ended) > 0 {
		b = w.ended[len(w.ended)-1-d.n%len(w.ended)]
	}
	w.mu.Unlock()
	if b == nil {
		return
	}
	w.on(d.slot, d.operation, func() error {
		_, err := w.run(b, "DEL", nil, 0)
		if err != nil && !w.disk.Load() {
			w.fail("%s: late DEL: %v (invariant 6)", b, err)
		}
		return err
	})
}

// lose ends a sandbox without a DEL.
func (w *world) lose(d draw) {
	s := d.slot
	w.on(s, d.operation, func() error {
		if s.sandbox != nil {
			w.lost(s.sandbox)
			s.sandbox = nil
		}
		return nil
	})
}

func (w *world) lost(b *sandbox) {
	w.let(b)
	w.dropNetns(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = append(w.ended, b)
}

// gc tells a node which sandboxes its runtime knows (CNI specification 1.1.0, GC).
func (w *world) gc(n *node) error {
	type attachment struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	}
	valid := []attachment{}
	var one *sandbox
	for _, s := range w.slots {
		for _, b := range append(slices.Clone(s.zombies), s.sandbox) {
			if b != nil && b.node == n {
				valid, one = append(valid, attachment{b.id, "eth0"}), b
			}
		}
	}
	if one == nil {
		one = &sandbox{slot: w.slots[0], node: n, id: "none"}
	}
	if _, err := w.run(one, "GC", map[string]any{"cni.dev/valid-attachments": valid}, 0); err != nil {
		w.note("GC on %s failed: %v", n.name(), err)
	}
	return nil
}

func (w *world) killAgent(d draw) {
	w.must(d.node.kill())
	w.later(d.last, "agent killed "+d.node.name(), func() error { return d.node.start(w.ctx) })
}

func (w *world) replaceAgent(d draw) {
	w.must(errors.Join(d.node.kill(), d.node.start(w.ctx)))
}

// wipe removes the state of a node whose pods run.
func (w *world) wipe(d draw) {
	w.must(errors.Join(d.node.kill(), d.node.wipe(), d.node.start(w.ctx)))
}

// reboot ends every sandbox of a node. Its pods are made anew.
func (w *world) reboot(d draw) {
	w.must(w.quiet(func() error {
		if err := d.node.kill(); err != nil {
			return err
		}
		for _, s := range w.slots {
			for _, b := range append(slices.Clone(s.zombies), s.sandbox) {
				if b != nil && b.node == d.node {
					w.let(b)
					w.dropNetns(b)
				}
			}
			s.zombies = slices.DeleteFunc(s.zombies, func(b *sandbox) bool { return b.node == d.node })
			if s.sandbox != nil && s.sandbox.node == d.node {
				s.sandbox = nil
			}
		}
		return d.node.boot()
	}))
	w.later(d.last, "reboot "+d.node.name(), func() error { return d.node.start(w.ctx) })
}

func (w *world) fillDisk(d draw) {
	w.disk.Store(true)
	w.must(d.node.fill())
	w.later(d.last, "disk full "+d.node.name(), func() error {
		// An agent that could not start is started again by its kubelet.
		err := d.node.drain()
		if d.node.agent != nil {
			err = errors.Join(err, d.node.start(w.ctx))
		}
		return err
	})
}

func (w *world) cut(d draw) {
	if d.node.agent == nil {
		return
	}
	d.node.agent.Cut(true)
	w.later(d.last, "node cut off "+d.node.name(), func() error {
		if d.node.agent != nil {
			d.node.agent.Cut(false)
		}
		return nil
	})
}

func (w *world) killController(d draw) {
	if w.controller != nil {
		w.must(w.controller.Kill())
		w.controller = nil
	}
	w.later(d.last, "controller killed", w.startController)
}

func (w *world) stopAPI(d draw) {
	if w.apiFault != "" {
		return
	}
	w.apiFault = d.operation
	w.must(w.server.Suspend())
	w.later(d.last, d.operation, func() error {
		w.apiFault = ""
		return w.server.Resume()
	})
}

// Of a slow API server, a request waits for up to slowFor.
const (
	slowFor  = 200 * time.Millisecond
	slowOpen = 50 * time.Millisecond
)

func (w *world) slowAPI(d draw) {
	if w.apiFault != "" {
		return
	}
	w.apiFault = d.operation
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	w.beside.Go(func() {
		var err error
		for ctx.Err() == nil && err == nil {
			err = w.server.Suspend()
			pause(ctx, slowFor)
			err = errors.Join(err, w.server.Resume())
			pause(ctx, slowOpen)
		}
		ended <- err
	})
	w.later(d.last, d.operation, func() error {
		w.apiFault = ""
		cancel()
		return <-ended
	})
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// registerAnew deletes a Node object whose machine goes on, and makes it again.
func (w *world) registerAnew(d draw) {
	if w.apiFault != "" {
		return
	}
	ctx, cancel := context.WithTimeout(w.ctx, changeLimit)
	defer cancel()
	old := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: d.node.name()}}
	w.must(client.IgnoreNotFound(w.api.Delete(ctx, old)))
	w.must(w.api.Create(ctx, newNode(d.node.number)))
}

// otherSource has nodes take addresses from where they did not until now.
func (w *world) otherSource(d draw) {
	if w.apiFault != "" {
		return
	}
	source := []v1alpha1.AddressSource{v1alpha1.AddressesFromBlocks, v1alpha1.AddressesFromNodeCIDR}[d.n%2]
	ctx, cancel := context.WithTimeout(w.ctx, changeLimit)
	defer cancel()
	network := &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterNetworkName}}
	w.must(w.api.Patch(ctx, network, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"addressSource":%q}}`, source))))
	w.note("addresses from %s", source)
}

// leftovers removes what a run that was killed has left.
func leftovers() error {
	out, err := exec.Command("sh", "-c", "ls /run/netns 2>/dev/null | grep ^rwcrash- | xargs -r -n1 ip netns del").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
