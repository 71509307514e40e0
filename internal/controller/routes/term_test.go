package routes

import (
	"context"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// lead runs a term of the Planner, at the machine's clock, until the test says
// that it has seen enough.
func (b *bench) lead(enough func() bool) {
	b.Helper()
	b.p.cfg.Now = time.Now
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.p.Run(ctx) }()
	for deadline := time.Now().Add(30 * time.Second); !enough(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Error("not seen within 30 s")
			break
		}
	}
	cancel()
	<-done
}

// A replica that leads again knows nothing of what it was told when it led
// before: another one has led meanwhile.
func TestSecondTermWaitsForItsInput(t *testing.T) {
	b := newBench(t, 20)
	b.lead(func() bool { _, good := b.p.Status().Wanted(); return good == 20 })
	if s := b.p.Status(); s.Mode != "" || len(s.Rows) != 0 {
		t.Errorf("a Planner that does not run says mode %q and %d rows", s.Mode, len(s.Rows))
	}
	moved := entry(3, cluster) // by the leader in between
	moved.NextHop = "i-new"
	b.cloud.Put(moved)
	before := b.cloud.Count("")
	if wait := b.p.step(t.Context()); wait != idleFor || b.cloud.Count("") != before {
		t.Fatalf("%d calls before anything was Set, the next step is after %v", b.cloud.Count("")-before, wait)
	}
	b.in.Wants[3].ProviderID = "cn-chengdu.i-new"
	writes := b.writes()
	b.set()
	b.lead(func() bool { _, good := b.p.Status().Wanted(); return good == 20 })
	if b.writes() != writes {
		t.Errorf("%d writes for a table that is as it should be", b.writes()-writes)
	}
	for _, e := range b.cloud.Entries() {
		if e.Key() == (cloud.Key{Table: table, Dst: dst(3)}) && e.NextHop != "i-new" {
			t.Errorf("the entry that the other leader has made leads to %s", e.NextHop)
		}
	}
}
