package addresses

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/journal"
)

// Open opens the book: journal, then what the plugin left behind, then what the
// kernel and host-local show. When it returns, every address that is in use on
// the node is held. A journal that cannot be read is kept aside and the book is
// made from the rest.
func Open(o Options) (*Book, error) {
	if err := forgetFormerBoot(o); err != nil {
		return nil, err
	}
	b := &Book{options: o, log: o.Log, now: time.Now,
		withdrawn: map[netip.Prefix]bool{}, empty: map[netip.Prefix]time.Time{},
		suspects: map[ipam.Key]bool{}, hostLocal: map[ipam.Key]bool{}, changed: make(chan struct{}, 1),
		unreaped: map[netip.Addr]uint64{}, retired: make(chan struct{}, 1)}
	lost, err := b.openJournal()
	if err != nil {
		return nil, fmt.Errorf("opening the node's book of addresses: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applyTombstones()
	errs := []error{b.options.Kernel.ReapLinks(), b.recordLinks()}
	if lost {
		errs = append(errs, b.recordNoted())
	}
	if err := errors.Join(append(errs, b.recordForeign(), b.recordHostLocal())...); err != nil {
		return nil, errors.Join(fmt.Errorf("finding the addresses that are in use on the node: %w", err), b.journal.Close())
	}
	return b, nil
}

// openJournal opens the journal and what it says. lost is true if there is none of
// before, so that it says nothing of who holds what.
func (b *Book) openJournal() (lost bool, err error) {
	_, err = os.Stat(b.options.JournalPath)
	lost = errors.Is(err, fs.ErrNotExist)
	j, err := journal.Open(b.options.JournalPath)
	_, corrupt := errors.AsType[*journal.CorruptError](err)
	_, newer := errors.AsType[*journal.VersionError](err)
	if corrupt || newer {
		b.log.Warn("the journal of addresses cannot be read; making it anew from the kernel", "err", err)
		j, err = journal.Open(b.options.JournalPath)
		lost = true
	}
	if err != nil {
		return false, err
	}
	if torn := j.Torn(); torn > 0 {
		b.log.Warn("the journal's last record was cut off, as by a crash: what it said was not answered to anybody", "bytes", torn)
	}
	b.journal = j
	b.allocator, err = ipam.New(j, ipam.Options{})
	if err != nil {
		return false, errors.Join(err, j.Close())
	}
	return lost, nil
}

// forgetFormerBoot removes what speaks of an earlier boot, which no sandbox
// survives. It matters where the run directory is not in memory.
func forgetFormerBoot(o Options) error {
	last, err := os.ReadFile(o.BootPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading which boot the node's book of addresses is of: %w", err)
	}
	if string(last) == o.BootID {
		return nil
	}
	if len(last) > 0 {
		for _, path := range []string{o.JournalPath, o.TombstoneDir, o.SandboxDir} {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("removing what is of an earlier boot: %w", err)
			}
		}
	}
	if err := os.WriteFile(o.BootPath, []byte(o.BootID), 0o600); err != nil {
		return fmt.Errorf("noting the boot's id: %w", err)
	}
	return nil
}

// recordLinks holds the addresses that are routed to our pods' links. The
// kernel is believed before the journal: a sandbox that has the address, and a
// link, has it.
func (b *Book) recordLinks() error {
	links, err := b.options.Kernel.PodLinks()
	if err != nil {
		return fmt.Errorf("listing the pods' links: %w", err)
	}
	wired := map[ipam.Key]bool{}
	for _, l := range links {
		key, _ := attachmentOf(l)
		wired[key] = true
	}
	var errs []error
	for _, l := range links {
		key, owner := attachmentOf(l)
		for _, a := range l.Addresses {
			errs = append(errs, b.recordSeen(key, owner, a, wired))
		}
	}
	return errors.Join(errs...)
}

// attachmentOf returns whose link it is; for one whose alias is lost, a key that
// stands in for it.
func attachmentOf(l dataplane.PodLink) (ipam.Key, ipam.Owner) {
	a, pod, err := podlink.ParseAlias(l.Alias)
	if err != nil {
		return ipam.Key{Network: standInNetwork, ContainerID: l.Name, IfName: "link"}, ipam.Owner{}
	}
	return ipam.Key{Network: a.Network, ContainerID: a.ContainerID, IfName: a.IfName},
		ipam.Owner{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
}

// recordSeen holds one address that was seen in the kernel.
func (b *Book) recordSeen(key ipam.Key, owner ipam.Owner, a netip.Addr, wired map[ipam.Key]bool) error {
	if held, ok := b.allocator.Get(key); ok && slices.Contains(held.Addresses, a) {
		return nil
	}
	if holder, held := b.allocator.Lookup(a); held {
		if wired[holder.Key] {
			b.log.Error("two pods on this node have the same address: delete one of them", "address", a, "one", owner.String(), "other", holder.Owner.String())
			return nil
		}
		if err := b.release(holder.Key); err != nil {
			return err
		}
	}
	b.log.Info("found an address in use that the journal did not have", "address", a, "container", key.ContainerID, "pod", owner.String())
	if _, err := os.Stat(b.sandboxFile(key)); errors.Is(err, fs.ErrNotExist) {
		b.noteSandbox(key, byLink)
	}
	return b.allocator.Record(key, owner, []netip.Addr{a}, b.now())
}

// recordNoted holds what the runtime has noted of interfaces that asked us, or whoever
// had our names before, for addresses, and whose network namespace is there. Of one that
// another main plugin made (macvlan) neither a link of ours nor a route speaks. A journal
// that is not lost knows better: the runtime's note of an interface outlives its DEL.
// Where the note is an older library's, which did not write the namespace, it is believed
// if it is of this boot: that nobody else has the address is worth more than that it is
// free when its pod is gone without a DEL.
func (b *Book) recordNoted() error {
	noted, _ := readResults(b.options.ResultDirs)
	booted, err := bootTime(b.now())
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range noted {
		lives := n.noted.After(booted)
		if n.netns != "" {
			_, err := os.Stat(n.netns)
			lives = err == nil
		}
		if !n.served || !lives {
			continue
		}
		for _, a := range n.addresses {
			if holder, held := b.allocator.Lookup(a); held {
				if holder.Key != n.key {
					b.log.Warn("the runtime's notes name another holder than the node's book; the book stands", "address", a, "holder", holder.Key.String(), "note", n.key.String())
				}
				continue
			}
			b.log.Info("found an address in use that the journal did not have", "address", a, "container", n.key.ContainerID, "pod", n.owner.String())
			b.noteSandbox(n.key, n.netns)
			errs = append(errs, b.allocator.Record(n.key, n.owner, []netip.Addr{a}, b.now()))
		}
	}
	return errors.Join(errs...)
}

// bootTime is when the machine was started.
func bootTime(now time.Time) (time.Time, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return now, fmt.Errorf("asking the kernel when it was started: %w", err)
	}
	return now.Add(-time.Duration(info.Uptime) * time.Second), nil
}

// recordForeign holds addresses that another product's pods have, while they
// live on beside ours after a take-over.
func (b *Book) recordForeign() error {
	pods, err := b.options.Kernel.ForeignPods()
	if err != nil {
		return fmt.Errorf("listing routes to other products' pods: %w", err)
	}
	var errs []error
	for _, p := range pods {
		if _, held := b.allocator.Lookup(p.Address); held {
			continue
		}
		b.log.Debug("an address is routed to a link that is not ours; it is held until the route is gone", "address", p.Address, "link", p.Link)
		errs = append(errs, b.allocator.Record(standIn(p.Link, p.Address), ipam.Owner{}, []netip.Addr{p.Address}, b.now()))
	}
	return errors.Join(errs...)
}

// recordHostLocal holds what host-local has given, if its files are there.
func (b *Book) recordHostLocal() error {
	var errs []error
	for _, r := range readHostLocal(b.options.HostLocalDir) {
		if holder, held := b.allocator.Lookup(r.Address); held && holder.Key != r.Key {
			if !isStandIn(holder.Key) {
				b.log.Warn("host-local's files name another holder than the node's book; the book stands", "address", r.Address, "holder", holder.Key.String(), "file", r.Key.String())
				continue
			}
			errs = append(errs, b.release(holder.Key))
		}
		b.hostLocal[r.Key] = true
		errs = append(errs, b.allocator.Record(r.Key, ipam.Owner{}, []netip.Addr{r.Address}, b.now()))
	}
	return errors.Join(errs...)
}

// hostLocalRecord is one file of host-local's.
type hostLocalRecord struct {
	Key     ipam.Key
	Address netip.Addr
}

// readHostLocal reads host-local's store: <dir>/<network>/<address>, each file
// with the container's id and, on a line of its own, the interface. What is not
// readable or not of that form is not a reservation.
func readHostLocal(dir string) []hostLocalRecord {
	networks, err := os.ReadDir(dir)
	if err != nil {
		return nil // no host-local on this node
	}
	var records []hostLocalRecord
	for _, network := range networks {
		files, err := os.ReadDir(dir + "/" + network.Name())
		if err != nil {
			continue
		}
		for _, f := range files {
			r, err := readHostLocalFile(network.Name(), filepath.Join(dir, network.Name(), f.Name()))
			if err == nil { // or it was released meanwhile, or is none: lock, last_reserved_ip.0
				records = append(records, r)
			}
		}
	}
	return records
}

// errNoReservation: a file of host-local's that holds no address.
var errNoReservation = errors.New("it holds no address")

func readHostLocalFile(network, path string) (hostLocalRecord, error) {
	a, err := netip.ParseAddr(filepath.Base(path))
	if err != nil {
		return hostLocalRecord{}, errNoReservation
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return hostLocalRecord{}, err
	}
	container, ifName, _ := strings.Cut(strings.TrimSpace(string(content)), "\n")
	key := ipam.Key{Network: network, ContainerID: strings.TrimSpace(container), IfName: strings.TrimSpace(ifName)}
	if key.IfName == "" {
		key.IfName = "eth0" // host-local before 0.7 wrote the container's id alone
	}
	if key.ContainerID == "" {
		return hostLocalRecord{}, errNoReservation
	}
	return hostLocalRecord{key, a}, nil
}
