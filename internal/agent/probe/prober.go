// Package probe proves that nodes reach one another: a prober sends a small UDP
// message to another node's pod-network address, wrapped by hand in each
// transport that is allowed, whatever the route in the kernel is at the moment;
// the other node's prober answers by the same transport. So a transport is
// known to work, or not, before packets of pods are trusted to it.
//
// A probe by direct is sent bare to the next hop that its packets have, each as a
// connection of its own (see sourcePorts). It proves one way only, that to the
// other node: the answer comes back by every transport, since the fabric may have
// no route to the prober's own range, which is for that node's provers to find out.
//
// A node probes only the few that it was chosen for (plan.Provers), which makes
// probing linear in the number of nodes; it answers every node of the cluster
// and nobody else. A result flips to unreachable after three misses in a row
// and back with one answer.
package probe

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

// When the result of a path flips.
const (
	// missesToFail is how many probes in a row go unanswered before a path
	// counts as failing.
	missesToFail = 3
	// hitsToReturn is how many probes in a row are answered before a path by
	// direct that was proven and failed is trusted again.
	hitsToReturn = 3
)

// pace is how often a path is probed.
type pace struct {
	unproven time.Duration // between probes while a path is not known to work
	proven   time.Duration // while it is
	timeout  time.Duration // how long an answer is waited for
}

// paceOf returns a transport's pace. Direct's is what it takes to be off a route
// that is gone within 3 s, and on one that appears within 1 s: 1.1 s until the next probe, and three that are not answered.
func paceOf(t plan.Transport) pace {
	if t == plan.Direct {
		return pace{unproven: 400 * time.Millisecond, proven: time.Second, timeout: 300 * time.Millisecond}
	}
	return pace{unproven: time.Second, proven: 5 * time.Second, timeout: 900 * time.Millisecond}
}

const (
	// longestPause is how long the prober sleeps when nothing is to be done.
	longestPause = 5 * time.Second
	// stoodStill is how late a tick is of a process that was not running, and
	// readAgain how long it then takes to read what came meanwhile.
	stoodStill, readAgain = 50 * time.Millisecond, 100 * time.Millisecond
	// mostDrained bounds what is taken between two ticks.
	mostDrained = 1024
)

// Wire carries probes. It is implemented by NewSockets for the kernel.
type Wire interface {
	// Listen makes messages to the addresses (port Port) arrive, and those to
	// former addresses no longer.
	Listen(addresses []netip.Addr) error
	// Send sends a message by a path.
	Send(p Path, message []byte) error
	// Received delivers what arrives. It is never closed.
	Received() <-chan Datagram
}

// Datagram is a message that arrived, or that a router says it did not pass on.
type Datagram struct {
	From    netip.Addr // source of the inner packet; of a stray one, the router
	Port    uint16     // source port of the inner packet
	Message []byte
	Hops    byte // the inner packet's hop limit; 0 if it is not known
	Stray   bool // a message of this node that the router From took in
}

// Prober probes and answers. Use New; Run does the work.
type Prober struct {
	wire    Wire
	log     *slog.Logger
	changed chan struct{}
	wake    chan struct{}

	mu     sync.Mutex
	view   View
	seeded bool
	states map[key]*state // what is being proven -> what is known of it
	sent   map[plan.Transport]uint64
	legs   map[place]*legs
	heard  time.Time // when any path was answered last
	nudged time.Time // when everything was last tried at once
	due    time.Time // when the last tick wanted the next one at the latest
	alarm  bool      // everything stopped to answer at the same moment

	listening []netip.Addr // of Run's goroutine alone
	mute      bool         // the last Listen failed
}

// state is what is known of one path.
type state struct {
	uid       string // of the node that was probed
	path      Path
	known     bool // reachable says something
	reachable bool
	misses    int
	missing   time.Time // when the first of the misses was sent
	held      bool      // it fails, and that is not believed
	hits      int       // still needed before it counts as reachable again
	reason    string    // why nothing could be sent
	came      bool      // a request arrived whose answer by the same way did not
	hops      byte      // the hop limit that the last request arrived with
	sizes     sizes
	offload   offload
	ports     sourcePorts

	fault plan.Fault // what follows from all that
	said  string

	nonce    Nonce
	waiting  bool      // for an answer to nonce
	sentAt   time.Time // when that was sent
	deadline time.Time // of the answer
	spared   bool      // the deadline was put off
	next     time.Time // when to send again
}

// New returns a prober that does nothing until Set is called and Run runs.
func New(wire Wire, log *slog.Logger) *Prober {
	return &Prober{wire: wire, log: log, states: map[key]*state{}, sent: map[plan.Transport]uint64{}, legs: map[place]*legs{},
		changed: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
}

// Set replaces what the prober works by. Results of nodes that are no longer
// targets, or that have another UID than before, are forgotten.
func (p *Prober) Set(v View) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view = v
	wanted := map[key]bool{}
	for _, name := range v.Targets {
		target, ok := v.node(name)
		if !ok {
			continue
		}
		for _, path := range v.paths(target) {
			k := keyOf(target.Name, path)
			wanted[k] = true
			p.want(k, target.UID, path)
		}
	}
	for k := range p.states {
		if !wanted[k] {
			delete(p.states, k)
		}
	}
	notify(p.wake)
}

// want makes k a thing to prove. A new path to the same node (it got another
// address) keeps the result until probes say otherwise.
func (p *Prober) want(k key, uid string, path Path) {
	s := p.states[k]
	if s == nil || s.uid != uid {
		p.states[k] = &state{uid: uid, path: path}
		return
	}
	if s.path != path {
		s.path, s.waiting, s.next, s.sizes, s.offload = path, false, time.Time{}, sizes{}, offload{}
	}
}

// Seed takes over results that an earlier process published, so that a restart
// does not forget which transports fail. Only the first call does something,
// and only for what Set named before.
func (p *Prober) Seed(published []plan.Probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seeded {
		return
	}
	p.seeded = true
	for _, r := range published {
		s := p.states[key{r.To, r.Family, r.Transport, r.Address}]
		if s == nil || s.uid != r.ToUID || s.known || r.From != p.view.Self.Name {
			continue
		}
		s.known, s.reachable, s.fault, s.said, s.sizes.found = true, r.Reachable, r.Fault, r.Reason, r.PathMTU
	}
}

// Targets returns how many nodes are proven.
func (p *Prober) Targets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.view.Targets)
}

// Results returns what is known, in the order of names, families and
// transports. Paths of which nothing is known yet are not in it.
func (p *Prober) Results() []plan.Probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	results := make([]plan.Probe, 0, len(p.states))
	for k, s := range p.states {
		if s.known {
			results = append(results, plan.Probe{From: p.view.Self.Name, To: k.node, ToUID: s.uid,
				Family: k.family, Transport: k.transport, Address: k.address, Reachable: s.reachable, Fault: s.fault, Reason: s.said, PathMTU: s.sizes.found})
		}
	}
	slices.SortFunc(results, func(a, b plan.Probe) int {
		return cmp.Or(strings.Compare(a.To+"/"+string(a.Family)+"/"+string(a.Transport), b.To+"/"+string(b.Family)+"/"+string(b.Transport)),
			a.Address.Compare(b.Address))
	})
	return results
}

// Faults returns what is wrong with this node's own probing -> a sentence.
func (p *Prober) Faults() map[plan.Fault]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.alarm {
		return nil
	}
	held := 0
	for _, s := range p.states {
		if s.held {
			held++
		}
	}
	return map[plan.Fault]string{plan.ProberFault: fmt.Sprintf(
		"all that answered node %s stopped to answer at the same moment (%d paths): it is cut off itself, or its prober is broken; what was known before stays",
		p.view.Self.Name, held)}
}

// Changed receives after a result flipped, or what is wrong got another name;
// several changes may be one value.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

// Run probes and answers until ctx is done.
func (p *Prober) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
			p.listen()
		case d := <-p.wire.Received():
			p.receive(d)
		case <-timer.C:
			if p.mute {
				p.listen()
			}
		}
		p.drain()
		timer.Reset(p.tick(time.Now()))
	}
}

// drain takes what has arrived: an answer that is there is not counted as missing.
func (p *Prober) drain() {
	for range mostDrained {
		select {
		case d := <-p.wire.Received():
			p.receive(d)
		default:
			return
		}
	}
}

// listen makes the wire listen on the view's own addresses. A failure is tried
// again at the next tick: probes then go unanswered, which is the truth.
func (p *Prober) listen() {
	p.mu.Lock()
	want := slices.Concat(p.view.Self.Sources, p.view.Self.Outer)
	p.mu.Unlock()
	if slices.Equal(want, p.listening) && !p.mute {
		return
	}
	if err := p.wire.Listen(want); err != nil {
		if !p.mute {
			p.log.Warn("cannot receive probes; other nodes will find this one unreachable", "addresses", want, "err", err)
		}
		p.mute = true
		return
	}
	p.listening, p.mute = want, false
}

// tick counts answers that did not come, sends what is due, draws the
// conclusions, and returns how long nothing else is due.
func (p *Prober) tick(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spare(now)
	next := now.Add(longestPause)
	for k, s := range p.states {
		if s.waiting && !now.Before(s.deadline) {
			p.missed(k, s, "", now)
		}
	}
	for k, s := range p.states {
		next = earlier(next, earlier(p.tickSizes(k, s, now), p.tickOffload(k, s, now)))
		if !s.waiting && !now.Before(s.next) {
			p.send(k, s, now)
		}
		due := s.next
		if s.waiting {
			due = s.deadline
		}
		next = earlier(next, due)
	}
	next = p.tickLegs(now, next)
	p.judge()
	wait := max(next.Sub(now), 10*time.Millisecond)
	p.due = now.Add(wait)
	return wait
}

// spare gives answers a moment more after this process stood still: they may have
// come, and nobody has read them. Each probe is spared once, lest one that is always
// late finds nothing wrong. The caller holds the lock.
func (p *Prober) spare(now time.Time) {
	if p.due.IsZero() || now.Sub(p.due) < stoodStill {
		return
	}
	for _, s := range p.states {
		if s.waiting && !s.spared && s.deadline.Before(now.Add(readAgain)) {
			s.deadline, s.spared = now.Add(readAgain), true
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// send sends one request, and plans the one after it.
func (p *Prober) send(k key, s *state, now time.Time) {
	// rand.Read never fails (crypto/rand, since Go 1.24).
	_, _ = rand.Read(s.nonce[:])
	m := message{kind: request, transport: k.transport, cluster: digest(p.view.ClusterID), target: digest(s.uid), nonce: s.nonce,
		everyWay: s.misses > 0}
	pace := paceOf(k.transport)
	interval := pace.unproven
	if s.known && s.reachable && s.misses == 0 {
		interval = pace.proven
	}
	s.next = now.Add(jitter(interval))
	s.deadline = now.Add(pace.timeout)
	s.waiting, s.spared, s.sentAt = true, false, now
	path := s.path
	if k.transport == plan.Direct {
		path.SrcPort = s.ports.take()
	}
	if err := p.transmit(path, m.marshal()); err != nil {
		p.missed(k, s, fmt.Sprintf("sending to %s failed: %v", s.path.OuterDst, err), now)
	}
}

// transmit sends a message and counts it.
func (p *Prober) transmit(path Path, message []byte) error {
	p.sent[path.Transport]++
	return p.wire.Send(path, message)
}

// Sent returns how many messages, requests and answers, were sent by a
// transport.
func (p *Prober) Sent(t plan.Transport) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent[t]
}

// missed counts a probe that was not answered. After the first, the next
// follows soon, however long ago the path was proven.
func (p *Prober) missed(k key, s *state, reason string, now time.Time) {
	s.waiting, s.reason = false, reason
	if s.misses++; s.misses == 1 {
		s.missing = s.sentAt
		p.nudge(now)
	}
	pace := paceOf(k.transport)
	if soon := s.deadline.Add(jitter(pace.unproven) - pace.timeout); soon.Before(s.next) {
		s.next = soon
	}
	if s.misses < missesToFail {
		return
	}
	if s.held = p.cutOff(s); s.held {
		// What somebody answers after this says nothing of the probes before.
		s.misses, s.missing = 1, s.sentAt
		return
	}
	if k.transport == plan.Direct && (s.reachable || s.hits > 0) {
		s.hits = hitsToReturn
	}
	flipped := !s.known || s.reachable
	s.known, s.reachable = true, false
	if flipped {
		p.log.Warn("node does not answer by this transport", "node", k.node, "family", k.family, "transport", k.transport, "reason", cmp.Or(reason, silence(s.path)))
		notify(p.changed)
	}
}

// doubt has the path probed at once if nothing came back of what was sent beside the
// probes: until the next probe may be seconds.
func (s *state) doubt(silent bool, now time.Time) {
	if silent && now.Before(s.next) {
		s.next = now
	}
}

// nudge tries everything at once, so that what works says so before a failure is
// believed. The caller holds the lock.
func (p *Prober) nudge(now time.Time) {
	if now.Sub(p.nudged) < paceOf(plan.IPIP).proven {
		return
	}
	p.nudged = now
	for _, s := range p.states {
		if s.misses == 0 && now.Before(s.next) {
			s.next = now
		}
	}
}

// jitter spreads an interval by a fifth, so that nodes do not probe in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + mathrand.N(d/5)
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
