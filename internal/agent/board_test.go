package agent

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cniwire"
)

// TestOneOfManyLooks: where many pods wait for an address of one pool, each address
// that is freed has one of them look, and not all of them; none is forgotten.
func TestOneOfManyLooks(t *testing.T) {
	const requests, pokes = 50, 40
	s := &server{board: newBoard(service{}), wait: time.Minute}
	var tries, free atomic.Int64
	try := func(service, cniwire.Request) (cniwire.Response, error) {
		tries.Add(1)
		if free.Add(-1) >= 0 {
			return cniwire.Response{}, nil
		}
		free.Add(1)
		return cniwire.Response{}, &later{why: "none is free", lacks: "an address of the pool"}
	}
	var served atomic.Int64
	var all sync.WaitGroup
	for range requests {
		all.Go(func() {
			if _, err := s.waiting(t.Context(), cniwire.Request{}, try); err != nil {
				t.Error(err)
			}
			served.Add(1)
		})
	}
	eventually(t, func() string {
		if tries.Load() < requests {
			return "every request to have looked"
		}
		return ""
	})
	for range pokes { // each time one becomes free, so that one is served and others look in vain
		before := served.Load()
		free.Add(1)
		s.board.poke()
		eventually(t, func() string {
			if served.Load() == before {
				return "a request to be served"
			}
			return ""
		})
	}
	// Without any order each poke has all that wait look: more than a thousand. What is
	// looked at by the clock is beside it.
	if n := tries.Load(); n > requests+pokes*requests/3 {
		t.Errorf("%d looks for %d addresses", n, pokes)
	}
	free.Add(requests - pokes)
	s.board.poke()
	all.Wait()
}
