package vpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The metrics of the VPC's routes tell who wrote them. The fabric reads them too: ROUTE_METRIC_CUSTOM in fabric.c.
const (
	metricHost   = 100
	metricCustom = 200
)

// ErrNoRoute is returned by DeleteRoute for a destination that the route table has no entry for.
var ErrNoRoute = errors.New("no such entry in the route table")

// Route is an entry of a route table of the VPC: packets to Dst go to Host, and Host may send from Dst.
type Route struct {
	Dst  netip.Prefix
	Host string // Host.Name
	// Table is 0 for the VPC's own table, or the number of one that hosts are bound to; see Bind.
	Table int
}

// Routes lists the entries that SetRoute wrote. The hosts' own addresses are not among them.
func Routes(_ context.Context, lab string) ([]Route, error) {
	var routes []Route
	err := inNetns(vpcNetns(lab), func() error {
		wires, err := listWiresHere()
		if err != nil {
			return err
		}
		hosts := map[int]string{} // interface index -> host
		for _, w := range wires {
			hosts[w.index] = w.Host
		}
		for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			entries, err := listCustom(fam)
			if err != nil {
				return err
			}
			for _, e := range entries {
				routes = append(routes, Route{Dst: prefix(e), Host: hosts[e.LinkIndex], Table: tableOf(e)})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("routes of lab %q: %w", lab, err)
	}
	return routes, nil
}

// SetRoute adds an entry or changes the host of one, at once and without a moment in between. It refuses an unknown
// host, a destination inside a subnet of hosts, and a family that the host has no address of.
func SetRoute(_ context.Context, lab string, r Route) error {
	err := inNetns(vpcNetns(lab), func() error {
		if isSwitch() {
			return ErrSwitch
		}
		wires, err := listWiresHere()
		if err != nil {
			return err
		}
		entry, err := r.entry(wires)
		if err != nil {
			return err
		}
		if err := netlink.RouteReplace(entry); err != nil {
			return fmt.Errorf("write the entry: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("route %s to %s in lab %q: %w", r.Dst, r.Host, lab, err)
	}
	return nil
}

// entry checks a route against the hosts on the wires and words it for the kernel.
func (r Route) entry(wires []*wire) (*netlink.Route, error) {
	if !r.Dst.IsValid() || r.Dst != r.Dst.Masked() {
		return nil, errors.New("the destination must be an address without host bits and a length")
	}
	for _, w := range wires {
		for _, p := range w.Addresses {
			if p.Overlaps(r.Dst) {
				return nil, fmt.Errorf("the destination overlaps %s of host %s: routes are for addresses outside the VPC's subnets", p.Masked(), w.Host)
			}
		}
	}
	target, err := wireOf(wires, r.Host)
	if err != nil {
		return nil, err
	}
	via, ok := target.address(r.Dst.Addr().Is6())
	if !ok {
		return nil, fmt.Errorf("host %s has no address of that family to route to", r.Host)
	}
	return &netlink.Route{LinkIndex: target.index, Dst: ipNet(r.Dst), Gw: via.AsSlice(), Priority: metricCustom, Table: kernelTable(r.Table)}, nil
}

// DeleteRoute removes an entry that SetRoute wrote into the VPC's own table; ErrNoRoute if there is none.
func DeleteRoute(ctx context.Context, lab string, dst netip.Prefix) error {
	return DeleteTableRoute(ctx, lab, 0, dst)
}

// DeleteTableRoute is DeleteRoute for any table.
func DeleteTableRoute(_ context.Context, lab string, table int, dst netip.Prefix) error {
	err := inNetns(vpcNetns(lab), func() error {
		if !dst.IsValid() {
			return ErrNoRoute
		}
		err := netlink.RouteDel(&netlink.Route{Dst: ipNet(dst.Masked()), Priority: metricCustom, Table: kernelTable(table)})
		if errors.Is(err, unix.ESRCH) {
			return ErrNoRoute
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete the route to %s in lab %q: %w", dst, lab, err)
	}
	return nil
}

// listCustom lists the entries of all tables.
func listCustom(fam int) ([]netlink.Route, error) {
	all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := netlinksafe.RouteListFiltered(fam, all, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the route tables: %w", err)
	}
	return slices.DeleteFunc(routes, func(r netlink.Route) bool { return r.Priority != metricCustom }), nil
}

func prefix(r netlink.Route) netip.Prefix {
	addr, _ := netip.AddrFromSlice(r.Dst.IP)
	ones, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}
