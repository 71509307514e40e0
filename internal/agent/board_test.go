package agent

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
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

// TestExceptionsAreFaults: what single addresses keep on tunnels is no exception, and
// does not hide the one that is.
func TestExceptionsAreFaults(t *testing.T) {
	route := func(dst, peer string, by plan.Transport, offFabric bool) plan.Route {
		return plan.Route{Dst: netip.MustParsePrefix(dst), Peer: peer, Transport: by, OffFabric: offFabric, Reason: dst}
	}
	network := plan.Network{Transports: []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN}}
	counts, got := reached(network, plan.State{Routes: []plan.Route{
		route("10.244.0.7/32", "b", plan.IPIP, true), route("10.244.1.0/24", "b", plan.VXLAN, false),
		route("10.244.0.8/32", "c", plan.IPIP, true), route("10.244.2.0/24", "c", plan.Direct, false),
		route("10.244.0.9/32", "d", plan.VXLAN, true), route("10.244.3.0/24", "d", plan.Direct, false),
	}})
	want := []kube.Exception{{Node: "b", Transport: plan.VXLAN, Reason: "10.244.1.0/24"}, {Node: "d", Transport: plan.VXLAN, Reason: "10.244.0.9/32"}}
	if !slices.Equal(got, want) {
		t.Errorf("exceptions %v, want %v", got, want)
	}
	if counts[plan.IPIP] != 2 || counts[plan.VXLAN] != 2 || counts[plan.Direct] != 2 {
		t.Errorf("peers by transport: %v", counts)
	}
}
