package routes

import (
	"context"
	"fmt"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// repoint makes every node another instance, and says that this is meant.
func (b *bench) repoint() {
	for i := range b.in.Wants {
		b.in.Wants[i].ProviderID = fmt.Sprintf("cn-chengdu.j-%03d", i)
	}
	b.set()
	b.run(time.Second)
	b.in.Confirmed = b.p.Status().Token
	b.set()
}

// TestManyEntriesLeadElsewhere: the cloud changes one entry at a time, and nobody
// is to blame for having to wait.
func TestManyEntriesLeadElsewhere(t *testing.T) {
	const nodes, takes = 40, time.Second
	b := newBench(t, nodes)
	b.run(10 * time.Second)
	b.repoint()
	start, before, listings := b.now, b.writes(), b.cloud.Count("List")
	for b.p.Status().Count(Published) < nodes && b.now.Before(start.Add(time.Hour)) {
		b.runAsync(time.Second, takes)
		if p := b.problem(ReasonRefused); p != nil {
			t.Fatalf("after %s: %+v", b.now.Sub(start), p)
		}
	}
	b.counts(map[State]int{Published: nodes})
	if took, calls := b.now.Sub(start), b.writes()-before; took > 2*nodes*takes || calls > 2*nodes {
		t.Errorf("%d entries took %s and %d calls", nodes, took, calls)
	}
	if n := b.cloud.Count("List") - listings; n > 5 {
		t.Errorf("the tables were listed %d times while nothing but that was going on", n)
	}
}

// scripted is a cloud whose Apply is the test's own.
type scripted struct {
	*cloud.Fake
	apply func(changes []cloud.RouteChange) ([]cloud.RouteResult, error)
}

func (s scripted) Routes() cloud.Routes { return s }

func (s scripted) Apply(_ context.Context, changes []cloud.RouteChange) ([]cloud.RouteResult, error) {
	return s.apply(changes)
}

// TestEverythingIsRefused: what is wrong with the call, not with an entry, is found
// out by a few entries and not by all.
func TestEverythingIsRefused(t *testing.T) {
	b := newBench(t, 1000, cloud.Table{ID: table})
	calls, denied := 0, true
	b.p.cfg.Make = b.maker(scripted{b.cloud, func(changes []cloud.RouteChange) ([]cloud.RouteResult, error) {
		if calls++; denied {
			return nil, &cloud.Error{Class: cloud.Permanent, Action: "CreateRouteEntries", Code: "OperationDenied"}
		}
		return b.cloud.Apply(b.Context(), changes)
	}})
	b.run(10 * time.Minute)
	if calls > 20 || b.problem(ReasonSetup) == nil {
		t.Errorf("%d calls in ten minutes, %d problems", calls, len(b.p.Status().Problems))
	}
	denied, calls = false, 0
	b.run(20 * time.Minute)
	b.counts(map[State]int{Published: 1000})
	if calls > 40 {
		t.Errorf("%d calls for 1000 entries: the batches have not recovered", calls)
	}
	if p := b.p.Status().Problems; len(p) != 0 {
		t.Errorf("problems: %+v", p)
	}
}

// TestSeveralBadEntries: those that are refused one by one do not hide the good
// ones behind them.
func TestSeveralBadEntries(t *testing.T) {
	b := newBench(t, 60)
	b.p.cfg.Make = b.maker(scripted{b.cloud, func(changes []cloud.RouteChange) ([]cloud.RouteResult, error) {
		for _, c := range changes {
			if c.Dst.Addr().Less(dst(6).Addr()) {
				return nil, &cloud.Error{Class: cloud.Permanent, Action: "CreateRouteEntries", Code: "InvalidCidrBlock"}
			}
		}
		return b.cloud.Apply(b.Context(), changes)
	}})
	b.run(10 * time.Minute)
	b.counts(map[State]int{Published: 54})
}

// TestReleaseOfAnUnwantedEntryThatIsRefused is paced like any other change, and
// can be seen.
func TestReleaseOfAnUnwantedEntryThatIsRefused(t *testing.T) {
	b := newBench(t, 30)
	b.cloud.Put(entry(100, cluster), entry(101, cluster))
	b.in.Release = ParseSelection(dst(100).String() + "," + dst(101).String())
	calls := 0
	b.p.cfg.Make = b.maker(scripted{b.cloud, func(changes []cloud.RouteChange) ([]cloud.RouteResult, error) {
		calls++
		return noMarks{b.cloud}.Apply(b.Context(), changes)
	}})
	b.set()
	b.run(5 * time.Minute)
	if calls > 15 {
		t.Errorf("%d calls in five minutes", calls)
	}
	b.counts(map[State]int{Published: 30, Stale: 2})
	if b.problem(ReasonForbidden) == nil {
		t.Errorf("problems: %+v", b.p.Status().Problems)
	}
}

// TestRemovalThatIsRefused: an entry that the cloud keeps is not asked for all the
// time.
func TestRemovalThatIsRefused(t *testing.T) {
	b := newBench(t, 30)
	b.run(10 * time.Second)
	b.in.Wants = b.in.Wants[:29]
	b.p.cfg.Make = b.maker(keeps{b.cloud})
	b.start()
	b.p.cfg.Make = b.maker(keeps{b.cloud})
	b.run(30 * time.Minute)
	if n := b.cloud.Count("Withdraw"); n > 15 {
		t.Errorf("%d calls in half an hour", n)
	}
}

// keeps is a cloud that withdraws nothing.
type keeps struct{ *cloud.Fake }

func (k keeps) Routes() cloud.Routes { return k }

func (k keeps) Withdraw(ctx context.Context, entries []cloud.RouteEntry) ([]cloud.RouteResult, error) {
	results, err := k.Fake.Withdraw(ctx, nil)
	for _, e := range entries {
		results = append(results, cloud.RouteResult{Table: e.Table, Dst: e.Dst, Err: &cloud.Error{Class: cloud.Permanent, Action: "DeleteRouteEntries", Code: "OperationDenied"}})
	}
	return results, err
}

// TestHoldIsOfItsNextHop: the right instance does not wait for what was said of the
// wrong one.
func TestHoldIsOfItsNextHop(t *testing.T) {
	b := newBench(t, 3)
	b.cloud.AddInstances(cloud.Instance{ID: instance(0)}, cloud.Instance{ID: instance(1)})
	b.run(30 * time.Minute)
	b.counts(map[State]int{Published: 2, Failed: 1})
	b.cloud.AddInstances(cloud.Instance{ID: "i-good"})
	b.in.Wants[2].ProviderID = "cn-chengdu.i-good"
	b.set()
	b.run(2 * time.Second)
	b.counts(map[State]int{Published: 3})
}

// TestWhatPassesIsNoRefusal: an entry that the cloud puts off for a moment is
// nothing to tell a person of, until it has been put off several times.
func TestWhatPassesIsNoRefusal(t *testing.T) {
	b := newBench(t, 3)
	b.p.cfg.Make = b.maker(scripted{b.cloud, func(changes []cloud.RouteChange) (out []cloud.RouteResult, _ error) {
		for _, c := range changes {
			out = append(out, cloud.RouteResult{Table: c.Table, Dst: c.Dst, Err: &cloud.Error{Class: cloud.Passing, Action: "CreateRouteEntries", Code: "VPC_ROUTE_ENTRY_STATUS_ERROR"}})
		}
		return out, nil
	}})
	b.run(2 * time.Second)
	b.counts(map[State]int{Missing: 3})
	if p := b.p.Status().Problems; len(p) != 0 {
		t.Errorf("problems: %+v", p)
	}
	b.run(time.Minute)
	b.counts(map[State]int{Failed: 3})
	if b.problem(ReasonRefused) == nil {
		t.Error("not told of after a minute")
	}
}

// TestWithoutTheRightToModify: one entry that cannot be changed holds up no
// creation.
func TestWithoutTheRightToModify(t *testing.T) {
	b := newBench(t, 30)
	b.p.cfg.Make = b.maker(noMarks{b.cloud})
	b.run(10 * time.Second)
	b.in.Wants[3].ProviderID = "cn-chengdu.i-new"
	b.set()
	b.run(26 * time.Minute)
	b.in.Wants = append(b.in.Wants, want(60))
	b.set()
	b.run(3 * time.Second)
	if !b.has(60) {
		t.Error("a new node's route waits for a right that it does not need")
	}
	if p := b.p.Status().Problems; len(p) != 1 || p[0].Reason != ReasonForbidden {
		t.Errorf("problems: %+v", p)
	}
}

// TestRightsThatAreGiven: as soon as it is known that nothing is refused any more,
// what was refused is tried again.
func TestRightsThatAreGiven(t *testing.T) {
	b := newBench(t, 30)
	denied := true
	b.p.cfg.Make = b.maker(scripted{b.cloud, func(changes []cloud.RouteChange) ([]cloud.RouteResult, error) {
		if denied {
			return noMarks{b.cloud}.Apply(b.Context(), changes)
		}
		return b.cloud.Apply(b.Context(), changes)
	}})
	b.run(10 * time.Second)
	b.in.Wants[3].ProviderID = "cn-chengdu.i-new"
	b.set()
	b.run(26 * time.Minute)
	denied, b.in.Allowed = false, true
	b.set()
	b.run(3 * time.Second)
	b.leadsTo(3, "i-new")
}
