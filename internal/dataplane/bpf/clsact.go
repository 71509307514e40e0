package bpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernels before 6.6 have no tcx. There the programs are filters of a clsact
// qdisc, which go on without the agent by themselves, and are replaced in one
// step by their handle and priority.
const (
	clsactIngress  = netlink.HANDLE_MIN_INGRESS
	clsactEgress   = netlink.HANDLE_MIN_EGRESS
	filterHandle   = 1
	filterPriority = 0x7270 // our own, so that nobody else's is replaced
	filterName     = "ropeway"
)

func (t *Tunnel) attachClsact(u Uplink, d direction) (changed bool, err error) {
	dev, err := netlink.LinkByIndex(u.Index)
	if err != nil {
		return false, fmt.Errorf("find device: %w", err)
	}
	program := t.program(d, u)
	old, err := ourFilter(dev, d.parent)
	if err != nil {
		return false, err
	}
	if old != nil {
		same, err := sameProgram(ebpf.ProgramID(old.Id), program)
		if err != nil || same {
			return false, err
		}
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: u.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("add clsact qdisc: %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: u.Index, Parent: d.parent, Handle: filterHandle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: program.FD(), Name: filterName, DirectAction: true,
	}
	if err := netlink.FilterReplace(filter); err != nil {
		return false, fmt.Errorf("add filter: %w", err)
	}
	return true, nil
}

// ourFilter returns our filter below the parent, or nil.
func ourFilter(dev netlink.Link, parent uint32) (*netlink.BpfFilter, error) {
	filters, err := netlinksafe.FilterList(dev, parent)
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	for _, f := range filters {
		b, ok := f.(*netlink.BpfFilter)
		if ok && b.Priority == filterPriority && strings.HasPrefix(b.Name, filterName) {
			return b, nil
		}
	}
	return nil, nil
}

// detachClsactOthers removes our filters from all devices but those, and a
// clsact qdisc that has no filter left.
func detachClsactOthers(keep []Uplink) (changed bool, err error) {
	devs, err := netlinksafe.LinkList()
	if err != nil {
		return false, fmt.Errorf("list devices: %w", err)
	}
	kept := map[int]bool{}
	for _, u := range keep {
		kept[u.Index] = true
	}
	var errs []error
	for _, dev := range devs {
		if kept[dev.Attrs().Index] {
			continue
		}
		ch, err := detachClsact(dev)
		changed = changed || ch
		if err != nil {
			errs = append(errs, fmt.Errorf("detach eBPF program from %s: %w", dev.Attrs().Name, err))
		}
	}
	return changed, errors.Join(errs...)
}

func detachClsact(dev netlink.Link) (changed bool, err error) {
	for _, d := range directions() {
		f, err := ourFilter(dev, d.parent)
		if err != nil {
			return changed, err
		}
		if f == nil {
			continue
		}
		if err := netlink.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return changed, fmt.Errorf("delete filter: %w", err)
		}
		changed = true
	}
	if !changed {
		return false, nil
	}
	return true, removeEmptyClsact(dev)
}

// removeEmptyClsact removes the qdisc if nobody uses it any more.
func removeEmptyClsact(dev netlink.Link) error {
	for _, d := range directions() {
		rest, err := netlinksafe.FilterList(dev, d.parent)
		if err != nil {
			return fmt.Errorf("list filters: %w", err)
		}
		if len(rest) > 0 {
			return nil
		}
	}
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: dev.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscDel(qdisc); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete clsact qdisc: %w", err)
	}
	return nil
}
