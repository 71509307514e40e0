package routes

import (
	"math"
	"time"
)

// backoff is when to try again what has failed.
type backoff struct {
	until time.Time
	times int
}

// fail notes a failure: the next try is after first, twice that, and so on to
// most, or after what the cloud asks for if that is longer.
func (b *backoff) fail(now time.Time, first, most, asked time.Duration) {
	b.times++
	b.until = now.Add(max(asked, grow(first, b.times, most)))
}

func (b *backoff) wait(now time.Time) time.Duration { return max(0, b.until.Sub(now)) }

// grow doubles first times-1 times, to most.
func grow(first time.Duration, times int, most time.Duration) time.Duration {
	return min(most, first<<min(max(times-1, 0), 16))
}

// pace finds out how long the cloud takes for a batch, during which it refuses
// the next one: a call that is refused is one too many, and waiting too long
// makes a thousand nodes wait.
type pace struct {
	settle   time.Duration // to wait after a batch
	tooSoon  time.Duration // the longest wait that was refused
	accepted time.Time     // when the last batch was
	next     time.Time     // when to send the next
	refusals int           // since then
	learned  bool          // settle was measured once
}

func (p *pace) wait(now time.Time) time.Duration { return max(0, p.next.Sub(now)) }

// The bounds of what pace believes: beyond longestSettle it is another writer,
// not our own batch, that keeps the VPC busy.
const (
	shortestSettle = 100 * time.Millisecond
	longestSettle  = 15 * time.Second
	longestRetry   = 10 * time.Second
	// A wait that was found out grows to so many times itself at once, no more:
	// what takes longer, once, is another writer's.
	mostGrowth = 2
	// What was refused once is forgotten by half in this time, and a little with
	// each batch.
	halfForgotten = time.Hour
)

// took notes that a batch was accepted. The wait shrinks by a quarter of what is
// above the longest that was refused, but not to it; and that is forgotten, slowly.
func (p *pace) took(now time.Time) {
	if !p.accepted.IsZero() {
		p.tooSoon = time.Duration(float64(p.tooSoon) * math.Exp2(-float64(now.Sub(p.accepted))/float64(halfForgotten)))
	}
	switch {
	case p.refusals > 0 && !p.accepted.IsZero():
		p.settle, p.learned = min(now.Sub(p.accepted), p.most()), true
	case p.refusals == 0:
		p.tooSoon = p.tooSoon * 997 / 1000
		p.settle = max(p.settle-(p.settle-p.tooSoon)/4, p.tooSoon*105/100, shortestSettle)
	}
	p.accepted, p.refusals = now, 0
	p.next = now.Add(p.settle)
}

// most is the longest wait that is believed now.
func (p *pace) most() time.Duration {
	if !p.learned {
		return longestSettle
	}
	return min(longestSettle, mostGrowth*p.settle)
}

// others says that it is not our own batch that keeps the VPC busy.
func (p *pace) others(now time.Time) bool {
	return p.accepted.IsZero() || now.Sub(p.accepted) > longestSettle
}

// early notes that a batch was refused because another is under way. Once the
// wait is known about, a little more is enough.
func (p *pace) early(now time.Time) {
	waited := now.Sub(p.accepted)
	if p.others(now) {
		waited = p.settle
	} else {
		p.tooSoon = max(p.tooSoon, min(waited, p.most()))
	}
	more := waited // bounds the refusals until the wait is known
	if p.learned {
		more = min(more, waited/10<<min(p.refusals, 8))
	}
	p.refusals++
	p.next = now.Add(min(longestRetry, max(shortestSettle, more)))
}
