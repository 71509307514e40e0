package dataplane

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/plan"
)

// route is a route of ours in the main table: to another node's destination by
// one device, or nowhere (Blackhole).
type route struct {
	Dst       netip.Prefix
	Blackhole bool
	Device    int
	Via       netip.Addr
	Source    netip.Addr
	MTU       int
}

// onlink is RTNH_F_ONLINK: the next hop is reached by the device whatever the
// other routes say.
const onlink = int(netlink.FLAG_ONLINK)

func (r route) netlink() *netlink.Route {
	out := &netlink.Route{
		Dst: ipNet(r.Dst), Protocol: podlink.RouteProtocol, Table: unix.RT_TABLE_MAIN,
		Family: familyNumber(r.Dst.Addr()),
	}
	if r.Blackhole {
		out.Type = unix.RTN_BLACKHOLE
		return out
	}
	out.LinkIndex, out.Gw, out.MTU, out.Flags = r.Device, r.Via.AsSlice(), r.MTU, onlink
	if r.Source.IsValid() {
		out.Src = r.Source.AsSlice()
	}
	return out
}

// routeOf reads a kernel's route; ok is false if it is none that Set makes.
func routeOf(r netlink.Route) (out route, ok bool) {
	out = route{Dst: prefixOf(r.Dst)}
	if r.Protocol != podlink.RouteProtocol || !out.Dst.IsValid() {
		return out, false
	}
	if r.Type == unix.RTN_BLACKHOLE {
		out.Blackhole = true
		return out, true
	}
	out.Device, out.Via, out.Source, out.MTU = r.LinkIndex, addrOf(r.Gw), addrOf(r.Src), r.MTU
	return out, true
}

// routeTable is the main table as Set cares for it.
type routeTable struct {
	ours    map[netip.Prefix]route
	foreign map[netip.Prefix]netlink.RouteProtocol // destination -> who made the route
}

// readRoutes reads the main tables. Routes to pods of this node are neither: the
// plugin makes them. A device that is newer than the list of devices is such a
// pod's, which is being wired just now.
func (k *kernel) readRoutes(devices map[int]netlink.Link) (routeTable, error) {
	t := routeTable{ours: map[netip.Prefix]route{}, foreign: map[netip.Prefix]netlink.RouteProtocol{}}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := k.h.RouteListFiltered(family, &netlink.Route{}, 0)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return t, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range list {
			if d := devices[r.LinkIndex]; r.LinkIndex != 0 && (d == nil || isPodLink(d.Attrs().Name)) {
				continue
			}
			if own, ok := routeOf(r); ok {
				t.ours[own.Dst] = own
			} else if dst := prefixOf(r.Dst); dst.IsValid() {
				t.foreign[dst] = r.Protocol
			}
		}
	}
	return t, nil
}

// wantedRoutes computes the kernel's routes: destination -> route. What cannot
// be had is noted in the report.
func (p *pass) wantedRoutes() map[netip.Prefix]route {
	out := make(map[netip.Prefix]route, len(p.want.Routes))
	// An address that nobody has must not leave the node bare, nor circle
	// between nodes. Routes to nodes and to pods are longer.
	for _, list := range [][]netip.Prefix{p.want.PodCIDRs, p.want.CIDRs} {
		for _, dst := range list {
			out[dst.Masked()] = route{Dst: dst.Masked(), Blackhole: true}
		}
	}
	for _, r := range p.want.Routes {
		made, err := p.wantedRoute(r)
		if err != nil {
			p.report.Failed[r.Dst] = err.Error()
			continue
		}
		out[made.Dst] = made
	}
	return out
}

func (p *pass) wantedRoute(r plan.Route) (route, error) {
	if why := p.report.Refuses[r.Transport]; why != "" {
		return route{}, fmt.Errorf("%s cannot be used on this node: %s", r.Transport, why)
	}
	hop, err := p.hop(r.Outer)
	if err != nil {
		return route{}, err
	}
	out := route{
		Dst: r.Dst.Masked(), Source: r.Source,
		MTU: plan.RouteMTU(p.want.MTU, r.Transport, plan.FamilyOf(r.Outer), hop.mtu),
	}
	if r.MTU > 0 && (out.MTU == 0 || r.MTU < out.MTU) {
		out.MTU = r.MTU
	}
	switch {
	case r.Transport == plan.IPIP && r.Dst.Addr().Is4() && r.Outer.Is4(),
		r.Transport == plan.Direct && r.Dst.Addr().Is4() == r.Outer.Is4():
		out.Device, out.Via = hop.device, hop.via
	case r.Transport == plan.Direct:
		return route{}, fmt.Errorf("direct needs an %s address of node %s in the fabric", plan.FamilyOf(r.Dst.Addr()), r.Peer)
	case r.Transport == plan.IPIP:
		return route{}, errors.New("ipip carries IPv4 in IPv4 only: allow vxlan")
	case r.Transport == plan.VXLAN && r.Gateway.IsValid():
		out.Device, out.Via = p.vxlanIndex, r.Gateway
	case r.Transport == plan.VXLAN:
		return route{}, fmt.Errorf("node %s has no pod-network address of %s yet", r.Peer, plan.FamilyOf(r.Dst.Addr()))
	default:
		return route{}, fmt.Errorf("transport %q is not known to this version", r.Transport)
	}
	return out, nil
}

// setRoutes adds and replaces first, then deletes. A destination whose route
// failed keeps the one that it has.
func (p *pass) setRoutes() error {
	have, err := p.k.readRoutes(p.devices)
	if err != nil {
		return err
	}
	want := p.wantedRoutes()
	for _, dst := range slices.SortedFunc(maps.Keys(want), netip.Prefix.Compare) {
		r := want[dst]
		if have.ours[dst] == r {
			continue
		}
		if err := p.putRoute(r, have); err != nil {
			p.report.Failed[dst] = err.Error()
		}
	}
	var errs []error
	for _, dst := range slices.SortedFunc(maps.Keys(have.ours), netip.Prefix.Compare) {
		if _, wanted := want[dst]; wanted || p.report.Failed[dst] != "" {
			continue
		}
		errs = append(errs, p.k.deleteRoute(have.ours[dst]))
	}
	for _, dst := range slices.SortedFunc(maps.Keys(p.report.Failed), netip.Prefix.Compare) {
		errs = append(errs, fmt.Errorf("route to %s: %s", dst, p.report.Failed[dst]))
	}
	return few.Errors(errs...)
}

func (p *pass) putRoute(r route, have routeTable) error {
	if by, taken := have.foreign[r.Dst]; taken {
		return fmt.Errorf("another program (routing protocol %s) has a route to it: stop that program, or delete its route", by)
	}
	err := p.k.h.RouteReplace(r.netlink())
	if errors.Is(err, unix.EINVAL) && r.Via.Is6() && !r.Blackhole {
		err = p.k.replaceBeside(r)
	}
	if err != nil {
		return fmt.Errorf("write to kernel: %w", err)
	}
	p.k.wrote("route replaced", "destination", r.Dst, "via", r.Via, "device", r.Device, "mtu", r.MTU)
	return nil
}

// replaceBeside replaces a route whose next hop is reached by another device at
// present. IPv6 refuses such a one although it is said to be on the link, and
// a peer's pod-network address, vxlan's next hop, lies in the very range that
// the route is for. So the next hop goes first, by a route of its own, which
// is not needed any more after that.
func (k *kernel) replaceBeside(r route) error {
	first := &netlink.Route{
		Dst: ipNet(netip.PrefixFrom(r.Via, r.Via.BitLen())), Protocol: podlink.RouteProtocol, Table: unix.RT_TABLE_MAIN,
		Family: familyNumber(r.Via), LinkIndex: r.Device,
	}
	if err := k.h.RouteReplace(first); err != nil {
		return fmt.Errorf("route to the next hop %s: %w", r.Via, err)
	}
	err := k.h.RouteReplace(r.netlink())
	if delErr := k.h.RouteDel(first); delErr != nil && !errors.Is(delErr, unix.ESRCH) {
		err = errors.Join(err, fmt.Errorf("remove route to the next hop %s: %w", r.Via, delErr))
	}
	return err
}

func (k *kernel) deleteRoute(r route) error {
	err := k.h.RouteDel(r.netlink())
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete route to %s: %w", r.Dst, err)
	}
	k.wrote("route deleted", "destination", r.Dst)
	return nil
}
