package vpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// firstTable is the kernel's number of the table before the first that hosts are bound to; rulePriority comes before
// the kernel's own rules.
const (
	firstTable   = 1000
	rulePriority = 100
)

func kernelTable(table int) int {
	if table == 0 {
		return unix.RT_TABLE_MAIN
	}
	return firstTable + table
}

func tableOf(r netlink.Route) int {
	if r.Table == unix.RT_TABLE_MAIN {
		return 0
	}
	return r.Table - firstTable
}

// Bind makes what a host sends go by another route table than the VPC's own, as a vSwitch that is bound to a custom
// table does; 0 is the VPC's own again. The hosts' own addresses are in every table.
func Bind(_ context.Context, lab, host string, table int) error {
	err := inNetns(vpcNetns(lab), func() error {
		if isSwitch() {
			return ErrSwitch
		}
		wires, err := listWiresHere()
		if err != nil {
			return err
		}
		w, err := wireOf(wires, host)
		if err != nil {
			return err
		}
		for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			if err := w.bind(fam, table); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bind host %s to route table %d in lab %q: %w", host, table, lab, err)
	}
	return nil
}

// bind makes one family's rule. The new one stands before the old one goes.
func (w *wire) bind(fam, table int) error {
	rules, err := netlinksafe.RuleList(fam)
	if err != nil {
		return fmt.Errorf("list the rules: %w", err)
	}
	bound := false
	var old []netlink.Rule
	for _, r := range rules {
		switch {
		case r.IifName != w.link:
		case r.Table == kernelTable(table):
			bound = true
		default:
			old = append(old, r)
		}
	}
	if table != 0 && !bound {
		if err := fillTable(fam, table); err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Family, rule.IifName, rule.Table, rule.Priority = fam, w.link, kernelTable(table), rulePriority
		if err := netlink.RuleAdd(rule); err != nil {
			return fmt.Errorf("add the rule: %w", err)
		}
	}
	for _, r := range old {
		r.Family = fam
		if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete the old rule: %w", err)
		}
	}
	return nil
}

// fillTable puts the hosts' own addresses into a table, and an end: without it a lookup would go on in the main one.
func fillTable(fam, table int) error {
	own, err := netlinksafe.RouteListFiltered(fam, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list the route table: %w", err)
	}
	for _, r := range own {
		if r.Priority != metricHost {
			continue
		}
		copied := &netlink.Route{LinkIndex: r.LinkIndex, Dst: r.Dst, Priority: metricHost, Scope: netlink.SCOPE_LINK, Table: kernelTable(table)}
		if err := netlink.RouteReplace(copied); err != nil {
			return fmt.Errorf("copy the route to %s: %w", r.Dst, err)
		}
	}
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if fam == netlink.FAMILY_V6 {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	end := &netlink.Route{Dst: ipNet(everything), Type: unix.RTN_BLACKHOLE, Table: kernelTable(table), Priority: metricHost}
	if err := netlink.RouteReplace(end); err != nil {
		return fmt.Errorf("end the table: %w", err)
	}
	return nil
}
