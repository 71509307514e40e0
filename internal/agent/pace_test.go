package agent

import (
	"testing"
	"time"
)

const settleTest = 50 * time.Millisecond

// TestPaceAfterAQuietTime: what comes then, and what soon follows it, waits no longer
// than the least, whatever a pass takes.
func TestPaceAfterAQuietTime(t *testing.T) {
	for _, took := range []time.Duration{time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond} {
		var p pace
		now := time.Unix(1000, 0)
		for i := range 2 {
			if got := p.wait(now, settleTest); got != settleTest {
				t.Errorf("change %d where a pass takes %s waits %s, want %s", i+1, took, got, settleTest)
			}
			p.passed(now, now.Add(took))
			now = now.Add(took)
		}
	}
}

// TestPaceOfAStream: in a stream of changes the loop rests twice as long as it works,
// and never longer at once than routes that fail may be kept.
func TestPaceOfAStream(t *testing.T) {
	for _, took := range []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 240 * time.Millisecond, 3 * time.Second} {
		var p pace
		now := time.Unix(1000, 0)
		var worked, waited time.Duration
		for range 1000 {
			wait := p.wait(now, settleTest)
			if wait > settleMost {
				t.Fatalf("a change waits %s where a pass takes %s, want %s at most", wait, took, settleMost)
			}
			began := now.Add(wait)
			now = began.Add(took)
			p.passed(began, now)
			worked, waited = worked+took, waited+wait
		}
		if want := min(2*took, settleMost) * 990; waited < want {
			t.Errorf("the loop rests %s in all where it works %s, want %s", waited, worked, want)
		}
	}
}
