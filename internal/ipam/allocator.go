// Package ipam gives the addresses of a node's ranges to its pods, and chooses
// the blocks that a node leases. It is pure: it has no clock and no I/O but the
// Store that it is given, and decides everything from what it is told.
package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// DefaultCooldown is how long a released address rests.
const DefaultCooldown = 30 * time.Second

// minCooldown is how long it rests even if there is no other address: what was
// sent to its former holder is then no longer on its way.
const minCooldown = time.Second

// freshFirst is the number of freed addresses up to which addresses that were
// never used are preferred: an address is reused as late as can be, while the
// memory follows the addresses in use and not the size of the ranges.
const freshFirst = 2048

// Options are the parameters of an Allocator.
type Options struct {
	// Cooldown is how long a released address is not given to another, as long
	// as there are others; where there are none, it rests for a second only.
	// Zero means DefaultCooldown; a negative one means none at all.
	Cooldown time.Duration
}

// Allocator gives addresses to keys. An address has at most one holder at any
// time, across restarts too: what is answered is in the Store before. It is safe
// for use by several goroutines. All times are the caller's clock.
//
// Of the free addresses it gives those never used first, then the one that was
// freed longest ago; one that still cools down only if there is no other.
type Allocator struct {
	mu       sync.Mutex
	store    Store
	cooldown time.Duration
	ledger   *ledger
	ranges   ranges
	// doubtful are the keys whose last record may or may not be in the Store,
	// since Append failed: nothing is answered about them until one is.
	doubtful map[Key]bool
}

// New returns an Allocator that continues where the Store's last user stopped.
// It has no ranges until SetRanges.
func New(store Store, opts Options) (*Allocator, error) {
	records, err := store.Load()
	if err != nil {
		return nil, fmt.Errorf("read the record of held addresses: %w", err)
	}
	a := &Allocator{store: store, cooldown: opts.Cooldown, ledger: newLedger(), doubtful: map[Key]bool{}}
	switch {
	case a.cooldown == 0:
		a.cooldown = DefaultCooldown
	case a.cooldown < 0:
		a.cooldown = 0
	}
	for i, r := range records {
		if r.Op != OpHold && r.Op != OpFree {
			return nil, fmt.Errorf("read the record of held addresses: entry %d does %q, which this version does not know: start the version that wrote it", i+1, r.Op)
		}
		a.ledger.apply(r)
	}
	return a, nil
}

// SetRanges replaces the ranges that addresses are given from. An address that
// is held stays held, whether or not a range has it; outside every range it is
// never given again.
func (a *Allocator) SetRanges(list []Range) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ranges = newRanges(list)
}

// Want is one address that is asked for.
type Want struct {
	Family Family
	// Pools are whose addresses will do, in the order that they are tried; ""
	// is what serves by itself, and so is an empty list.
	Pools []string
	// Exact is the one address that will do, if it is valid. It must be in one
	// of Pools.
	Exact netip.Addr
}

func (w Want) pools() []string {
	if len(w.Pools) == 0 {
		return []string{""}
	}
	return w.Pools
}

// Allocate is AllocateFrom what serves by itself.
func (a *Allocator) Allocate(key Key, owner Owner, families []Family, now time.Time) ([]netip.Addr, error) {
	wants := make([]Want, len(families))
	for i, f := range families {
		wants[i].Family = f
	}
	return a.AllocateFrom(key, owner, wants, now)
}

// AllocateFrom returns an address for each want, in that order, for the key; the
// same ones again if it is asked again, whatever the pools then are. Either every
// want gets one or none does (ExhaustedError, ConflictError for an exact one that
// is held). On any error nothing is given. ErrInvalid tells of a key without
// container or interface, and of wants that make no sense.
func (a *Allocator) AllocateFrom(key Key, owner Owner, wants []Want, now time.Time) ([]netip.Addr, error) {
	if err := checkRequest(key, wants); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	binding, known := a.ledger.bindings[key]
	binding = binding.clone()
	if !known {
		binding = Binding{Key: key, Owner: owner}
	}
	given, fresh, err := a.pickAll(key, binding.Addresses, wants, now)
	if err != nil {
		return nil, err
	}
	if len(fresh) == 0 && !a.doubtful[key] {
		return given, nil
	}
	binding.Addresses = append(binding.Addresses, fresh...)
	if err := a.append(Record{Op: OpHold, Binding: binding, At: now}); err != nil {
		return nil, fmt.Errorf("hold %v for %s: %w", given, key, err)
	}
	return given, nil
}

// pickAll returns an address for each want: held ones, or fresh ones.
func (a *Allocator) pickAll(key Key, held []netip.Addr, wants []Want, now time.Time) (given, fresh []netip.Addr, err error) {
	var short []Shortage
	for _, w := range wants {
		at := slices.IndexFunc(held, func(addr netip.Addr) bool { return FamilyOf(addr) == w.Family })
		if at >= 0 {
			given = append(given, held[at])
			continue
		}
		addr, ok := a.pick(w, now)
		if holder, taken := a.ledger.holders[w.Exact]; taken {
			return nil, nil, &ConflictError{Address: w.Exact, Wanted: key, Holder: a.ledger.bindings[holder].clone()}
		}
		if !ok {
			short = append(short, Shortage{w.Family, w.Pools, a.usage(w.Family, w.pools()...)})
			continue
		}
		given, fresh = append(given, addr), append(fresh, addr)
	}
	if len(short) > 0 {
		return nil, nil, &ExhaustedError{Shortages: short}
	}
	return given, fresh, nil
}

// pick returns the next free address of the pools. It changes nothing that
// matters if the address is then not taken. An address that still cools down is
// taken only if no pool has another.
func (a *Allocator) pick(w Want, now time.Time) (netip.Addr, bool) {
	for _, rest := range []time.Duration{a.cooldown, min(a.cooldown, minCooldown)} {
		for _, pool := range w.pools() {
			g := a.ranges.group(pool)
			if w.Exact.IsValid() {
				if g.contain(w.Exact) && a.ledger.freed[w.Family].restedFor(w.Exact, rest, now) {
					return w.Exact, true
				}
				continue
			}
			if addr, ok := a.pickIn(g, w.Family, rest, now); ok {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}

// pickIn returns the next address of a group that has rested for long enough.
func (a *Allocator) pickIn(g *group, f Family, rest time.Duration, now time.Time) (netip.Addr, bool) {
	freed := a.ledger.freed[f]
	if freed.len() < freshFirst {
		if addr, ok := g.unused(f, a.ledger); ok {
			return addr, true
		}
	}
	if first := freed.first(g.contain); first != nil && rested(first, rest, now) {
		return first.addr, true
	}
	return g.unused(f, a.ledger)
}

// rested reports whether an address has been free for d. A clock that was set
// back starts the time anew, lest an address rests for as long as it was set.
func rested(e *freedEntry, d time.Duration, now time.Time) bool {
	if e.at.After(now) {
		e.at = now
	}
	return now.Sub(e.at) >= d
}

// Record holds addresses for the key that another IPAM gave or that were seen
// in the kernel, beside those that it already holds. If one of them is held by
// another key, nothing is recorded (ConflictError). It is idempotent. Addresses
// that lie in a range of ours are not given to anybody else meanwhile.
func (a *Allocator) Record(key Key, owner Owner, addrs []netip.Addr, now time.Time) error {
	if err := checkKey(key); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	binding, known := a.ledger.bindings[key]
	binding = binding.clone()
	if !known {
		binding = Binding{Key: key, Owner: owner, External: true}
	}
	held := len(binding.Addresses)
	for _, addr := range addrs {
		addr = addr.Unmap().WithZone("")
		if !addr.IsValid() {
			return fmt.Errorf("record an address for %s: it is empty: %w", key, ErrInvalid)
		}
		if slices.Contains(binding.Addresses, addr) {
			continue
		}
		if holder, taken := a.ledger.holders[addr]; taken {
			return &ConflictError{Address: addr, Wanted: key, Holder: a.ledger.bindings[holder].clone()}
		}
		binding.Addresses = append(binding.Addresses, addr)
	}
	if len(binding.Addresses) == held && !a.doubtful[key] {
		return nil
	}
	if err := a.append(Record{Op: OpHold, Binding: binding, At: now}); err != nil {
		return fmt.Errorf("record %v for %s: %w", addrs, key, err)
	}
	return nil
}

// Release frees what the key holds and returns it; a key that holds nothing is
// no error (CNI specification 1.1.0, section 4, DEL). On an error everything
// stays held.
func (a *Allocator) Release(key Key, now time.Time) ([]netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.release(key, now)
}

func (a *Allocator) release(key Key, now time.Time) ([]netip.Addr, error) {
	binding, known := a.ledger.bindings[key]
	if !known && !a.doubtful[key] {
		return nil, nil
	}
	binding.Key = key
	if err := a.append(Record{Op: OpFree, Binding: binding.clone(), At: now}); err != nil {
		return nil, fmt.Errorf("release the addresses of %s: %w", key, err)
	}
	return binding.Addresses, nil
}

// Retain releases every key of the network that is not among the valid ones,
// and returns what they held (CNI specification 1.1.0, section 4, GC). Keys of
// other networks are left alone. After an error, what is returned was released
// and the rest is still held.
func (a *Allocator) Retain(network string, valid []Key, now time.Time) ([]Binding, error) {
	keep := make(map[Key]bool, len(valid))
	for _, key := range valid {
		keep[key] = true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []Binding
	for _, b := range a.ledger.held() {
		if b.Key.Network != network || keep[b.Key] {
			continue
		}
		if _, err := a.release(b.Key, now); err != nil {
			return out, err
		}
		out = append(out, b)
	}
	return out, nil
}

// append makes a change durable, and only then true.
func (a *Allocator) append(r Record) error {
	if err := a.store.Append(r); err != nil {
		a.doubtful[r.Binding.Key] = true
		return err
	}
	delete(a.doubtful, r.Binding.Key)
	a.ledger.apply(r)
	for _, freed := range a.ledger.freed {
		if freed.dropped {
			freed.dropped = false
			a.ranges.rewind()
		}
	}
	return nil
}

// Get returns what the key holds.
func (a *Allocator) Get(key Key) (Binding, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, known := a.ledger.bindings[key]
	return b.clone(), known
}

// Lookup returns who holds the address.
func (a *Allocator) Lookup(addr netip.Addr) (Binding, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key, held := a.ledger.holders[addr.Unmap()]
	return a.ledger.bindings[key].clone(), held
}

// Held returns all bindings in the order of their keys.
func (a *Allocator) Held() []Binding {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ledger.held()
}

// HeldIn returns the bindings with an address in the prefix.
func (a *Allocator) HeldIn(p netip.Prefix) []Binding {
	return slices.DeleteFunc(a.Held(), func(b Binding) bool {
		return !slices.ContainsFunc(b.Addresses, p.Contains)
	})
}

// InRange reports whether the address may be given by this allocator.
func (a *Allocator) InRange(addr netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ranges.contain(addr.Unmap())
}

// Usage counts the addresses of the ranges; each is at most math.MaxUint64.
type Usage struct {
	// Total are those that may be given: reserved ones do not count.
	Total uint64
	// Held are those of Total that have a holder.
	Held uint64
	// Free are the others, cooling ones included.
	Free uint64
}

// Usage returns the counts of one family in the pools together; of what serves
// by itself, if none is named.
func (a *Allocator) Usage(f Family, pools ...string) Usage {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.usage(f, pools...)
}

func (a *Allocator) usage(f Family, pools ...string) Usage {
	var u Usage
	if len(pools) == 0 {
		pools = []string{""}
	}
	for _, pool := range pools {
		g := a.ranges.group(pool)
		u.Total = addSaturated(u.Total, g.size(f))
		for addr := range a.ledger.holders {
			if FamilyOf(addr) == f && g.contain(addr) {
				u.Held++
			}
		}
	}
	u.Free = u.Total - u.Held
	return u
}

// HeldByPool counts the addresses of each pool that have a holder; pools of
// which none is held are not there.
func (a *Allocator) HeldByPool() map[string]int32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out map[string]int32
	for pool, g := range a.ranges.groups {
		if pool == "" {
			continue
		}
		for addr := range a.ledger.holders {
			if g.contain(addr) {
				if out == nil {
					out = map[string]int32{}
				}
				out[pool]++
			}
		}
	}
	return out
}

// Free returns the number of addresses of the family without a holder, of all
// pools and of what serves by itself, cooling ones included, at most
// math.MaxUint64.
func (a *Allocator) Free(f Family) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.usage(f, slices.Collect(maps.Keys(a.ranges.groups))...).Free
}

func checkRequest(key Key, wants []Want) error {
	if err := checkKey(key); err != nil {
		return err
	}
	if len(wants) == 0 {
		return fmt.Errorf("allocate for %s: no address family is asked for: %w", key, ErrInvalid)
	}
	for i, w := range wants {
		again := slices.ContainsFunc(wants[:i], func(o Want) bool { return o.Family == w.Family })
		if w.Family != IPv4 && w.Family != IPv6 || again {
			return fmt.Errorf("allocate for %s: the family %q is not %s or %s, each once: %w", key, w.Family, IPv4, IPv6, ErrInvalid)
		}
		if w.Exact.IsValid() && FamilyOf(w.Exact) != w.Family {
			return fmt.Errorf("allocate for %s: the address %s is not of the family %s: %w", key, w.Exact, w.Family, ErrInvalid)
		}
	}
	return nil
}

func checkKey(key Key) error {
	if key.ContainerID == "" || key.IfName == "" {
		return fmt.Errorf("the attachment %s lacks a container id or an interface name: %w", key, ErrInvalid)
	}
	return nil
}
