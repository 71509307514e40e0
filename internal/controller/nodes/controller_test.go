package nodes

import (
	"context"
	"errors"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// A replica that leads again knows nothing of what it was told when it led
// before: the configuration may have been changed meanwhile.
func TestSecondTermWaitsForItsInput(t *testing.T) {
	made := make(chan struct{})
	c := New(Config{Retry: time.Hour, Make: func(ctx context.Context, _ cloud.Setup) (cloud.Provider, error) {
		select {
		case made <- struct{}{}:
		case <-ctx.Done():
		}
		return nil, errors.New("no cloud")
	}})
	c.Set(Input{On: true})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); c.Run(ctx) }()
	<-made
	cancel()
	<-ended
	if c.wanted().On || c.Status().On {
		t.Errorf("after its term it still wants %+v and says %+v", c.wanted(), c.Status())
	}
}
