package routes

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// facts are everything that decide depends on.
type facts struct {
	in     Input
	tables []cloud.Table
	real   map[cloud.Key]cloud.RouteEntry // as listed, with what was accepted since
	hops   map[string]hop                 // node -> its instance
	held   map[cloud.Key]held             // entries that the cloud has refused
	full   map[string]fullMark            // tables that were found full
	absent map[cloud.Key]time.Time        // wanted entries that were not listed -> since when
	now    time.Time
}

// hop is the instance that a node is, or why that is not known.
type hop struct{ instance, problem string }

// held is a change of an entry that is not tried again before a time.
type held struct {
	what  string // changeOf or removalOf: another change of the entry may go
	until time.Time
	times int // in a row
	err   error
}

// severalTries is how often what passes by itself is tried before it is told.
const severalTries = 4

// lasting says that time alone has not mended it, or will not.
func (h held) lasting() bool {
	return h.times >= severalTries || !cloud.ClassOf(h.err).Passes() && !cloud.Is(h.err, cloud.Conflict)
}

// changeOf says what a change makes of its entry.
func changeOf(hop, owner string) string { return "to " + hop + " of " + owner }

func removalOf(e cloud.RouteEntry) string { return "away from " + e.NextHop }

// hold returns why just this change is held back, and whether it still is.
func (f *facts) hold(key cloud.Key, what string) (h held, known, waits bool) {
	h, known = f.held[key]
	known = known && h.what == what
	return h, known, known && f.now.Before(h.until)
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
	add     []cloud.RouteChange            // new entries, and marks: these take nothing away
	replace []cloud.RouteChange            // own entries that lead elsewhere
	waiting map[cloud.Key]bool             // those of replace that cannot be changed now
	stale   []cloud.RouteEntry             // own entries that nobody wants
	foreign []cloud.RouteEntry             // those of others in the pod network that nobody wants
	shadows map[cloud.Key]cloud.RouteEntry // wanted entry -> a narrower one that leads elsewhere
	// diverted are the single addresses that have an entry, in whatever state: of ours,
	// or of Input.Diverted. singles counts ours.
	diverted []netip.Addr
	singles  int
}

// decide compares what is wanted with what is there.
func decide(f facts) decision {
	d := decision{shadows: map[cloud.Key]cloud.RouteEntry{}, waiting: map[cloud.Key]bool{}}
	wants := sorted(f.in.Wants)
	d.sortUnwanted(f, wants)
	for _, t := range f.tables {
		d.decideTable(f, t, wants)
	}
	for _, e := range d.stale {
		d.rows = append(d.rows, unwantedRow(e, Stale, "no node owns it any more"))
	}
	for _, e := range d.foreign {
		d.rows = append(d.rows, unwantedRow(e, Foreign, "it is somebody else's, and no node owns its destination: see whether it was forgotten"))
	}
	if f.in.Mode != Write && f.in.Mode != Withdraw {
		d.add, d.replace = nil, nil
	}
	return d
}

// sortUnwanted finds the entries that nobody wants: ours, which are stale or
// to be let go, those of others, and those of either that lead a part of what
// is wanted elsewhere.
func (d *decision) sortUnwanted(f facts, wants []Want) {
	wanted := newWantTree(wants)
	for key, e := range f.real {
		d.noteSingle(f, wanted, e)
		diverts := f.in.diverts(key.Dst)
		if wanted.has(key.Dst) || e.State == cloud.Deleting {
			continue
		}
		if w, inside := wanted.around(key.Dst); inside && f.hops[w.Node].instance != e.NextHop && (!diverts || e.Owner != f.in.Cluster) {
			d.shadow(cloud.Key{Table: key.Table, Dst: w.Dst}, e)
		} else if inside {
			d.leadHome(f, e, f.hops[w.Node].instance)
		}
		switch {
		case e.Owner != f.in.Cluster:
			if cidr.CoveredByAny(f.in.PodCIDRs, key.Dst) {
				d.foreign = append(d.foreign, e)
			}
		case f.in.releases(key.Dst) && e.NextHop != "":
			d.letGo(f, e)
		default:
			d.stale = append(d.stale, e)
		}
	}
	byKey := func(a, b cloud.RouteEntry) int { return compareKeys(a.Key(), b.Key()) }
	slices.SortFunc(d.stale, byKey)
	slices.SortFunc(d.foreign, byKey)
	slices.SortFunc(d.diverted, netip.Addr.Compare)
	d.diverted = slices.Compact(d.diverted)
}

// noteSingle takes in an entry for one address that is no range: one of ours that the
// ClusterNetwork's status has forgotten is to be in it again.
func (d *decision) noteSingle(f facts, wanted wantTree, e cloud.RouteEntry) {
	if w := wanted.wants[e.Dst]; !e.Dst.IsSingleIP() || w != nil && !w.Single || !cidr.CoveredByAny(f.in.PodCIDRs, e.Dst) {
		return
	}
	ours := e.Owner == f.in.Cluster
	if ours {
		d.singles++
	}
	if ours || f.in.diverts(e.Dst) {
		d.diverted = append(d.diverted, e.Dst.Addr())
	}
}

// leadHome has an own entry for a single address, which nobody wants, lead where the
// range around it does until it is removed: the address may be there again.
func (d *decision) leadHome(f facts, e cloud.RouteEntry, instance string) {
	if e.Owner != f.in.Cluster || instance == "" || e.NextHop == instance || !f.in.diverts(e.Dst) || f.in.releases(e.Dst) {
		return
	}
	_, _, waits := f.hold(e.Key(), changeOf(instance, f.in.Cluster))
	d.replace = append(d.replace, cloud.RouteChange{Table: e.Table, Dst: e.Dst, NextHop: instance, Owner: f.in.Cluster, Replaces: &e})
	d.waiting[e.Key()] = waits || e.State != cloud.Available
}

// letGo takes the mark from an entry that nobody wants, which stays in the table.
func (d *decision) letGo(f facts, e cloud.RouteEntry) {
	message := "no node owns it any more; it is released as asked for, and stays in the table"
	h, known, waits := f.hold(e.Key(), changeOf(e.NextHop, ""))
	if known {
		message += fmt.Sprintf(" (%v)", h.err)
	}
	d.rows = append(d.rows, unwantedRow(e, Stale, message))
	if !waits && e.State == cloud.Available {
		d.add = append(d.add, cloud.RouteChange{Table: e.Table, Dst: e.Dst, NextHop: e.NextHop, Replaces: &e})
	}
}

// shadow keeps the first of several entries that shadow one.
func (d *decision) shadow(under cloud.Key, e cloud.RouteEntry) {
	if other, known := d.shadows[under]; !known || compareKeys(e.Key(), other.Key()) < 0 {
		d.shadows[under] = e
	}
}

func unwantedRow(e cloud.RouteEntry, state State, message string) Row {
	return Row{key: e.Key(), Table: e.Table, Dst: e.Dst.String(), NextHop: e.NextHop, Owner: e.Owner, State: state, Cloud: e.State, Message: message}
}

func (d *decision) decideTable(f facts, t cloud.Table, wants []Want) {
	out := Table{ID: t.ID, Quota: t.Quota}
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
		if !w.Single { // by which no pod is reached
			out.Wanted++
			if row.State.Good() {
				out.Good++
			}
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
	row = Row{key: key, Table: table, Dst: w.Dst.String(), Node: w.Node, Instance: h.instance, NextHop: e.NextHop, Owner: e.Owner, Cloud: e.State, Single: w.Single}
	refused, isHeld, waits := f.hold(key, changeOf(h.instance, f.in.Cluster))
	switch {
	case h == hop{}:
		row.State, row.Message = Missing, "its node's instance has not been looked for yet"
	case h.instance == "":
		row.State, row.Message = NoInstance, h.problem
	case !there && isHeld:
		row.fail(refused, Missing)
		return row, !waits
	case !there:
		row.State = Missing
		since, known := f.absent[key]
		row.late = known && f.now.Sub(since) >= externalPatience
		return row, true
	case e.State == cloud.Deleting:
		row.State, row.Message = Pending, "the entry that was there is being removed"
	case e.NextHop == h.instance:
		d.decideRight(f, e, &row)
	case e.Owner == f.in.Cluster:
		row.State, row.Message = Wrong, "its node is another instance now"
		if isHeld {
			row.fail(refused, Wrong)
		}
		d.replace = append(d.replace, cloud.RouteChange{Table: table, Dst: w.Dst, NextHop: h.instance, Owner: f.in.Cluster, Replaces: &e})
		d.waiting[key] = waits || e.State != cloud.Available
	default:
		row.State, row.Message = Conflict, foreign(e, h.instance)
	}
	if e, shadowed := d.shadows[key]; shadowed && row.State.Good() {
		row.State, row.Message = Shadowed, shadowing(f.in, e, w)
		row.mends = e.Owner == f.in.Cluster
	}
	return row, false
}

// externalPatience is how long another program may take for an entry before a
// person is told. The vendor's route controller answers events within seconds.
const externalPatience = time.Minute

// fail says what the cloud has answered. While that may pass, the row keeps the
// state that it has without.
func (r *Row) fail(h held, state State) {
	r.State, r.Message = state, h.err.Error()
	if h.lasting() {
		r.State = Failed
		r.denied = cloud.Is(h.err, cloud.Forbidden, cloud.Unauthenticated)
	}
}

// shadowing says what leads a part of a destination elsewhere.
func shadowing(in Input, e cloud.RouteEntry, w Want) string {
	text := fmt.Sprintf("route table %s also has an entry for %s, which is a part of %s and leads to %s instead of to node %s", e.Table, e.Dst, w.Dst,
		hopOf(e), w.Node)
	if e.Owner == in.Cluster {
		return text + "; it is this cluster's own, and is withdrawn once that is confirmed"
	}
	return text + "; it is not this cluster's and is left alone: delete it if nobody needs it"
}

// hopOf is where an entry leads, for a sentence.
func hopOf(e cloud.RouteEntry) string {
	if e.NextHop == "" {
		return "a next hop of type " + e.HopType
	}
	return e.NextHop
}

// decideRight is decideOne for an entry that leads to the right instance.
func (d *decision) decideRight(f facts, e cloud.RouteEntry, row *Row) {
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
	case ours && in.releases(e.Dst):
	case !ours && in.adopts(e):
		remark.Owner = in.Cluster
	default:
		return
	}
	if _, _, waits := f.hold(e.Key(), changeOf(e.NextHop, remark.Owner)); !waits {
		d.add = append(d.add, remark)
	}
}

// foreign says whose an entry is that leads elsewhere, and what to do.
func foreign(e cloud.RouteEntry, instance string) string {
	whose := "has no mark of ours"
	if e.Owner != "" {
		whose = "is marked as cluster " + e.Owner + "'s"
	}
	return fmt.Sprintf("route table %s has an entry for %s that leads to %s instead of to %s and %s; it is left alone: "+
		"delete it or correct it if nobody needs it, or give the node another range", e.Table, e.Dst, hopOf(e), instance, whose)
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
