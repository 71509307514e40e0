package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/agent/lease"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// leaseAPI is where leases are kept (kube.NodeClient).
type leaseAPI interface {
	ClaimBlock(ctx context.Context, block netip.Prefix) (kube.Lease, error)
	AdoptBlock(ctx context.Context, block netip.Prefix) (kube.Lease, error)
	ReleaseBlock(ctx context.Context, block netip.Prefix) error
}

// leaser keeps the node in blocks: it does what package lease decides, beside
// the node loop, so that a slow API server holds up nothing else.
type leaser struct {
	api     leaseAPI
	book    *addresses.Book
	config  *Config
	metrics *metrics
	log     *slog.Logger
	kick    chan struct{}
	done    func()           // called after something changed
	held    func(kube.Lease) // called with leases that were made
	// releasing are blocks whose release was asked for, and not answered well. It
	// belongs to the goroutine of run.
	releasing map[netip.Prefix]bool

	mu      sync.Mutex
	sight   sight
	view    *leaseView // nil while there is none to decide on
	problem string
	// written are the ranges of the node's state file, which an agent that
	// starts while the API server is down gives from; nil while this process
	// has written none.
	written []netip.Prefix
}

func newLeaser(api leaseAPI, book *addresses.Book, cfg *Config, m *metrics, done func(), held func(kube.Lease)) *leaser {
	return &leaser{api: api, book: book, config: cfg, metrics: m, log: cfg.Log, kick: make(chan struct{}, 1), done: done, held: held,
		releasing: map[netip.Prefix]bool{}}
}

// more asks the leaser to look at what is needed now.
func (l *leaser) more() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// leaseView is what a decision about leases depends on, of the cluster and of the
// node. It is kept between decisions, and holds nothing else of thousands of nodes.
type leaseView struct {
	usable      bool // the cluster has a network, and the node a Node
	node, uid   string
	network     plan.Network
	leases      []kube.Lease
	nodeCIDRs   []netip.Prefix
	othersCIDRs []netip.Prefix
	ranges      []ipam.Range     // that the node gives from, or will; of pools too
	sources     []netip.Addr     // the node's own addresses in the pod network
	stated      []netip.Prefix   // by pools
	pools       [][]netip.Prefix // what each pool that the node gives of has for pods
}

// newLeaseView takes out of a view what leases depend on.
func newLeaseView(v kube.View, sources []netip.Addr, p *pools) *leaseView {
	seen := &leaseView{usable: v.Problem == "" && v.NodeUID != "", node: v.Snapshot.Self, uid: v.NodeUID, network: v.Snapshot.Network, leases: v.Leases,
		ranges: rangesOf(v.Snapshot, sources), sources: sources, stated: p.stated, pools: p.givable(sources)}
	for _, n := range v.Snapshot.Nodes {
		if n.Name == seen.node {
			seen.nodeCIDRs = n.NodeCIDRs
		} else {
			seen.othersCIDRs = append(seen.othersCIDRs, n.NodeCIDRs...)
		}
	}
	for i := range seen.ranges {
		seen.ranges[i].Reserved = append(seen.ranges[i].Reserved, p.stated...) // pools give these
	}
	return seen
}

// begin says that a view is taken from here on.
func (l *leaser) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sight.begin()
}

// see tells the leaser what the cluster and the node are like.
func (l *leaser) see(v kube.View, sources []netip.Addr, p *pools) {
	seen := newLeaseView(v, sources, p)
	l.mu.Lock()
	if l.sight.clear() {
		l.view = seen
	}
	l.mu.Unlock()
	l.more()
}

// wrote tells the leaser which ranges the state file has now.
func (l *leaser) wrote(ranges []netip.Prefix) {
	l.mu.Lock()
	same := l.written != nil && slices.Equal(l.written, ranges)
	l.written = append([]netip.Prefix{}, ranges...)
	l.mu.Unlock()
	if !same {
		l.more() // a block may have waited for it
	}
}

// forgotten says that no later agent of this node gives of the block, whatever
// becomes of this one.
func (l *leaser) forgotten(block netip.Prefix) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written != nil && !slices.ContainsFunc(l.written, block.Overlaps)
}

// problemNow says why no block can be leased, empty if nothing is wrong.
func (l *leaser) problemNow() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problem
}

// run works until ctx is done.
func (l *leaser) run(ctx context.Context) {
	pause := l.config.timing.retryMin
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.kick:
		case <-time.After(l.config.timing.resync):
		}
		l.settle(ctx)
		err := l.step(ctx)
		if err == nil || ctx.Err() != nil {
			pause = l.config.timing.retryMin
			continue
		}
		// Many nodes may have failed at the same moment: they come back apart.
		wait := pause/2 + rand.N(pause)
		l.log.Warn("leasing addresses; trying again", "err", err, "in", wait)
		pause = min(2*pause, l.config.timing.retryMax)
		l.rest(ctx, wait)
		l.more()
	}
}

// rest waits before what failed is tried again: less long if somebody asks, a pod
// that waits for an address or a look at a cluster that speaks again.
func (l *leaser) rest(ctx context.Context, wait time.Duration) {
	asked := l.config.timing.retryAsked
	enough, all := time.After(min(wait, asked/2+rand.N(asked))), time.After(wait)
	wanted, rested := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.kick:
			wanted = true
		case <-enough:
			rested = true
		case <-all:
			return
		}
		if wanted && rested {
			return
		}
	}
}

// settle lets many kicks (each ADD is one) become one look.
func (l *leaser) settle(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(l.config.timing.settle):
	}
	select {
	case <-l.kick:
	default:
	}
}

// step does one decision. If another node was faster to lease a block, the next
// decision, on a newer view, names another.
func (l *leaser) step(ctx context.Context) error {
	l.mu.Lock()
	view := l.view
	l.mu.Unlock()
	if view == nil || !view.usable {
		return nil
	}
	in := l.input(view)
	decision := lease.Decide(in)
	changed := l.setProblem(strings.Join(decision.Problems, "; "))
	var err error
	if l.keep(in, &decision) {
		changed = true // with what is there again, less may be needed
	} else {
		err = l.do(ctx, decision, &changed)
	}
	if changed {
		l.consume()
		l.done()
	}
	return err
}

// consume forgets what does not show what came of a decision: the view that was acted
// upon, and the one that the node loop may just be at. The next one, which done asks
// for, does. A block that was given back would be taken for one that is needed after all.
func (l *leaser) consume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.view = nil
	l.sight.act()
}

// keep gives again from blocks that were withdrawn and are needed after all, and
// says whether there are any. A block whose release was asked for is given back
// whatever is decided now: nobody knows whether that was done.
func (l *leaser) keep(in lease.Input, d *lease.Decision) (kept bool) {
	for _, own := range in.Leases {
		switch block := own.Prefix; {
		case !own.Mine || own.Stale || slices.Contains(d.Release, block) || !l.book.IsWithdrawn(block):
		case l.releasing[block]:
			d.Release = append(d.Release, block)
		default:
			l.book.Restore(block)
			l.log.Info("a block of addresses is needed after all", "block", block)
			kept = true
		}
	}
	return kept
}

func (l *leaser) do(ctx context.Context, d lease.Decision, changed *bool) error {
	for _, b := range d.Adopt {
		if err := l.call(ctx, "adopt", b, l.making(l.api.AdoptBlock)); err != nil {
			return err
		}
		*changed = true
	}
	for _, b := range d.Claim {
		if err := l.call(ctx, "claim", b, l.making(l.api.ClaimBlock)); err != nil {
			return err
		}
		l.log.Info("leased a block of addresses", "block", b)
		delete(l.releasing, b)
		*changed = true
	}
	for _, b := range d.Release {
		// No address of it is handed out from here on; if one was a moment
		// ago, the block stays. Others may have it once no state file speaks of
		// it: the node loop, which done wakes, writes the next one.
		gone, news := l.book.Withdraw(b)
		*changed = *changed || news
		if !gone || !l.forgotten(b) {
			continue
		}
		l.releasing[b] = true
		if err := l.call(ctx, "release", b, l.api.ReleaseBlock); err != nil {
			return err
		}
		delete(l.releasing, b)
		l.log.Info("gave back an empty block of addresses", "block", b)
		*changed = true
	}
	return nil
}

// making is a call that makes a lease, which is then this node's.
func (l *leaser) making(api func(context.Context, netip.Prefix) (kube.Lease, error)) func(context.Context, netip.Prefix) error {
	return func(ctx context.Context, block netip.Prefix) error {
		made, err := api(ctx, block)
		if err == nil {
			l.held(made)
		}
		return err
	}
}

func (l *leaser) call(ctx context.Context, what string, block netip.Prefix, api func(context.Context, netip.Prefix) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.config.timing.call)
	defer cancel()
	err := api(ctx, block)
	l.metrics.lease(what, err)
	if err != nil {
		return fmt.Errorf("%s block %s: %w", what, block, err)
	}
	return nil
}

// setProblem keeps the sentence, logs a new one, and returns whether it is new.
func (l *leaser) setProblem(problem string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if problem == l.problem {
		return false
	}
	l.problem = problem
	if problem != "" {
		l.log.Warn("addresses cannot be leased as needed", "problem", problem)
	}
	return true
}

// input gathers what the decision depends on.
func (l *leaser) input(v *leaseView) lease.Input {
	in := lease.Input{Network: v.network, Node: v.node, Sources: v.sources, Pooled: v.stated, Pools: v.pools, HeldIn: l.book.HeldIn,
		NodeCIDRs: v.nodeCIDRs, OthersCIDRs: v.othersCIDRs, Now: time.Now()}
	var own, singles []netip.Prefix
	for _, le := range v.leases {
		mine := le.Node == v.node && !le.IsSingle()
		if le.Node == v.node && !mine {
			singles = append(singles, le.Prefix)
		}
		in.Leases = append(in.Leases, lease.Lease{Prefix: le.Prefix, Mine: mine, Stale: mine && le.NodeUID != v.uid})
		if mine {
			own = append(own, le.Prefix)
		}
	}
	in.Usage = l.book.Usage(own, v.ranges)
	covered := slices.Concat(own, singles)
	if in.Network.NodeCIDR {
		covered = append(covered, in.NodeCIDRs...)
	}
	in.Uncovered = l.book.Outside(covered)
	return in
}
