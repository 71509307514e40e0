package crash

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/bench/scale"
)

// checkTries is how often the kernels are read before what is wrong is believed:
// they are read one after another, while pods come and go.
const checkTries = 20

// check reads from the kernels that no address is held twice, and that every pod
// that runs has its own; with each pod's own namespace if whole is set.
func (w *world) check(whole bool) error {
	for _, n := range w.nodes {
		if n.agent == nil || n.full {
			continue
		}
		if err := n.agent.Alive(); err != nil && !w.disk.Load() {
			return fmt.Errorf("the agent of %s ended by itself: %w", n.name(), err)
		}
	}
	var last string
	for range checkTries {
		wrong, err := w.look(whole)
		if err != nil {
			return err
		}
		if last = wrong; wrong == "" {
			return nil
		}
		pause(w.ctx, 100*time.Millisecond)
	}
	return errors.New(last)
}

// look returns what is wrong, as the kernels have it now.
func (w *world) look(whole bool) (string, error) {
	idle := w.idle()
	defer func() {
		for _, s := range idle {
			s.lock <- struct{}{}
		}
	}()
	has := map[netip.Addr]string{}      // address -> where it is delivered
	delivers := map[string]netip.Addr{} // container -> what is delivered to it
	for _, n := range w.nodes {
		links, err := n.links()
		if err != nil {
			return "", err
		}
		for a, container := range links {
			here := container + " on " + n.name()
			if has[a] != "" {
				return fmt.Sprintf("%s is delivered to container %s and to container %s (invariant 1)", a, has[a], here), nil
			}
			has[a], delivers[container] = here, a
		}
	}
	for _, s := range idle {
		for _, b := range append(slices.Clone(s.zombies), s.sandbox) {
			if b == nil || b.ending {
				continue
			}
			if got := delivers[b.id]; got != b.address {
				return fmt.Sprintf("%s has %s, and its node delivers %q to it: its address is lost", b, b.address, got), nil
			}
			if whole {
				if got, err := podAddresses(b.netns()); err != nil || len(got) != 1 || got[0] != b.address {
					return fmt.Sprintf("%s was given %s, and has %v: %v", b, b.address, got, err), nil
				}
			}
		}
	}
	return "", nil
}

// idle takes the locks of the slots that nobody works on.
func (w *world) idle() (idle []*slot) {
	for _, s := range w.slots {
		select {
		case <-s.lock:
			idle = append(idle, s)
		default:
		}
	}
	return idle
}

// Bounds of what a checkpoint waits for. A pod waits for its kubelet's next try,
// an address that nobody gave back for two looks of its node (30 s each).
const (
	runLimit   = 150 * time.Second
	sweepLimit = 150 * time.Second
)

// checkpoint ends all faults, lets every pod run (the pools have no address more
// than that, so that one which was lost is missed), and compares kernels and API
// server. told says that the nodes are told which sandboxes there are.
func (w *world) checkpoint(told bool) error {
	for len(w.undo) > 0 {
		w.undoNext()
	}
	err := w.quiet(func() error {
		if err := w.startController(); err != nil {
			return err
		}
		for _, n := range w.nodes {
			if err := n.start(w.ctx); err != nil {
				return err
			}
			if err := within(runLimit, func() string {
				if ready, err := n.metric(w.ctx, "ropeway_agent_ready"); err != nil || ready != 1 {
					return fmt.Sprintf("the agent of %s is ready: %v, %v, %v", n.name(), ready, err, n.agent.Alive())
				}
				return ""
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	w.disk.Store(false)
	if told {
		if err := w.tell(); err != nil {
			return err
		}
	}
	if err := w.runAll(); err != nil {
		return err
	}
	return w.quiet(func() error {
		if err := w.check(true); err != nil {
			return err
		}
		w.count("checkpoints")
		return within(sweepLimit, w.compare)
	})
}

// tell has the nodes collect what their runtimes know nothing of.
func (w *world) tell() error {
	return w.quiet(func() error {
		for _, n := range w.nodes {
			if err := w.gc(n); err != nil {
				return err
			}
		}
		return nil
	})
}

// runAll lets every pod run, as kubelets do that try again and again.
func (w *world) runAll() error {
	for _, s := range w.slots {
		w.bury(s, "checkpoint")
	}
	if err := w.quiet(func() error { return nil }); err != nil {
		return err
	}
	var mu sync.Mutex
	missing := map[string]error{}
	var all sync.WaitGroup
	end := time.Now().Add(runLimit)
	for i, s := range w.slots {
		all.Add(1)
		w.on(s, "checkpoint", func() error {
			defer all.Done()
			if s.sandbox != nil {
				return nil
			}
			err := w.insist(s, w.nodes[i%nodes], end)
			if err != nil {
				mu.Lock()
				missing[s.name()] = err
				mu.Unlock()
			}
			return err
		})
	}
	all.Wait()
	if len(missing) > 0 {
		var lines []string
		for name, err := range missing {
			lines = append(lines, name+": "+err.Error())
		}
		slices.Sort(lines)
		return fmt.Errorf("%d pods do not run after %s, though there is an address for each: %s", len(missing), runLimit, strings.Join(lines, "; "))
	}
	return nil
}

// insist tries the pod's ADD again and again.
func (w *world) insist(s *slot, n *node, end time.Time) error {
	for {
		err := w.try(s, n, 0)
		if err == nil || time.Now().After(end) || w.over() {
			return err
		}
		leases, failed := w.leases(w.ctx)
		w.note("%s: %v; leased: %v, %v", s.name(), err, leases, failed)
		pause(w.ctx, 300*time.Millisecond)
	}
}

// compare returns what is wrong when nothing happens any more.
func (w *world) compare() string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	ctx, cancel := context.WithTimeout(w.ctx, 10*callLimit)
	defer cancel()
	leases, err := w.leases(ctx)
	if err != nil {
		return err.Error()
	}
	for i, a := range leases {
		for _, b := range leases[i+1:] {
			if a.prefix.Overlaps(b.prefix) && a.node != b.node && a.from != b.node && b.from != a.node {
				say("%s of %s and %s of %s overlap", a.prefix, a.node, b.prefix, b.node)
			}
		}
	}
	pods := map[*node]int{}
	singles := map[netip.Prefix]bool{}
	for _, s := range w.slots {
		b := s.sandbox
		if b == nil {
			return s.name() + " does not run"
		}
		pods[b.node]++
		single := netip.PrefixFrom(b.address, 32)
		singles[single] = true
		if !slices.ContainsFunc(leases, func(l lease) bool { return l.node == b.node.name() && l.prefix.Contains(b.address) }) &&
			(s.pool != "" || !scale.PodCIDR(b.node.number).Contains(b.address)) {
			say("%s has %s, and its node has no lease of it", b, b.address)
		}
		for _, n := range w.nodes {
			hop, err := n.nextHop(b.address)
			if n != b.node && (err != nil || w.owner(hop) != b.node) {
				say("%s has %s, and %s sends what is for it to %s, %v", b, b.address, n.name(), hop, err)
			}
		}
	}
	for _, l := range leases {
		if l.prefix.IsSingleIP() && !singles[l.prefix] {
			say("%s is leased to %s, and no pod has it", l.prefix, l.node)
		}
	}
	for _, n := range w.nodes {
		if held, err := n.metric(ctx, "ropeway_ipam_addresses_held"); err != nil || int(held) != pods[n] {
			say("%s holds %v addresses for %d pods: %v", n.name(), held, pods[n], err)
		}
	}
	return strings.Join(wrong, "; ")
}

// lease is an AddressBlock of a node's.
type lease struct {
	prefix     netip.Prefix
	node, from string
}

func (l lease) String() string { return l.prefix.String() + " of " + l.node }

func (w *world) leases(ctx context.Context) (out []lease, err error) {
	var list v1alpha1.AddressBlockList
	if err := w.api.List(ctx, &list); err != nil {
		return nil, err
	}
	for i := range list.Items {
		spec := &list.Items[i].Spec
		if spec.Sharing != "" {
			continue
		}
		p, err := netip.ParsePrefix(spec.CIDR)
		if err != nil {
			return nil, err
		}
		out = append(out, lease{p, spec.Node, spec.From})
	}
	return out, nil
}
