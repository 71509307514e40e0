package main

import (
	"context"
	"sync"
	"time"
)

// patience is a context that ends at a time, or with a signal. It begins to
// watch for either only when somebody asks it to: an agent that answers at once
// is not worth a timer, a channel and a thread for signals. Its deadline is
// known before.
type patience struct {
	until time.Time
	begin func() context.Context
	began bool
	stop  func() // what began; nobody calls it, as the process ends soon
}

// patience ends after d, or with a signal.
func (p *plugin) patience(d time.Duration) *patience { return newPatience(d, p.signals) }

// newPatience ends after d, or with the context that signals returns.
func newPatience(d time.Duration, signals func() context.Context) *patience {
	w := &patience{until: time.Now().Add(d)}
	w.begin = sync.OnceValue(func() context.Context {
		w.began = true
		var ctx context.Context
		ctx, w.stop = context.WithDeadline(signals(), w.until)
		return ctx
	})
	return w
}

// interrupted is why a wait ended, or would have; nil if nobody had to wait.
func (w *patience) interrupted() error {
	if !w.began {
		return nil
	}
	return w.Err()
}

// Deadline implements context.Context.
func (w *patience) Deadline() (time.Time, bool) { return w.until, true }

// Done implements context.Context.
func (w *patience) Done() <-chan struct{} { return w.begin().Done() }

// Err implements context.Context.
func (w *patience) Err() error { return w.begin().Err() }

// Value implements context.Context.
func (w *patience) Value(any) any { return nil }
