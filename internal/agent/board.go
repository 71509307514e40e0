package agent

import (
	"net/netip"
	"slices"
	"sync"

	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan"
)

// service is what the CNI server serves pods by. The node loop replaces it as a
// whole; nothing in it changes afterwards.
type service struct {
	// notReady says why pods cannot be served, in a sentence; empty if they can.
	notReady string
	// podCIDRs is the pod network, cidrs the part that this node owns.
	podCIDRs, cidrs []netip.Prefix
	sources         []netip.Addr // the node's own addresses in the pod network
	nodeCIDRs       []netip.Prefix
	nodeCIDRProblem string // why nodeCIDRs cannot be used
	nodeCIDRMode    bool
	// families are those that a pod gets unless its configuration says.
	families []plan.Family
	podMTU   int // bytes
	// pools says which pools serve a pod; nil while they have not been read.
	pools *pool.Index
	// kept maps pod's interface -> the address that is kept for it, on this node.
	kept map[keptPod]netip.Addr
	// ceded are addresses of the node's ranges that other nodes hold or ask for.
	ceded []netip.Addr
	// bound are the pools that have addresses in the node's own ranges.
	bound map[string]bool
	// leaseProblem says why no block could be leased, in a sentence.
	leaseProblem string
}

// owns returns the node's CIDR that an address is of.
func (s service) owns(a netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(s.cidrs, func(p netip.Prefix) bool { return p.Contains(a) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return s.cidrs[i], true
}

// network returns the range that an address is of: the node's own, or, of one
// that the node holds by itself, the pod network's.
func (s service) network(a netip.Addr) netip.Prefix {
	for _, list := range [][]netip.Prefix{s.cidrs, s.podCIDRs} {
		for _, p := range list {
			if p.Contains(a) {
				return p
			}
		}
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// board shows the current service, and wakes whoever waits for another.
type board struct {
	mu      sync.Mutex
	current service
	turn    uint64        // counts what woke them
	changed chan struct{} // closed at the next set
}

func newBoard(first service) *board {
	return &board{current: first, changed: make(chan struct{})}
}

// get returns the service, and a channel that is closed when it is replaced.
func (b *board) get() (service, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current, b.changed
}

// look is get, with a number that is another one after each change.
func (b *board) look() (service, <-chan struct{}, uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current, b.changed, b.turn
}

func (b *board) set(s service) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = s
	b.wake()
}

// poke wakes whoever waits: an address may have become free.
func (b *board) poke() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wake()
}

func (b *board) wake() {
	b.turn++
	close(b.changed)
	b.changed = make(chan struct{})
}

// lacking remembers what could not be had at which turn of the board: of many
// requests that wait for the same, one finds out for all.
type lacking struct {
	mu    sync.Mutex
	turns map[string]uint64
}

// lackingMost bounds what is remembered; to forget costs a try, and no more.
const lackingMost = 256

func (l *lacking) note(what string, turn uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turns == nil || len(l.turns) >= lackingMost {
		l.turns = map[string]uint64{}
	}
	l.turns[what] = max(l.turns[what], turn)
}

// knows reports whether nothing has changed since it could not be had.
func (l *lacking) knows(what string, turn uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	since, known := l.turns[what]
	return known && since >= turn
}
