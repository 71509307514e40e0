package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/fakestore"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func key(container string) ipam.Key {
	return ipam.Key{Network: "k8s-pod-network", ContainerID: container, IfName: "eth0"}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// newAllocator returns one with these CIDRs as blocks.
func newAllocator(t testing.TB, store ipam.Store, opts ipam.Options, cidrs ...string) *ipam.Allocator {
	t.Helper()
	a, err := ipam.New(store, opts)
	if err != nil {
		t.Fatal(err)
	}
	var ranges []ipam.Range
	for _, c := range cidrs {
		ranges = append(ranges, ipam.RangeFor(netip.MustParsePrefix(c), ipam.Block))
	}
	a.SetRanges(ranges)
	return a
}

func mustAllocate(t testing.TB, a *ipam.Allocator, k ipam.Key, now time.Time, families ...ipam.Family) netip.Addr {
	t.Helper()
	if len(families) == 0 {
		families = []ipam.Family{ipam.IPv4}
	}
	got, err := a.Allocate(k, ipam.Owner{}, families, now)
	if err != nil {
		t.Fatal(err)
	}
	return got[0]
}

func TestRangeFor(t *testing.T) {
	tests := []struct {
		cidr    string
		kind    ipam.Kind
		sources []netip.Addr
		first   string
		total   uint64
	}{
		{"10.244.1.0/24", ipam.NodeCIDR, []netip.Addr{addr("10.244.1.1")}, "10.244.1.2", 253},
		{"10.244.1.7/24", ipam.NodeCIDR, nil, "10.244.1.1", 254},
		{"10.244.1.64/26", ipam.Block, nil, "10.244.1.65", 63},
		{"10.244.1.64/26", ipam.Block, []netip.Addr{addr("10.244.1.65"), addr("10.9.9.9"), addr("fd00::1")}, "10.244.1.66", 62},
		{"fd00::/122", ipam.NodeCIDR, []netip.Addr{addr("fd00::1")}, "fd00::2", 62},
		{"10.244.1.0/31", ipam.Block, []netip.Addr{addr("10.244.1.1")}, "", 0},
	}
	for _, tt := range tests {
		p := netip.MustParsePrefix(tt.cidr)
		a := newAllocator(t, fakestore.New(), ipam.Options{})
		a.SetRanges([]ipam.Range{ipam.RangeFor(p, tt.kind, tt.sources...)})
		f := ipam.FamilyOf(p.Addr())
		if got := a.Usage(f).Total; got != tt.total {
			t.Errorf("%s: %d addresses, want %d", tt.cidr, got, tt.total)
		}
		if tt.first == "" {
			continue
		}
		if got := mustAllocate(t, a, key("a"), noon, f); got != addr(tt.first) {
			t.Errorf("%s: first %s, want %s", tt.cidr, got, tt.first)
		}
	}
	if r := ipam.RangeFor(netip.Prefix{}, ipam.NodeCIDR); len(r.Reserved) != 0 {
		t.Errorf("nothing: %v", r)
	}
}

// TestRangesMayOverlap: a caller's mistake gives no address twice.
func TestRangesMayOverlap(t *testing.T) {
	a := newAllocator(t, fakestore.New(), ipam.Options{}, "10.0.0.0/30", "10.0.0.0/29", "10.0.0.4/30")
	if got := a.Usage(ipam.IPv4).Total; got != 7 {
		t.Errorf("%d addresses", got)
	}
	a.SetRanges([]ipam.Range{{Prefix: netip.Prefix{}}, {Prefix: netip.MustParsePrefix("10.0.0.0/30"), Reserved: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}})
	if got := a.Usage(ipam.IPv4).Total; got != 0 {
		t.Errorf("%d addresses in nothing", got)
	}
}

func TestCooldown(t *testing.T) {
	a := newAllocator(t, fakestore.New(), ipam.Options{}, "10.0.0.0/30") // .1 .2 .3
	for _, c := range []string{"a", "b", "c"} {
		mustAllocate(t, a, key(c), noon)
	}
	for i, c := range []string{"b", "a"} { // .2, and a second later .1
		if _, err := a.Release(key(c), noon.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := a.Allocate(key("d"), ipam.Owner{}, []ipam.Family{ipam.IPv4}, noon.Add(999*time.Millisecond))
	if !ipam.IsExhausted(err) || !strings.Contains(err.Error(), "3 addresses: 1 held, 2 freed less than a second ago") {
		t.Errorf("within a second: %v", err)
	}
	if got := mustAllocate(t, a, key("d"), noon.Add(time.Second)); got != addr("10.0.0.2") {
		t.Errorf("without another, after a second: %s", got)
	}
	if got := mustAllocate(t, a, key("e"), noon.Add(time.Hour)); got != addr("10.0.0.1") {
		t.Errorf("the last one: %s", got)
	}
}

func TestClockSetBack(t *testing.T) {
	a := newAllocator(t, fakestore.New(), ipam.Options{}, "10.0.0.0/31")
	mustAllocate(t, a, key("a"), noon)
	if _, err := a.Release(key("a"), noon); err != nil {
		t.Fatal(err)
	}
	earlier := noon.Add(-24 * time.Hour)
	if _, err := a.Allocate(key("b"), ipam.Owner{}, []ipam.Family{ipam.IPv4}, earlier); !ipam.IsExhausted(err) {
		t.Errorf("freed in the future: %v", err)
	}
	mustAllocate(t, a, key("b"), earlier.Add(time.Second))
}

func TestNoCooldown(t *testing.T) {
	a := newAllocator(t, fakestore.New(), ipam.Options{Cooldown: -1}, "10.0.0.0/31")
	for range 3 {
		mustAllocate(t, a, key("a"), noon)
		if _, err := a.Release(key("a"), noon); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAllFamiliesOrNone(t *testing.T) {
	store := fakestore.New()
	a := newAllocator(t, store, ipam.Options{}, "10.0.0.0/24")
	_, err := a.Allocate(key("a"), ipam.Owner{}, []ipam.Family{ipam.IPv4, ipam.IPv6}, noon)
	var exhausted *ipam.ExhaustedError
	if !errors.As(err, &exhausted) || len(exhausted.Shortages) != 1 || exhausted.Shortages[0].Family != ipam.IPv6 {
		t.Errorf("no IPv6: %v", err)
	}
	if len(a.Held()) != 0 || len(store.Records()) != 0 {
		t.Errorf("held %v", a.Held())
	}
	mustAllocate(t, a, key("a"), noon)
	a.SetRanges([]ipam.Range{{Prefix: netip.MustParsePrefix("10.0.0.0/24")}, {Prefix: netip.MustParsePrefix("fd00::/122")}})
	both, err := a.Allocate(key("a"), ipam.Owner{}, []ipam.Family{ipam.IPv6, ipam.IPv4}, noon)
	if err != nil || both[0] != addr("fd00::") || both[1] != addr("10.0.0.1") {
		t.Errorf("the second family later: %v, %v", both, err)
	}
}

func TestConflictNamesTheHolder(t *testing.T) {
	a := newAllocator(t, fakestore.New(), ipam.Options{}, "10.0.0.0/24")
	owner := ipam.Owner{Namespace: "default", Name: "web-0", UID: "u"}
	if err := a.Record(key("a"), owner, []netip.Addr{addr("::ffff:10.0.0.1")}, noon); err != nil {
		t.Fatal(err)
	}
	err := a.Record(key("b"), ipam.Owner{}, []netip.Addr{addr("10.0.0.9"), addr("10.0.0.1")}, noon)
	var conflict *ipam.ConflictError
	if !errors.As(err, &conflict) || conflict.Holder.Owner != owner || !strings.Contains(err.Error(), "default/web-0") || !ipam.IsConflict(fmt.Errorf("x: %w", err)) {
		t.Errorf("%v", err)
	}
	if _, held := a.Lookup(addr("10.0.0.9")); held {
		t.Error("half of a refused record is held")
	}
	if got := mustAllocate(t, a, key("c"), noon); got != addr("10.0.0.2") {
		t.Errorf("%s was given although it is recorded", got)
	}
	if b, held := a.Get(key("a")); !held || !b.External || b.Owner != owner {
		t.Errorf("recorded as %+v", b)
	}
	if got := a.HeldIn(netip.MustParsePrefix("10.0.0.0/31")); len(got) != 1 || got[0].Key != key("a") {
		t.Errorf("held in: %v", got)
	}
}

func TestInvalidRequests(t *testing.T) {
	a := newAllocator(t, fakestore.New(), ipam.Options{}, "10.0.0.0/24")
	v4 := []ipam.Family{ipam.IPv4}
	for name, do := range map[string]func() error{
		"no container":      func() error { _, err := a.Allocate(ipam.Key{IfName: "eth0"}, ipam.Owner{}, v4, noon); return err },
		"no interface":      func() error { return a.Record(ipam.Key{ContainerID: "a"}, ipam.Owner{}, nil, noon) },
		"no family":         func() error { _, err := a.Allocate(key("a"), ipam.Owner{}, nil, noon); return err },
		"a family twice":    func() error { _, err := a.Allocate(key("a"), ipam.Owner{}, append(v4, v4...), noon); return err },
		"unknown family":    func() error { _, err := a.Allocate(key("a"), ipam.Owner{}, []ipam.Family{"IPX"}, noon); return err },
		"no address at all": func() error { return a.Record(key("a"), ipam.Owner{}, []netip.Addr{{}}, noon) },
	} {
		if err := do(); !errors.Is(err, ipam.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(a.Held()) != 0 {
		t.Errorf("held %v", a.Held())
	}
}

// TestWithdrawnRange: what is held in a range that goes stays held, and is not
// given again when it is released.
func TestWithdrawnRange(t *testing.T) {
	a := newAllocator(t, fakestore.New(), ipam.Options{Cooldown: -1}, "10.0.0.0/30")
	got := mustAllocate(t, a, key("a"), noon)
	a.SetRanges([]ipam.Range{{Prefix: netip.MustParsePrefix("10.0.1.0/31")}})
	if again := mustAllocate(t, a, key("a"), noon); again != got {
		t.Errorf("%s became %s", got, again)
	}
	if u := a.Usage(ipam.IPv4); u != (ipam.Usage{Total: 2, Free: 2}) {
		t.Errorf("%+v", u)
	}
	if _, err := a.Release(key("a"), noon); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"b", "c"} {
		if other := mustAllocate(t, a, key(c), noon); !netip.MustParsePrefix("10.0.1.0/31").Contains(other) {
			t.Errorf("%s was given out of range", other)
		}
	}
}

func TestStoreErrors(t *testing.T) {
	store := fakestore.New()
	store.FailLoad(fakestore.ErrFault)
	if _, err := ipam.New(store, ipam.Options{}); !errors.Is(err, fakestore.ErrFault) {
		t.Errorf("load: %v", err)
	}
	if _, err := ipam.New(fakestore.New(ipam.Record{Op: "lend"}), ipam.Options{}); err == nil || !strings.Contains(err.Error(), `"lend"`) {
		t.Errorf("an unknown operation: %v", err)
	}
	store = fakestore.New()
	a := newAllocator(t, store, ipam.Options{}, "10.0.0.0/24")
	store.Inject(fakestore.Fault{Err: fakestore.ErrFault})
	if _, err := a.Allocate(key("a"), ipam.Owner{}, []ipam.Family{ipam.IPv4}, noon); !errors.Is(err, fakestore.ErrFault) {
		t.Errorf("allocate: %v", err)
	}
	mustAllocate(t, a, key("a"), noon)
	mustAllocate(t, a, key("b"), noon)
	store.Inject(fakestore.Fault{}, fakestore.Fault{Err: fakestore.ErrFault})
	gone, err := a.Retain(key("a").Network, nil, noon)
	if !errors.Is(err, fakestore.ErrFault) || len(gone) != 1 || gone[0].Key != key("a") || len(a.Held()) != 1 {
		t.Errorf("a GC that fails half-way: %v, %v, held %v", gone, err, a.Held())
	}
}

// TestHugeRanges: the memory follows the addresses in use, however large the
// ranges are and however many pods have come and gone.
func TestHugeRanges(t *testing.T) {
	for _, tt := range []struct {
		cidr   string
		family ipam.Family
	}{{"10.0.0.0/8", ipam.IPv4}, {"fd00::/64", ipam.IPv6}} {
		a := newAllocator(t, discard{}, ipam.Options{}, tt.cidr)
		before := heap()
		now := noon
		for i := range 20_000 {
			now = now.Add(time.Second)
			mustAllocate(t, a, key(fmt.Sprint(i)), now, tt.family)
			if _, err := a.Release(key(fmt.Sprint(i-100)), now); err != nil {
				t.Fatal(err)
			}
		}
		if grown := heap() - before; grown > 8<<20 {
			t.Errorf("%s: 20000 pods, 100 at a time, left %d KiB", tt.cidr, grown>>10)
		}
		if u := a.Usage(tt.family); u.Held != 100 || u.Free < 1<<23 {
			t.Errorf("%s: %+v", tt.cidr, u)
		}
		runtime.KeepAlive(a)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// discard is a Store that keeps nothing.
type discard struct{}

func (discard) Load() ([]ipam.Record, error) { return nil, nil }
func (discard) Append(ipam.Record) error     { return nil }

// TestForgottenAddressesReturn: an address that is not remembered as freed any
// more is not lost.
func TestForgottenAddressesReturn(t *testing.T) {
	a := newAllocator(t, discard{}, ipam.Options{}, "10.0.0.0/18") // 16383 addresses
	total := int(a.Usage(ipam.IPv4).Total)
	now := noon
	for round := range 2 {
		for i := range total {
			mustAllocate(t, a, key(fmt.Sprint(i)), now)
		}
		now = now.Add(time.Hour)
		for i := range total {
			if _, err := a.Release(key(fmt.Sprint(i)), now); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		now = now.Add(time.Hour)
	}
}

func TestConcurrentUse(t *testing.T) {
	a := newAllocator(t, fakestore.New(), ipam.Options{Cooldown: -1}, "10.0.0.0/26")
	var mu sync.Mutex
	holders := map[netip.Addr]int{}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			k := key(fmt.Sprint(worker))
			for range 200 {
				got, err := a.Allocate(k, ipam.Owner{}, []ipam.Family{ipam.IPv4}, noon)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other, held := holders[got[0]]; held {
					t.Errorf("%s is held by %d and %d", got[0], other, worker)
				}
				holders[got[0]] = worker
				mu.Unlock()
				a.Held()
				mu.Lock()
				delete(holders, got[0])
				mu.Unlock()
				if _, err := a.Release(k, noon); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestCompactKeepsTheMeaning: an allocator on compacted records is the same as
// one on all of them, and compacting again changes nothing.
func TestCompactKeepsTheMeaning(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) ipam.Record {
			r := ipam.Record{Op: rapid.SampledFrom([]ipam.Op{ipam.OpHold, ipam.OpFree}).Draw(t, "op"),
				At: noon.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "at")) * time.Second)}
			r.Binding.Key = key(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "container"))
			for range rapid.IntRange(0, 2).Draw(t, "count") {
				r.Binding.Addresses = append(r.Binding.Addresses, netip.AddrFrom4([4]byte{10, 0, 0, rapid.ByteRange(0, 7).Draw(t, "host")}))
			}
			return r
		}), 0, 12).Draw(t, "records")
		compact := ipam.Compact(records)
		if again := ipam.Compact(compact); !reflect.DeepEqual(again, compact) {
			t.Fatalf("%v, compacted again %v", compact, again)
		}
		want, got := picks(t, records), picks(t, compact)
		if !reflect.DeepEqual(want, got) {
			t.Fatalf("%v: %v\n%v: %v", records, want, compact, got)
		}
	})
}

// picks returns what an allocator on the records holds and would give, in turn.
func picks(t *rapid.T, records []ipam.Record) (out []string) {
	a, err := ipam.New(fakestore.New(records...), ipam.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a.SetRanges([]ipam.Range{{Prefix: netip.MustParsePrefix("10.0.0.0/29")}})
	out = append(out, fmt.Sprint(a.Held()))
	for i := range 8 {
		got, err := a.Allocate(key(fmt.Sprint("new", i)), ipam.Owner{}, []ipam.Family{ipam.IPv4}, noon.Add(40*time.Second))
		out = append(out, fmt.Sprint(got, err))
	}
	return out
}
