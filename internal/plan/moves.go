package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A path that comes and goes would take its packets along each time, on every
// node of the cluster: each move is a chance to lose some, and thousands at once
// are a storm. So what was left because it failed is gone back to with patience:
// the first time at once, then after it has worked for a while that doubles with
// each failure and shrinks again while all is well; and of many that work again
// at once, only some at a time, the same ones first on all nodes. Leaving a path
// that fails never waits, and where what is in use does not work, nothing does.

// heldWords begin what Hold says of a way that waits.
const (
	heldFailed = "it has failed"
	heldTurn   = "many ways work again at once"
)

// SaysHeldBack reports whether a Route's reason is that a way is held back, which
// only the node itself knows.
func SaysHeldBack(reason string) bool {
	return strings.Contains(reason, ": "+heldFailed) || strings.Contains(reason, ": "+heldTurn)
}

const (
	firstHold  = 4 * time.Second // that a way must have worked for after its second failure
	mostDouble = 6               // how often that doubles
	// calmAfter is how long a way works until one of its failures is forgotten.
	calmAfter = time.Minute
	// Of many ways only so many are returned to at a time: all of the peers' in
	// returnAll, and the first few at once.
	returnAll   = 2 * time.Minute
	returnFirst = 10
)

// PeerWay is a transport to a peer, for packets of one family. With the node itself
// as the peer it is whatever it sends by direct.
type PeerWay struct {
	Peer      string
	Family    Family
	Transport Transport
}

// Moves remembers which transports a node has left because they failed. The zero
// value remembers nothing. It has no clock: each method is told the time, which
// must not go back.
type Moves struct {
	left   map[PeerWay]*leaving
	tokens float64 // how many ways may be returned to now
	filled time.Time
	next   time.Time
}

// leaving is what is known of a way that was left.
type leaving struct {
	uid   string    // of the peer
	times int       // it was left, less those that are forgotten
	since time.Time // when it was left last, or a failure was forgotten
	works time.Time // since when it works again; zero while it does not
}

// Hold returns the ways that are not to be gone back to yet -> why. It is asked
// before each Compute, for Snapshot.HeldBack.
func (m *Moves) Hold(now time.Time, s Snapshot) map[PeerWay]string {
	m.next = time.Time{}
	if len(m.left) == 0 {
		return nil
	}
	c := check(s.Self, s.Network, s.Nodes)
	found := c.learn(s)
	used := inUse(s.Now)
	m.fill(now, len(c.nodes))
	held := map[PeerWay]string{}
	for _, key := range m.inOrder(s.Self) {
		l := m.left[key]
		peer, known := c.index[key.Peer]
		if !known || c.nodes[peer].UID != l.uid {
			delete(m.left, key)
			continue
		}
		if !c.works(peer, key, found) {
			l.works = time.Time{}
			continue
		}
		if l.works.IsZero() {
			l.works = now
		}
		if !c.wouldReturn(key, used) {
			if l.calm(now); l.times == 0 {
				delete(m.left, key)
			}
			continue
		}
		times, since := m.together(key, l, s.Self)
		hold := holdFor(times, hash64(key.Peer))
		switch ready := since.Add(hold); {
		case now.Before(ready):
			held[key] = fmt.Sprintf("%s %d times of late and is used again when it has worked for %s", heldFailed, times, hold.Round(time.Second))
			m.wake(ready)
		case key.Peer != s.Self && !m.take():
			held[key] = heldTurn + ", and it waits for its turn"
			m.wake(now.Add(time.Second))
		}
	}
	return held
}

// Note learns from what was decided, after each Compute: next is the State of s.
func (m *Moves) Note(now time.Time, s Snapshot, next State) {
	used := inUse(s.Now)
	var c *cluster
	var found evidence
	counted := map[PeerWay]bool{}
	for _, r := range next.Routes {
		was := used.to(r.Peer, r.Dst)
		key := PeerWay{r.Peer, FamilyOf(r.Dst.Addr()), was.transport}
		if was.transport == "" || was.transport == r.Transport || counted[key] || !slices.Contains(Allowed(s.Network, key.Family), was.transport) {
			continue
		}
		if c == nil { // changes are rare
			c = check(s.Self, s.Network, s.Nodes)
			found = c.learn(s)
		}
		if c.worksAt(c.index[r.Peer], r, was.transport, found) {
			if was.transport != Direct || c.astray[key.Family] == "" {
				continue // not left for a failure
			}
			key.Peer = s.Self // it is this node that the fabric does not lead to
		}
		if !counted[key] {
			counted[key] = true
			m.leave(now, key, c.nodes[c.index[key.Peer]].UID)
		}
	}
}

// Next is when to ask Hold again if nothing else happens; zero if nothing waits.
func (m *Moves) Next() time.Time { return m.next }

func (m *Moves) leave(now time.Time, key PeerWay, uid string) {
	if m.left == nil {
		m.left = map[PeerWay]*leaving{}
	}
	l := m.left[key]
	if l == nil || l.uid != uid {
		l = &leaving{uid: uid}
		m.left[key] = l
	}
	l.times, l.since, l.works = l.times+1, now, time.Time{}
}

// calm forgets failures while the way works.
func (l *leaving) calm(now time.Time) {
	for from := later(l.since, l.works); l.times > 0 && now.Sub(from) >= calmAfter; from = l.since {
		l.times--
		l.since = from.Add(calmAfter)
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// holdFor returns how long a way must have worked that has failed so often. A
// hash of the peer's name spreads those that fail together.
func holdFor(times int, hash uint64) time.Duration {
	if times < 2 {
		return 0
	}
	hold := firstHold << min(times-2, mostDouble)
	return hold + hold/2*time.Duration(hash%1024)/1024
}

// together returns how often a way has failed, and since when it works. What this
// node itself sends by direct failed at either end: which of the two was seen
// first is chance.
func (m *Moves) together(key PeerWay, l *leaving, self string) (times int, since time.Time) {
	own := m.left[PeerWay{self, key.Family, Direct}]
	if key.Transport != Direct || key.Peer == self || own == nil {
		return l.times, l.works
	}
	return l.times + own.times, later(l.works, own.works)
}

// fill adds what has come up since the last time to the returns that may be made.
func (m *Moves) fill(now time.Time, nodes int) {
	most := max(returnFirst, float64(nodes)/60)
	if m.filled.IsZero() {
		m.tokens, m.filled = most, now
	}
	rate := max(1, float64(nodes)/returnAll.Seconds())
	m.tokens = min(most, m.tokens+rate*now.Sub(m.filled).Seconds())
	m.filled = now
}

func (m *Moves) take() bool {
	if m.tokens < 1 {
		return false
	}
	m.tokens--
	return true
}

func (m *Moves) wake(at time.Time) {
	if m.next.IsZero() || at.Before(m.next) {
		m.next = at
	}
}

// inOrder returns the ways that were left, those of the node itself first, in an
// order that is the same on all nodes and tells nothing of names.
func (m *Moves) inOrder(self string) []PeerWay {
	out := make([]PeerWay, 0, len(m.left))
	for key := range m.left {
		out = append(out, key)
	}
	slices.SortFunc(out, func(a, b PeerWay) int {
		if (a.Peer == self) != (b.Peer == self) {
			if a.Peer == self {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(hash64(a.Peer), hash64(b.Peer)), strings.Compare(a.Peer, b.Peer),
			strings.Compare(string(a.Family), string(b.Family)), strings.Compare(string(a.Transport), string(b.Transport)))
	})
	return out
}

// works reports whether any of the peer's ranges is found to be reached this way;
// of this node itself, whether it may send bare.
func (c *cluster) works(peer int, key PeerWay, found evidence) bool {
	if key.Peer == c.self {
		return c.astray[key.Family] == ""
	}
	return slices.ContainsFunc(c.claims[peer], func(cl claim) bool {
		f := found.of(probedBy(way{family: key.Family, probed: c.probedAt(cl)}, key.Peer, key.Transport))
		return FamilyOf(cl.dst.Addr()) == key.Family && f.works(key.Transport)
	})
}

// worksAt reports whether all that a route is for is reached by a transport.
func (c *cluster) worksAt(peer int, r Route, t Transport, found evidence) bool {
	return !slices.ContainsFunc(c.claims[peer], func(cl claim) bool {
		f := found.of(probedBy(way{family: FamilyOf(r.Dst.Addr()), probed: c.probedAt(cl)}, r.Peer, t))
		return r.Dst.Overlaps(cl.dst) && !f.works(t)
	})
}

// wouldReturn reports whether the way is preferred to one that is in use; direct
// from this node itself, whether it is not in use at all.
func (c *cluster) wouldReturn(key PeerWay, used ways) bool {
	if key.Peer == c.self {
		for _, routes := range used {
			if slices.ContainsFunc(routes, func(r *Route) bool { return FamilyOf(r.Dst.Addr()) == key.Family && r.Transport == Direct }) {
				return false
			}
		}
		return true
	}
	allowed := Allowed(c.net, key.Family)
	rank := slices.Index(allowed, key.Transport)
	return rank >= 0 && slices.ContainsFunc(used[key.Peer], func(r *Route) bool {
		at := slices.Index(allowed, r.Transport)
		return FamilyOf(r.Dst.Addr()) == key.Family && (at < 0 || at > rank)
	})
}

// heldBack marks those of the options that were left for failures and are not
// to be gone back to yet, where what is in use works.
func (c *cluster) heldBack(w way, options []option, inUse int) {
	if len(c.held) == 0 || inUse < 0 || options[inUse].rank != proven {
		return
	}
	for i := range options[:inUse] {
		o := &options[i]
		why := c.held[PeerWay{c.nodes[w.peer].Name, w.family, o.transport}]
		if own := c.held[PeerWay{c.self, w.family, Direct}]; own != "" && o.transport == Direct {
			why = "this node's own: " + own
		}
		if why != "" && o.rank == proven {
			o.rank, o.flaw = damped, fmt.Sprintf("%s: %s", o.transport, why)
		}
	}
}
