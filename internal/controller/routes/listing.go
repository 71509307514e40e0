package routes

import (
	"context"
	"fmt"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// mustList says whether it is time to look at the tables. While a batch becomes
// effective only a hint is a reason: what is Pending would be read again.
func (p *Planner) mustList(now time.Time) bool {
	if p.look || p.takeHint(now) {
		return true
	}
	if !p.lookAt.IsZero() {
		return !now.Before(p.lookAt)
	}
	due := p.guard.due(p.cfg.StaleAfter)
	return !now.Before(p.listed.Add(p.resync())) ||
		!due.IsZero() && p.listed.Before(due) && !now.Before(due)
}

// pages is how many calls a listing takes, about.
func (p *Planner) pages() int { return 1 + len(p.real)/100 }

// effective is how long after the last batch it is known to have become
// effective: a listing that comes too soon is made again, which is many calls
// where the table is large, and there nobody minds another moment.
func (p *Planner) effective() time.Duration {
	settle := p.pace.settle
	if p.pages() == 1 {
		return settle
	}
	return settle*3/2 + time.Duration(p.pages())*50*time.Millisecond
}

// resync grows with the table: one listing of 5,000 entries is fifty calls. It
// grows more while batches are being sent, whose answers tell enough.
func (p *Planner) resync() time.Duration {
	every := max(p.cfg.Resync, time.Duration(len(p.real)/100)*p.cfg.PerPage)
	if p.sending {
		every *= 10
	}
	return every
}

func (p *Planner) list(ctx context.Context, in Input) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.CallTimeout)
	defer cancel()
	begun := p.cfg.Now()
	listing, err := p.provider.Routes().List(ctx)
	if err != nil {
		return fmt.Errorf("list the route tables: %w", err)
	}
	p.tables = listing.Tables
	p.real = make(map[cloud.Key]cloud.RouteEntry, len(listing.Entries))
	moving := false
	for _, e := range listing.Entries {
		p.real[e.Key()] = e
		moving = moving || e.State != cloud.Available && e.Owner == in.Cluster
	}
	now := p.cfg.Now()
	p.listed, p.begun, p.look, p.lookAt = now, begun, false, time.Time{}
	if moving {
		p.lookAt = now.Add(min(30*time.Second, p.pace.settle<<min(p.looks, 8)))
		p.looks++
	} else {
		p.looks = 0
	}
	p.forget(now)
	d := p.compare(in)
	p.guard.note(d.stale, now)
	p.noteAbsent(d, now)
	return nil
}

// noteAbsent takes in which wanted entries a new listing did not have.
func (p *Planner) noteAbsent(d decision, now time.Time) {
	next := map[cloud.Key]time.Time{}
	for i := range d.rows {
		if key := d.rows[i].key; d.rows[i].State == Missing {
			next[key] = now
			if since, known := p.absent[key]; known {
				next[key] = since
			}
		}
	}
	p.absent = next
}

// forget gives a table that was found full another chance once it holds fewer
// entries, and drops refusals that nothing came after.
func (p *Planner) forget(now time.Time) {
	for table, mark := range p.full {
		if p.countIn(table) < mark.entries {
			delete(p.full, table)
		}
	}
	for key, h := range p.held {
		if now.After(h.until.Add(longestHold)) {
			delete(p.held, key)
		}
	}
}
