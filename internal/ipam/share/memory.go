package share

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Memory is what a node's agent remembers of leases beside what the API server
// shows it. What is shown may be late: an agent that starts may be shown leases
// that its predecessor gave back, and that others have now. So a lease of its own
// is used only if the API server itself said so after the start, or this process
// made it; and never again once this process let go of it.
//
// The zero value is an agent that has not asked the API server yet.
type Memory struct {
	started  bool
	sure     map[string]int64 // object -> the generation that is this node's
	floor    []Lease          // what the API server said at the start and binds this node, shown until Until
	until    time.Time
	idle     map[netip.Addr]Idle      // own address -> since when nobody has it; the zero time if somebody has
	avoid    map[netip.Addr]time.Time // given back, or failed to get -> until when others come first
	lost     map[netip.Addr]lost
	declared map[netip.Prefix]time.Time
	unshared map[netip.Prefix]time.Time // block -> until when it is not tried again
}

const (
	// avoidFor is how long an address that was given back comes after others,
	// lostFor how long one that another node was faster to lease is not tried,
	// and refusedFor one that the owner of its range has not let go of.
	avoidFor   = 30 * time.Second
	lostFor    = 2 * time.Second
	refusedFor = 5 * time.Second
	// unsharedFor is how long a block that could not be shared is not tried again: a
	// part of it may be a node's of whom this one knows nothing yet.
	unsharedFor = 5 * time.Second
	// floorFor bounds how late a cache may be after it was read.
	floorFor = time.Minute
)

// lost is an address that could not be had: why, and until when it is not tried
// again.
type lost struct {
	why   string
	until time.Time
}

// Started reports whether Start was called.
func (m *Memory) Started() bool { return m.started }

// Start takes what the API server itself says, in one answer: all leases, read
// after the start. A single address without From is this node's only if its
// block is shared in the same answer (see Claim.Within).
func (m *Memory) Start(node string, live []Lease, now time.Time) {
	m.started = true
	shared := confirmed(live)
	m.floor, m.until = binding(node, live, shared), now.Add(floorFor)
	sure := map[string]int64{}
	for _, l := range live {
		if l.Node == node && (!l.IsSingle() || l.From != "" || isOf(shared, l)) {
			sure[l.ObjectUID] = l.Generation
		}
	}
	for uid, generation := range m.sure { // of a start before this one
		if g, there := sure[uid]; there && g < generation {
			sure[uid] = generation
		}
	}
	m.sure = sure
}

// binding returns what this node must know of others though its cache may be
// older: which blocks are shared, which of its own addresses it has ceded, what is
// kept for pods. Not whose the addresses of shared blocks are: who leases one
// finds out, and its holder may have let go of it a moment later.
func binding(node string, live []Lease, shared []netip.Prefix) []Lease {
	var out []Lease
	for _, l := range live {
		single := l.IsSingle() && (l.From != "" || l.KeptFor != Kept{} || !isOf(shared, l))
		if l.Node != node && (l.Sharing != "" || single) {
			out = append(out, l)
		}
	}
	return out
}

// isOf reports whether a single address is of one of the blocks, which are as
// cidr.Aggregate returns them.
func isOf(blocks []netip.Prefix, l Lease) bool { return len(cidr.Overlapping(blocks, l.Prefix)) > 0 }

// confirmed are the blocks that nodes share, as cidr.Aggregate returns them.
func confirmed(leases []Lease) []netip.Prefix {
	var out []netip.Prefix
	for i := range leases {
		if l := &leases[i]; l.Sharing == Confirmed {
			out = append(out, l.Prefix)
		}
	}
	return cidr.Aggregate(out)
}

// Hold notes that this process made a lease its own, and that it is.
func (m *Memory) Hold(l Lease) {
	set(&m.sure, l.ObjectUID, l.Generation)
	delete(m.idle, l.Address())
}

// Leave notes that an address is taken out of use, to be given back: from here
// on it is not this node's, whatever becomes of that.
func (m *Memory) Leave(l Lease, now time.Time) {
	delete(m.sure, l.ObjectUID)
	idle := m.idle[l.Address()]
	idle.Leaving = true
	set(&m.idle, l.Address(), idle)
	set(&m.avoid, l.Address(), now.Add(avoidFor))
	if l.Grant == Refused {
		set(&m.lost, l.Address(), lost{l.Reason, now.Add(refusedFor)})
	}
}

// LeaveUnshared notes that blocks could not be shared.
func (m *Memory) LeaveUnshared(blocks []netip.Prefix, now time.Time) {
	if m.unshared == nil {
		m.unshared = map[netip.Prefix]time.Time{}
	}
	maps.DeleteFunc(m.unshared, func(_ netip.Prefix, until time.Time) bool { return !until.After(now) })
	for _, b := range blocks {
		m.unshared[b] = now.Add(unsharedFor)
	}
}

// Unshared is Input's.
func (m *Memory) Unshared() map[netip.Prefix]time.Time { return maps.Clone(m.unshared) }

// Lose notes that another node was faster to lease an address.
func (m *Memory) Lose(a netip.Addr, now time.Time) {
	set(&m.lost, a, lost{fmt.Sprintf("another node has just leased the address %s", a), now.Add(lostFor)})
}

// Await notes that pods wait for addresses of this node's that nobody has yet, each of
// which is kept for Spare from the last time on.
func (m *Memory) Await(addresses []netip.Addr, now time.Time) {
	for _, a := range addresses {
		if idle, is := m.idle[a]; is && !idle.Leaving && !idle.Since.IsZero() {
			idle.Since = now
			m.idle[a] = idle
		}
	}
}

// Avoid is Input's.
func (m *Memory) Avoid(a netip.Addr) bool { _, is := m.avoid[a]; return is }

// Lost is Input's.
func (m *Memory) Lost(a netip.Addr) (why string, until time.Time) {
	l := m.lost[a]
	return l.why, l.until
}

// Idle is Input's.
func (m *Memory) Idle() map[netip.Addr]Idle {
	out := make(map[netip.Addr]Idle, len(m.idle))
	for a, idle := range m.idle {
		if !idle.Since.IsZero() {
			out[a] = idle
		}
	}
	return out
}

// Declared is Input's.
func (m *Memory) Declared() map[netip.Prefix]time.Time { return m.declared }

// Show returns the leases as this node may rely on them: what binds it of what the
// API server said at the start is among them for as long as the cache may be
// older, and what is not known to be this node's own is Unsure.
func (m *Memory) Show(node string, cached []Lease, now time.Time) []Lease {
	out := slices.Clone(cached)
	if now.Before(m.until) && m.until.Sub(now) <= floorFor {
		seen := make(map[netip.Prefix]string, len(cached))
		for _, l := range cached {
			seen[l.Prefix] = l.ObjectUID
		}
		// A cache that has shown an object is not older than it: if it shows it no
		// more, it is deleted.
		m.floor = slices.DeleteFunc(m.floor, func(l Lease) bool { uid, is := seen[l.Prefix]; return is && uid == l.ObjectUID })
		for _, l := range m.floor {
			if _, is := seen[l.Prefix]; !is {
				out = append(out, l)
			}
		}
	} else {
		m.floor = nil
	}
	for i := range out {
		if l := &out[i]; l.Node == node {
			generation, sure := m.sure[l.ObjectUID]
			l.Unsure = !sure || l.Generation < generation
		}
	}
	return out
}

// Track brings up to date since when nobody has the node's addresses, and what
// was declared when.
func (m *Memory) Track(node string, shown []Lease, held func(netip.Addr) bool, now time.Time) {
	idle, declared := map[netip.Addr]Idle{}, map[netip.Prefix]time.Time{}
	for _, l := range shown {
		a := l.Address()
		if l.IsSingle() && l.Node != node && l.Node != "" {
			delete(m.lost, a) // it is seen whose it is, and will be seen when it is free
		}
		switch {
		case l.Sharing == Declared:
			declared[l.Prefix] = since(m.declared[l.Prefix], now)
		case !l.IsSingle() || l.Node != node:
		case held(a):
			idle[a] = Idle{Used: true}
		default:
			i := m.idle[a]
			i.Since = since(i.Since, now)
			idle[a] = i
		}
	}
	m.idle, m.declared = idle, declared
	maps.DeleteFunc(m.avoid, func(_ netip.Addr, until time.Time) bool { return over(until, avoidFor, now) })
	maps.DeleteFunc(m.lost, func(_ netip.Addr, l lost) bool { return over(l.until, refusedFor, now) })
}

// since returns when something began: now, if that is not known, or the clock
// was set back.
func since(began, now time.Time) time.Time {
	if began.IsZero() || began.After(now) {
		return now
	}
	return began
}

// over reports whether a time has come, or would come later than it was meant to,
// since the clock was set back.
func over(until time.Time, most time.Duration, now time.Time) bool {
	return !now.Before(until) || until.Sub(now) > most
}

func set[K comparable, V any](m *map[K]V, key K, value V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[key] = value
}
