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
			b.in.Wants[i].Node, b.in.Wants[i].UID, b.in.Wants[i].ProviderID = want(0).Node, want(0).UID, want(0).ProviderID
		}
		b.set()
		b.run(time.Minute)
		for _, e := range b.cloud.Entries() {
			if e.Dst.IsSingleIP() && e.NextHop != instance(0) {
				t.Errorf("%s leads to %s", e.Dst, e.NextHop)
			}
		}
		b.counts(map[State]int{Published: 15})
	})
	t.Run("wanted no more", func(t *testing.T) {
		b.in.Wants = b.in.Wants[len(singles):]
		b.set()
		b.run(30 * time.Second)
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

// A narrower entry that nodes do not know of is what it was: it leads a part of the
// range astray, and many of them are not removed without a word.
func TestUnknownSinglesAreNamed(t *testing.T) {
	b, singles := withSingles(t, 8)
	b.in.Diverted, b.in.Wants = nil, b.in.Wants[len(singles):]
	b.set()
	b.run(10 * time.Minute)
	if s := b.p.Status(); s.Count(Shadowed) != 1 || s.Withheld != len(singles) {
		t.Errorf("%d ranges are shadowed, %d removals wait for a word", s.Count(Shadowed), s.Withheld)
	}
}
