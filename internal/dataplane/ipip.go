package dataplane

import (
	"errors"
	"fmt"
	"net/netip"

	"ropeway.dev/ropeway/internal/dataplane/bpf"
	"ropeway.dev/ropeway/internal/plan"
)

// setTunnel fills and attaches the eBPF programs: the ipip transport in both
// directions, and the guard of the vxlan device. All destinations are in their
// maps whatever transport is in use, so that it changes by routes alone.
func (p *pass) setTunnel() error {
	if p.l.tunnel == nil {
		t, err := bpf.Open(bpf.Options{PinDir: p.l.options.BPFPinDir, Clsact: p.l.options.Clsact})
		if err != nil {
			return err
		}
		p.l.tunnel = t
	}
	uplinks, unfit := p.bpfUplinks()
	if len(uplinks) == 0 && unfit == nil {
		unfit = errors.New("the node has no uplink")
	}
	// Filled before attached: a program never runs over empty maps.
	changed, err := p.l.tunnel.Fill(p.tunnelState())
	p.tunnelChanged(changed)
	errs := []error{unfit, err}
	for _, u := range uplinks {
		changed, err := p.l.tunnel.Attach(u)
		p.tunnelChanged(changed)
		errs = append(errs, err)
	}
	p.attached = errors.Join(errs...) == nil
	if !plan.OfFamily(p.want.Addresses, plan.IPv4).IsValid() {
		errs = append(errs, errors.New("the node has no IPv4 address in the fabric"))
	}
	return errors.Join(errs...)
}

func (p *pass) tunnelChanged(changed bool) {
	if changed {
		p.k.wrote("eBPF programs or maps changed")
	}
}

// pruneTunnel takes former nodes out of the eBPF maps, and the programs off
// former uplinks.
func (p *pass) pruneTunnel() error {
	if p.l.tunnel == nil {
		return nil
	}
	changed, err := p.l.tunnel.Prune(p.tunnelState())
	p.tunnelChanged(changed)
	if p.attached {
		uplinks, _ := p.bpfUplinks() // or they would not be attached
		detached, detachErr := p.l.tunnel.DetachOthers(uplinks)
		p.tunnelChanged(detached)
		err = errors.Join(err, detachErr)
	}
	if err != nil {
		return fmt.Errorf("remove what is not wanted any more: %w", err)
	}
	return nil
}

// tunnelState is what the eBPF programs go by.
func (p *pass) tunnelState() bpf.State {
	s := bpf.State{
		Destinations: map[netip.Prefix]bpf.Endpoint{},
		Sources:      map[netip.Prefix][]netip.Addr{},
		Own:          p.want.Addresses, PodCIDRs: p.want.PodCIDRs,
		VNI: p.want.VXLAN.VNI, Port: p.want.VXLAN.Port,
	}
	for _, peer := range p.want.Peers {
		s.Peers = append(s.Peers, peer.Addresses...)
		for _, c := range peer.CIDRs {
			s.Sources[c.Masked()] = peer.Addresses
		}
	}
	local := plan.OfFamily(p.want.Addresses, plan.IPv4)
	for _, r := range p.want.Routes {
		if r.Dst.Addr().Is4() && r.Outer.Is4() && local.IsValid() {
			s.Destinations[r.Dst.Masked()] = bpf.Endpoint{Remote: r.Outer, Local: local}
		}
	}
	return s
}
