package addresses

import (
	"fmt"
	"net/netip"

	"ropeway.dev/ropeway/internal/ipam"
)

// InUseError says why an address is not released: something speaks for its
// holder, or nothing speaks against it.
type InUseError struct{ Message string }

// Error implements error.
func (e *InUseError) Error() string { return e.Message }

func inUse(format string, args ...any) error { return &InUseError{fmt.Sprintf(format, args...)} }

// ReleaseLeaked frees what holds the address, for a person who says that it is
// leaked. It is not taken on his word: nothing that the node knows may speak for
// the sandbox. holder is who he has seen to hold it; if it has another holder by
// now, nothing happens. sandboxGone is his word that the runtime does not know
// the container, and counts only where the node knows neither. podKnown says
// whether the API server has the pod. The error is an *InUseError, or the
// journal's.
func (b *Book) ReleaseLeaked(a netip.Addr, holder ipam.Key, podKnown func(ipam.Owner) bool, sandboxGone bool) error {
	w, err := b.newWitness()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applyTombstones()
	binding, held := b.allocator.Lookup(a)
	switch {
	case !held:
		return inUse("no pod of this node holds %s any more: there is nothing to release", a)
	case binding.Key != holder:
		return inUse("%s has another holder by now, %s (container %s): look again", a, binding.Owner, binding.Key.ContainerID)
	}
	if why := b.speaksFor(w, binding, podKnown, sandboxGone); why != nil {
		return why
	}
	b.log.Info("released by hand", "container", binding.Key.ContainerID, "pod", binding.Owner.String(), "addresses", binding.Addresses)
	return b.release(binding.Key)
}

// speaksFor says what speaks for a holder, as an error.
func (b *Book) speaksFor(w *witness, binding ipam.Binding, podKnown func(ipam.Owner) bool, sandboxGone bool) error {
	key := binding.Key
	if link := w.link(key, binding.Addresses); link != "" {
		return inUse("the link %s leads to it, so its sandbox lives: delete %s, or, if that is gone, end the sandbox (crictl rmp -f, container %s)", link, binding.Owner, key.ContainerID)
	}
	state := w.sandbox(key)
	switch {
	case state == lives:
		return inUse("the network namespace of its sandbox is there: delete %s, or, if that is gone, end the sandbox (crictl rmp -f, container %s)", binding.Owner, key.ContainerID)
	case state == unknown && binding.Owner != (ipam.Owner{}) && podKnown(binding.Owner):
		return inUse("%s has it, and is there: delete the pod", binding.Owner)
	case state == unknown && !sandboxGone:
		return inUse("nothing on the node says what became of the sandbox (container %s): if crictl pods and crictl ps -a do not list it, run this again with --sandbox-gone", key.ContainerID)
	}
	return nil
}
