package routes

import (
	"context"
	"fmt"
	"maps"
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
		return p.refused(&p.adding, in, attempt{changes[0].Key(), changeOf(changes[0].NextHop, changes[0].Owner)}, len(changes), err)
	}
	p.adding = trouble{}
	untried := p.settleEach(results, func(i int) string { return changeOf(changes[i].NextHop, changes[i].Owner) }, func(i int) {
		p.real[changes[i].Key()] = after(changes[i])
	})
	p.taken(len(all) > len(changes) || untried > 0)
	p.cfg.Metrics.count(results, "apply")
	p.cfg.Log.Info("routes asked for", "entries", len(changes)-untried, "refused", countErrors(results)-untried, "first", changes[0].Key().String(), "request", refusedRequest(results))
	return 0
}

// settleEach takes in what became of each entry: what was refused is held back,
// done is called for what was taken. It returns how many the provider has not
// asked for, since the cloud takes one change at a time: nothing is held against
// those, and they go next.
func (p *Planner) settleEach(results []cloud.RouteResult, what func(i int) string, done func(i int)) (untried int) {
	for i, r := range results {
		switch {
		case cloud.Is(r.Err, cloud.Untried):
			untried++
		case r.Err != nil:
			p.blame(attempt{r.Key(), what(i)}, r.Err)
		default:
			delete(p.held, r.Key())
			done(i)
		}
	}
	return untried
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
		return p.refused(&p.removing, in, attempt{stale[0].Key(), removalOf(stale[0])}, len(stale), err)
	}
	p.removing = trouble{}
	untried := p.settleEach(results, func(i int) string { return removalOf(stale[i]) }, func(i int) {
		e := stale[i]
		e.State = cloud.Deleting
		p.real[e.Key()] = e
		p.cfg.Log.Info("route withdrawn: nobody owns its destination any more", "table", e.Table, "destination", e.Dst, "nextHop", e.NextHop)
	})
	p.taken(all > len(stale) || untried > 0)
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
	p.busy, p.alone, p.batch = busySpell{}, singles{}, min(2*p.batch, cloud.MaxBatch)
	p.lookAt, p.looks, p.sending = time.Time{}, 0, more
	if !more {
		p.lookAt = now.Add(p.effective())
	}
}

// longestHold is the longest time for which something that was refused is not
// tried again.
const longestHold = 10 * time.Minute

// heed takes in whether the credentials have all rights: once they have, what was
// refused for want of one is no longer held back.
func (p *Planner) heed(allowed bool) {
	if allowed && !p.allowed {
		maps.DeleteFunc(p.held, func(_ cloud.Key, h held) bool { return cloud.Is(h.err, cloud.Forbidden) })
		for _, t := range []*trouble{&p.reading, &p.resolving, &p.adding, &p.removing} {
			if cloud.Is(t.err, cloud.Forbidden) {
				t.until = time.Time{}
			}
		}
	}
	p.allowed = allowed
}

// attempt is a change of one entry (changeOf, removalOf) that was asked for.
type attempt struct {
	key  cloud.Key
	what string
}

// blame holds one change back for what the cloud said of it.
func (p *Planner) blame(a attempt, err error) {
	now, key := p.cfg.Now(), a.key
	h := p.held[key]
	if h.what != a.what {
		h = held{what: a.what}
	}
	h.times++
	h.err = err
	switch cloud.ClassOf(err) {
	case cloud.Quota:
		p.full[key.Table] = fullMark{entries: p.countIn(key.Table), until: now.Add(longestHold)}
		return
	case cloud.Lost:
		p.look = true
		h.until = now.Add(grow(time.Second, h.times, 30*time.Second))
	case cloud.Passing, cloud.Unreachable, cloud.Throttled:
		h.until = now.Add(max(cloud.AfterOf(err), grow(time.Second, h.times, 30*time.Second)))
	case cloud.Conflict:
		p.look = true // the listing tells whose it is
		h.until = now.Add(grow(2*time.Second, h.times, time.Minute))
	case cloud.BadNextHop:
		p.instances.doubt = true // the address may be another instance's by now
		h.until = now.Add(grow(30*time.Second, h.times, longestHold))
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
func (p *Planner) refused(t *trouble, in Input, first attempt, count int, err error) time.Duration {
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
		p.pace.next = now.Add(shortestSettle)
		if count > 1 {
			p.batch = count / 2
			return p.pace.wait(now)
		}
		p.blame(first, err)
		if !p.alone.again(err) {
			return p.pace.wait(now)
		}
	}
	return p.failed(t, in, err)
}

// mostSingles is how many entries in a row the cloud may refuse with the same
// code, each in a call of its own, until that is held to be about the call.
const mostSingles = 3

// singles counts such refusals.
type singles struct {
	code  string
	times int
}

// again notes one, and says whether there were too many.
func (s *singles) again(err error) bool {
	if code := cloud.ActionOf(err) + " " + cloud.CodeOf(err); code != s.code {
		*s = singles{code: code}
	}
	s.times++
	return s.times >= mostSingles
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
	switch cloud.ClassOf(err) {
	case cloud.Unauthenticated:
		p.provider = nil // the Secret may have others by then
	case cloud.Lost:
		p.look = true
	}
	p.note(t, err)
	p.publish(in, p.recompare(in))
	if t == &p.reading {
		return t.wait(now)
	}
	return p.rest(in, now)
}

// note remembers why calls of a kind fail, and when to make the next.
func (p *Planner) note(t *trouble, err error) {
	first, most := time.Second, time.Minute
	switch cloud.ClassOf(err) {
	case cloud.Forbidden, cloud.Conflict, cloud.BadNextHop, cloud.Permanent:
		first, most = 10*time.Second, 5*time.Minute
	case cloud.Unauthenticated:
		first = 5 * time.Second
	}
	if t.err == nil || t.err.Error() != err.Error() {
		p.cfg.Log.Warn("the cloud's routes could not be read or written; trying again", "err", err, "request", cloud.RequestOf(err))
	}
	t.err = err
	t.fail(p.cfg.Now(), first, most, cloud.AfterOf(err))
}
