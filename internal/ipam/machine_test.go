package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/fakestore"
	"ropeway.dev/ropeway/internal/ipam/journal"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// medium is what outlives an allocator's process.
type medium interface {
	// start returns the Store for a new process; the former one is dead.
	start(t *rapid.T) ipam.Store
	// fail makes Appends fail until heal, with the record kept or not.
	fail(written bool)
	heal()
}

// inMemory is a medium whose Appends can fail.
type inMemory struct{ *fakestore.Store }

func (m inMemory) start(t *rapid.T) ipam.Store {
	if rapid.Bool().Draw(t, "compact") {
		m.Compact()
	}
	return m.Store
}

func (m inMemory) heal() { m.Heal() }

func (m inMemory) fail(written bool) {
	m.Inject(fakestore.Fault{Err: fakestore.ErrFault, Written: written})
}

// onDisk is a journal file. A process that dies leaves it open; the next one
// finds what was written, and perhaps a piece of a line more.
type onDisk struct {
	path string
	open *journal.Journal
}

func (m *onDisk) start(t *rapid.T) ipam.Store {
	if m.open != nil {
		m.open.Close()
		if rapid.Bool().Draw(t, "torn") {
			tear(t, m.path)
		}
	}
	j, err := journal.Open(m.path)
	if err != nil {
		t.Fatal(err)
	}
	m.open = j
	return j
}

// tear leaves a beginning of another record at the end of the file.
func tear(t *rapid.T, path string) {
	line := `01234567 {"op":"hold","binding":{"key":{"network":"n","containerID":"c`
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(line[:rapid.IntRange(1, len(line)).Draw(t, "cut")])
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A journal's own test makes it fail.
func (m *onDisk) fail(bool) {}
func (m *onDisk) heal()     {}

// machine drives an Allocator and a simple model of it side by side.
type machine struct {
	medium medium
	alloc  *ipam.Allocator
	now    time.Time
	ranges []ipam.Range
	// pods are the promises that were made: key -> the addresses that a
	// running pod has.
	pods map[ipam.Key][]netip.Addr
	// freed maps address -> when its last holder let go of it.
	freed map[netip.Addr]time.Time
	// used are the addresses that were ever held.
	used map[netip.Addr]bool
	// unsure is set once a record may be kept without having been promised:
	// the model then only watches the promises.
	unsure bool
}

const (
	cooldown    = 30 * time.Second
	minCooldown = time.Second
)

var (
	bothFamilies = []ipam.Family{ipam.IPv4, ipam.IPv6}
	everyRange   = []ipam.Range{
		ipam.RangeFor(netip.MustParsePrefix("10.0.0.0/29"), ipam.NodeCIDR, netip.MustParseAddr("10.0.0.1")),
		ipam.RangeFor(netip.MustParsePrefix("10.0.1.0/30"), ipam.Block),
		ipam.RangeFor(netip.MustParsePrefix("fd00::/125"), ipam.Block, netip.MustParseAddr("fd00::1")),
		ipam.RangeFor(netip.MustParsePrefix("fd00:1::/126"), ipam.NodeCIDR),
		// Pools: inside a range that serves by itself, around one of its
		// addresses that no pod gets, and alone, down to one address.
		{Prefix: netip.MustParsePrefix("10.0.0.0/30"), Pool: "p1", Reserved: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/31")}},
		{Prefix: netip.MustParsePrefix("10.0.2.0/32"), Pool: "p1"},
		{Prefix: netip.MustParsePrefix("10.0.2.2/31"), Pool: "p2"},
		{Prefix: netip.MustParsePrefix("fd00::4/127"), Pool: "p2"},
	}
)

func newMachine(t *rapid.T, m medium) *machine {
	s := &machine{medium: m, now: time.Unix(1_700_000_000, 0), ranges: everyRange,
		pods: map[ipam.Key][]netip.Addr{}, freed: map[netip.Addr]time.Time{}, used: map[netip.Addr]bool{}}
	s.boot(t)
	return s
}

func (s *machine) boot(t *rapid.T) {
	a, err := ipam.New(s.medium.start(t), ipam.Options{Cooldown: cooldown})
	if err != nil {
		t.Fatal(err)
	}
	a.SetRanges(s.ranges)
	s.alloc = a
}

func (s *machine) key(t *rapid.T) ipam.Key {
	return ipam.Key{
		Network:     rapid.SampledFrom([]string{"k8s", "other"}).Draw(t, "network"),
		ContainerID: rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g"}).Draw(t, "container"), IfName: "eth0",
	}
}

// usable are the addresses of a family that a pool may give: what a pool states
// is its own, whatever range is around it.
func (s *machine) usable(f ipam.Family, pool string) []netip.Addr {
	var out []netip.Addr
	for _, r := range s.ranges {
		if r.Pool != pool {
			continue
		}
		for _, p := range cidr.Subtract([]netip.Prefix{r.Prefix}, r.Reserved) {
			for a := p.Addr(); p.Contains(a); a = a.Next() {
				if ipam.FamilyOf(a) == f && (pool != "" || !s.stated(a)) {
					out = append(out, a)
				}
			}
		}
	}
	return out
}

// stated reports whether a pool gives the address.
func (s *machine) stated(a netip.Addr) bool {
	return slices.ContainsFunc(s.ranges, func(r ipam.Range) bool {
		return r.Pool != "" && r.Prefix.Contains(a) && !slices.ContainsFunc(r.Reserved, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

func (s *machine) holder(a netip.Addr) (ipam.Key, bool) {
	for key, addrs := range s.pods {
		if slices.Contains(addrs, a) {
			return key, true
		}
	}
	return ipam.Key{}, false
}

// class says how good a free address is to give: the lower the better, and 3
// not at all.
func (s *machine) class(a netip.Addr) int {
	at, was := s.freed[a]
	switch {
	case !was:
		return 0 // never used
	case s.now.Sub(at) >= cooldown:
		return 1
	case s.now.Sub(at) >= minCooldown:
		return 2
	default:
		return 3
	}
}

// best returns the pool of a want that is to give the address, and the class of
// the best free address in it; a want for an exact address has that alone. The
// first pool with an address that has rested gives it, and only if there is none
// the first with one that has not quite.
func (s *machine) best(w ipam.Want) (pool string, best int) {
	for _, most := range []int{1, 2} {
		for _, pool := range w.Pools {
			best := 3
			for _, a := range s.usable(w.Family, pool) {
				if _, held := s.holder(a); !held && (!w.Exact.IsValid() || a == w.Exact) {
					best = min(best, s.class(a))
				}
			}
			if best <= most {
				return pool, best
			}
		}
	}
	return "", 3
}

func (s *machine) allocate(t *rapid.T) {
	key := s.key(t)
	families := rapid.SampledFrom([][]ipam.Family{bothFamilies, bothFamilies[:1], bothFamilies[1:]}).Draw(t, "families")
	pools := rapid.SampledFrom([][]string{{""}, {""}, {"p1"}, {"p2", "p1"}, {"p1", ""}, {"gone"}}).Draw(t, "pools")
	s.tryAllocate(t, key, wantsOf(families, pools), false)
}

func wantsOf(families []ipam.Family, pools []string) []ipam.Want {
	var wants []ipam.Want
	for _, f := range families {
		wants = append(wants, ipam.Want{Family: f, Pools: pools})
	}
	return wants
}

// allocateExact asks for one address, which may be held, of another pool, or no
// pod's.
func (s *machine) allocateExact(t *rapid.T) {
	a := netip.AddrFrom4([4]byte{10, 0, rapid.ByteRange(0, 2).Draw(t, "net"), rapid.ByteRange(0, 7).Draw(t, "host")})
	pool := rapid.SampledFrom([]string{"", "p1", "p2"}).Draw(t, "pool")
	s.tryAllocate(t, s.key(t), []ipam.Want{{Family: ipam.IPv4, Pools: []string{pool}, Exact: a}}, false)
}

func (s *machine) tryAllocate(t *rapid.T, key ipam.Key, wants []ipam.Want, faulty bool) {
	given, err := s.alloc.AllocateFrom(key, ipam.Owner{Name: key.ContainerID}, wants, s.now)
	if err != nil {
		if given != nil {
			t.Fatalf("both %v and %v", given, err)
		}
		if ipam.IsExhausted(err) && !s.unsure && !slices.ContainsFunc(wants, func(w ipam.Want) bool {
			_, best := s.best(w)
			return !s.has(key, w.Family) && best == 3
		}) {
			t.Fatalf("%v, but every family has a free address", err)
		}
		if holder, held := s.holder(wants[0].Exact); ipam.IsConflict(err) && !s.unsure && (!held || holder == key) {
			t.Fatalf("%v, but nobody else holds it", err)
		}
		if !ipam.IsExhausted(err) && !ipam.IsConflict(err) && !faulty {
			t.Fatal(err)
		}
		return
	}
	if len(given) != len(wants) {
		t.Fatalf("%v for %v", given, wants)
	}
	for i, a := range given {
		s.checkGiven(t, key, wants[i], a)
	}
	for _, a := range given {
		if !slices.Contains(s.pods[key], a) {
			s.pods[key] = append(s.pods[key], a)
		}
		s.used[a] = true
		delete(s.freed, a)
	}
}

func (s *machine) has(key ipam.Key, f ipam.Family) bool {
	return slices.ContainsFunc(s.pods[key], func(a netip.Addr) bool { return ipam.FamilyOf(a) == f })
}

func (s *machine) checkGiven(t *rapid.T, key ipam.Key, w ipam.Want, a netip.Addr) {
	f := w.Family
	if ipam.FamilyOf(a) != f {
		t.Fatalf("%s is not %s", a, f)
	}
	if s.has(key, f) && !s.unsure {
		if !slices.Contains(s.pods[key], a) {
			t.Fatalf("%s has %v and was given %s", key, s.pods[key], a)
		}
		return
	}
	if holder, held := s.holder(a); held && holder != key {
		t.Fatalf("%s was given to %s while %s has it", a, key, holder)
	}
	if s.unsure {
		return
	}
	pool, best := s.best(w)
	if !slices.Contains(s.usable(f, pool), a) {
		t.Fatalf("%s was given for %v, and is not of %q", a, w, pool)
	}
	if w.Exact.IsValid() {
		if a != w.Exact {
			t.Fatalf("%s was given for %v", a, w)
		}
		return
	}
	if got := s.class(a); got != best {
		t.Fatalf("%s of class %d was given although one of class %d was free", a, got, best)
	}
	if at, was := s.freed[a]; was {
		for _, other := range s.usable(f, pool) {
			if otherAt, free := s.freed[other]; free && otherAt.Before(at) {
				t.Fatalf("%s, freed at %s, was given before %s, freed at %s", a, at, other, otherAt)
			}
		}
	}
}

func (s *machine) record(t *rapid.T) {
	key := s.key(t)
	var addrs []netip.Addr
	for range rapid.IntRange(1, 2).Draw(t, "count") {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 0, rapid.ByteRange(0, 2).Draw(t, "net"), rapid.ByteRange(0, 7).Draw(t, "host")}))
	}
	conflict := slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		holder, held := s.holder(a)
		return held && holder != key
	})
	err := s.alloc.Record(key, ipam.Owner{}, addrs, s.now)
	if !s.unsure && conflict != ipam.IsConflict(err) || err != nil && !ipam.IsConflict(err) {
		t.Fatalf("%v for %s: %v, want conflict: %t", addrs, key, err, conflict)
	}
	if err != nil {
		return
	}
	for _, a := range addrs {
		if holder, held := s.holder(a); held && holder != key {
			t.Fatalf("%s was recorded for %s while %s has it", a, key, holder)
		}
		if !slices.Contains(s.pods[key], a) {
			s.pods[key] = append(s.pods[key], a)
		}
		s.used[a] = true
		delete(s.freed, a)
	}
}

func (s *machine) release(t *rapid.T) {
	key := s.key(t)
	freed, err := s.alloc.Release(key, s.now)
	if err != nil {
		t.Fatal(err)
	}
	if want := s.pods[key]; !s.unsure && !slices.Equal(freed, want) {
		t.Fatalf("%s released %v, want %v", key, freed, want)
	}
	s.forget(key)
}

// forget notes that a pod has gone.
func (s *machine) forget(key ipam.Key) {
	for _, a := range s.pods[key] {
		s.freed[a] = s.now
	}
	delete(s.pods, key)
}

func (s *machine) retain(t *rapid.T) {
	network := rapid.SampledFrom([]string{"k8s", "other"}).Draw(t, "network")
	var valid []ipam.Key
	for key := range s.pods {
		if key.ContainerID < "d" {
			valid = append(valid, key)
		}
	}
	gone, err := s.alloc.Retain(network, valid, s.now)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range gone {
		if b.Key.Network != network || slices.Contains(valid, b.Key) {
			t.Fatalf("GC of %s with %v valid freed %s", network, valid, b.Key)
		}
		s.forget(b.Key)
	}
	for key := range s.pods {
		if key.Network == network && !slices.Contains(valid, key) {
			t.Fatalf("GC of %s with %v valid left %s", network, valid, key)
		}
	}
}

func (s *machine) setRanges(t *rapid.T) {
	s.ranges = nil
	for _, r := range everyRange {
		if rapid.Bool().Draw(t, "in use") {
			s.ranges = append(s.ranges, r)
		}
	}
	s.alloc.SetRanges(s.ranges)
}

func (s *machine) wait(t *rapid.T) {
	s.now = s.now.Add(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 10 * time.Second, time.Minute}).Draw(t, "time"))
}

func (s *machine) restart(t *rapid.T) {
	before := s.alloc.Held()
	s.boot(t)
	if after := s.alloc.Held(); !s.unsure && !reflect.DeepEqual(before, after) {
		t.Fatalf("held before: %v\nafter: %v", before, after)
	}
}

// fault lets a change fail. Unless the record was kept all the same, nothing
// may have changed; if it was kept, nothing until the process ends.
func (s *machine) fault(t *rapid.T) {
	written := rapid.Bool().Draw(t, "written")
	key := s.key(t)
	before := s.alloc.Held()
	s.medium.fail(written)
	s.unsure = s.unsure || written
	if rapid.Bool().Draw(t, "release") {
		if _, err := s.alloc.Release(key, s.now); err != nil && written {
			s.forget(key) // its DEL has begun: the pod does not run any more
		}
	} else {
		s.tryAllocate(t, key, wantsOf(bothFamilies, []string{""}), true)
	}
	s.medium.heal()
	if after := s.alloc.Held(); !reflect.DeepEqual(before, after) {
		t.Fatalf("a failed change took effect: %v, then %v", before, after)
	}
}

// check holds after every step: invariant 1 of the design.
func (s *machine) check(t *rapid.T) {
	seen := map[netip.Addr]ipam.Key{}
	for _, b := range s.alloc.Held() {
		for _, a := range b.Addresses {
			if other, twice := seen[a]; twice {
				t.Fatalf("%s and %s both hold %s", other, b.Key, a)
			}
			seen[a] = b.Key
			if found, held := s.alloc.Lookup(a); !held || found.Key != b.Key {
				t.Fatalf("Lookup(%s) is %v, %t, but %s holds it", a, found, held, b.Key)
			}
		}
	}
	for key, addrs := range s.pods {
		for _, a := range addrs {
			if seen[a] != key {
				t.Fatalf("the pod %s has %s, but the allocator says %v", key, a, seen[a])
			}
		}
	}
	if s.unsure {
		return
	}
	if len(s.alloc.Held()) != len(s.pods) {
		t.Fatalf("held %v, want %v", s.alloc.Held(), s.pods)
	}
	for _, f := range bothFamilies {
		var free uint64
		for _, pool := range []string{"", "p1", "p2"} {
			want := s.usage(t, f, pool)
			free += want.Free
			if got := s.alloc.Usage(f, pool); got != want {
				t.Fatalf("%s of %q: %+v, want %+v", f, pool, got, want)
			}
		}
		if got := s.alloc.Free(f); got != free {
			t.Fatalf("%d %s addresses are free, want %d", got, f, free)
		}
	}
}

func (s *machine) usage(t *rapid.T, f ipam.Family, pool string) ipam.Usage {
	u := ipam.Usage{Total: uint64(len(s.usable(f, pool)))}
	for _, a := range s.usable(f, pool) {
		if _, held := s.holder(a); held {
			u.Held++
		}
		if !s.alloc.InRange(a) {
			t.Fatalf("%s is not in range", a)
		}
	}
	u.Free = u.Total - u.Held
	return u
}

func (s *machine) actions(faults bool) map[string]func(*rapid.T) {
	actions := map[string]func(*rapid.T){
		"allocate": s.allocate, "allocate2": s.allocate, "allocate exact": s.allocateExact, "record": s.record, "release": s.release, "release2": s.release,
		"retain": s.retain, "set ranges": s.setRanges, "wait": s.wait, "restart": s.restart, "": s.check,
	}
	if faults {
		actions["fault"] = s.fault
	}
	return actions
}

func TestAllocatorAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newMachine(t, inMemory{fakestore.New()})
		t.Repeat(s.actions(false))
	})
}

func TestAllocatorSurvivesFaults(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newMachine(t, inMemory{fakestore.New()})
		t.Repeat(s.actions(true))
	})
}

func TestAllocatorOnAJournal(t *testing.T) {
	dir, run := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		m := &onDisk{path: filepath.Join(dir, fmt.Sprintf("journal-%d", run))}
		s := newMachine(t, m)
		defer func() { m.open.Close() }()
		t.Repeat(s.actions(false))
	})
}
