package probe

import (
	"crypto/rand"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

// The kernel leaves the checksums of pods' packets to the network interface, those
// inside a vxlan packet too, and some interfaces get these wrong: then everything
// that probes compute themselves arrives, and next to nothing of pods. So now and
// then a probe leaves it to the interface as well.

const (
	offloadInterval = 10 * time.Second
	// offloadMisses is how often in a row the one is lost and the other arrives.
	offloadMisses = 3
)

// Kinds of packets, as a message's size says.
const (
	computed  = 0
	offloaded = 1
)

// offload is what is known of a path's packets whose checksum is left to the
// interface.
type offload struct {
	broken   bool
	misses   int
	nonce    Nonce
	sent     []uint16
	answered []uint16
	waiting  bool
	deadline time.Time
	next     time.Time
}

// tickOffload goes on with one path by vxlan, and returns when it is due next.
func (p *Prober) tickOffload(k key, s *state, now time.Time) time.Time {
	o := &s.offload
	if k.transport != plan.VXLAN || !s.known || !s.reachable || s.misses > 0 {
		*o = offload{broken: o.broken, next: now}
		return now.Add(longestPause)
	}
	if o.waiting && !now.Before(o.deadline) {
		o.conclude(now)
		s.doubt(len(o.answered) == 0, now)
	}
	if !o.waiting && !now.Before(o.next) {
		p.sendOffload(k, s, now)
	}
	if o.waiting {
		return o.deadline
	}
	return o.next
}

func (p *Prober) sendOffload(k key, s *state, now time.Time) {
	o := &s.offload
	_, _ = rand.Read(o.nonce[:])
	o.sent, o.answered = []uint16{offloaded}, nil
	if o.misses > 0 {
		o.sent = append(o.sent, computed)
	}
	o.waiting, o.deadline = true, now.Add(sizeTimeout)
	for _, kind := range o.sent {
		path := s.path
		path.Offload = kind == offloaded
		m := message{kind: request, transport: k.transport, leg: legChecksum, cluster: digest(p.view.ClusterID), target: digest(s.uid), nonce: o.nonce, size: kind}
		if err := p.transmit(path, m.marshal()); err != nil {
			// There may be no device to send it by (yet), which says nothing.
			p.log.Debug("cannot send a probe without its checksum", "node", k.node, "err", err)
			o.waiting, o.misses, o.next = false, 0, now.Add(jitter(offloadInterval))
			return
		}
	}
}

func (o *offload) conclude(now time.Time) {
	o.waiting, o.next = false, now
	switch {
	case slices.Contains(o.answered, offloaded):
		o.broken, o.misses, o.next = false, 0, now.Add(jitter(offloadInterval))
	case len(o.sent) == 1:
		o.misses = 1
	case !slices.Contains(o.answered, computed): // nothing passes now
		o.misses, o.next = 0, now.Add(jitter(time.Second))
	default:
		if o.misses++; o.misses > offloadMisses {
			o.broken, o.misses, o.next = true, 1, now.Add(jitter(offloadInterval))
		}
	}
}

// hitOffload takes an answer.
func (p *Prober) hitOffload(k key, m message) {
	s := p.states[k]
	if s == nil || !s.offload.waiting || m.nonce != s.offload.nonce || m.target != digest(s.uid) || slices.Contains(s.offload.answered, m.size) {
		return
	}
	o := &s.offload
	if o.answered = append(o.answered, m.size); len(o.answered) == len(o.sent) {
		o.deadline = time.Time{} // no reason to wait
	}
}
