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

// TestPaceOfMany: what there is much of and nobody waits for waits a moment after a pass,
// and not at all after a quiet time.
func TestPaceOfMany(t *testing.T) {
	var p pace
	now := time.Unix(1000, 0)
	if got := p.waitForMany(now); got != 0 {
		t.Errorf("the first change waits %s", got)
	}
	p.passed(now, now.Add(time.Second))
	now = now.Add(time.Second)
	if got := p.waitForMany(now); got != manyRest {
		t.Errorf("after a pass a change waits %s, want %s", got, manyRest)
	}
	if got := p.waitForMany(now.Add(-time.Hour)); got > manyRest {
		t.Errorf("with the clock set back a change waits %s", got)
	}
	if got := p.waitForMany(now.Add(manyRest)); got != 0 {
		t.Errorf("a change after a rest waits %s", got)
	}
}
