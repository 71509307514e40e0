package addresses

import (
	"fmt"
	"maps"
	"net/netip"

	"ropeway.dev/ropeway/internal/ipam"
)

// A DEL leaves the pod's link on the node, out of use (see podlink.Retire): to
// remove it takes the kernel longer than everything else together, and takes
// no longer for many. Until it is removed, its addresses are free for nobody,
// which they need not be for long: an address rests for a second at least.

// Retire is Release for an interface whose link waits for Reap.
func (b *Book) Retire(key ipam.Key) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	held, _ := b.allocator.Get(key)
	if err := b.release(key); err != nil {
		return err
	}
	b.retirements++
	for _, a := range held.Addresses {
		b.unreaped[a] = b.retirements
	}
	select {
	case b.retired <- struct{}{}:
	default:
	}
	return nil
}

// Retired receives after links were retired; many may be one value.
func (b *Book) Retired() <-chan struct{} { return b.retired }

// Reap removes the links that were retired.
func (b *Book) Reap() error {
	b.mu.Lock()
	before := maps.Clone(b.unreaped)
	b.mu.Unlock()
	if err := b.options.Kernel.ReapLinks(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for a, retirement := range before {
		if b.unreaped[a] == retirement { // not given and retired again meanwhile
			delete(b.unreaped, a)
		}
	}
	return nil
}

// reapedFirst makes sure that no link of a former holder is left of addresses
// that are about to be given. It waits for the kernel only where addresses are
// so scarce that they are used again within a second.
func (b *Book) reapedFirst(addrs []netip.Addr) error {
	for _, a := range addrs {
		if _, waiting := b.unreaped[a]; !waiting {
			continue
		}
		if err := b.options.Kernel.ReapLinks(); err != nil {
			return fmt.Errorf("the address %s was another pod's, whose link cannot be removed: %w", a, err)
		}
		clear(b.unreaped)
		return nil
	}
	return nil
}
