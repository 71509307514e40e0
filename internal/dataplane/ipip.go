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
// maps whatever transport is in use: between ipip and vxlan it changes by routes
// alone. Those that are reached by direct are marked there, since they use the
// same device as ipip.
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
	errs := []error{unfit, p.fillTunnel(false)}
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

// fillTunnel writes the maps. Before the routes are set, what leaves bare stays
// bare although a tunnel is wanted: it would be wrapped while its route still
// says how large bare packets may be, and by ipip also where vxlan is wanted.
// What is to leave bare does at once: it is smaller than it may be, and where
// vxlan is in use nothing asks the map. So no moment has a way that was not
// proven.
func (p *pass) fillTunnel(routed bool) error {
	have, err := p.l.tunnel.Destinations()
	if err != nil {
		return err
	}
	want := p.tunnelState()
	for dst, e := range want.Destinations {
		if !e.Bare() && bareSoFar(have, dst) && (!routed || p.report.Failed[dst] != "") {
			want.Destinations[dst] = bpf.Endpoint{Remote: e.Remote}
		}
	}
	changed, err := p.l.tunnel.Fill(want)
	p.tunnelChanged(changed)
	return err
}

// bareSoFar reports whether packets to a destination leave bare by these entries:
// by its own, or else by that of the range which it is a part of, if that was one
// range until now.
func bareSoFar(have map[netip.Prefix]bpf.Endpoint, dst netip.Prefix) bool {
	for bits := dst.Bits(); bits >= 0; bits-- {
		if e, known := have[netip.PrefixFrom(dst.Addr(), bits).Masked()]; known {
			return e.Bare()
		}
	}
	return false
}

// refuseDirect says why this node cannot use direct: its packets need nothing,
// but what proves it does.
func (p *pass) refuseDirect(tunnel error) error {
	if p.attached {
		return nil
	}
	return fmt.Errorf("it cannot be proven without the eBPF programs: %w", tunnel)
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
	filled := p.fillTunnel(true)
	changed, err := p.l.tunnel.Prune(p.tunnelState())
	p.tunnelChanged(changed)
	err = errors.Join(filled, err)
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
		Destinations: make(map[netip.Prefix]bpf.Endpoint, len(p.want.Routes)),
		Sources:      make(map[netip.Prefix][]netip.Addr, len(p.want.Peers)),
		Peers:        make([]netip.Addr, 0, len(p.want.Peers)),
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
		if !r.Dst.Addr().Is4() || !r.Outer.Is4() || !local.IsValid() {
			continue
		}
		s.Destinations[r.Dst.Masked()] = bpf.Endpoint{Remote: r.Outer, Local: local}
		if _, err := p.hop(r.Outer); r.Transport == plan.Direct && err == nil {
			s.Destinations[r.Dst.Masked()] = bpf.Endpoint{Remote: r.Outer}
		}
	}
	return s
}
