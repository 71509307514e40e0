package dataplane

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/bpf"
	"ropeway.dev/ropeway/internal/plan"
)

// hop is how the FIB reaches a peer's address in the fabric.
type hop struct {
	device int
	via    netip.Addr // the gateway, or the peer itself on a common link
	mtu    int        // in bytes, of the device or the route if that is smaller
}

// hop returns the FIB's answer for a peer.
func (p *pass) hop(outer netip.Addr) (hop, error) {
	h, known := p.hops[outer]
	if !known {
		return hop{}, fmt.Errorf("address %s of the node is not valid", outer)
	}
	return h.hop, h.err
}

type hopOrError struct {
	hop hop
	err error
}

// findUplinks asks the FIB for every peer, and for the devices that carry the
// node's own addresses: packets from peers arrive there even before the first
// one is sent.
func (p *pass) findUplinks() error {
	found := map[int]bool{}
	for _, a := range p.addresses {
		if slices.Contains(p.want.Addresses, a.Prefix.Addr()) {
			found[a.Index] = true
		}
	}
	for outer := range p.outers() {
		h, err := p.k.findHop(outer, p.devices)
		p.hops[outer] = hopOrError{h, err}
		if err == nil {
			found[h.device] = true
			p.report.MTUs[outer] = h.mtu
		}
	}
	for _, index := range slices.Sorted(maps.Keys(found)) {
		d := p.devices[index]
		if d == nil || d.Attrs().Name == loopback {
			continue
		}
		p.report.Uplinks = append(p.report.Uplinks, Uplink{Name: d.Attrs().Name, Index: index, MTU: d.Attrs().MTU})
	}
	if len(p.report.Uplinks) == 0 {
		return fmt.Errorf("no device has the node's address %v, and none leads to another node: "+
			"check the InternalIP of this node's Node object", p.want.Addresses)
	}
	return nil
}

// outers returns the addresses of peers that something is sent to.
func (p *pass) outers() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, r := range p.want.Routes {
		if r.Outer.IsValid() {
			out[r.Outer] = true
		}
	}
	for _, peer := range p.want.Peers {
		if a := p.underlay(peer.Addresses); a.IsValid() {
			out[a] = true
		}
	}
	return out
}

// underlay picks the address of the family that the node sends outer packets
// by: IPv4 if it has that.
func (p *pass) underlay(addrs []netip.Addr) netip.Addr {
	return plan.OfFamily(addrs, p.underlayFamily())
}

func (p *pass) underlayFamily() plan.Family {
	if plan.OfFamily(p.want.Addresses, plan.IPv4).IsValid() || len(p.want.Addresses) == 0 {
		return plan.IPv4
	}
	return plan.IPv6
}

func (k *kernel) findHop(outer netip.Addr, devices map[int]netlink.Link) (hop, error) {
	// The FIB's entry, not the route cache's: a cached path MTU comes and goes.
	routes, err := k.h.RouteGetWithOptions(outer.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil {
		return hop{}, fmt.Errorf("this node has no route to the node's address %s: %w", outer, err)
	}
	if len(routes) == 0 {
		return hop{}, fmt.Errorf("this node has no route to the node's address %s", outer)
	}
	r := routes[0]
	h := hop{device: r.LinkIndex, via: addrOf(r.Gw), mtu: r.MTU}
	if len(r.MultiPath) > 0 {
		one := choosePath(outer, r.MultiPath)
		h.device, h.via = one.LinkIndex, addrOf(one.Gw)
	}
	d := devices[h.device]
	if d == nil {
		return hop{}, fmt.Errorf("the route to the node's address %s leads nowhere", outer)
	}
	name := d.Attrs().Name
	if name == loopback || name == VXLANDeviceName || isPodLink(name) {
		return hop{}, fmt.Errorf("the node's address %s is reached by %s: nodes' addresses must not lie in the pod network", outer, name)
	}
	if !h.via.IsValid() {
		h.via = outer
	}
	if h.mtu == 0 || d.Attrs().MTU < h.mtu {
		h.mtu = d.Attrs().MTU
	}
	return h, nil
}

// choosePath picks one of several next hops for a peer, so that the packets between
// two nodes stay in order. One that is dead is used only if all are, and moves no
// peer but its own (rendezvous hashing).
func choosePath(outer netip.Addr, paths []*netlink.NexthopInfo) *netlink.NexthopInfo {
	// The kernel calls a next hop dead when its device is down, and where an
	// operator wants that (ignore_routes_with_linkdown) already without a carrier.
	const dead = unix.RTNH_F_DEAD | unix.RTNH_F_LINKDOWN
	var best *netlink.NexthopInfo
	var most uint64
	for _, path := range paths {
		sum := fnv.New32a()
		fmt.Fprint(sum, path.LinkIndex, path.Gw)
		sum.Write(outer.AsSlice()) // last, so that what differs before it is well mixed
		weight := uint64(sum.Sum32()) + 1
		if path.Flags&dead == 0 {
			weight += 1 << 32
		}
		if weight > most {
			best, most = path, weight
		}
	}
	return best
}

// smallestMTU returns the least that any peer is reached by, in bytes.
func (p *pass) smallestMTU() int {
	least := 0
	for _, h := range p.hops {
		if h.err == nil && (least == 0 || h.hop.mtu < least) {
			least = h.hop.mtu
		}
	}
	for _, u := range p.report.Uplinks {
		if least == 0 || u.MTU < least {
			least = u.MTU
		}
	}
	return least
}

// bpfUplinks translates the uplinks for package bpf.
func (p *pass) bpfUplinks() ([]bpf.Uplink, error) {
	var out []bpf.Uplink
	var errs []error
	for _, u := range p.report.Uplinks {
		switch kind := p.devices[u.Index].Attrs().EncapType; kind {
		case "ether":
			out = append(out, bpf.Uplink{Name: u.Name, Index: u.Index})
		case "none", "ipip", "gre", "void":
			out = append(out, bpf.Uplink{Name: u.Name, Index: u.Index, Bare: true})
		default:
			errs = append(errs, fmt.Errorf("uplink %s is a device of type %s, which this version cannot attach to", u.Name, kind))
		}
	}
	return out, errors.Join(errs...)
}
