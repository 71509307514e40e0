package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Fake is a cloud in memory, for tests of what uses one. It keeps to the
// contract and to what is known of the real ones: changes are taken one batch
// at a time, entries are changed in place one at a time, both become effective
// later (Settle), a table takes one entry for a
// destination and no more than its quota, a batch may succeed in part, and
// after a fault on demand the change may or may not have happened.
type Fake struct {
	mu        sync.Mutex
	tables    []Table
	entries   map[Key]RouteEntry
	instances []Instance
	hidden    map[string]bool // instances that no answer shows
	checking  map[string]bool // those whose interface does not forward
	region    string
	async     bool
	faults    []fault
	calls     []Call
	serial    int
	writing   int
	overlap   bool
	findings  []Finding
}

// Call is one call that a Fake has seen.
type Call struct {
	Action string // List, Apply, Withdraw, Instances, Describe, AllowForwarding or Inspect
	Count  int    // of entries or instances in the batch
	Err    error
}

// fault is what happens instead of an answer.
type fault struct {
	action string
	err    error
	commit bool // the change happens all the same
}

var (
	_ Provider  = (*Fake)(nil)
	_ Inspector = (*Fake)(nil)
	_ Routes    = (*Fake)(nil)
	_ Instances = fakeInstances{}
)

// NewFake returns a cloud of one region with empty tables, at once effective.
func NewFake(region string, tables ...Table) *Fake {
	return &Fake{region: region, tables: slices.Clone(tables), entries: map[Key]RouteEntry{}}
}

// Name is the provider's name.
func (f *Fake) Name() string { return "fake" }

// Routes returns the Fake itself.
func (f *Fake) Routes() Routes { return f }

// Instances returns the Fake's machines.
func (f *Fake) Instances() Instances { return fakeInstances{f} }

// Find says what Inspect finds from now on.
func (f *Fake) Find(findings ...Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.findings = findings
}

// Inspect implements Inspector.
func (f *Fake) Inspect(ctx context.Context, instances []string, _ []netip.Prefix) ([]Finding, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if hit, failed := f.begin(ctx, "Inspect", len(instances)); failed {
		return nil, hit.err
	}
	return slices.DeleteFunc(slices.Clone(f.findings), func(x Finding) bool { return !slices.Contains(instances, x.Instance) }), nil
}

// Async makes changes wait for Settle before they are effective; until then
// every further change is refused as passing.
func (f *Fake) Async(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.async = on
}

// Settle makes what is under way effective.
func (f *Fake) Settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle()
}

func (f *Fake) settle() {
	for key, e := range f.entries {
		switch e.State {
		case Deleting:
			delete(f.entries, key)
		case Pending, Modifying:
			e.State = Available
			f.entries[key] = e
		}
	}
}

// Put makes an entry as somebody else does, whatever the rules say. An empty
// State means Available.
func (f *Fake) Put(entries ...RouteEntry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range entries {
		f.put(e)
	}
}

func (f *Fake) put(e RouteEntry) {
	if e.State == "" {
		e.State = Available
	}
	if e.HopType == "" && e.NextHop != "" {
		e.HopType = "Instance"
	}
	if e.Description == "" {
		e.Description = Mark(e.Owner)
	}
	if e.ID == "" {
		f.serial++
		e.ID = fmt.Sprintf("rte-%d", f.serial)
	}
	f.entries[e.Key()] = e
}

// Remove removes an entry as somebody else does.
func (f *Fake) Remove(keys ...Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range keys {
		delete(f.entries, k)
	}
}

// SetQuota changes how many entries a table takes; 0 takes any number and says
// no number.
func (f *Fake) SetQuota(table string, quota int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.tables {
		if f.tables[i].ID == table {
			f.tables[i].Quota = quota
		}
	}
}

// Fail makes the next call of the action (one of Call's; "" for any) fail with err. Calls add up: each fails one call. With commit the
// change happens all the same, as when the answer is lost.
func (f *Fake) Fail(action string, err error, commit bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, fault{action, err, commit})
}

// Entries returns what the tables hold, by table and destination.
func (f *Fake) Entries() []RouteEntry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sorted()
}

// Calls returns the calls so far.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Count returns how many calls of the action there were; "" counts all.
func (f *Fake) Count(action string) int {
	n := 0
	for _, c := range f.Calls() {
		if action == "" || c.Action == action {
			n++
		}
	}
	return n
}

// Overlapped reports whether two changes were ever asked for at the same time,
// which real clouds refuse.
func (f *Fake) Overlapped() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.overlap
}

func (f *Fake) sorted() []RouteEntry {
	out := make([]RouteEntry, 0, len(f.entries))
	for _, e := range f.entries {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b RouteEntry) int {
		if c := strings.Compare(a.Table, b.Table); c != 0 {
			return c
		}
		return a.Dst.Compare(b.Dst)
	})
	return out
}

// begin notes a call and takes the fault that is meant for it.
func (f *Fake) begin(ctx context.Context, action string, count int) (fault, bool) {
	if err := ctx.Err(); err != nil {
		f.calls = append(f.calls, Call{action, count, err})
		return fault{err: &Error{Class: Lost, Action: action, Err: err}}, true
	}
	i := slices.IndexFunc(f.faults, func(x fault) bool { return x.action == "" || x.action == action })
	if i < 0 {
		f.calls = append(f.calls, Call{action, count, nil})
		return fault{}, false
	}
	hit := f.faults[i]
	f.faults = slices.Delete(f.faults, i, i+1)
	f.calls = append(f.calls, Call{action, count, hit.err})
	return hit, hit.err != nil
}

// List is Routes.List.
func (f *Fake) List(ctx context.Context) (Listing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if hit, failed := f.begin(ctx, "List", len(f.entries)); failed {
		return Listing{}, hit.err
	}
	return Listing{Tables: slices.Clone(f.tables), Entries: f.sorted()}, nil
}

// Apply is Routes.Apply. New entries are one call of the cloud's API, and each
// change in place is one: what comes after meets an entry that is being changed.
func (f *Fake) Apply(ctx context.Context, changes []RouteChange) ([]RouteResult, error) {
	return f.write(ctx, "Apply", len(changes), func() []RouteResult {
		out := make([]RouteResult, len(changes))
		for _, inPlace := range []bool{false, true} {
			for i, c := range changes {
				if (c.Replaces != nil) != inPlace {
					continue
				}
				out[i] = RouteResult{Table: c.Table, Dst: c.Dst}
				if inPlace && f.busy() {
					out[i].Err = &Error{Class: Untried, Action: "Apply", Code: "IncorrectStatus.VpcRouteEntry"}
				} else {
					out[i].Err = f.apply(c)
				}
				if inPlace && !f.async {
					f.settle()
				}
			}
			if !f.async {
				f.settle()
			}
		}
		return out
	})
}

// Withdraw is Routes.Withdraw.
func (f *Fake) Withdraw(ctx context.Context, entries []RouteEntry) ([]RouteResult, error) {
	return f.write(ctx, "Withdraw", len(entries), func() []RouteResult {
		out := make([]RouteResult, 0, len(entries))
		for _, e := range entries {
			out = append(out, RouteResult{Table: e.Table, Dst: e.Dst, Err: f.withdraw(e)})
		}
		return out
	})
}

// write is what both kinds of change have in common.
func (f *Fake) write(ctx context.Context, action string, count int, change func() []RouteResult) ([]RouteResult, error) {
	f.enter()
	defer f.leave()
	f.mu.Lock()
	defer f.mu.Unlock()
	hit, failed := f.begin(ctx, action, count)
	if failed && !hit.commit {
		return nil, hit.err
	}
	if count > MaxBatch {
		return nil, &Error{Class: Permanent, Action: action, Code: "InvalidParameter", Message: fmt.Sprintf("%d entries; %d are the most", count, MaxBatch)}
	}
	if f.busy() {
		return nil, &Error{Class: Passing, Action: action, Code: "TaskConflict", Message: "another change is under way"}
	}
	out := change()
	if !f.async {
		f.settle()
	}
	if failed {
		return nil, hit.err
	}
	return out, nil
}

func (f *Fake) enter() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing++
	f.overlap = f.overlap || f.writing > 1
}

func (f *Fake) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing--
}

func (f *Fake) busy() bool {
	for _, e := range f.entries {
		if e.State != Available {
			return true
		}
	}
	return false
}

func (f *Fake) apply(c RouteChange) error {
	refuse := func(class Class, code string) error { return &Error{Class: class, Action: "Apply", Code: code} }
	table := slices.IndexFunc(f.tables, func(t Table) bool { return t.ID == c.Table })
	if table < 0 {
		return refuse(Permanent, "InvalidRouteTableId.NotFound")
	}
	if !c.Dst.IsValid() || c.Dst != c.Dst.Masked() {
		return refuse(Permanent, "InvalidCidrBlock.Malformed")
	}
	if len(f.instances) > 0 && !slices.ContainsFunc(f.instances, func(i Instance) bool { return i.ID == c.NextHop }) {
		return refuse(BadNextHop, "InvalidNextHop.NotFound")
	}
	e := RouteEntry{Table: c.Table, Dst: c.Dst, NextHop: c.NextHop, HopType: "Instance", Owner: c.Owner, Description: Mark(c.Owner)}
	there, exists := f.entries[c.Key()]
	switch {
	case c.Replaces == nil && exists:
		return refuse(Conflict, "InvalidCIDRBlock.Duplicate")
	case c.Replaces == nil:
		if quota := f.tables[table].Quota; quota > 0 && f.countIn(c.Table) >= quota {
			return refuse(Quota, "QuotaExceeded")
		}
		e.State = Pending
	case !exists || there.ID != c.Replaces.ID:
		return refuse(Conflict, "InvalidRouteEntry.NotFound")
	default:
		e.ID, e.State = there.ID, Modifying
	}
	f.put(e)
	return nil
}

func (f *Fake) withdraw(e RouteEntry) error {
	there, exists := f.entries[e.Key()]
	if !exists || there.NextHop != e.NextHop {
		return nil // gone: nothing to do
	}
	there.State = Deleting
	f.entries[e.Key()] = there
	return nil
}

func (f *Fake) countIn(table string) int {
	n := 0
	for key := range f.entries {
		if key.Table == table {
			n++
		}
	}
	return n
}

// ErrInjected is an error for Fail that tells nothing of what was done.
var ErrInjected = &Error{Class: Lost, Action: "Fake", Err: errors.New("injected")}
