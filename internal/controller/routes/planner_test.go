package routes

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

func TestPublishesInBatchesOfFifty(t *testing.T) {
	b := newBench(t, 120)
	b.run(10 * time.Second)
	b.counts(map[State]int{Published: 120, Missing: 0})
	if got := b.cloud.Count("Apply"); got != 3 {
		t.Errorf("%d calls for 120 entries, want 3", got)
	}
	for _, e := range b.cloud.Entries() {
		if e.Owner != cluster {
			t.Fatalf("entry %s is not marked as ours: %q", e.Key(), e.Description)
		}
	}
	if len(b.p.Status().Problems) != 0 {
		t.Errorf("problems: %+v", b.p.Status().Problems)
	}
}

func TestRestartWithNothingToDoWritesNothing(t *testing.T) {
	b := newBench(t, 120)
	b.run(10 * time.Second)
	before := b.writes()
	b.start()
	b.run(10 * time.Minute)
	b.counts(map[State]int{Published: 120})
	if after := b.writes(); after != before {
		t.Errorf("a restart made %d writes", after-before)
	}
}

// runAsync is run on a cloud whose changes take a time of the bench's clock.
func (b *bench) runAsync(total, takes time.Duration) {
	b.Helper()
	b.cloud.Async(true)
	for end := b.now.Add(total); b.now.Before(end); {
		b.settleIfDue()
		next := b.now.Add(max(b.p.step(context.Background()), time.Millisecond))
		if b.effective.IsZero() && b.pendingEntries() > 0 {
			b.effective = b.now.Add(takes)
		}
		if !b.effective.IsZero() && next.After(b.effective) {
			b.now = b.effective
			b.settleIfDue()
		}
		if next.After(end) {
			next = end
		}
		b.now = next
	}
}

func (b *bench) settleIfDue() {
	if !b.effective.IsZero() && !b.now.Before(b.effective) {
		b.cloud.Settle()
		b.effective = time.Time{}
	}
}

func (b *bench) pendingEntries() int {
	n := 0
	for _, e := range b.cloud.Entries() {
		if e.State != cloud.Available {
			n++
		}
	}
	return n
}

// TestCallsPerRoute: all calls that it takes until every route is known to be
// Available, those included that the cloud refuses because a batch is under way
// and a listing's pages, against the least that can do it: a batch for 50
// entries, two calls that show an empty table, and the pages that show it full. The
// bench counts them for 5,000 routes, in the lab's cloud.
func TestCallsPerRoute(t *testing.T) {
	for nodes, delays := range map[int][]time.Duration{
		300:  {300 * time.Millisecond, 2 * time.Second, 2300 * time.Millisecond, 6 * time.Second},
		1000: {300 * time.Millisecond, 2 * time.Second, 2300 * time.Millisecond, 6 * time.Second},
	} {
		for _, takes := range delays {
			t.Run(fmt.Sprintf("%d nodes, %s", nodes, takes), func(t *testing.T) {
				b := newBench(t, nodes, cloud.Table{ID: table, Quota: 2 * nodes})
				start := b.now
				for b.p.Status().Count(Published) < nodes && b.now.Before(start.Add(time.Hour)) {
					b.runAsync(time.Second, takes)
				}
				b.counts(map[State]int{Published: nodes})
				batches, pages := (nodes+cloud.MaxBatch-1)/cloud.MaxBatch, (nodes+99)/100
				calls, least := b.cloud.Count("Apply")+b.listingCalls(), batches+2+pages
				t.Logf("%d calls (%d batches, %d listings) in %s; the least are %d", calls, b.cloud.Count("Apply"), b.cloud.Count("List"), b.now.Sub(start), least)
				// Where all is small, finding out how long a batch takes counts.
				if most := max(least*12/10, least+5); calls > most {
					t.Errorf("%d calls are more than %d", calls, most)
				}
				if took := b.now.Sub(start); took > time.Duration(batches)*takes*3/2+20*time.Second {
					t.Errorf("it took %s", took)
				}
			})
		}
	}
}

// listingCalls counts listings as the real API does: by pages of 100 entries,
// and a second call for an empty table.
func (b *bench) listingCalls() (n int) {
	for _, c := range b.cloud.Calls() {
		if c.Action == "List" {
			n += max(2, (c.Count+99)/100)
		}
	}
	return n
}

func TestQuotaFull(t *testing.T) {
	b := newBench(t, 10, cloud.Table{ID: table, Quota: 7})
	b.cloud.Put(cloud.RouteEntry{Table: table, Dst: cloudPrefix("0.0.0.0/0"), NextHop: "i-nat"})
	b.run(time.Minute)
	b.counts(map[State]int{Published: 6, OverQuota: 4})
	p := b.problem(ReasonTableFull)
	if p == nil || !strings.Contains(p.Message, "4 destinations") {
		t.Fatalf("the full table is not named: %+v", b.p.Status().Problems)
	}
	for i := range 10 {
		if got := b.has(i); got != (i < 6) {
			t.Errorf("node %d has an entry: %v; the older nodes should", i, got)
		}
	}
	t.Run("stable when an older node comes", func(t *testing.T) {
		older := want(50)
		older.Created = -1
		b.in.Wants = append(b.in.Wants, older)
		b.set()
		writes := b.writes()
		b.run(time.Minute)
		if b.has(50) || b.writes() != writes {
			t.Error("an entry was taken from a node that had it")
		}
	})
	t.Run("raised", func(t *testing.T) {
		b.cloud.SetQuota(table, 100)
		b.run(2 * time.Minute)
		b.counts(map[State]int{Published: 11, OverQuota: 0})
	})
}

func TestQuotaThatTheCloudDoesNotSay(t *testing.T) {
	b := newBench(t, 10, cloud.Table{ID: table})
	b.cloud.SetQuota(table, 7)
	// The listing is made to say nothing of the quota.
	b.p.cfg.Make = func(context.Context, Setup) (cloud.Provider, error) { return silentQuota{b.cloud}, nil }
	b.run(5 * time.Minute)
	b.counts(map[State]int{Published: 7, OverQuota: 3})
	if b.problem(ReasonTableFull) == nil {
		t.Error("the full table is not named")
	}
	if n := b.cloud.Count("Apply"); n > 3 {
		t.Errorf("%d calls in five minutes at a full table", n)
	}
	b.cloud.SetQuota(table, 100)
	b.run(15 * time.Minute)
	b.counts(map[State]int{Published: 10, OverQuota: 0})
}

// silentQuota hides the tables' quotas.
type silentQuota struct{ *cloud.Fake }

func (s silentQuota) Routes() cloud.Routes { return s }

func (s silentQuota) List(ctx context.Context) (cloud.Listing, error) {
	l, err := s.Fake.List(ctx)
	for i := range l.Tables {
		l.Tables[i].Quota = 0
	}
	return l, err
}

// CCM's defect 1.6.1: with alicloud:// in the providerID it made and deleted
// the same route for ever.
func TestDefect1ProviderIDPrefix(t *testing.T) {
	b := newBench(t, 2)
	b.in.Wants[1].ProviderID = "fake://cn-chengdu.i-001"
	b.set()
	b.run(time.Hour)
	b.counts(map[State]int{Published: 2})
	if b.cloud.Count("Apply") != 1 {
		t.Errorf("%d writes, want 1", b.cloud.Count("Apply"))
	}
}

func TestNodesWithoutAProviderID(t *testing.T) {
	b := newBench(t, 3)
	b.in.Wants[0].ProviderID = ""
	b.in.Wants[1].ProviderID = ""
	b.in.Wants[2].ProviderID = "ack-hybrid://x"
	b.set()
	b.cloud.AddInstances(cloud.Instance{ID: "i-zero", Addresses: b.in.Wants[0].Addresses})
	b.run(time.Minute)
	b.counts(map[State]int{Published: 1, NoInstance: 2})
	if e := b.cloud.Entries(); len(e) != 1 || e[0].NextHop != "i-zero" {
		t.Errorf("entries: %+v", e)
	}
	b.cloud.AddInstances(cloud.Instance{ID: "i-one", Addresses: b.in.Wants[1].Addresses})
	b.run(10 * time.Minute)
	b.counts(map[State]int{Published: 2, NoInstance: 1})
	t.Run("a providerID that comes later", func(t *testing.T) { // CCM's defect 1.6.7
		b.cloud.AddInstances(cloud.Instance{ID: "i-002"})
		b.in.Wants[2].ProviderID = "cn-chengdu.i-002"
		b.set()
		b.run(time.Second)
		b.counts(map[State]int{Published: 3})
	})
}

func TestInstanceReplaced(t *testing.T) {
	b := newBench(t, 20)
	b.run(10 * time.Second)
	b.in.Wants[3].ProviderID = "cn-chengdu.i-new"
	b.set()
	b.run(10 * time.Second)
	b.counts(map[State]int{Published: 20})
	for _, e := range b.cloud.Entries() {
		if e.Dst == dst(3) && e.NextHop != "i-new" {
			t.Errorf("the entry leads to %s", e.NextHop)
		}
	}
	for i := range b.in.Wants {
		b.in.Wants[i].ProviderID = fmt.Sprintf("cn-chengdu.j-%d", i)
	}
	b.set()
	b.run(time.Hour)
	if b.problem(ReasonWithheld) == nil {
		t.Error("all entries were repointed at once without a word")
	}
}

func TestDeletedByHandComesBack(t *testing.T) {
	b := newBench(t, 5)
	b.run(10 * time.Second)
	b.cloud.Remove(cloud.Key{Table: table, Dst: dst(2)})
	b.p.Look() // a prober has seen it
	b.run(10 * time.Second)
	if !b.has(2) {
		t.Error("not made anew within 10 s of the hint")
	}
	b.cloud.Remove(cloud.Key{Table: table, Dst: dst(2)})
	b.run(time.Minute)
	if !b.has(2) {
		t.Error("not made anew without a hint")
	}
}

func TestLostAnswerIsNotRepeatedBlindly(t *testing.T) {
	b := newBench(t, 60)
	b.cloud.Fail("Apply", cloud.ErrInjected, true)
	b.run(time.Minute)
	b.counts(map[State]int{Published: 60})
	// 50 that were done although the answer was lost, then the other 10.
	var sent []int
	for _, c := range b.cloud.Calls() {
		if c.Action == "Apply" {
			sent = append(sent, c.Count)
		}
	}
	if fmt.Sprint(sent) != "[50 10]" {
		t.Errorf("batches of %v, want [50 10]: what was done was asked for again", sent)
	}
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		err    *cloud.Error
		action string
		reason string
		within time.Duration
		calls  int // in that time, at most
	}{
		"throttled":  {&cloud.Error{Class: cloud.Throttled, Code: "Throttling.User", After: 20 * time.Second}, "Apply", ReasonNoAnswer, 15 * time.Second, 1},
		"forbidden":  {&cloud.Error{Class: cloud.Forbidden, Code: "Forbidden.RAM", Action: "vpc:CreateRouteEntries"}, "Apply", ReasonForbidden, 9 * time.Second, 1},
		"revoked":    {&cloud.Error{Class: cloud.Unauthenticated, Code: "InvalidAccessKeyId.NotFound"}, "List", ReasonCredentials, 4 * time.Second, 1},
		"no answer":  {&cloud.Error{Class: cloud.Lost}, "List", ReasonNoAnswer, 900 * time.Millisecond, 1},
		"bad config": {&cloud.Error{Class: cloud.Permanent, Code: "InvalidRouteTableId.NotFound"}, "List", ReasonSetup, 9 * time.Second, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 3)
			b.cloud.Fail(c.action, c.err, false)
			b.run(c.within)
			if n := b.cloud.Count(c.action); n > c.calls {
				t.Errorf("%d calls of %s within %v", n, c.action, c.within)
			}
			p := b.problem(c.reason)
			if p == nil {
				t.Fatalf("problems %+v, want %s", b.p.Status().Problems, c.reason)
			}
			if c.err.Action != "" && !strings.Contains(p.Message, c.err.Action) {
				t.Errorf("the refused action is not named: %s", p.Message)
			}
			b.run(2 * time.Minute)
			b.counts(map[State]int{Published: 3})
			if len(b.p.Status().Problems) != 0 {
				t.Errorf("still: %+v", b.p.Status().Problems)
			}
		})
	}
}

func TestNewCredentialsAreTakenUp(t *testing.T) {
	b := newBench(t, 1)
	b.cloud.Fail("List", &cloud.Error{Class: cloud.Unauthenticated}, false)
	b.run(time.Minute)
	if b.makes != 2 {
		t.Errorf("the provider was made %d times, want once more after the refusal", b.makes)
	}
}

func TestOneBadEntryDoesNotStopTheOthers(t *testing.T) {
	b := newBench(t, 60)
	b.cloud.AddInstances(cloud.Instance{ID: "i-none"})
	for i := range 59 {
		b.cloud.AddInstances(cloud.Instance{ID: instance(i)})
	}
	b.run(time.Minute)
	b.counts(map[State]int{Published: 59, Failed: 1})
	if p := b.problem(ReasonRefused); p == nil || p.Node != "node-059" {
		t.Errorf("problems: %+v", b.p.Status().Problems)
	}
	t.Run("refused as a whole", func(t *testing.T) {
		b := newBench(t, 60)
		b.p.cfg.Make = func(context.Context, Setup) (cloud.Provider, error) { return spoiled{b.cloud}, nil }
		b.run(time.Minute)
		b.counts(map[State]int{Published: 59, Failed: 1})
	})
}

// spoiled refuses every batch in which node 7's destination is.
type spoiled struct{ *cloud.Fake }

func (s spoiled) Routes() cloud.Routes { return s }

func (s spoiled) Apply(ctx context.Context, changes []cloud.RouteChange) ([]cloud.RouteResult, error) {
	for _, c := range changes {
		if c.Dst == dst(7) {
			return nil, &cloud.Error{Class: cloud.Permanent, Action: "CreateRouteEntries", Code: "InvalidCidrBlock"}
		}
	}
	return s.Fake.Apply(ctx, changes)
}

func TestTwoTables(t *testing.T) {
	b := newBench(t, 4, cloud.Table{ID: table, Quota: 200}, cloud.Table{ID: "vtb-2", Quota: 2})
	b.run(10 * time.Second)
	b.counts(map[State]int{Published: 6, OverQuota: 2})
}

func TestSerial(t *testing.T) {
	b := newBench(t, 20)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	b.p.cfg.Now = time.Now
	go func() { defer close(done); b.p.Run(ctx) }()
	deadline := time.After(10 * time.Second)
	for good := 0; good < 20; _, good = b.p.Status().Wanted() {
		select {
		case <-deadline:
			t.Fatalf("%d of 20 after 10 s: %+v", good, b.p.Status())
		case <-time.After(5 * time.Millisecond):
			b.set()
		}
	}
	cancel()
	<-done
	if b.cloud.Overlapped() {
		t.Error("two changes at the same time")
	}
}

// TestRestartOfALargeCluster: what is as it should be is only read.
func TestRestartOfALargeCluster(t *testing.T) {
	const nodes = 5000
	b := newBench(t, nodes, cloud.Table{ID: table, Quota: 10_000})
	b.run(10 * time.Minute)
	b.counts(map[State]int{Published: nodes})
	before := b.writes()
	b.start()
	b.run(5 * time.Minute)
	if n := b.writes() - before; n != 0 {
		t.Errorf("a restart made %d writes", n)
	}
}

func BenchmarkDecide5000(b *testing.B) {
	f := facts{in: Input{Cluster: cluster, Mode: Write, Nodes: 5000}, tables: []cloud.Table{{ID: table, Quota: 10_000}},
		real: map[cloud.Key]cloud.RouteEntry{}, hops: map[string]hop{}}
	for i := range 5000 {
		w := want(i)
		f.in.Wants = append(f.in.Wants, w)
		f.hops[w.Node] = hop{instance: instance(i)}
		if i%2 == 0 {
			e := entry(i, cluster)
			e.State = cloud.Available
			f.real[e.Key()] = e
		}
	}
	for b.Loop() {
		decide(f)
	}
}
