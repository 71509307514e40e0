package openapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/lab/vpc"
)

// VPC is the Fabric of a lab. It touches only what it has written itself: what
// others put into the VPC's table, or block, stays. A new one does not know what
// one before it wrote: it writes the same again, and changes what is other. So the
// Server first gives it the entries whose deletion has ended meanwhile; what an
// instance or a table that went has left in the very moment of a kill -9 stays.
type VPC struct {
	Lab string

	routes  map[entryKey]string // what it has written
	bound   map[string]int      // host -> table; 0 is the VPC's own
	checked map[string]bool
	off     map[string]bool
	blocked map[string]bool
}

type entryKey struct {
	table int
	dst   netip.Prefix
}

// Set implements Fabric. What fails does not keep the rest from being done,
// and is tried again with the next change.
func (v *VPC) Set(ctx context.Context, p Plane) error {
	if v.routes == nil {
		v.routes, v.bound = map[entryKey]string{}, map[string]int{}
		v.checked, v.off, v.blocked = map[string]bool{}, map[string]bool{}, map[string]bool{}
	}
	// A host is bound to a table only when the table is filled, and routes go
	// only when nobody needs them.
	return errors.Join(v.addRoutes(ctx, p), v.bind(ctx, p), v.deleteRoutes(ctx, p),
		v.mark(ctx, p.Checked, v.checked, vpc.SetSourceCheck), v.mark(ctx, p.Off, v.off, vpc.SetOff), v.block(ctx, p))
}

func (v *VPC) addRoutes(ctx context.Context, p Plane) error {
	var errs []error
	for _, table := range p.Tables {
		for dst, host := range table.Routes {
			key := entryKey{table.Number, dst}
			if v.routes[key] == host {
				continue
			}
			if err := vpc.SetRoute(ctx, v.Lab, vpc.Route{Dst: dst, Host: host, Table: table.Number}); err != nil {
				errs = append(errs, err)
				continue
			}
			v.routes[key] = host
		}
	}
	return errors.Join(errs...)
}

func (v *VPC) deleteRoutes(ctx context.Context, p Plane) error {
	var errs []error
	for key := range maps.Clone(v.routes) {
		if p.wants(key) {
			continue
		}
		if err := vpc.DeleteTableRoute(ctx, v.Lab, key.table, key.dst); err != nil && !errors.Is(err, vpc.ErrNoRoute) {
			errs = append(errs, err)
			continue
		}
		delete(v.routes, key)
	}
	return errors.Join(errs...)
}

func (p Plane) wants(key entryKey) bool {
	return slices.ContainsFunc(p.Tables, func(t Table) bool {
		_, found := t.Routes[key.dst]
		return found && t.Number == key.table
	})
}

func (v *VPC) bind(ctx context.Context, p Plane) error {
	var errs []error
	for _, table := range p.Tables {
		for _, host := range table.Hosts {
			if v.bound[host] == table.Number {
				continue
			}
			if err := vpc.Bind(ctx, v.Lab, host, table.Number); err != nil {
				errs = append(errs, err)
				continue
			}
			v.bound[host] = table.Number
		}
	}
	return errors.Join(errs...)
}

// mark makes a property of hosts as it is wanted: host -> on.
func (v *VPC) mark(ctx context.Context, want, have map[string]bool, set func(ctx context.Context, lab, host string, on bool) error) error {
	var errs []error
	for host, on := range want {
		if known, found := have[host]; found && known == on {
			continue
		}
		if err := set(ctx, v.Lab, host, on); err != nil {
			errs = append(errs, err)
			continue
		}
		have[host] = on
	}
	return errors.Join(errs...)
}

func (v *VPC) block(ctx context.Context, p Plane) error {
	var errs []error
	for _, what := range slices.Sorted(maps.Keys(p.Blocked)) {
		if v.blocked[what] == p.Blocked[what] {
			continue
		}
		if err := vpc.Block(ctx, v.Lab, what, p.Blocked[what]); err != nil {
			errs = append(errs, fmt.Errorf("security group: %w", err))
			continue
		}
		v.blocked[what] = p.Blocked[what]
	}
	return errors.Join(errs...)
}
