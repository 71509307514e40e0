package addresses

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/ipam"
)

// Sweep frees what is held for sandboxes that are gone, though nobody said DEL:
// the runtime lost its state, or another product's pod ended. It frees only
// what two sweeps in a row found gone, and only on evidence: the network
// namespace is no more and no link is left, or the foreign link is gone.
func (b *Book) Sweep() error {
	w, err := b.newWitness()
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	files := readHostLocal(b.options.HostLocalDir)
	b.applyTombstones()
	suspects := map[ipam.Key]bool{}
	var errs []error
	for _, binding := range b.allocator.Held() {
		key := binding.Key
		if w.link(key, binding.Addresses) != "" || !b.gone(w, key, files) {
			continue
		}
		if !b.suspects[key] {
			suspects[key] = true
			continue
		}
		b.log.Info("freed the addresses of a sandbox that is gone without a DEL", "container", key.ContainerID, "pod", binding.Owner.String(), "addresses", binding.Addresses)
		errs = append(errs, b.release(key))
	}
	b.suspects = suspects
	return errors.Join(errs...)
}

// gone is true if there is evidence that a sandbox, to which no route leads, is
// no more.
func (b *Book) gone(w *witness, key ipam.Key, files []hostLocalRecord) bool {
	if state := w.sandbox(key); state != unknown {
		return state == ended
	}
	// A link, or a file of host-local's, was all that spoke for these.
	return !hasFile(files, key) && (isStandIn(key) || b.hostLocal[key])
}

// netnsGone is true if a network namespace's path is no more, and its directory
// is one that we really see: in a container without the runtime's directory
// mounted, every namespace would seem gone.
func netnsGone(path string) bool {
	if path == "" {
		return false
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	others, err := os.ReadDir(filepath.Dir(path))
	return err == nil && len(others) > 0
}

// sandboxFile keeps the path of a sandbox's network namespace.
func (b *Book) sandboxFile(key ipam.Key) string {
	return filepath.Join(b.options.SandboxDir, podlink.HostLinkName(key.Network, key.ContainerID, key.IfName))
}

// byLink stands for the path of a network namespace in the note of a sandbox that
// was found by its link, and of which nobody has said the path.
const byLink = "link"

// noteSandbox keeps evidence for Sweep. Without it an address is freed later,
// never too early, so that a failure is not one of the ADD.
func (b *Book) noteSandbox(key ipam.Key, netns string) {
	if netns == "" {
		return
	}
	err := os.WriteFile(b.sandboxFile(key), []byte(netns), 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(b.options.SandboxDir, 0o700); err == nil {
			err = os.WriteFile(b.sandboxFile(key), []byte(netns), 0o600)
		}
	}
	if err != nil {
		b.log.Warn("cannot note a sandbox's network namespace", "container", key.ContainerID, "err", err)
	}
}

func (b *Book) forgetSandbox(key ipam.Key) {
	if err := os.Remove(b.sandboxFile(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.log.Warn("cannot forget a sandbox's network namespace", "container", key.ContainerID, "err", err)
	}
}
