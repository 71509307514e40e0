package routes

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// facts are everything that decide depends on.
type facts struct {
	in     Input
	tables []cloud.Table
	real   map[cloud.Key]cloud.RouteEntry // as listed, with what was accepted since
	hops   map[string]hop                 // node -> its instance
	held   map[cloud.Key]held             // entries that the cloud has refused
	full   map[string]fullMark            // tables that were found full
	now    time.Time
}

// hop is the instance that a node is, or why that is not known.
type hop struct{ instance, problem string }

// held is an entry that is not tried again before a time.
type held struct {
	until time.Time
	times int // in a row
	err   error
}

// fullMark is a table that took no more.
type fullMark struct {
	entries int       // how many it had
	until   time.Time // when to try again all the same: somebody may have raised its quota
}

// decision is what should be done, were there no bounds on calls.
type decision struct {
	rows    []Row
	tables  []Table
	add     []cloud.RouteChange // new entries, and marks: these take nothing away
	replace []cloud.RouteChange // own entries that lead elsewhere
	stale   []cloud.RouteEntry  // own entries that nobody wants
}

// decide compares what is wanted with what is there.
func decide(f facts) decision {
	var d decision
	wants := sorted(f.in.Wants)
	wanted := make(map[netip.Prefix]bool, len(wants))
	for _, w := range wants {
		wanted[w.Dst] = true
	}
	for _, t := range f.tables {
		d.decideTable(f, t, wants)
	}
	for key, e := range f.real {
		if e.Owner != f.in.Cluster || wanted[key.Dst] || e.State == cloud.Deleting {
			continue
		}
		if f.in.Release.Has(key.Dst) && e.NextHop != "" {
			d.add = append(d.add, cloud.RouteChange{Table: e.Table, Dst: e.Dst, NextHop: e.NextHop, Replaces: &e})
			continue
		}
		d.stale = append(d.stale, e)
	}
	slices.SortFunc(d.stale, func(a, b cloud.RouteEntry) int { return compareKeys(a.Key(), b.Key()) })
	for _, e := range d.stale {
		d.rows = append(d.rows, Row{Table: e.Table, Dst: e.Dst.String(), NextHop: e.NextHop, Owner: e.Owner, State: Stale, Cloud: e.State,
			Message: "no node owns it any more"})
	}
	if f.in.Mode != Write {
		d.add, d.replace = nil, nil
	}
	return d
}

func (d *decision) decideTable(f facts, t cloud.Table, wants []Want) {
	out := Table{ID: t.ID, Quota: t.Quota, Wanted: len(wants)}
	for key, e := range f.real {
		if key.Table != t.ID {
			continue
		}
		out.Entries++
		if e.Owner == f.in.Cluster {
			out.Ours++
		}
	}
	if mark, known := f.full[t.ID]; known && f.now.Before(mark.until) && (out.Quota == 0 || mark.entries < out.Quota) {
		out.Quota = mark.entries
	}
	left := out.Left()
	for _, w := range wants {
		row, wanting := d.decideOne(f, t.ID, w)
		if wanting && f.in.Mode == Write {
			if left == 0 {
				row.State = OverQuota
				row.Message = fmt.Sprintf("the table is full (%d of %d entries)", out.Entries, out.Quota)
			} else {
				left = max(-1, left-1)
				d.add = append(d.add, cloud.RouteChange{Table: t.ID, Dst: w.Dst, NextHop: row.Instance, Owner: f.in.Cluster})
			}
		}
		if row.State.Good() {
			out.Good++
		}
		d.rows = append(d.rows, row)
	}
	d.tables = append(d.tables, out)
}

// decideOne says what is the case with one destination in one table, and
// whether an entry is to be made now.
func (d *decision) decideOne(f facts, table string, w Want) (row Row, wanting bool) {
	key := cloud.Key{Table: table, Dst: w.Dst}
	h := f.hops[w.Node]
	e, there := f.real[key]
	row = Row{Table: table, Dst: w.Dst.String(), Node: w.Node, Instance: h.instance, NextHop: e.NextHop, Owner: e.Owner, Cloud: e.State}
	refused, isHeld := f.held[key]
	waits := isHeld && f.now.Before(refused.until)
	switch {
	case h.instance == "":
		row.State, row.Message = NoInstance, h.problem
	case !there && isHeld:
		row.State, row.Message = Failed, refused.err.Error()
		return row, !waits
	case !there:
		row.State = Missing
		return row, true
	case e.State == cloud.Deleting:
		row.State, row.Message = Pending, "the entry that was there is being removed"
	case e.NextHop == h.instance:
		d.decideRight(f, e, &row, waits)
	case e.Owner == f.in.Cluster:
		row.State, row.Message = Wrong, "its node is another instance now"
		if isHeld {
			row.State, row.Message = Failed, refused.err.Error()
		}
		if e.State == cloud.Available && !waits {
			d.replace = append(d.replace, cloud.RouteChange{Table: table, Dst: w.Dst, NextHop: h.instance, Owner: f.in.Cluster, Replaces: &e})
		}
	default:
		row.State, row.Message = Conflict, foreign(e, h.instance)
	}
	return row, false
}

// decideRight is decideOne for an entry that leads to the right instance.
func (d *decision) decideRight(f facts, e cloud.RouteEntry, row *Row, waits bool) {
	ours := e.Owner == f.in.Cluster
	switch {
	case e.State != cloud.Available:
		row.State = Pending
		return
	case ours:
		row.State = Published
	default:
		row.State = Used
	}
	remark := cloud.RouteChange{Table: e.Table, Dst: e.Dst, NextHop: e.NextHop, Replaces: &e}
	in := f.in
	switch {
	case waits:
	case ours && in.Release.Has(e.Dst):
		d.add = append(d.add, remark)
	case !ours && !in.Release.Has(e.Dst) && (in.Adopt.Names(e.Dst) || in.Adopt.All && e.Owner == ""):
		remark.Owner = in.Cluster
		d.add = append(d.add, remark)
	}
}

// foreign says whose an entry is that leads elsewhere, and what to do.
func foreign(e cloud.RouteEntry, instance string) string {
	where, whose := "to "+e.NextHop, "has no mark of ours"
	if e.NextHop == "" {
		where = "to a next hop of type " + e.HopType
	}
	if e.Owner != "" {
		whose = "is marked as cluster " + e.Owner + "'s"
	}
	return fmt.Sprintf("route table %s has an entry for %s that leads %s instead of to %s and %s; it is left alone: "+
		"delete it or correct it if nobody needs it, or give the node another range", e.Table, e.Dst, where, instance, whose)
}

func compareKeys(a, b cloud.Key) int {
	if a.Table != b.Table {
		if a.Table < b.Table {
			return -1
		}
		return 1
	}
	return a.Dst.Compare(b.Dst)
}
