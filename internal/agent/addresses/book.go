// Package addresses is the node's book of who holds which pod address: the
// allocator and its journal, made whole at the start from everything that knows
// of addresses (the kernel's pod links and routes, host-local's files, what the
// plugin left while no agent ran), so that no address is given twice whatever
// was lost. An address is freed on evidence only: a DEL, the runtime's GC,
// another boot, or a sandbox that is seen to be gone.
package addresses

import (
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/agent/lease"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/journal"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Kernel is what the book asks the node's kernel.
type Kernel interface {
	// PodLinks returns the host ends of our pods' links.
	PodLinks() ([]dataplane.PodLink, error)
	// ForeignPods returns addresses that are routed to links that are not ours,
	// as pods of another product are.
	ForeignPods() ([]ForeignPod, error)
	// ReapLinks removes the links that are out of use.
	ReapLinks() error
}

// ForeignPod is an address that another product routed to a pod.
type ForeignPod struct {
	Link    string
	Address netip.Addr
}

// Options say where things are.
type Options struct {
	JournalPath  string
	TombstoneDir string
	SandboxDir   string // ours: which sandbox has which network namespace
	HostLocalDir string // host-local's; a file goes when its sandbox has gone
	// ResultDirs are where the runtime's CNI library notes attachments.
	ResultDirs []string
	// BootPath keeps the boot's id, to see that a boot went by; BootID is the
	// present one.
	BootPath, BootID string
	Kernel           Kernel
	Log              *slog.Logger
}

// Book is the node's book. It is safe for concurrent use.
type Book struct {
	options Options
	log     *slog.Logger
	now     func() time.Time

	mu        sync.Mutex
	journal   *journal.Journal
	allocator *ipam.Allocator
	ranges    []ipam.Range
	withdrawn map[netip.Prefix]bool      // blocks that are being given back
	empty     map[netip.Prefix]time.Time // block -> since when nothing in it is held
	suspects  map[ipam.Key]bool          // whose sandbox was not seen at the last sweep
	hostLocal map[ipam.Key]bool          // held because of a file of host-local's
	changed   chan struct{}

	unreaped    map[netip.Addr]uint64 // address whose former link may be left -> which retirement that was
	retirements uint64
	retired     chan struct{}
}

// IsConflict is true for an error that says that another sandbox holds an address.
func IsConflict(err error) bool { return ipam.IsConflict(err) }

// Close lets go of the journal.
func (b *Book) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.journal.Close()
}

// Changed receives after an address was given or freed; many may be one value.
func (b *Book) Changed() <-chan struct{} { return b.changed }

func (b *Book) touch() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// Allocate gives the wanted addresses to a sandbox's interface, the same again if
// it has some; all or none. netns is the path of the sandbox's network
// namespace, for evidence later; it may be empty.
func (b *Book) Allocate(key ipam.Key, owner ipam.Owner, wants []ipam.Want, netns string) ([]netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applyTombstones()
	addrs, err := b.allocator.AllocateFrom(key, owner, wants, b.now())
	if err != nil {
		return nil, err
	}
	if err := b.reapedFirst(addrs); err != nil {
		return nil, errors.Join(err, b.release(key))
	}
	b.noteSandbox(key, netns)
	b.touch()
	return addrs, nil
}

// Record notes addresses that another IPAM plugin gave.
func (b *Book) Record(key ipam.Key, owner ipam.Owner, addrs []netip.Addr, netns string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applyTombstones()
	b.dropStandIns(addrs)
	if err := b.reapedFirst(addrs); err != nil {
		return err
	}
	if err := b.allocator.Record(key, owner, addrs, b.now()); err != nil {
		return err
	}
	b.noteSandbox(key, netns)
	b.touch()
	return nil
}

// Release frees what a sandbox's interface holds; nothing is no error.
func (b *Book) Release(key ipam.Key) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.release(key)
}

func (b *Book) release(key ipam.Key) error {
	held, _ := b.allocator.Get(key)
	freed, err := b.allocator.Release(key, b.now())
	if err != nil {
		return err
	}
	if held.External {
		b.dropHostLocal(key, freed)
	}
	b.forgetSandbox(key)
	delete(b.suspects, key)
	delete(b.hostLocal, key)
	if len(freed) > 0 {
		b.touch()
	}
	return nil
}

// Retain frees everything of a network that is not in valid, and returns the
// keys that it freed.
func (b *Book) Retain(network string, valid []ipam.Key) ([]ipam.Key, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applyTombstones()
	freed, err := b.allocator.Retain(network, valid, b.now())
	var keys []ipam.Key
	for _, binding := range freed {
		keys = append(keys, binding.Key)
		b.forgetSandbox(binding.Key)
		if binding.External {
			b.dropHostLocal(binding.Key, binding.Addresses)
		}
	}
	if len(keys) > 0 {
		b.touch()
	}
	return keys, err
}

// AddressesOf returns what a sandbox's interface holds.
func (b *Book) AddressesOf(key ipam.Key) ([]netip.Addr, bool) {
	binding, held := b.allocator.Get(key)
	return binding.Addresses, held
}

// IsHeld is true if a pod has the address.
func (b *Book) IsHeld(a netip.Addr) bool {
	_, held := b.allocator.Lookup(a)
	return held
}

// Gives is true if an address is one that the node gives to pods.
func (b *Book) Gives(a netip.Addr) bool { return b.allocator.InRange(a) }

// Bindings returns who holds what, in the order of keys.
func (b *Book) Bindings() []ipam.Binding { return b.allocator.Held() }

// Count returns how many addresses are held.
func (b *Book) Count() int {
	n := 0
	for _, binding := range b.allocator.Held() {
		n += len(binding.Addresses)
	}
	return n
}

// CountByPool returns how many addresses of each pool are held.
func (b *Book) CountByPool() map[string]int32 { return b.allocator.HeldByPool() }

// Free returns how many addresses of a family can be given.
func (b *Book) Free(f plan.Family) uint64 { return b.allocator.Free(ipam.Family(f)) }

// SetRanges replaces where addresses are given from. What is held in former
// ranges stays held.
func (b *Book) SetRanges(ranges []ipam.Range) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// What the ranges have not is given back; a new lease of it starts afresh. It may
	// never have been among them: a lease that its owner refused.
	maps.DeleteFunc(b.withdrawn, func(block netip.Prefix, _ bool) bool {
		return !slices.ContainsFunc(ranges, func(r ipam.Range) bool { return cidr.Covers(block, r.Prefix) })
	})
	if reflect.DeepEqual(ranges, b.ranges) {
		return
	}
	b.ranges = ranges
	b.useRanges()
}

func (b *Book) useRanges() { b.allocator.SetRanges(b.lasting(b.ranges)) }

// Lasting returns those of the ranges that are not being given back.
func (b *Book) Lasting(ranges []ipam.Range) []ipam.Range {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lasting(ranges)
}

func (b *Book) lasting(ranges []ipam.Range) []ipam.Range {
	return slices.DeleteFunc(slices.Clone(ranges), func(r ipam.Range) bool {
		for block := range b.withdrawn {
			if cidr.Covers(block, r.Prefix) {
				return true
			}
		}
		return false
	})
}

// Withdraw stops giving addresses of a block, until Restore, so that its lease can
// be given back, and says whether that is news. gone is false, and nothing is done,
// if a pod holds one.
func (b *Book) Withdraw(block netip.Prefix) (gone, news bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	news = !b.withdrawn[block]
	gone = b.withdraw(block)
	return gone, gone && news
}

// IsWithdrawn reports whether a block is being given back.
func (b *Book) IsWithdrawn(block netip.Prefix) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.withdrawn[block]
}

// Restore gives addresses of a block again that was withdrawn. Its lease must be the
// node's: nobody may have asked for it to be given back.
func (b *Book) Restore(block netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.withdrawn, block)
	b.useRanges()
}

// WithdrawAddresses is Withdraw for single addresses, which other nodes may give
// at once: nothing of their last pods is left here then. It returns those that no
// pod holds.
func (b *Book) WithdrawAddresses(singles []netip.Addr) (gone []netip.Addr, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.reapedFirst(singles); err != nil {
		return nil, err
	}
	for _, a := range singles {
		if _, held := b.allocator.Lookup(a); !held {
			b.withdrawn[netip.PrefixFrom(a, a.BitLen())] = true
			gone = append(gone, a)
		}
	}
	b.useRanges()
	return gone, nil
}

func (b *Book) withdraw(block netip.Prefix) bool {
	if len(b.allocator.HeldIn(block)) > 0 {
		return false
	}
	b.withdrawn[block] = true
	b.useRanges()
	return true
}

// Lookup returns who holds an address.
func (b *Book) Lookup(a netip.Addr) (ipam.Binding, bool) { return b.allocator.Lookup(a) }

// Usage counts the addresses of the node's blocks. ranges are what they are, or
// will be, given from; a block that is not among them counts as of no use.
func (b *Book) Usage(blocks []netip.Prefix, ranges []ipam.Range) map[netip.Prefix]lease.Usage {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.allocator.Held()
	usage := map[netip.Prefix]lease.Usage{}
	empty := map[netip.Prefix]time.Time{}
	for _, block := range blocks {
		u := lease.Usage{Held: heldIn(held, block)}
		if u.Held == 0 {
			u.EmptySince = b.empty[block]
			if u.EmptySince.IsZero() {
				u.EmptySince = b.now()
			}
			empty[block] = u.EmptySince
		}
		i := slices.IndexFunc(ranges, func(r ipam.Range) bool { return r.Prefix == block && r.Pool == "" })
		if i >= 0 && !b.withdrawn[block] {
			u.Total = size(ranges[i])
			u.Free = max(u.Total-u.Held, 0)
		}
		usage[block] = u
	}
	b.empty = empty
	return usage
}

// HeldIn counts the addresses of a range that pods have.
func (b *Book) HeldIn(p netip.Prefix) int { return heldIn(b.allocator.Held(), p) }

func heldIn(held []ipam.Binding, block netip.Prefix) int {
	n := 0
	for _, binding := range held {
		for _, a := range binding.Addresses {
			if block.Contains(a) {
				n++
			}
		}
	}
	return n
}

// size returns how many addresses of a range pods may get. Blocks are small;
// what does not fit into 30 bits is as good as endless.
func size(r ipam.Range) int {
	var n uint64
	for _, left := range cidr.Subtract([]netip.Prefix{r.Prefix}, r.Reserved) {
		n = min(n+cidr.Size(left), 1<<30)
	}
	return int(n)
}

// Outside returns the addresses that pods hold and that none of the CIDRs
// contains.
func (b *Book) Outside(cidrs []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, binding := range b.allocator.Held() {
		for _, a := range binding.Addresses {
			if !slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Contains(a) }) {
				out = append(out, a)
			}
		}
	}
	return out
}

// ApplyTombstones frees what ended without the agent's hearing of it: the plugin leaves
// a tombstone also where an agent is there and answers too late. Nobody tells.
func (b *Book) ApplyTombstones() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applyTombstones()
}

// applyTombstones frees what ended while no agent was there. A tombstone that
// cannot be applied stays for the next time: its address is held until then.
func (b *Book) applyTombstones() {
	stones, err := cniwire.ReadTombstones(b.options.TombstoneDir)
	if err != nil {
		b.log.Warn("a DEL that came while the agent was away cannot be read; its address stays held", "err", err)
	}
	for _, stone := range stones {
		a := stone.Attachment
		err := b.release(ipam.Key{Network: a.Network, ContainerID: a.ContainerID, IfName: a.IfName})
		if err == nil {
			err = cniwire.RemoveTombstone(b.options.TombstoneDir, stone)
		}
		if err != nil {
			b.log.Warn("a DEL that came while the agent was away cannot be applied; trying again", "container", a.ContainerID, "err", err)
		}
	}
}

// dropStandIns frees addresses that are held for a foreign link's sake only,
// since their true holder has come.
func (b *Book) dropStandIns(addrs []netip.Addr) {
	for _, a := range addrs {
		if holder, held := b.allocator.Lookup(a); held && isStandIn(holder.Key) {
			if err := b.release(holder.Key); err != nil {
				b.log.Warn("cannot free a held address for its true holder", "address", a, "err", err)
			}
		}
	}
}

// standInNetwork is the network of keys that stand for something that holds an
// address and has no attachment that we know. No CNI network has such a name.
const standInNetwork = "(kernel)"

func standIn(link string, a netip.Addr) ipam.Key {
	return ipam.Key{Network: standInNetwork, ContainerID: link, IfName: a.String()}
}

func isStandIn(k ipam.Key) bool { return k.Network == standInNetwork }
