package routes

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// single is address i of node home's range, on node i.
func single(home, i int) Want {
	w := want(i)
	a := dst(home).Addr().As4()
	a[3] = byte(10 + i)
	w.Dst, w.Single = netip.PrefixFrom(netip.AddrFrom4(a), 32), true
	return w
}

// withSingles is a bench whose nodes each hold an address of node 0's.
func withSingles(t *testing.T, nodes int, tables ...cloud.Table) (*bench, []Want) {
	b := newBench(t, nodes, tables...)
	b.in.PodCIDRs = []netip.Prefix{cloudPrefix("10.244.0.0/16")}
	var singles []Want
	for i := 1; i < nodes; i++ {
		singles = append(singles, single(0, i))
		b.in.Diverted = append(b.in.Diverted, singles[i-1].Dst.Addr())
	}
	b.in.Wants = slices.Concat(singles, b.in.Wants)
	b.set()
	b.run(time.Minute)
	return b, singles
}

// TestSinglesAreNoRanges: entries for single addresses come after those of ranges,
// follow the addresses at once, lead nothing of the range around them astray, and go
// without a person's word, however many they are.
func TestSinglesAreNoRanges(t *testing.T) {
	b, singles := withSingles(t, 8)
	b.counts(map[State]int{Published: 15})
	if got := b.p.Status().Diverted; !slices.Equal(got, b.in.Diverted) {
		t.Errorf("entries of addresses are %v, want %v", got, b.in.Diverted)
	}
	t.Run("on another node", func(t *testing.T) {
		for i := range singles {
			b.in.Wants[i] = single(0, i+1)
			b.in.Wants[i].Node, b.in.Wants[i].UID, b.in.Wants[i].ProviderID = want(5).Node, want(5).UID, want(5).ProviderID
		}
		b.set()
		b.run(time.Minute)
		for _, e := range b.cloud.Entries() {
			if e.Dst.IsSingleIP() && e.NextHop != instance(5) {
				t.Errorf("%s leads to %s", e.Dst, e.NextHop)
			}
		}
		b.counts(map[State]int{Published: 15})
	})
	t.Run("wanted no more", func(t *testing.T) {
		b.in.Wants = b.in.Wants[len(singles):]
		b.set()
		b.run(15 * time.Second)
		for _, e := range b.cloud.Entries() {
			if e.Dst.IsSingleIP() && e.NextHop != instance(0) {
				t.Errorf("%s leads to %s, and not where the range around it does", e.Dst, e.NextHop)
			}
		}
		if s := b.p.Status(); s.Count(Shadowed) > 0 || s.Withheld > 0 || len(s.Problems) > 0 || len(s.Diverted) != len(singles) {
			t.Errorf("entries that are to go: %+v", s)
		}
		b.run(5 * time.Minute)
		if s := b.p.Status(); len(s.Diverted) > 0 || len(b.cloud.Entries()) != 8 {
			t.Errorf("%v are left, %d entries in all", s.Diverted, len(b.cloud.Entries()))
		}
	})
}

func TestSinglesComeAfterRanges(t *testing.T) {
	b, _ := withSingles(t, 8, cloud.Table{ID: table, Quota: 10})
	b.counts(map[State]int{Published: 10, OverQuota: 5})
	for i := range 8 {
		if !b.has(i) {
			t.Errorf("node %d has no entry", i)
		}
	}
}

// TestForgottenSingles: of entries that nodes do not know of, which lead a part of a range
// astray, none is removed; they are told, and once nodes know, they go.
func TestForgottenSingles(t *testing.T) {
	b, singles := withSingles(t, 8)
	known := b.in.Diverted
	b.in.Diverted, b.in.Wants = nil, b.in.Wants[len(singles):]
	b.set()
	b.run(10 * time.Minute)
	if s := b.p.Status(); s.Count(Shadowed) != 1 || s.Withheld != len(singles) || !slices.Equal(s.Diverted, known) {
		t.Errorf("%d ranges are shadowed, %d removals wait for a word, told are %v", s.Count(Shadowed), s.Withheld, s.Diverted)
	}
	b.in.Diverted = known
	b.set()
	b.run(5 * time.Minute)
	if n := len(b.cloud.Entries()); n != 8 {
		t.Errorf("%d entries are left, want those of 8 ranges", n)
	}
}

// TestSinglesDoNotOpenTheGuard: however many entries of single addresses there are, a
// tenth is one of those of ranges.
func TestSinglesDoNotOpenTheGuard(t *testing.T) {
	b := newBench(t, 8)
	b.in.PodCIDRs = []netip.Prefix{cloudPrefix("10.244.0.0/16")}
	for i := range 100 {
		w := want(1 + i%7)
		w.Dst, w.Single = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, 0, byte(100 + i)}), 32), true
		b.in.Wants, b.in.Diverted = append(b.in.Wants, w), append(b.in.Diverted, w.Dst.Addr())
	}
	b.set()
	b.run(time.Minute)
	b.in.Wants = slices.DeleteFunc(slices.Clone(b.in.Wants), func(w Want) bool { return !w.Single })
	b.set()
	b.run(10 * time.Minute)
	if s := b.p.Status(); s.Withheld != 8 || len(b.cloud.Entries()) != 108 {
		t.Errorf("%d removals wait for a word, %d entries are left", s.Withheld, len(b.cloud.Entries()))
	}
}
