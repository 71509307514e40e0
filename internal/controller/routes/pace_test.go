package routes

import (
	"testing"
	"time"
)

// TestPace: a cloud that takes so long for each batch is asked little more
// often than there are batches, and is not kept waiting for long.
func TestPace(t *testing.T) {
	for _, takes := range []time.Duration{50 * time.Millisecond, time.Second, 3 * time.Second, 8 * time.Second} {
		t.Run(takes.String(), func(t *testing.T) {
			const batches = 200
			start := time.Unix(1_000_000, 0)
			now, free, calls := start, start, 0
			p := pace{settle: time.Second}
			for done := 0; done < batches; {
				now = now.Add(p.wait(now))
				calls++
				if now.Before(free) {
					p.early(now)
					continue
				}
				p.took(now)
				done, free = done+1, now.Add(takes)
			}
			least := batches * max(takes, shortestSettle)
			t.Logf("%d calls, %s (at least %s)", calls, now.Sub(start), least)
			if calls > batches*115/100 || now.Sub(start) > least*13/10+10*time.Second {
				t.Errorf("%d calls for %d batches, %s instead of %s", calls, batches, now.Sub(start), least)
			}
		})
	}
}

func TestBackoffGrowsAndHeedsWhatIsAsked(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	var b backoff
	for i, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		b.fail(now, time.Second, 5*time.Second, 0)
		if got := b.wait(now); got != want {
			t.Errorf("failure %d: %v, want %v", i+1, got, want)
		}
	}
	b.fail(now, time.Second, 5*time.Second, time.Minute)
	if got := b.wait(now); got != time.Minute {
		t.Errorf("the cloud asks for a minute: %v", got)
	}
}

// TestPaceAfterAnotherWriter: that somebody else has kept the VPC busy for a while
// is no reason to be slow for long.
func TestPaceAfterAnotherWriter(t *testing.T) {
	const takes, batches = time.Second, 100
	now := time.Unix(1_000_000, 0)
	p, free := pace{settle: takes}, now
	send := func(busy time.Duration) time.Duration {
		for start := now; ; {
			now = now.Add(p.wait(now))
			if !now.Before(free) {
				p.took(now)
				free = now.Add(busy)
				return now.Sub(start)
			}
			p.early(now)
		}
	}
	for range 20 {
		send(takes)
	}
	send(12 * time.Second)
	send(takes)
	now = now.Add(5 * time.Hour)
	var all time.Duration
	for range batches {
		all += send(takes)
	}
	if all > batches*takes*5/4 {
		t.Errorf("%d batches took %s, later", batches, all)
	}
	send(12 * time.Second)
	send(takes)
	if p.settle > 3*takes {
		t.Errorf("a batch that met another writer makes the next wait for %s", p.settle)
	}
}
