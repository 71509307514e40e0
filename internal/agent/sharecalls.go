package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/kube"
)

const (
	// callsAtOnce bounds the calls about single addresses that are under way at
	// the same time; the client makes as many for a batch of claims.
	callsAtOnce = 8
	// claimsInBatch are the claims that are made before any of them is used.
	claimsInBatch = 32
)

// calls are several calls at the same time, and what came of them.
type calls struct {
	group errgroup.Group
	mu    sync.Mutex
	acted bool
	errs  []error
}

func newCalls(atOnce int) *calls {
	c := &calls{}
	c.group.SetLimit(atOnce)
	return c
}

// note says what came of one of them; it may be called by each.
func (c *calls) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acted = c.acted || err == nil
	c.errs = append(c.errs, err)
}

// wait reports whether one of them did something, and what failed.
func (c *calls) wait() (acted bool, err error) {
	_ = c.group.Wait()
	return c.acted, few.Errors(c.errs...)
}

// release gives back addresses that no pod has, once no pod can get them any more.
func (s *sharer) release(ctx context.Context, d share.Decision) (acted bool, err error) {
	if len(d.LetGo)+len(d.Drop) == 0 {
		return false, nil
	}
	singles := make([]netip.Addr, len(d.LetGo))
	for i, l := range d.LetGo {
		singles[i] = l.Address()
	}
	gone, err := s.book.WithdrawAddresses(singles)
	leaving := slices.DeleteFunc(slices.Clone(d.LetGo), func(l kube.Lease) bool { return !slices.Contains(gone, l.Address()) })
	s.leave(leaving)
	c := newCalls(callsAtOnce)
	c.errs = append(c.errs, err)
	for _, l := range slices.Concat(leaving, d.Drop) {
		c.group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, s.config.timing.call)
			defer cancel()
			err := s.api.ReleaseAddress(ctx, l)
			s.metrics.lease("release address", err)
			c.note(err)
			return nil
		})
	}
	return c.wait()
}

func (s *sharer) leave(leases []kube.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range leases {
		s.memory.Leave(l, time.Now())
	}
}

// claim leases addresses.
func (s *sharer) claim(ctx context.Context, d share.Decision) (acted bool, err error) {
	c := newCalls(callsAtOnce)
	for _, l := range d.Take {
		c.group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, s.config.timing.call)
			defer cancel()
			made, err := s.api.TakeAddress(ctx, l)
			s.claimed(c, l.Address(), kube.Claimed{Lease: made, Err: err})
			return nil
		})
	}
	acted, err = c.wait()
	for batch := range slices.Chunk(d.Claim, claimsInBatch) {
		c := newCalls(1)
		s.claimBatch(ctx, c, batch)
		more, failed := c.wait()
		acted, err = acted || more, errors.Join(err, failed)
	}
	return acted, err
}

func (s *sharer) claimBatch(ctx context.Context, c *calls, batch []share.Claim) {
	ctx, cancel := context.WithTimeout(ctx, s.config.timing.call)
	defer cancel()
	for i, got := range s.api.ClaimAddresses(ctx, batch) {
		s.claimed(c, batch[i].Address(), got)
	}
}

// claimed notes what came of a claim. That another node is faster is no error:
// another address is looked for in a later view. The one that this was decided on
// does not show what that node has, and its addresses would be tried one by one.
func (s *sharer) claimed(c *calls, a netip.Addr, got kube.Claimed) {
	s.metrics.lease("claim address", got.Err)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case got.Err == nil:
		s.memory.Hold(got.Lease)
	case kube.IsTaken(got.Err):
		s.memory.Lose(a, time.Now())
		got.Err = nil
	}
	c.note(got.Err)
}
