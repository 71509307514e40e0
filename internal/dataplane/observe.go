package dataplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/bpf"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/plan"
)

// Observe implements Dataplane.
func (l *Linux) Observe(ctx context.Context) (Observed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, err := openKernel(l.log)
	if err != nil {
		return Observed{}, err
	}
	defer k.close()
	var out Observed
	addresses, err := k.addresses()
	if err != nil {
		return out, err
	}
	out.Sources = ownSources(addresses, loopbackIndex)
	if out.Routes, err = l.observeRoutes(k); err != nil {
		return out, err
	}
	pods, err := podlink.List()
	if err != nil {
		return out, fmt.Errorf("list pods' links: %w", err)
	}
	for _, p := range pods {
		out.Pods = append(out.Pods, PodLink(p))
	}
	return out, ctx.Err()
}

func (l *Linux) observeRoutes(k *kernel) ([]ObservedRoute, error) {
	devices, err := k.links()
	if err != nil {
		return nil, err
	}
	table, err := k.readRoutes(devices)
	if err != nil {
		return nil, err
	}
	destinations, err := l.observeDestinations()
	if err != nil {
		return nil, err
	}
	outers, err := observeOuters(k, devices)
	if err != nil {
		return nil, err
	}
	var out []ObservedRoute
	for dst, r := range table.ours {
		d := devices[r.Device]
		if r.Blackhole || d == nil {
			continue
		}
		o := ObservedRoute{Dst: dst, Transport: plan.Direct, Outer: r.Via, Device: d.Attrs().Name, MTU: r.MTU}
		end, known := destinations[dst]
		switch {
		case o.Device == VXLANDeviceName:
			o.Transport, o.Outer = plan.VXLAN, outers[r.Via]
		case known && end.Bare():
			o.Outer = end.Remote
		case known:
			o.Transport, o.Outer = plan.IPIP, end.Remote
		}
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b ObservedRoute) int { return a.Dst.Compare(b.Dst) })
	return out, nil
}

// observeDestinations reads the eBPF map, if there is one.
func (l *Linux) observeDestinations() (map[netip.Prefix]bpf.Endpoint, error) {
	if l.tunnel != nil {
		return l.tunnel.Destinations()
	}
	return bpf.PinnedDestinations(l.options.BPFPinDir)
}

// observeOuters follows the vxlan device's entries: next hop -> address in the
// fabric.
func observeOuters(k *kernel, devices map[int]netlink.Link) (map[netip.Addr]netip.Addr, error) {
	out := map[netip.Addr]netip.Addr{}
	for index, d := range devices {
		if d.Attrs().Name != VXLANDeviceName {
			continue
		}
		entries, err := k.entries(index)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.family != unix.AF_BRIDGE {
				out[e.ip] = entries[entry{family: unix.AF_BRIDGE, mac: e.mac}].ip
			}
		}
	}
	return out, nil
}

// Counters returns packets by event at the uplinks (see package bpf): name ->
// packets. It is empty before the first Set.
func (l *Linux) Counters() (map[string]uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tunnel == nil {
		return nil, nil
	}
	return l.tunnel.Counters()
}
