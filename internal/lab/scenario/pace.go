package scenario

import (
	"context"
	"time"

	"ropeway.dev/ropeway/internal/lab/cpus"
)

// The time between the datagrams of a way: where the machine can, and where it
// cannot, which still shows any loss that lasts.
const (
	closest = time.Millisecond
	widest  = 8 * time.Millisecond
)

// spare is the part of the CPUs that must be idle while everything is watched and
// nothing happens. A machine with less is no witness: what happens needs its part
// too, and queues that only grow lose datagrams sooner or later.
const spare = 0.25

// watches are all ways' watchers, the control's last.
type watches struct {
	each  []*watch
	every time.Duration // between datagrams, from the next cut on
}

// slower makes datagrams half as many from the next cut on. It says whether it could.
func (w *watches) slower() bool {
	if w.every >= widest {
		return false
	}
	w.every *= 2
	return true
}

// pace makes datagrams as many as the machine can bear.
func (s *stage) pace(ctx context.Context, w *watches) error {
	for {
		if _, err := w.cut(); err != nil {
			return err
		}
		idle, err := idleShare(ctx, time.Second)
		if err != nil {
			return err
		}
		if idle >= spare || !w.slower() {
			s.note("a datagram each %s on each way: %.0f%% of the CPUs are idle", w.every, 100*idle)
			return nil
		}
	}
}

// idleShare is the part of the machine's CPUs that nothing used in a span of time.
func idleShare(ctx context.Context, span time.Duration) (float64, error) {
	before, err := cpus.Read()
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(span):
	}
	after, err := cpus.Read()
	return cpus.Idle(before, after), err
}
