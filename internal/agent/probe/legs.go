package probe

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

// When legs are tried. They are sent only while something fails.
const (
	legTimeout  = 300 * time.Millisecond
	legRounds   = 3                // unanswered so often in a row, a leg is lost
	legInterval = 10 * time.Second // between rounds, once that is known
	// missesToAsk is how many misses of direct in a row make the legs of use:
	// the fault then has its name about when the path counts as failing.
	missesToAsk = 2
)

// place is what legs are tried for: a family of a node.
type place struct {
	node   string
	family plan.Family
}

// legs are the aids to tell faults of one place apart.
type legs struct {
	uid      string
	path     Path // by direct
	bare     bool // all legs are wanted, not the underlay's alone
	findings [legsEnd]finding
	misses   [legsEnd]int
	nonces   [legsEnd]Nonce // of the round under way; zero where nothing is awaited
	rounds   int
	waiting  bool
	deadline time.Time
	next     time.Time
	ports    sourcePorts
	hops     byte // the hop limit that the underlay's request arrived with; 0 if unknown
	stray    string
}

// settled reports whether all that is wanted was tried often enough.
func (l *legs) settled() bool { return l.rounds >= legRounds }

// wantLegs keeps legs for the places where something fails that they can tell
// apart, and drops the others'. The caller holds the lock.
func (p *Prober) wantLegs() {
	bare := map[place]bool{} // where legs are wanted -> all of them, not the underlay's alone
	for k, s := range p.states {
		tunnelFails := k.transport != plan.Direct && s.known && !s.reachable && len(p.others(k)) == 0
		bareFails := k.transport == plan.Direct && (s.misses >= missesToAsk || s.known && !s.reachable)
		hopsDiffer := k.transport == plan.Direct && s.known && s.reachable && s.hops != 0 && s.hops != fullHops
		if at := (place{k.node, k.family}); tunnelFails || bareFails || hopsDiffer {
			bare[at] = bare[at] || bareFails
		}
	}
	wanted := map[place]*legs{}
	for at, all := range bare {
		if l := p.legsAt(at, all); l != nil {
			wanted[at] = l
		}
	}
	p.legs = wanted
}

// legsAt returns the legs of a place, made anew if there are none, they are of
// another path, or did not tell enough. It is nil where nothing can go bare.
func (p *Prober) legsAt(at place, bare bool) *legs {
	node, ok := p.view.node(at.node)
	if !ok {
		return nil
	}
	path, ok := p.view.path(node, at.family, plan.Direct)
	if !ok {
		return nil
	}
	l := p.legs[at]
	if l == nil || l.uid != node.UID || l.path != path || bare && !l.bare {
		l = &legs{uid: node.UID, path: path}
	}
	l.bare = bare
	return l
}

// tickLegs counts the legs that were not answered, sends what is due, and
// returns when something is due next.
func (p *Prober) tickLegs(now, next time.Time) time.Time {
	p.wantLegs()
	for at, l := range p.legs {
		if l.waiting && !now.Before(l.deadline) {
			l.endRound(now)
		}
		if !l.waiting && !now.Before(l.next) {
			p.sendLegs(at, l, now)
		}
		due := l.next
		if l.waiting {
			due = l.deadline
		}
		if due.Before(next) {
			next = due
		}
	}
	return next
}

// endRound counts what was not answered. What has changed is tried again at
// once, the rest now and then.
func (l *legs) endRound(now time.Time) {
	l.waiting = false
	changing := false
	for i := range l.nonces {
		if l.nonces[i] == (Nonce{}) || leg(i) == legShort {
			continue
		}
		l.nonces[i] = Nonce{}
		l.misses[i]++
		switch {
		case l.misses[i] >= legRounds:
			l.findings[i] = lost
		case l.findings[i] == arrives:
			changing = true
		}
	}
	if l.rounds++; l.settled() && !changing {
		l.next = now.Add(jitter(legInterval))
	}
}

// sendLegs begins a round.
func (p *Prober) sendLegs(at place, l *legs, now time.Time) {
	l.waiting, l.deadline, l.next = true, now.Add(legTimeout), now
	all := []leg{legUnderlay}
	if l.bare {
		all = append(all, legSource, legDestination)
		if l.findings[legUnderlay] == arrives || l.rounds > 0 {
			all = append(all, legShort)
		}
	}
	port := l.ports.take()
	for _, one := range all {
		_, _ = rand.Read(l.nonces[one][:])
		m := message{kind: request, transport: plan.Direct, leg: one, cluster: digest(p.view.ClusterID), target: digest(l.uid), nonce: l.nonces[one]}
		path := l.path.along(one)
		path.SrcPort = port
		if one == legShort { // from where a router's word of it is listened for
			path.Hops, path.SrcPort = l.justReaching(), 0
		}
		if err := p.transmit(path, m.marshal()); err != nil {
			p.log.Debug("cannot send an aid of probing", "node", at.node, "leg", one, "err", err)
		}
	}
}

// justReaching returns the hop limit with which a packet reaches the node, and
// nobody else could forward it there: who got it by mistake says so by ICMP.
func (l *legs) justReaching() byte {
	if l.hops == 0 || l.hops > fullHops {
		return 1
	}
	return fullHops - l.hops + 1
}

// hitLeg takes an answer to a leg.
func (p *Prober) hitLeg(at place, m message) {
	l := p.legs[at]
	if l == nil || m.target != digest(l.uid) || m.nonce == (Nonce{}) || m.nonce != l.nonces[m.leg] {
		return
	}
	l.nonces[m.leg], l.misses[m.leg], l.findings[m.leg] = Nonce{}, 0, arrives
	if m.leg == legUnderlay {
		l.hops = m.hops
	}
}

// strayed takes the word of a router that a packet came by it, and went no
// further. That of a node other than the one that it was for says that the
// fabric's route leads there; of others, only that there is none.
func (p *Prober) strayed(router netip.Addr, m message) {
	for at, l := range p.legs {
		if m.nonce == (Nonce{}) || m.nonce != l.nonces[m.leg] {
			continue
		}
		by, isNode := p.view.nodeByAddress(router)
		if isNode && by.Name != at.node {
			l.stray = fmt.Sprintf("node %s (%s)", by.Name, router)
		}
	}
}
