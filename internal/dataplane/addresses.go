package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// The node's own addresses in the pod network lie on the loopback device: they
// belong to no uplink, and no change of an uplink takes them away.
const (
	loopback      = "lo"
	loopbackIndex = 1
	sourceLabel   = loopback + ":ropeway" // the mark of IPv4 where the kernel keeps no protocol
)

// ownSources picks the addresses that Set assigned to the loopback device or to
// the vxlan device. That one is ours, and so are the addresses of IPv4 that it has:
// kernels before 5.18 keep no mark of them.
func ownSources(all []assigned, index int) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		marked := a.Protocol == podlink.RouteProtocol || a.Label == sourceLabel
		if a.Index == index && (marked || index != loopbackIndex && a.Prefix.Addr().Is4()) {
			out = append(out, a.Prefix.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// addSources assigns the addresses that are missing.
func (p *pass) addSources() error {
	return p.k.addSources(loopbackIndex, sourceLabel, ownSources(p.addresses, loopbackIndex), p.want.Sources)
}

func (k *kernel) addSources(index int, label string, have, want []netip.Addr) error {
	var errs []error
	for _, a := range want {
		if slices.Contains(have, a) {
			continue
		}
		if err := k.changeAddress(unix.RTM_NEWADDR, index, a, label); err != nil {
			errs = append(errs, fmt.Errorf("assign the node's pod-network address %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}

// removeSources takes away those of ours that are not wanted.
func (p *pass) removeSources() error {
	err := p.k.removeSources(loopbackIndex, ownSources(p.addresses, loopbackIndex), p.want.Sources)
	if p.vxlanIndex == 0 {
		return err
	}
	return errors.Join(err, p.k.removeSources(p.vxlanIndex, ownSources(p.addresses, p.vxlanIndex), p.vxlanSources()))
}

func (k *kernel) removeSources(index int, have, keep []netip.Addr) error {
	var errs []error
	for _, a := range have {
		if slices.Contains(keep, a) {
			continue
		}
		err := k.changeAddress(unix.RTM_DELADDR, index, a, "")
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove the former pod-network address %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}

// vxlanSources are the addresses that the vxlan device has, too. A strict
// reverse path filter for all devices can be loosened for one, but drops
// everything at a device without an IPv4 address as soon as the way back is by
// another device (fib_validate_source in the kernel), that is, while a transport
// changes.
func (p *pass) vxlanSources() []netip.Addr {
	var out []netip.Addr
	for _, a := range p.want.Sources {
		if a.Is4() && p.strictFilter {
			out = append(out, a)
		}
	}
	return out
}
