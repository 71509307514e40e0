package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// blockShareAPI is where blocks are shared (kube.NodeClient).
type blockShareAPI interface {
	// LiveLeases returns all leases as the API server itself has them now.
	LiveLeases(ctx context.Context) ([]kube.Lease, error)
	ShareBlocks(ctx context.Context, blocks []netip.Prefix) error
	ConfirmShared(ctx context.Context, declared []kube.Lease) error
	Unshare(ctx context.Context, l kube.Lease) error
}

// addressAPI is where single addresses are leased (kube.NodeClient).
type addressAPI interface {
	ClaimAddresses(ctx context.Context, claims []share.Claim) []kube.Claimed
	TakeAddress(ctx context.Context, l kube.Lease) (kube.Lease, error)
	ReleaseAddress(ctx context.Context, l kube.Lease) error
	AnswerAddress(ctx context.Context, a share.Answer) error
}

type shareAPI interface {
	blockShareAPI
	addressAPI
}

// sharer keeps the node in single addresses: it does what package share decides,
// beside the node loop. It is also where the node loop learns which of the leases
// that it is shown it may rely on.
type sharer struct {
	api     shareAPI
	book    *addresses.Book
	config  *Config
	metrics *metrics
	log     *slog.Logger
	kick    chan struct{}
	done    func() // called after something changed

	mu     sync.Mutex
	memory share.Memory
	vetted []netip.Prefix  // podCIDRs of the node that leases were read after
	unread []netip.Prefix  // those that they are to be read after
	read   bool            // leases are to be read
	asked  map[string]bool // blocks that were asked for: object and version
	input  *share.Input    // nil while there is nothing to decide on
	sight  sight
	needs  []waiting // in the order that pods began to wait
	waits  map[string]string
}

func newSharer(api shareAPI, book *addresses.Book, cfg *Config, m *metrics, done func()) *sharer {
	return &sharer{api: api, book: book, config: cfg, metrics: m, log: cfg.Log, kick: make(chan struct{}, 1), done: done}
}

// more asks for a look at what is needed now.
func (s *sharer) more() { notify(s.kick) }

// begin says that a view is taken from here on.
func (s *sharer) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sight.begin()
}

// admit returns the view with the leases that the node may rely on; false while
// that is not known. A podCIDR of the node is not shown before the leases were
// read after it, since a part of it may be shared; known are those that the node
// has used.
func (s *sharer) admit(v kube.View, known []netip.Prefix) (kube.View, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node, now := v.Snapshot.Self, time.Now()
	own := self(v.Snapshot).NodeCIDRs
	s.unread = own
	if !s.memory.Started() {
		s.read = true
		s.more()
		return v, false
	}
	v.Leases = s.memory.Show(node, v.Leases, now)
	s.memory.Track(node, v.Leases, s.book.IsHeld, now)
	for _, l := range v.Leases {
		// A block that somebody else made this node's, or one that it had once.
		if id := l.ObjectUID + "/" + l.Version; l.Node == node && l.Unsure && !l.IsSingle() && !s.asked[id] {
			s.read = true
			if s.asked == nil {
				s.asked = map[string]bool{}
			}
			s.asked[id] = true
			s.more()
		}
	}
	v.Snapshot.Nodes = slices.Clone(v.Snapshot.Nodes)
	kube.SetLeases(&v.Snapshot, v.Leases)
	if v.Snapshot.Network.NodeCIDR {
		vetted := slices.Concat(s.vetted, known)
		unvetted := func(p netip.Prefix) bool { return !slices.Contains(vetted, p) }
		if slices.ContainsFunc(own, unvetted) {
			s.read = true
			s.more()
			i := slices.IndexFunc(v.Snapshot.Nodes, func(n plan.Node) bool { return n.Name == node })
			v.Snapshot.Nodes[i].NodeCIDRs = slices.DeleteFunc(slices.Clone(own), unvetted)
		}
	}
	return v, true
}

// see tells the sharer what the cluster and the node are like. What the node
// gives follows from it already, and is written down.
func (s *sharer) see(in share.Input) {
	s.mu.Lock()
	if s.sight.clear() {
		s.input = &in
	}
	s.mu.Unlock()
	s.more()
}

// waiting is what an attachment needs and has not got yet.
type waiting struct {
	key ipam.Key
	share.Need
}

// need says that an attachment waits for an address, forget that it does not any
// more.
func (s *sharer) need(key ipam.Key, n share.Need) {
	s.mu.Lock()
	i := slices.IndexFunc(s.needs, func(o waiting) bool { return o.ID == n.ID })
	if i >= 0 {
		s.needs[i].Need = n
	} else {
		s.needs = append(s.needs, waiting{key, n})
	}
	s.mu.Unlock()
	if i < 0 {
		s.more()
	}
}

func (s *sharer) forget(key ipam.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.needs)
	s.needs = slices.DeleteFunc(s.needs, func(w waiting) bool { return w.key == key })
	if len(s.needs) != before {
		s.more() // what was leased for it is given back in time
	}
}

// why says why a need waits, "" if nothing is known.
func (s *sharer) why(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waits[id]
}

// run works until ctx is done.
func (s *sharer) run(ctx context.Context) {
	pause := s.config.timing.retryMin
	wait := s.config.timing.resync
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.kick:
		case <-timer.C:
		}
		timer.Stop()
		// Pods that start or end together are decided on together: what is done for
		// the first of them keeps the others waiting until it is seen.
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.config.timing.gather):
		}
		next, err := s.step(ctx)
		if wait = min(next, s.config.timing.resync); err == nil || ctx.Err() != nil {
			pause = s.config.timing.retryMin
			continue
		}
		wait = min(wait, pause/2+rand.N(pause))
		s.log.Warn("leasing single addresses; trying again", "err", err, "in", wait)
		pause = min(2*pause, s.config.timing.retryMax)
	}
}

// step does one decision, and returns when to look again.
func (s *sharer) step(ctx context.Context) (time.Duration, error) {
	if err := s.readLeases(ctx); err != nil {
		return s.config.timing.retryMin, err
	}
	in, d := s.decide()
	if in == nil {
		return s.config.timing.resync, nil
	}
	acted, err := s.do(ctx, d)
	if acted {
		s.consume()
		s.done()
	}
	if d.Again.IsZero() {
		return s.config.timing.resync, err
	}
	return max(time.Until(d.Again), time.Millisecond), err
}

// readLeases asks the API server itself what is leased, if that has to be known.
func (s *sharer) readLeases(ctx context.Context) error {
	s.mu.Lock()
	read, after := s.read, s.unread
	s.read = false // whoever asks from here on is not answered by this call
	s.mu.Unlock()
	if !read {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.timing.call)
	defer cancel()
	live, err := s.api.LiveLeases(ctx)
	s.mu.Lock()
	if err == nil {
		s.memory.Start(s.config.NodeName, live, time.Now())
		s.vetted = after
	}
	s.read = s.read || err != nil
	s.mu.Unlock()
	if err == nil {
		s.done()
	}
	return err
}

func (s *sharer) decide() (*share.Input, share.Decision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.input == nil {
		return nil, share.Decision{}
	}
	in := *s.input
	in.Now = time.Now()
	s.memory.Track(in.Node, in.Leases, s.book.IsHeld, in.Now)
	for _, w := range s.needs {
		// One that was served since then is not to be leased for twice.
		if _, served := s.book.AddressesOf(w.key); !served {
			in.Needs = append(in.Needs, w.Need)
		}
	}
	in.Idle, in.Avoid, in.Lost, in.Declared = s.memory.Idle(), s.memory.Avoid, s.memory.Lost, s.memory.Declared()
	in.Unshared = s.memory.Unshared()
	d := share.Decide(in)
	s.memory.Await(d.Awaited, in.Now)
	s.waits = d.Wait
	return s.input, d
}

// consume forgets what does not show what came of a decision: the input that was
// acted upon, and the view that the node loop may just be at.
func (s *sharer) consume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.input = nil
	s.sight.act()
}

// do does what was decided: first what others wait for. It reports whether
// something was done, also if something else failed.
func (s *sharer) do(ctx context.Context, d share.Decision) (acted bool, err error) {
	var errs []error
	call := func(what string, do func(context.Context) error) {
		ctx, cancel := context.WithTimeout(ctx, s.config.timing.call)
		defer cancel()
		err := do(ctx)
		s.metrics.lease(what, err)
		acted = acted || err == nil
		errs = append(errs, err)
	}
	for _, a := range d.Answer {
		if !s.book.Gives(a.Lease.Address()) {
			call("answer", func(ctx context.Context) error { return s.api.AnswerAddress(ctx, a) })
		}
	}
	released, err := s.release(ctx, d)
	acted, errs = acted || released, append(errs, err)
	for _, l := range d.Unshare {
		call("unshare", func(ctx context.Context) error { return s.api.Unshare(ctx, l) })
	}
	if len(d.Confirm) > 0 {
		call("share", func(ctx context.Context) error {
			return s.noteUnshared(s.api.ConfirmShared(ctx, d.Confirm), blocksOf(d.Confirm))
		})
	}
	if len(d.Share) > 0 {
		call("share", func(ctx context.Context) error { return s.noteUnshared(s.api.ShareBlocks(ctx, d.Share), d.Share) })
	}
	claimed, err := s.claim(ctx, d)
	return acted || claimed, errors.Join(errors.Join(errs...), err)
}

// noteUnshared notes of which blocks some could not be shared: pods get addresses of
// others meanwhile. Those that were are seen to be.
func (s *sharer) noteUnshared(err error, blocks []netip.Prefix) error {
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.memory.LeaveUnshared(blocks, time.Now())
	}
	return err
}

func blocksOf(leases []kube.Lease) []netip.Prefix {
	out := make([]netip.Prefix, len(leases))
	for i, l := range leases {
		out[i] = l.Prefix
	}
	return out
}

// hold notes a lease that this process made.
func (s *sharer) hold(l kube.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.memory.Hold(l)
}

// shareInput says what a decision about single addresses depends on.
func (n *node) shareInput(v kube.View, own plan.Node) share.Input {
	in := share.Input{Node: n.config.NodeName, PodCIDRs: v.Snapshot.Network.PodCIDRs, Leases: v.Leases, Reserved: v.Reserved,
		Bits: map[ipam.Family]int{}, Pools: n.pools.ranges(), Holder: n.holder(own.Sources)}
	for f, bits := range v.Snapshot.Network.BlockBits {
		in.Bits[ipam.Family(f)] = bits
	}
	if len(n.pools.underlay) > 0 {
		in.Found, in.Reserved = n.found(v.Leases), cidr.Aggregate(slices.Concat(v.Reserved, nodeAddresses(v.Snapshot.Nodes)))
	}
	for _, x := range v.Snapshot.Nodes {
		for _, p := range x.NodeCIDRs {
			in.Ranges = append(in.Ranges, share.Range{Prefix: p, Node: x.Name, NodeCIDR: true})
		}
		for _, p := range x.Blocks {
			in.Ranges = append(in.Ranges, share.Range{Prefix: p, Node: x.Name})
		}
	}
	return in
}

// found returns what pods of this node have of pools outside the pod network and no
// lease says -> the pool. The pods' routes show nobody else that it is in use.
func (n *node) found(leases []kube.Lease) map[netip.Addr]string {
	leased := map[netip.Addr]bool{}
	for _, l := range leases {
		if l.IsSingle() {
			leased[l.Address()] = true
		}
	}
	out := map[netip.Addr]string{}
	for _, binding := range n.book.Bindings() {
		for _, a := range binding.Addresses {
			i := slices.IndexFunc(n.pools.underlay, func(p *pool.Pool) bool { return p.Contains(a) })
			if i >= 0 && !leased[a] {
				out[a] = string(n.pools.underlay[i].ID())
			}
		}
	}
	return out
}

// nodeAddresses are those of the nodes themselves: an underlay's pool may have been
// drawn around them.
func nodeAddresses(nodes []plan.Node) []netip.Prefix {
	var out []netip.Prefix
	for i := range nodes {
		for _, a := range nodes[i].Addresses {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// holder says who on this node has an address, beside what it gives.
func (n *node) holder(sources []netip.Addr) func(netip.Addr) string {
	return func(a netip.Addr) string {
		if binding, held := n.book.Lookup(a); held {
			return binding.Owner.String()
		}
		if slices.Contains(sources, a) {
			return "the node itself"
		}
		return ""
	}
}

// singles returns the node's own single addresses that it may give, and to whom.
func (p *pools) singles(node string, leases []kube.Lease) (out []kube.Lease) {
	for _, l := range leases {
		if !l.IsSingle() || l.Node != node || !l.Usable() {
			continue
		}
		if l.ForAnyone() && !slices.ContainsFunc(p.usable, func(u *pool.Pool) bool { return string(u.ID()) == l.Pool && u.Contains(l.Address()) }) {
			continue
		}
		out = append(out, l)
	}
	return out
}

// ranges maps each pool that the node may use -> its addresses.
func (p *pools) ranges() map[string][]netip.Prefix {
	out := make(map[string][]netip.Prefix, len(p.usable))
	for _, one := range p.usable {
		out[string(one.ID())] = one.Ranges
	}
	return out
}

// singleRanges are the ranges of single addresses, each of the group that it is
// for.
func singleRanges(singles []kube.Lease) []ipam.Range {
	var out []ipam.Range
	for _, l := range singles {
		out = append(out, ipam.Range{Prefix: l.Prefix, Pool: l.Group(), Single: true})
	}
	return out
}

// cededAddresses are those that other nodes hold by themselves, or ask for.
func cededAddresses(node string, leases []kube.Lease) []netip.Addr {
	var out []netip.Addr
	for _, l := range leases {
		if l.IsSingle() && l.Node != node {
			out = append(out, l.Address())
		}
	}
	return out
}

// keptAddresses maps pod's interface -> the address of a family that is kept for it
// here.
func keptAddresses(singles []kube.Lease) map[keptPod]netip.Addr {
	out := map[keptPod]netip.Addr{}
	for _, l := range singles {
		if l.KeptFor != (share.Kept{}) {
			out[keptPod{l.KeptFor, ipam.FamilyOf(l.Address())}] = l.Address()
		}
	}
	return out
}

// keptPod is a pod's interface that an address of the family is kept for.
type keptPod struct {
	share.Kept
	family ipam.Family
}
