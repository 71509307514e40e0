package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/agent/laststate"
	"ropeway.dev/ropeway/internal/agent/lease"
	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// cluster is what the node loop asks of the API server (kube.NodeClient).
type cluster interface {
	// Changed gives a value after changes.
	Changed() <-chan struct{}
	// Leased gives a value after changes that there are as many of as pods that start
	// or end on other nodes: they wait for each other for longer.
	Leased() <-chan struct{}
	// View is what was last heard; kube.ErrNotSynced until something was.
	View() (kube.View, error)
	// NodeEvent records an event on the node; it never blocks.
	NodeEvent(warning bool, reason, message string)
}

// node is the node loop: it looks at the cluster and the kernel, computes what
// the kernel should hold, sets it, and tells everybody. It is driven by levels,
// not by events: each pass looks at everything, and what failed is tried again.
type node struct {
	config    *Config
	cluster   cluster
	dataplane dataplane.Dataplane
	book      *addresses.Book
	board     *board
	leaser    *leaser
	sharer    *sharer
	words     *podWords
	prober    *probe.Prober
	publisher *publisher
	installer *installer
	metrics   *metrics
	log       *slog.Logger
	again     <-chan struct{} // somebody else wants a pass, by more
	more      func()

	// The rest belongs to the goroutine of run.
	pools       pools
	last        laststate.State // what was set last, and goes into the state file
	saved       laststate.State // what the state file has
	programmed  bool            // the node's own part was set once
	usable      bool            // and so it was at the last Set
	report      dataplane.Report
	setErr      error
	kernelDirty bool // the kernel may differ from what was set
	hold        string
	admitted    bool                   // the API server has been read
	owned       []plan.Range           // by the last snapshot
	kept        map[keptPod]netip.Addr // of pods that the node may run
	ceded       []netip.Addr           // that others have of the node's ranges
	seeded      bool
	setBy       int64                      // generation of the ClusterNetwork that the kernel is set by
	moves       plan.Moves                 // transports that were left because they failed
	needed      map[netip.Prefix]time.Time // podCIDR -> when an address of it was last in use, while blocks are given

	noted time.Time // when it was noted last that pods are served

	pace pace

	beat   atomic.Int64 // when the last pass began, in ns since 1970
	exempt atomic.Pointer[exemption]
	shown  sync.Mutex // guards what others may read
	shows  shown
}

// shown is what the HTTP server shows.
type shown struct {
	Ready  bool
	Why    string
	State  plan.State
	Report dataplane.Report
}

// run loops until ctx is done. changes delivers changes in the kernel that
// others made; it may be nil.
func (n *node) run(ctx context.Context, changes <-chan struct{}) {
	n.resume(ctx)
	resync := time.Now().Add(n.config.timing.resync)
	pause := n.config.timing.retryMin
	for {
		now := time.Now()
		n.beat.Store(now.UnixNano())
		if !now.Before(resync) {
			resync = now.Add(n.config.timing.resync)
			n.kernelDirty = true
			n.sweep()
		}
		wait := resync.Sub(now)
		err := n.pass(ctx)
		n.pace.passed(now, time.Now())
		if err != nil && ctx.Err() == nil {
			wait = min(wait, pause/2+rand.N(pause))
			pause = min(2*pause, n.config.timing.retryMax)
			n.log.Warn("the node is not as it should be; trying again", "err", err, "in", wait)
		} else {
			pause = n.config.timing.retryMin
		}
		if next := n.moves.Next(); !next.IsZero() {
			wait = min(wait, max(time.Until(next), 0))
		}
		if !n.sleep(ctx, wait, changes) {
			return
		}
	}
}

// resume goes on where the node's last agent stopped. With a state file, pods
// are served at once: the kernel still is as that agent left it. Without one,
// the kernel says which addresses are the node's own.
func (n *node) resume(ctx context.Context) {
	n.kernelDirty = true
	if n.last.NodeUID != "" {
		n.programmed = true
		n.pools.resume(n.last.Pools, n.last.Network.PodCIDRs)
		n.serveLast()
		return
	}
	observed, err := n.dataplane.Observe(ctx)
	if err != nil {
		n.log.Warn("cannot read what the kernel has; going on from the API server alone", "err", err)
		return
	}
	n.last.Sources = observed.Sources
}

// sleep waits for a reason to look again, and then a moment more, so that many
// changes cause one pass. It returns false when ctx is done.
func (n *node) sleep(ctx context.Context, wait time.Duration, changes <-chan struct{}) bool {
	timer, end := time.NewTimer(wait), time.Now().Add(wait)
	defer timer.Stop()
	leased := n.cluster.Leased()
	for reason := false; !reason; {
		reason = true
		select {
		case <-ctx.Done():
			return false
		case <-leased:
			timer.Reset(min(n.pace.waitForMany(time.Now()), time.Until(end)))
			leased, reason = nil, false
		case <-n.cluster.Changed():
		case <-changes:
			n.kernelDirty = true
		case <-n.prober.Changed():
		case <-n.again:
		case <-timer.C:
		}
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(n.pace.wait(time.Now(), n.config.timing.settle)):
		return true
	}
}

func (n *node) sweep() {
	if err := n.book.Sweep(); err != nil {
		n.log.Warn("looking for sandboxes that are gone", "err", err)
	}
}

// pass looks at everything once. What can be done is done, also when something
// else fails.
func (n *node) pass(ctx context.Context) error {
	n.sharer.begin()
	n.leaser.begin()
	view, err := n.cluster.View()
	if err != nil {
		return n.withoutCluster(ctx, "the API server has not answered yet", err.Error())
	}
	if why := unusable(view); why != "" {
		n.leaser.see(view, sendingFrom(n.last.Sources), &n.pools)
		return n.withoutCluster(ctx, why, "")
	}
	view, ok := n.sharer.admit(view, n.last.NodeCIDRs)
	if !ok {
		return n.withoutCluster(ctx, "the leases of addresses have not been read from the API server yet", "")
	}
	n.hold, n.admitted = "", true
	n.pools.update(view)
	snapshot := n.overlay(view)
	now := time.Now()
	snapshot.HeldBack = n.moves.Hold(now, snapshot)
	want := plan.Compute(snapshot)
	n.moves.Note(now, snapshot, want)
	n.metrics.heldBack.Set(float64(len(snapshot.HeldBack)))
	n.exempt.Store(&exemption{snapshot.Network.Metadata, want.Metadata.Links})
	n.set(ctx, want, view.NodeUID)
	if n.setErr == nil {
		n.setBy = view.NetworkGeneration
	}
	n.ceded = cededAddresses(snapshot.Self, view.Leases)
	if view.PoolsKnown {
		n.last.Pools = n.pools.usable
		n.serve(snapshot, want, n.pools.singles(snapshot.Self, view.Leases))
		n.leaser.see(view, sendingFrom(n.last.Sources), &n.pools)
	} else {
		n.servePoolsUnread(snapshot, want)
	}
	n.prober.Set(probeView(snapshot, want, n.report.MTUs))
	if !n.seeded {
		n.prober.Seed(publishedBy(view.Snapshot, view.Snapshot.Self))
		n.seeded = true
	}
	conflistErr := n.installer.step(n.programmed && n.mayJoin(view))
	n.publisher.publish(n.status(snapshot, want))
	saveErr := errors.Join(n.save(), n.words.keep())
	if saveErr == nil && n.usable && view.PoolsKnown { // otherwise nothing was written: another agent would still give what was given away
		n.sharer.see(n.shareInput(view, self(snapshot)))
	}
	return errors.Join(n.setErr, conflistErr, saveErr)
}

// unusable says why a view cannot be planned from.
func unusable(v kube.View) string {
	switch {
	case v.Problem != "":
		return v.Problem
	case v.NodeUID == "":
		return fmt.Sprintf("there is no Node object named %s: is the agent's node name the kubelet's?", v.Snapshot.Self)
	default:
		return ""
	}
}

// withoutCluster keeps what the node did last, from the state file if this
// process has done nothing yet: what works goes on working.
func (n *node) withoutCluster(ctx context.Context, why, detail string) error {
	if why != n.hold {
		n.log.Warn("keeping what the node did last", "why", why)
		n.hold = why
	}
	if detail != "" {
		why += " (" + detail + ")"
	}
	if n.last.NodeUID == "" {
		n.board.set(service{notReady: why})
		n.show(why)
		return nil
	}
	n.set(ctx, n.last.Plan, n.last.NodeUID)
	n.serveLast()
	return errors.Join(n.setErr, n.installer.step(n.programmed && n.last.ProvenUID == n.last.NodeUID))
}

// overlay puts into the view what this node knows better: its own addresses in
// the pod network, what it can carry, its routes, and its own probes.
func (n *node) overlay(v kube.View) plan.Snapshot {
	s := v.Snapshot
	s.Nodes = slices.Clone(s.Nodes)
	i := slices.IndexFunc(s.Nodes, func(x plan.Node) bool { return x.Name == s.Self })
	if i >= 0 {
		own := &s.Nodes[i]
		if len(n.last.Sources) > 0 {
			own.Sources = n.last.Sources
		}
		own.Holds = n.holds(s, *own)
		var destinations []netip.Prefix
		n.owned, destinations = plan.Owned(s.Network, *own, s.Nodes)
		own.Sources = n.chooseSources(*own, n.owned, destinations)
		own.Sources = append(own.Sources, n.probedAddresses(s.Network, *own)...)
		own.VTEP = plan.VTEPMAC(own.UID)
		own.Refuses = n.last.Refuses
		own.Ready = own.Ready || n.programmed
	}
	s.Now = n.last.Plan.Routes
	s.Pods = localPods(n.book)
	latest := n.prober.Results()
	n.learnOffload(latest)
	s.BadOffload = n.last.BadOffload != ""
	if n.seeded {
		s.Own = latest
	}
	return s
}

// learnOffload remembers that the interface gets checksums wrong. Once the node
// computes them itself nothing is to be seen of it, so it stays until the next
// boot.
func (n *node) learnOffload(results []plan.Probe) {
	for _, p := range results {
		if p.Fault == plan.ChecksumOffload && n.last.BadOffload == "" {
			n.last.BadOffload = p.Reason
		}
	}
}

// setTimeout bounds one Set; the largest clusters need seconds.
const setTimeout = 2 * time.Minute

// set makes the kernel equal to the plan, if anything changed on either side.
func (n *node) set(ctx context.Context, want plan.State, uid string) {
	same := n.setErr == nil && !n.kernelDirty && reflect.DeepEqual(want, n.last.Plan)
	if same {
		return
	}
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, setTimeout)
	defer cancel()
	report, err := n.dataplane.Set(bounded, want)
	n.metrics.set(time.Since(start), err)
	n.report, n.setErr = report, nil
	n.kernelDirty = false
	if err != nil {
		n.setErr = fmt.Errorf("setting the kernel: %w", err)
	}
	n.usable = err == nil || report.Local
	n.programmed = n.programmed || n.usable
	if report.Changed {
		n.log.Info("the kernel was changed", "peers", len(want.Peers), "routes", len(want.Routes), "cidrs", want.CIDRs, "took", time.Since(start))
	}
	n.last.Plan, n.last.NodeUID, n.last.Node = want, uid, want.Self
	n.last.Sources = want.Sources
	n.last.Refuses = report.Refuses
	if report.PodMTU > 0 {
		n.last.PodMTU = report.PodMTU
	}
}

// serve makes the CNI server work by what is in the kernel now. New ranges are
// used only once the kernel has them: a pod is never wired to an address that
// the node cannot receive.
func (n *node) serve(s plan.Snapshot, want plan.State, singles []kube.Lease) {
	own := self(s)
	n.last.Network = s.Network
	n.last.NodeCIDRs = own.NodeCIDRs
	ranges := append(n.pools.divide(rangesFor(n.owned, want.Sources)), singleRanges(singles)...)
	if !n.usable {
		known := prefixesOf(n.last.Ranges)
		ranges = slices.DeleteFunc(ranges, func(r ipam.Range) bool { return !cidr.CoveredByAny(known, r.Prefix) })
	}
	n.last.Ranges = ranges
	n.book.SetRanges(ranges)
	n.kept = keptAddresses(singles)
	n.offer(n.service(problemsOf(want.Problems, s.Self)))
}

// serveLast is serve for what the node did last. Single addresses are left out
// while the API server has not been read: the agent before this one may have
// given them back.
func (n *node) serveLast() {
	n.book.SetRanges(slices.DeleteFunc(slices.Clone(n.last.Ranges), func(r ipam.Range) bool { return r.Single && !n.admitted }))
	n.offer(n.service(nil))
}

// servePoolsUnread is serve while the pools have not been read from the API server.
// Without those of the agent before, nobody is given an address of ours meanwhile. With
// them, what they state of the node's ranges is still theirs.
func (n *node) servePoolsUnread(s plan.Snapshot, want plan.State) {
	if n.pools.index == nil {
		n.serve(s, want, nil)
		return
	}
	n.last.Network, n.last.NodeCIDRs = s.Network, self(s).NodeCIDRs
	n.serveLast()
}

// offer serves pods by s, and notes now and then that it does: STATUS goes by that
// note while there is no agent.
func (n *node) offer(s service) {
	n.board.set(s)
	if s.notReady != "" || time.Since(n.noted) < noteEvery {
		return
	}
	if err := cniwire.MarkReady(n.config.RunDir); err != nil {
		n.log.Warn("a restart of this agent will make the node NotReady", "err", err)
		return
	}
	n.noted = time.Now()
}

// noteEvery is well within cniwire.ReadyFor.
const noteEvery = time.Minute

// service is what the CNI server serves by, from n.last.
func (n *node) service(problems []plan.Problem) service {
	s := service{
		podCIDRs: n.last.Network.PodCIDRs, cidrs: n.last.Plan.CIDRs, sources: n.last.Sources,
		nodeCIDRs: n.last.NodeCIDRs, nodeCIDRMode: n.last.Network.NodeCIDR, podMTU: n.last.PodMTU,
		families: lease.Families(n.last.Network.PodCIDRs), leaseProblem: n.leaser.problemNow(),
		pools: n.pools.index, kept: n.kept, ceded: n.ceded, bound: boundPools(n.last.Ranges),
	}
	usable := lease.Families(prefixesOf(n.last.Ranges))
	if s.nodeCIDRMode && len(usable) > 0 {
		// The cluster chose which families this node has.
		s.families = usable
	}
	if s.nodeCIDRMode {
		s.nodeCIDRProblem = joinMessages(problems)
	}
	s.notReady = n.notReady(s, usable)
	n.show(s.notReady)
	return s
}

// notReady says what pods wait for, or "".
func (n *node) notReady(s service, usable []plan.Family) string {
	missing := slices.DeleteFunc(slices.Clone(s.families), func(f plan.Family) bool { return slices.Contains(usable, f) })
	switch {
	case !n.programmed:
		return fmt.Sprintf("the node's kernel is not set up yet: %v", n.setErr)
	case s.podMTU == 0:
		return "the MTU of pods is not known yet: the node's uplink was not found"
	case len(s.families) == 0:
		return "the pod network has no usable CIDR: look at the ClusterNetwork"
	case len(missing) == 0:
		return ""
	case s.nodeCIDRMode && s.nodeCIDRProblem != "":
		return s.nodeCIDRProblem
	case s.nodeCIDRMode:
		return fmt.Sprintf("node %s has no usable podCIDR yet (it has %v): start kube-controller-manager with --allocate-node-cidrs=true, or set the ClusterNetwork's addressSource to Blocks", n.last.Node, s.nodeCIDRs)
	case s.leaseProblem != "":
		return s.leaseProblem
	default:
		return fmt.Sprintf("this node waits for its first block of %s addresses", missing[0])
	}
}

// mayJoin is true once the conflist may appear on a node that has none: the
// cluster knows what this node does, the controller has spoken of it (or is not
// there to), and it was proven reachable.
func (n *node) mayJoin(v kube.View) bool {
	spoken := v.Condition != nil || !v.ControllerAlive
	return self(v.Snapshot).Ready && spoken && n.proven(v)
}

// proven is true once the node was found reachable, for its present UID.
func (n *node) proven(v kube.View) bool {
	if n.last.ProvenUID == v.NodeUID {
		return true
	}
	proven := v.Condition != nil && !v.Condition.Status
	if !proven {
		proven, _ = plan.Reachable(v.Snapshot, v.Snapshot.Self)
	}
	if proven {
		n.last.ProvenUID = v.NodeUID
	}
	return proven
}

// save writes the state file, if something in it changed. Blocks that are being
// given back are left out: others may have them soon.
func (n *node) save() error {
	if !n.usable || n.pools.index == nil { // of pools that were never read, the next agent would think that there are none
		return nil
	}
	state := n.last
	state.Ranges = n.book.Lasting(n.last.Ranges)
	if !reflect.DeepEqual(state, n.saved) {
		if err := laststate.Save(n.config.inRunDir(stateName), state); err != nil {
			return err
		}
		n.saved = state
	}
	n.leaser.wrote(prefixesOf(state.Ranges))
	return nil
}

// show keeps what the HTTP server shows.
func (n *node) show(notReady string) {
	n.shown.Lock()
	defer n.shown.Unlock()
	n.shows = shown{Ready: n.programmed, Why: notReady, State: n.last.Plan, Report: n.report}
}

func (n *node) look() shown {
	n.shown.Lock()
	defer n.shown.Unlock()
	return n.shows
}
