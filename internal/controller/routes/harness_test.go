package routes

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

const (
	cluster = "11111111-aaaa"
	table   = "vtb-1"
)

// bench is a Planner at a clock of the test's own, on a fake cloud.
type bench struct {
	*testing.T
	now   time.Time
	cloud *cloud.Fake
	p     *Planner
	in    Input
	live  func() (Input, error) // nil: what is set
	makes int
	// effective is when what the cloud has taken becomes so; zero: nothing has been.
	effective time.Time
}

func newBench(t *testing.T, nodes int, tables ...cloud.Table) *bench {
	t.Helper()
	if len(tables) == 0 {
		tables = []cloud.Table{{ID: table, Quota: 200}}
	}
	b := &bench{T: t, now: time.Unix(1_000_000, 0), cloud: cloud.NewFake("cn-chengdu", tables...)}
	b.start()
	b.in = Input{Setup: Setup{Provider: "fake"}, Cluster: cluster, Mode: Write}
	for i := range nodes {
		b.in.Wants = append(b.in.Wants, want(i))
	}
	b.in.Nodes = nodes
	b.set()
	return b
}

// start makes a Planner as a new leader does.
func (b *bench) start() {
	b.p = New(Config{
		Make: func(context.Context, Setup) (cloud.Provider, error) { b.makes++; return b.cloud, nil },
		Confirm: func(context.Context) (Input, error) {
			if b.live != nil {
				return b.live()
			}
			return b.in, nil
		},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Now: func() time.Time { return b.now },
	})
	b.p.Set(b.in)
}

// maker makes a Planner see a cloud through something in between.
func (b *bench) maker(p cloud.Provider) func(context.Context, Setup) (cloud.Provider, error) {
	return func(context.Context, Setup) (cloud.Provider, error) { return p, nil }
}

// noMarks is a cloud whose policy lacks the right to change entries.
type noMarks struct{ *cloud.Fake }

func (n noMarks) Routes() cloud.Routes { return n }

func (n noMarks) Apply(ctx context.Context, changes []cloud.RouteChange) ([]cloud.RouteResult, error) {
	var out []cloud.RouteResult
	var allowed []cloud.RouteChange
	for _, c := range changes {
		if c.Replaces != nil {
			out = append(out, cloud.RouteResult{Table: c.Table, Dst: c.Dst, Err: &cloud.Error{Class: cloud.Forbidden, Action: "ModifyRouteEntry", Code: "Forbidden.RAM"}})
			continue
		}
		allowed = append(allowed, c)
		out = append(out, cloud.RouteResult{Table: c.Table, Dst: c.Dst})
	}
	if len(allowed) == 0 {
		return out, nil
	}
	_, err := n.Fake.Apply(ctx, allowed)
	return out, err
}

func (b *bench) set() { b.p.Set(b.in) }

func want(i int) Want {
	return Want{
		Dst: dst(i), Node: fmt.Sprintf("node-%03d", i), UID: fmt.Sprintf("uid-%03d", i), Created: int64(i),
		ProviderID: fmt.Sprintf("cn-chengdu.i-%03d", i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
	}
}

func dst(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244 + byte(i>>8), byte(i), 0}), 24)
}

func instance(i int) string { return fmt.Sprintf("i-%03d", i) }

// entry is one that leads to instance i, marked as the owner's.
func entry(i int, owner string) cloud.RouteEntry {
	return cloud.RouteEntry{Table: table, Dst: dst(i), NextHop: instance(i), Owner: owner}
}

// run steps for a while of the bench's clock.
func (b *bench) run(d time.Duration) {
	b.Helper()
	end := b.now.Add(d)
	for range 100_000 {
		wait := b.p.step(context.Background())
		if wait < 0 {
			b.Fatalf("step asks for a wait of %v", wait)
		}
		if b.now.Add(wait).After(end) {
			b.now = end
			return
		}
		b.now = b.now.Add(wait)
	}
	b.Fatal("the planner does not come to rest")
}

// counts checks how many rows are in which state.
func (b *bench) counts(want map[State]int) {
	b.Helper()
	got := map[State]int{}
	for _, r := range b.p.Status().Rows {
		got[r.State]++
	}
	for state, n := range want {
		if got[state] != n {
			b.Errorf("%d rows are %s, want %d (all: %v)", got[state], state, n, got)
		}
	}
}

func (b *bench) problem(reason string) *Problem {
	for i, p := range b.p.Status().Problems {
		if p.Reason == reason {
			return &b.p.Status().Problems[i]
		}
	}
	return nil
}

func (b *bench) writes() int { return b.cloud.Count("Apply") + b.cloud.Count("Withdraw") }

func (b *bench) has(i int) bool {
	for _, e := range b.cloud.Entries() {
		if e.Dst == dst(i) {
			return true
		}
	}
	return false
}
