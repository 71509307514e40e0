package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/plan"
)

// VXLANDeviceName is the name of the vxlan transport's device.
const VXLANDeviceName = "rw-vxlan"

const (
	// inheritTOS copies the inner packet's DSCP; its congestion marks are
	// always copied (RFC 6040).
	inheritTOS = 1
	// addrGenModeNone keeps the kernel from giving the device an IPv6 address,
	// and with it from soliciting anybody.
	addrGenModeNone = 1
)

// setVXLAN makes the device, and for every peer the permanent entries that make
// a packet for the peer's pod-network address an outer packet to its address in
// the fabric. The device is kept whichever transport is in use: a live change of
// transport is then a change of routes only.
func (p *pass) setVXLAN() error {
	local := p.underlay(p.want.Addresses)
	if !local.IsValid() {
		return errors.New("the node has no address in the fabric: set --node-ip of its kubelet")
	}
	dev, err := p.k.link(VXLANDeviceName)
	if err != nil {
		return err
	}
	want := p.vxlanDevice(local)
	if dev != nil && !sameVXLAN(dev, want) {
		if err := p.k.h.LinkDel(dev); err != nil {
			return fmt.Errorf("remove device %s, whose parameters are not as wanted: %w", VXLANDeviceName, err)
		}
		p.k.wrote("device deleted", "device", VXLANDeviceName)
		dev = nil
	}
	if dev == nil {
		if dev, err = p.k.addVXLAN(want); err != nil {
			return err
		}
	}
	if err := p.k.adjustVXLAN(dev, want); err != nil {
		return err
	}
	if p.want.VXLAN.Checksums {
		if err := p.k.computeChecksums(VXLANDeviceName); err != nil {
			return err
		}
	}
	p.vxlanIndex = dev.Attrs().Index
	p.devices[p.vxlanIndex] = dev
	if err := p.vxlanSysctls(); err != nil {
		return err
	}
	return p.setVXLANPeers()
}

func (p *pass) vxlanDevice(local netip.Addr) *netlink.Vxlan {
	mac := p.want.VXLAN.MAC
	return &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{
			Name: VXLANDeviceName, HardwareAddr: net.HardwareAddr(mac[:]), TxQLen: -1,
			MTU: p.largestMTU() - plan.Overhead(plan.VXLAN, p.underlayFamily()),
		},
		VxlanId: int(p.want.VXLAN.VNI), Port: int(p.want.VXLAN.Port),
		SrcAddr: local.AsSlice(), TOS: inheritTOS, NoAge: true,
	}
}

// largestMTU is what the vxlan device must be able to carry: routes say what
// each peer gets.
func (p *pass) largestMTU() int {
	most := 0
	for _, u := range p.report.Uplinks {
		most = max(most, u.MTU)
	}
	if most == 0 {
		most = 1500
	}
	return most
}

// sameVXLAN compares what the kernel lets nobody change.
func sameVXLAN(dev netlink.Link, want *netlink.Vxlan) bool {
	have, ok := dev.(*netlink.Vxlan)
	return ok && have.VxlanId == want.VxlanId && have.Port == want.Port && !have.Learning &&
		have.SrcAddr.Equal(want.SrcAddr) && have.TOS == want.TOS && !have.FlowBased
}

func (k *kernel) addVXLAN(want *netlink.Vxlan) (netlink.Link, error) {
	if err := k.h.LinkAdd(want); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil, errors.New("the kernel has no vxlan (CONFIG_VXLAN)")
		}
		return nil, fmt.Errorf("add vxlan device %s with VNI %d on UDP port %d "+
			"(another vxlan device with the same ones would be in the way): %w", VXLANDeviceName, want.VxlanId, want.Port, err)
	}
	k.wrote("device added", "device", VXLANDeviceName)
	dev, err := k.link(VXLANDeviceName)
	if err == nil && dev == nil {
		err = fmt.Errorf("device %s vanished", VXLANDeviceName)
	}
	if err != nil {
		return nil, err
	}
	if err := k.h.LinkSetIP6AddrGenMode(dev, addrGenModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("keep IPv6 addresses off device %s: %w", VXLANDeviceName, err)
	}
	return dev, nil
}

// adjustVXLAN changes what can be changed while packets flow.
func (k *kernel) adjustVXLAN(dev netlink.Link, want *netlink.Vxlan) error {
	have := dev.Attrs()
	if have.HardwareAddr.String() != want.HardwareAddr.String() {
		if err := k.h.LinkSetHardwareAddr(dev, want.HardwareAddr); err != nil {
			return fmt.Errorf("set MAC address of device %s: %w", VXLANDeviceName, err)
		}
		k.wrote("MAC address set", "device", VXLANDeviceName)
	}
	if have.MTU != want.MTU {
		if err := k.h.LinkSetMTU(dev, want.MTU); err != nil {
			return fmt.Errorf("set MTU %d of device %s: %w", want.MTU, VXLANDeviceName, err)
		}
		k.wrote("MTU set", "device", VXLANDeviceName, "mtu", want.MTU)
	}
	if have.Flags&net.FlagUp == 0 {
		if err := k.h.LinkSetUp(dev); err != nil {
			return fmt.Errorf("set device %s up: %w", VXLANDeviceName, err)
		}
		k.wrote("set up", "device", VXLANDeviceName)
	}
	return nil
}

// entry is a permanent neighbour (an address of the pod network -> MAC) or a
// forwarding entry (MAC -> address in the fabric).
type entry struct {
	family int // unix.AF_INET, AF_INET6 or AF_BRIDGE
	ip     netip.Addr
	mac    plan.MAC
}

func (e entry) netlink(index int) *netlink.Neigh {
	n := &netlink.Neigh{
		LinkIndex: index, Family: e.family, State: netlink.NUD_PERMANENT,
		IP: e.ip.AsSlice(), HardwareAddr: net.HardwareAddr(e.mac[:]),
	}
	if e.family == unix.AF_BRIDGE {
		n.Flags = netlink.NTF_SELF
	}
	return n
}

// key is what the kernel has one entry for.
func (e entry) key() entry {
	if e.family == unix.AF_BRIDGE {
		return entry{family: e.family, mac: e.mac}
	}
	return entry{family: e.family, ip: e.ip}
}

// wantedEntries returns key -> entry.
func (p *pass) wantedEntries() map[entry]entry {
	out := make(map[entry]entry, 2*len(p.want.Peers)) // where it is, and its address in the pod network
	for _, peer := range p.want.Peers {
		outer := p.underlay(peer.Addresses)
		if !outer.IsValid() || peer.VTEP == (plan.MAC{}) {
			continue
		}
		e := entry{unix.AF_BRIDGE, outer, peer.VTEP}
		out[e.key()] = e
		for _, source := range peer.Sources {
			e := entry{familyNumber(source), source, peer.VTEP}
			out[e.key()] = e
		}
	}
	for _, r := range p.want.Routes { // a peer may not have said its sources yet
		if r.Gateway.IsValid() && r.VTEP != (plan.MAC{}) {
			e := entry{familyNumber(r.Gateway), r.Gateway, r.VTEP}
			out[e.key()] = e
		}
	}
	return out
}

// entries reads those that the device has: key -> entry.
func (k *kernel) entries(index int) (map[entry]entry, error) {
	out := map[entry]entry{}
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		found, err := k.neighbours(index, family)
		if err != nil {
			return nil, err
		}
		maps.Copy(out, found)
	}
	return out, nil
}

// addEntry adds what the kernel has, but for its own. One that is not permanent
// counts as one with another MAC.
func addEntry(to map[entry]entry, n *netlink.Neigh) {
	e := entry{family: n.Family, ip: addrOf(n.IP)}
	if len(n.HardwareAddr) == len(e.mac) {
		copy(e.mac[:], n.HardwareAddr)
	}
	if !e.ip.IsValid() || e.ip.IsMulticast() || n.State&netlink.NUD_NOARP != 0 && n.Family != unix.AF_BRIDGE {
		return
	}
	id := e.key()
	if n.State&netlink.NUD_PERMANENT == 0 {
		e.mac = plan.MAC{}
	}
	to[id] = e
}

func (p *pass) setVXLANPeers() error {
	have, err := p.k.entries(p.vxlanIndex)
	if err != nil {
		return err
	}
	want := p.wantedEntries()
	var errs []error
	for id, e := range want {
		if have[id] == e {
			continue
		}
		if err := p.k.h.NeighSet(e.netlink(p.vxlanIndex)); err != nil {
			errs = append(errs, fmt.Errorf("write neighbour %s %s of %s: %w", e.ip, e.mac, VXLANDeviceName, err))
			continue
		}
		p.k.wrote("neighbour set", "device", VXLANDeviceName, "address", e.ip, "mac", e.mac.String())
	}
	for id, e := range have {
		if _, wanted := want[id]; !wanted {
			p.staleEntries = append(p.staleEntries, e)
		}
	}
	return few.Errors(errs...)
}

// pruneVXLAN deletes the entries of nodes that are gone, when no route leads to
// them any more.
func (p *pass) pruneVXLAN() error {
	var errs []error
	for _, e := range p.staleEntries {
		err := p.k.h.NeighDel(e.netlink(p.vxlanIndex))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("delete neighbour %s %s of %s: %w", e.ip, e.mac, VXLANDeviceName, err))
			continue
		}
		p.k.wrote("neighbour deleted", "device", VXLANDeviceName, "address", e.ip)
	}
	return few.Errors(errs...)
}
