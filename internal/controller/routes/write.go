package routes

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// apply sends the first batch of additions and changes.
func (p *Planner) apply(ctx context.Context, in Input, all []cloud.RouteChange) time.Duration {
	changes := all[:min(len(all), p.batch)]
	call, cancel := context.WithTimeout(ctx, p.cfg.CallTimeout)
	defer cancel()
	results, err := p.provider.Routes().Apply(call, changes)
	if err = checkResults(err, len(results), len(changes)); err != nil {
		return p.refused(&p.adding, in, changes[0].Key(), len(changes), err)
	}
	p.adding = trouble{}
	p.taken(len(all) > len(changes))
	for i, r := range results {
		key := changes[i].Key()
		if r.Err != nil {
			p.blame(key, r.Err)
			continue
		}
		delete(p.held, key)
		p.real[key] = after(changes[i])
	}
	p.cfg.Metrics.count(results, "apply")
	p.cfg.Log.Info("routes asked for", "entries", len(changes), "refused", countErrors(results), "first", changes[0].Key().String(), "request", refusedRequest(results))
	return 0
}

// after is what a change that was accepted leads to.
func after(c cloud.RouteChange) cloud.RouteEntry {
	e := cloud.RouteEntry{Table: c.Table, Dst: c.Dst, State: cloud.Pending}
	if c.Replaces != nil {
		e = *c.Replaces
		e.State = cloud.Modifying
	}
	e.NextHop, e.HopType, e.Owner, e.Description = c.NextHop, "Instance", c.Owner, cloud.Mark(c.Owner)
	return e
}

// withdraw removes entries that both sides have confirmed to be unwanted: the
// cloud by two listings, and now the API server itself.
func (p *Planner) withdraw(ctx context.Context, in Input, stale []cloud.RouteEntry) time.Duration {
	call, cancel := context.WithTimeout(ctx, p.cfg.CallTimeout)
	defer cancel()
	live, err := p.cfg.Confirm(call)
	if err != nil {
		return p.failed(&p.removing, in, fmt.Errorf("ask the API server whether routes are unwanted, before they are withdrawn: %w", err))
	}
	p.inUse = ""
	if in.Mode == Withdraw {
		p.inUse = live.Why
	}
	if live.Cluster != in.Cluster || live.Nodes == 0 || live.Mode != in.Mode {
		p.cfg.Log.Warn("no route is withdrawn: the API server says otherwise than the cache", "cluster", live.Cluster, "nodes", live.Nodes, "mode", live.Mode)
		p.guard.forget(nil)
		return p.rest(in, p.cfg.Now())
	}
	stale = unwanted(stale, live)
	if len(stale) == 0 {
		p.guard.forget(nil) // start anew: the cache was behind
		return p.rest(in, p.cfg.Now())
	}
	all := len(stale)
	stale = stale[:min(all, p.batch)]
	results, err := p.provider.Routes().Withdraw(call, stale)
	if err = checkResults(err, len(results), len(stale)); err != nil {
		return p.refused(&p.removing, in, stale[0].Key(), len(stale), err)
	}
	p.removing = trouble{}
	p.taken(all > len(stale))
	for i, r := range results {
		e := stale[i]
		if r.Err != nil {
			p.blame(e.Key(), r.Err)
			continue
		}
		e.State = cloud.Deleting
		p.real[e.Key()] = e
		p.cfg.Log.Info("route withdrawn: nobody owns its destination any more", "table", e.Table, "destination", e.Dst, "nextHop", e.NextHop)
	}
	p.cfg.Metrics.count(results, "withdraw")
	return 0
}

// unwanted leaves out what the input wants.
func unwanted(stale []cloud.RouteEntry, live Input) []cloud.RouteEntry {
	return slices.DeleteFunc(slices.Clone(stale), func(e cloud.RouteEntry) bool {
		return slices.ContainsFunc(live.Wants, func(w Want) bool { return w.Dst == e.Dst })
	})
}

// checkResults makes an answer that is not one result per entry an error: of
// such a batch nothing is known.
func checkResults(err error, got, want int) error {
	if err == nil && got != want {
		return &cloud.Error{Class: cloud.Lost, Err: fmt.Errorf("the provider gave %d results for %d entries", got, want)}
	}
	return err
}

// refusedRequest is the cloud's id of the request in which entries were refused.
func refusedRequest(results []cloud.RouteResult) string {
	for _, r := range results {
		if id := cloud.RequestOf(r.Err); id != "" {
			return id
		}
	}
	return ""
}

func countErrors(results []cloud.RouteResult) int {
	n := 0
	for _, r := range results {
		if r.Err != nil {
			n++
		}
	}
	return n
}

// taken notes that the cloud has taken a batch. While there are more to send
// nobody looks at what became of it: each listing of a large table is many
// calls, and the next batch is refused if it comes too soon.
func (p *Planner) taken(more bool) {
	now := p.cfg.Now()
	p.pace.took(now)
	p.busy, p.batch = busySpell{}, min(2*p.batch, cloud.MaxBatch)
	p.lookAt, p.looks, p.sending = time.Time{}, 0, more
	if !more {
		p.lookAt = now.Add(p.effective())
	}
}

// longestHold is the longest time for which something that was refused is not
// tried again.
const longestHold = 10 * time.Minute

// blame holds one entry back for what the cloud said of it.
func (p *Planner) blame(key cloud.Key, err error) {
	now := p.cfg.Now()
	h := p.held[key]
	h.times++
	h.err = err
	switch cloud.ClassOf(err) {
	case cloud.Quota:
		p.full[key.Table] = fullMark{entries: p.countIn(key.Table), until: now.Add(longestHold)}
		return
	case cloud.Lost:
		p.look = true
		h.until = now.Add(grow(time.Second, h.times, 30*time.Second))
	case cloud.Passing, cloud.Throttled:
		h.until = now.Add(max(cloud.AfterOf(err), grow(time.Second, h.times, 30*time.Second)))
	case cloud.Conflict:
		p.look = true // the listing tells whose it is
		h.until = now.Add(grow(2*time.Second, h.times, time.Minute))
	default:
		h.until = now.Add(grow(30*time.Second, h.times, longestHold))
	}
	p.held[key] = h
}

func (p *Planner) countIn(table string) int {
	n := 0
	for key := range p.real {
		if key.Table == table {
			n++
		}
	}
	return n
}

// refused is what to do after a batch of count entries that failed as a whole;
// first is one of them.
func (p *Planner) refused(t *trouble, in Input, first cloud.Key, count int, err error) time.Duration {
	now := p.cfg.Now()
	switch cloud.ClassOf(err) {
	case cloud.Passing:
		// Nothing was done. It is our own batch before, or, after so long,
		// another writer, who makes what was listed worth another look.
		p.busy.note(now, err)
		p.look = p.look || p.pace.others(now) && p.pace.refusals%4 == 3
		p.pace.early(now)
		return p.pace.wait(now)
	case cloud.Quota, cloud.Conflict, cloud.BadNextHop, cloud.Permanent:
		// One of them spoils it: find out which.
		if count > 1 {
			p.batch = count / 2
		} else {
			p.blame(first, err)
		}
		return 0
	}
	return p.failed(t, in, err)
}

// busyFor is how long the VPC may refuse changes for another one's sake before
// a person is told: our own batches take seconds.
const busyFor = 2 * time.Minute

func (b *busySpell) note(now time.Time, err error) {
	if b.since.IsZero() {
		b.since = now
	}
	b.tries, b.err = b.tries+1, err
}

// failed is what to do after a call that failed: wait, longer each time, and
// say why.
func (p *Planner) failed(t *trouble, in Input, err error) time.Duration {
	now := p.cfg.Now()
	first, most := time.Second, time.Minute
	switch cloud.ClassOf(err) {
	case cloud.Forbidden, cloud.Permanent:
		first, most = 10*time.Second, 5*time.Minute
	case cloud.Unauthenticated:
		first, most = 5*time.Second, time.Minute
		p.provider = nil // the Secret may have others by then
	case cloud.Lost:
		p.look = true
	}
	if t.err == nil || t.err.Error() != err.Error() {
		p.cfg.Log.Warn("the cloud's routes could not be read or written; trying again", "error", err, "request", cloud.RequestOf(err))
	}
	t.err = err
	t.fail(now, first, most, cloud.AfterOf(err))
	p.publish(in, p.compare(in))
	if t == &p.reading {
		return t.wait(now)
	}
	return p.rest(in, now)
}
