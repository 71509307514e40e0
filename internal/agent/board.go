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
	// kept maps pod -> the address that is kept for it, on this node.
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

func (b *board) set(s service) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = s
	close(b.changed)
	b.changed = make(chan struct{})
}

// poke wakes whoever waits: an address may have become free.
func (b *board) poke() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
}
