package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/agent/lease"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// leaserBench is a leaser with a book and an API server, and nothing else: the
// test is the node loop. Time is the bubble's.
type leaserBench struct {
	t      *testing.T
	api    *fakeAPI
	client *fakeClient
	book   *addresses.Book
	leaser *leaser
	done   chan struct{}
}

func newLeaserBench(t *testing.T) *leaserBench {
	t.Helper()
	dir := t.TempDir()
	book, err := addresses.Open(addresses.Options{JournalPath: dir + "/journal", TombstoneDir: dir + "/t", SandboxDir: dir + "/s",
		HostLocalDir: dir + "/h", BootPath: dir + "/boot", BootID: "b", Kernel: &fakeKernel{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	api := newFakeAPI()
	api.addNode("a")
	cfg := &Config{NodeName: "a", Log: slog.New(slog.DiscardHandler)}
	cfg.Defaults()
	b := &leaserBench{t: t, api: api, client: api.client("a"), book: book, done: make(chan struct{}, 1)}
	b.leaser = newLeaser(b.client, book, cfg, newMetrics(), func() { notify(b.done) }, func(kube.Lease) {})
	return b
}

// run runs the leaser, and a node loop that does what the leaser needs of it.
func (b *leaserBench) run(ctx context.Context) {
	go b.leaser.run(ctx)
	go func() {
		for {
			b.leaser.begin()
			if v, err := b.client.View(); err == nil {
				ranges := rangesOf(v.Snapshot, b.sources(v))
				b.book.SetRanges(ranges)
				b.leaser.see(v, b.sources(v), &pools{})
				b.leaser.wrote(prefixesOf(b.book.Lasting(ranges)))
			}
			select {
			case <-ctx.Done():
				return
			case <-b.done:
			case <-time.After(30 * time.Second):
			}
		}
	}()
}

func (b *leaserBench) sources(v kube.View) []netip.Addr {
	if blocks := self(v.Snapshot).Blocks; len(blocks) > 0 {
		return []netip.Addr{plan.SourceOf(blocks[0])}
	}
	return nil
}

// pods makes the node have n pods.
func (b *leaserBench) pods(from, to int) {
	b.t.Helper()
	for i := from; i < to; i++ {
		if _, err := b.book.Allocate(ipam.Key{Network: "n", ContainerID: fmt.Sprint(i), IfName: "eth0"}, ipam.Owner{}, []ipam.Want{{Family: ipam.IPv4}}, ""); err != nil {
			b.t.Fatalf("pod %d: %v", i, err)
		}
		b.leaser.more()
		if i%8 == 0 {
			time.Sleep(time.Second)
		}
	}
	time.Sleep(time.Minute)
	synctest.Wait()
}

func (b *leaserBench) noPods(from, to int) {
	b.t.Helper()
	for i := from; i < to; i++ {
		if err := b.book.Release(ipam.Key{Network: "n", ContainerID: fmt.Sprint(i), IfName: "eth0"}); err != nil {
			b.t.Fatal(err)
		}
	}
	time.Sleep(time.Minute)
	synctest.Wait()
}

// TestLeasesFollowNeed: blocks are leased before they are needed, lie beside one
// another, and go back after they were empty for ten minutes, but for the one
// that the node's own address is of.
func TestLeasesFollowNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaserBench(t)
		defer b.book.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b.run(ctx)
		time.Sleep(time.Second)
		synctest.Wait()
		first := b.api.leasesOf("a")
		if len(first) != 1 {
			t.Fatalf("leases at the start: %v", first)
		}
		b.pods(0, 110)
		many := b.api.leasesOf("a")
		if len(many) != 4 {
			t.Fatalf("110 pods, leases %v, want four blocks of 62", many)
		}
		if len(cidr.Aggregate(many)) != 1 {
			t.Errorf("the blocks %v do not aggregate", many)
		}
		b.noPods(0, 110)
		time.Sleep(lease.EmptyFor - 4*time.Minute)
		synctest.Wait()
		if got := b.api.leasesOf("a"); len(got) != 4 {
			t.Errorf("given back too early: %v", got)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := b.api.leasesOf("a"); !slices.Equal(got, first) {
			t.Errorf("in the end the node has %v, want %v", got, first)
		}
	})
}

// TestLeaseRace: another node is faster, and the API server fails now and then.
func TestLeaseRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaserBench(t)
		defer b.book.Close()
		v, err := b.client.View()
		if err != nil {
			t.Fatal(err)
		}
		// The view is old: what it would choose is another's by now.
		d := lease.Decide(b.leaser.input(newLeaseView(v, nil, &pools{})))
		b.api.change(func(a *fakeAPI) {
			a.leases = append(a.leases, kube.Lease{Prefix: d.Claim[0], Node: "b", NodeUID: "uid-b"})
		})
		b.leaser.begin()
		b.leaser.see(v, nil, &pools{})
		if err := b.leaser.step(t.Context()); !kube.IsTaken(err) {
			t.Fatalf("got %v, want that it is taken", err)
		}
		b.api.change(func(a *fakeAPI) { a.down = true })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b.run(ctx)
		time.Sleep(time.Minute)
		b.api.change(func(a *fakeAPI) { a.down = false })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := b.api.leasesOf("a"); len(got) != 1 || got[0] == d.Claim[0] {
			t.Errorf("leases: %v", got)
		}
	})
}

// newBlockBench has a node that holds one block.
func newBlockBench(t *testing.T) (*leaserBench, netip.Prefix) {
	b := newLeaserBench(t)
	block := netip.MustParsePrefix("10.244.0.0/26")
	b.api.change(func(a *fakeAPI) { a.leases = []kube.Lease{{Prefix: block, Node: "a", NodeUID: "uid-a"}} })
	b.book.SetRanges([]ipam.Range{ipam.RangeFor(block, ipam.Block)})
	return b, block
}

// TestNeededAfterAll: a block that was withdrawn and not given back yet is given from
// again when it is needed; one whose release was asked for, and may have been done,
// is given back whatever is decided by then.
func TestNeededAfterAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, block := newBlockBench(t)
		defer b.book.Close()
		in := lease.Input{Leases: []lease.Lease{{Prefix: block, Mine: true}}}
		release := func() error {
			changed := false
			return b.leaser.do(t.Context(), lease.Decision{Release: []netip.Prefix{block}}, &changed)
		}
		decided := func(d lease.Decision) (kept bool, release []netip.Prefix) {
			return b.leaser.keep(in, &d), d.Release
		}
		// No state file was written since: the block waits for that.
		if err := release(); err != nil || !b.book.IsWithdrawn(block) || len(b.api.leasesOf("a")) != 1 {
			t.Fatalf("the first step of a release: %v, leases %v", err, b.api.leasesOf("a"))
		}
		if kept, _ := decided(lease.Decision{Release: []netip.Prefix{block}}); kept || !b.book.IsWithdrawn(block) {
			t.Error("a block that is still to be released is given from again")
		}
		if kept, _ := decided(lease.Decision{}); !kept || b.book.IsWithdrawn(block) {
			t.Error("a block that is needed after all is not given from")
		}
		b.leaser.wrote([]netip.Prefix{})
		b.api.change(func(a *fakeAPI) { a.down = true })
		if err := release(); err == nil {
			t.Fatal("the API server was down")
		}
		b.api.change(func(a *fakeAPI) { a.down = false })
		kept, again := decided(lease.Decision{})
		if kept || !slices.Equal(again, []netip.Prefix{block}) || !b.book.IsWithdrawn(block) {
			t.Errorf("a block that may have been given back: kept %t, to be released %v", kept, again)
		}
		if err := release(); err != nil || len(b.api.leasesOf("a")) != 0 {
			t.Errorf("released in the end: %v, leases %v", err, b.api.leasesOf("a"))
		}
	})
}

// leasesWatched is a leaseAPI that tells of releases.
type leasesWatched struct {
	leaseAPI
	released func()
}

func (l leasesWatched) ReleaseBlock(ctx context.Context, block netip.Prefix) error {
	err := l.leaseAPI.ReleaseBlock(ctx, block)
	l.released()
	return err
}

// TestReleasedWhileTheLoopLooks: what was given back is not given from again, though
// the node loop looked at the leases while it was: of several blocks that go together it
// saw some.
func TestReleasedWhileTheLoopLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaserBench(t)
		defer b.book.Close()
		var blocks []netip.Prefix
		for i := range 8 {
			blocks = append(blocks, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i / 4), byte(i%4) * 64}), 26))
		}
		b.api.change(func(a *fakeAPI) {
			for _, p := range blocks {
				a.leases = append(a.leases, kube.Lease{Prefix: p, Node: "a", NodeUID: "uid-a"})
			}
		})
		var during kube.View
		look := func() kube.View {
			b.leaser.begin()
			v, err := b.client.View()
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		b.leaser.api = leasesWatched{b.client, func() {
			if len(b.api.leasesOf("a")) == 7 {
				during = look()
			}
		}}
		pass := func(v kube.View) {
			t.Helper()
			ranges := rangesOf(v.Snapshot, b.sources(v))
			b.book.SetRanges(ranges)
			b.leaser.see(v, b.sources(v), &pools{})
			b.leaser.wrote(prefixesOf(b.book.Lasting(ranges)))
			if err := b.leaser.step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		pass(look())
		for i := range 4 { // one pod in each of the first four
			a := plan.SourceOf(blocks[i]).Next()
			if _, err := b.book.Allocate(ipam.Key{Network: "n", ContainerID: fmt.Sprint(i), IfName: "eth0"}, ipam.Owner{}, []ipam.Want{{Family: ipam.IPv4, Exact: a}}, ""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(lease.EmptyFor + time.Minute)
		for range 2 { // they are withdrawn, and, once the state file has them no more, given back
			pass(look())
		}
		if left := b.api.leasesOf("a"); len(left) != 4 || during.NodeUID == "" {
			t.Fatalf("leases %v; the loop looked meanwhile: %t", left, during.NodeUID != "")
		}
		pass(during)
		for _, p := range blocks[4:] {
			if b.book.Gives(plan.SourceOf(p).Next()) {
				t.Errorf("the node gives of %s, which it has given back", p)
			}
		}
	})
}

// TestReleaseRace: a pod that comes between the decision and the release keeps
// the block.
func TestReleaseRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, block := newBlockBench(t)
		defer b.book.Close()
		if _, err := b.book.Allocate(ipam.Key{Network: "n", ContainerID: "p", IfName: "eth0"}, ipam.Owner{}, []ipam.Want{{Family: ipam.IPv4}}, ""); err != nil {
			t.Fatal(err)
		}
		changed := false
		if err := b.leaser.do(t.Context(), lease.Decision{Release: []netip.Prefix{block}}, &changed); err != nil || changed {
			t.Errorf("changed %v, %v", changed, err)
		}
		if got := b.api.leasesOf("a"); len(got) != 1 {
			t.Errorf("the block with a pod in it was given back: %v", got)
		}
	})
}

// TestReleasedBlockIsForgottenFirst: a block is given back only once the state
// file does not speak of it. An agent that started from that file, while the API
// server is down, would give addresses that are another node's by then.
func TestReleasedBlockIsForgottenFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaserBench(t)
		defer b.book.Close()
		block := netip.MustParsePrefix("10.244.0.0/26")
		b.api.change(func(a *fakeAPI) { a.leases = []kube.Lease{{Prefix: block, Node: "a", NodeUID: "uid-a"}} })
		ranges := []ipam.Range{ipam.RangeFor(block, ipam.Block)}
		b.book.SetRanges(ranges)
		give := func(wantNews bool, wantLeft int) {
			t.Helper()
			changed := false
			if err := b.leaser.do(t.Context(), lease.Decision{Release: []netip.Prefix{block}}, &changed); err != nil || changed != wantNews {
				t.Errorf("news %v, want %v; %v", changed, wantNews, err)
			}
			if got := b.api.leasesOf("a"); len(got) != wantLeft {
				t.Errorf("leases: %v, want %d", got, wantLeft)
			}
		}
		give(true, 1) // nothing was written yet
		b.leaser.wrote(prefixesOf(ranges))
		give(false, 1) // a file that was begun before
		b.leaser.wrote(prefixesOf(b.book.Lasting(ranges)))
		give(true, 0)
	})
}

func TestNoBlockLeftIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaserBench(t)
		defer b.book.Close()
		b.api.change(func(a *fakeAPI) {
			a.network.PodCIDRs = prefixes("10.244.0.0/26")
			a.leases = []kube.Lease{{Prefix: netip.MustParsePrefix("10.244.0.0/26"), Node: "b"}}
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		b.run(ctx)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := b.leaser.problemNow(); !strings.Contains(got, "add a range to ClusterNetwork's podCIDRs") {
			t.Errorf("got %q", got)
		}
		b.api.change(func(a *fakeAPI) { a.leases = nil })
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := b.leaser.problemNow(); got != "" || len(b.api.leasesOf("a")) != 1 {
			t.Errorf("afterwards: %q, leases %v", got, b.api.leasesOf("a"))
		}
	})
}

// TestRestIsShorterWhereSomebodyAsks: after failures the leaser rests; as soon as
// somebody asks, it does not rest for long.
func TestRestIsShorterWhereSomebodyAsks(t *testing.T) {
	for name, c := range map[string]struct {
		asks bool
		want time.Duration
	}{
		"nobody asks":   {false, 30 * time.Second},
		"somebody asks": {true, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newLeaserBench(t)
			defer b.book.Close()
			if c.asks {
				go func() { time.Sleep(10 * time.Second); b.leaser.more() }()
			}
			began := time.Now()
			b.leaser.rest(t.Context(), 30*time.Second)
			if took := time.Since(began); took != c.want {
				t.Errorf("%s: rested for %v, want %v", name, took, c.want)
			}
		})
	}
}
