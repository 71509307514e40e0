package probe

import (
	"crypto/rand"
	"slices"
	"time"
)

// When sizes are looked at.
const (
	sizeTimeout = 300 * time.Millisecond
	// sizeInterval is between looks at a path.
	sizeInterval = 10 * time.Second
	// doubtsToSearch is how often in a row the small packet of a burst is
	// answered and the large one is not, until the large one is taken for lost.
	doubtsToSearch = 3
	// sizesAtOnce are tried between the largest that passes and the smallest
	// that does not.
	sizesAtOnce = 8
)

// sizes is the search for the largest packet that a path carries. Packets of
// several sizes go at once, with one small enough to pass anywhere: only if that
// is answered do the others say something.
type sizes struct {
	found int // the largest in bytes that passes; 0 for the full size

	searching bool
	low, high int // passes, and does not
	doubts    int

	nonce    Nonce
	sent     []int
	answered []int
	waiting  bool
	deadline time.Time
	next     time.Time
}

// base is the size in bytes of the packet that passes anywhere.
func (p Path) base() int { return p.headers() + messageSize }

// tickSizes goes on with the search of one path, and returns when it is due
// next; a time far away if nothing is to be searched.
func (p *Prober) tickSizes(k key, s *state, now time.Time) time.Time {
	z := &s.sizes
	if !s.known || !s.reachable || s.misses > 0 || s.path.Full <= s.path.base() {
		*z = sizes{found: z.found, next: now}
		return now.Add(longestPause)
	}
	if z.waiting && !now.Before(z.deadline) {
		z.conclude(s.path, now)
		s.doubt(len(z.answered) == 0, now)
	}
	if !z.waiting && !now.Before(z.next) {
		p.sendSizes(k, s, now)
	}
	if z.waiting {
		return z.deadline
	}
	return z.next
}

// burst returns the sizes to send next.
func (z *sizes) burst(path Path) []int {
	switch {
	case z.searching:
		out := []int{path.base()}
		for i := 1; i <= sizesAtOnce; i++ {
			out = append(out, z.low+(z.high-z.low)*i/(sizesAtOnce+1))
		}
		slices.Sort(out)
		return slices.DeleteFunc(slices.Compact(out), func(n int) bool { return n == z.low && n != path.base() })
	case z.found > 0:
		return []int{path.base(), z.found, path.Full}
	case z.doubts > 0:
		return []int{path.base(), path.Full}
	default:
		return []int{path.Full}
	}
}

func (p *Prober) sendSizes(k key, s *state, now time.Time) {
	z := &s.sizes
	_, _ = rand.Read(z.nonce[:])
	z.sent, z.answered = z.burst(s.path), nil
	z.waiting, z.deadline = true, now.Add(sizeTimeout)
	for _, n := range z.sent {
		m := message{kind: request, transport: k.transport, leg: legSize, cluster: digest(p.view.ClusterID), target: digest(s.uid), nonce: z.nonce, size: uint16(n)}
		padded := make([]byte, max(n-s.path.headers(), messageSize))
		copy(padded, m.marshal())
		if err := p.transmit(s.path, padded); err != nil {
			// Too large for this node's own uplink is too large.
			p.log.Debug("cannot send a large probe", "node", k.node, "transport", k.transport, "bytes", n, "err", err)
		}
	}
}

// conclude ends a burst.
func (z *sizes) conclude(path Path, now time.Time) {
	z.waiting, z.next = false, now
	full := slices.Contains(z.answered, path.Full)
	control := slices.Contains(z.answered, path.base())
	switch {
	case z.searching:
		z.narrow(path, control, now)
	case full:
		z.found, z.doubts, z.next = 0, 0, now.Add(jitter(sizeInterval))
	case len(z.sent) == 1:
		z.doubts = 1
	case !control: // nothing passes now, whatever its size
		z.doubts, z.next = 0, now.Add(jitter(time.Second))
	case z.found > 0 && slices.Contains(z.answered, z.found):
		z.doubts, z.next = 0, now.Add(jitter(sizeInterval))
	case z.doubts < doubtsToSearch:
		z.doubts++
	default:
		z.doubts, z.searching, z.low, z.high = 0, true, path.base(), path.Full
	}
}

// narrow takes a burst of the search.
func (z *sizes) narrow(path Path, control bool, now time.Time) {
	if !control {
		z.searching, z.next = false, now.Add(jitter(time.Second))
		return
	}
	z.low = max(z.low, slices.Max(z.answered))
	for _, n := range z.sent {
		if n > z.low {
			z.high = min(z.high, n)
			break
		}
	}
	if z.high-z.low > 1 {
		return
	}
	z.found, z.searching, z.next = z.low, false, now.Add(jitter(sizeInterval))
}

// hitSize takes an answer to a padded request.
func (p *Prober) hitSize(k key, m message) {
	s := p.states[k]
	if s == nil || !s.sizes.waiting || m.nonce != s.sizes.nonce || m.target != digest(s.uid) {
		return
	}
	z := &s.sizes
	if slices.Contains(z.answered, int(m.size)) {
		return // it came back by another way too
	}
	z.answered = append(z.answered, int(m.size))
	if len(z.answered) == len(z.sent) {
		z.deadline = time.Time{} // no reason to wait
	}
}
