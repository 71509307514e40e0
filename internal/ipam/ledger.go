package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// maxRemembered bounds the freed addresses of a family that are remembered. It
// is far more than a node frees within a cooldown.
const maxRemembered = 4096

// ledger is what follows from a list of records: who holds what, and what was
// freed when. Its size follows the addresses in use, not the ranges.
type ledger struct {
	bindings map[Key]Binding
	holders  map[netip.Addr]Key
	freed    map[Family]*freedQueue
}

func newLedger() *ledger {
	return &ledger{
		bindings: map[Key]Binding{},
		holders:  map[netip.Addr]Key{},
		freed:    map[Family]*freedQueue{IPv4: newFreedQueue(), IPv6: newFreedQueue()},
	}
}

// apply takes one record. Where it contradicts an earlier one, it wins: an
// allocator never writes the second of two such records if it has promised
// what the first says.
func (l *ledger) apply(r Record) {
	key := r.Binding.Key
	switch r.Op {
	case OpHold:
		for _, a := range l.bindings[key].Addresses {
			if !slices.Contains(r.Binding.Addresses, a) {
				l.free(a, r.At)
			}
		}
		for _, a := range r.Binding.Addresses {
			l.take(a, key)
		}
		l.bindings[key] = r.Binding.clone()
	case OpFree:
		addrs := append(slices.Clone(l.bindings[key].Addresses), r.Binding.Addresses...)
		delete(l.bindings, key)
		for _, a := range addrs {
			if holder, held := l.holders[a]; !held || holder == key {
				l.free(a, r.At)
			}
		}
	}
}

// take gives an address to a key, whoever had it.
func (l *ledger) take(a netip.Addr, key Key) {
	l.freed[FamilyOf(a)].remove(a)
	former, held := l.holders[a]
	l.holders[a] = key
	if !held || former == key {
		return
	}
	b := l.bindings[former].clone()
	b.Addresses = slices.DeleteFunc(b.Addresses, func(o netip.Addr) bool { return o == a })
	if len(b.Addresses) == 0 {
		delete(l.bindings, former)
		return
	}
	l.bindings[former] = b
}

func (l *ledger) free(a netip.Addr, at time.Time) {
	delete(l.holders, a)
	l.freed[FamilyOf(a)].push(a, at)
}

// held returns the bindings in the order of their keys.
func (l *ledger) held() []Binding {
	out := make([]Binding, 0, len(l.bindings))
	for _, key := range slices.SortedFunc(maps.Keys(l.bindings), Key.Compare) {
		out = append(out, l.bindings[key].clone())
	}
	return out
}

// records returns the fewest records that lead to this ledger.
func (l *ledger) records() []Record {
	var out []Record
	for _, f := range []Family{IPv4, IPv6} {
		for _, e := range l.freed[f].entries() {
			out = append(out, Record{Op: OpFree, At: e.at, Binding: Binding{Addresses: []netip.Addr{e.addr}}})
		}
	}
	for _, b := range l.held() {
		out = append(out, Record{Op: OpHold, Binding: b})
	}
	return out
}

// freedQueue holds free addresses that were held before, those freed first in
// front. Entries that were taken out of the middle are skipped later.
type freedQueue struct {
	queue []freedEntry
	seqs  map[netip.Addr]uint64 // address -> the entry that counts
	seq   uint64
	// dropped is set when an address was forgotten, and cleared by who has
	// taken notice.
	dropped bool
}

type freedEntry struct {
	addr netip.Addr
	at   time.Time
	seq  uint64
}

func newFreedQueue() *freedQueue { return &freedQueue{seqs: map[netip.Addr]uint64{}} }

func (q *freedQueue) len() int { return len(q.seqs) }

func (q *freedQueue) has(a netip.Addr) bool {
	_, there := q.seqs[a]
	return there
}

// push adds an address at the end. Beyond maxRemembered it drops the first one,
// which then counts as never used.
func (q *freedQueue) push(a netip.Addr, at time.Time) {
	q.seq++
	q.seqs[a] = q.seq
	q.queue = append(q.queue, freedEntry{a, at, q.seq})
	if len(q.seqs) > maxRemembered {
		if oldest := q.first(func(netip.Addr) bool { return true }); oldest != nil {
			q.remove(oldest.addr)
			q.dropped = true
		}
	}
}

func (q *freedQueue) remove(a netip.Addr) {
	delete(q.seqs, a)
	if len(q.queue) > 2*len(q.seqs)+16 {
		q.queue = q.entries()
	}
}

// first returns the entry that was freed first of those whose address fits. The
// caller may change when it was freed.
func (q *freedQueue) first(fits func(netip.Addr) bool) *freedEntry {
	for len(q.queue) > 0 && q.seqs[q.queue[0].addr] != q.queue[0].seq {
		q.queue = q.queue[1:]
	}
	for i := range q.queue {
		if e := &q.queue[i]; q.seqs[e.addr] == e.seq && fits(e.addr) {
			return e
		}
	}
	return nil
}

// restedFor reports whether an address that no one holds has been free for d;
// one that was never used, or is forgotten, has.
func (q *freedQueue) restedFor(a netip.Addr, d time.Duration, now time.Time) bool {
	if !q.has(a) {
		return true
	}
	e := q.first(func(o netip.Addr) bool { return o == a })
	return rested(e, d, now)
}

// entries returns a copy of what is in the queue.
func (q *freedQueue) entries() []freedEntry {
	out := make([]freedEntry, 0, len(q.seqs))
	for _, e := range q.queue {
		if q.seqs[e.addr] == e.seq {
			out = append(out, e)
		}
	}
	return out
}
