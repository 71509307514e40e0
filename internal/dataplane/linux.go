package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"ropeway.dev/ropeway/internal/dataplane/bpf"
	"ropeway.dev/ropeway/internal/plan"
)

// Options say how a Linux dataplane works. The zero value has defaults.
type Options struct {
	// BPFPinDir is the directory of the eBPF pins, below a bpffs. Its parent
	// is mounted as one if it is none. Default /sys/fs/bpf/ropeway.
	BPFPinDir string
	// StateDir holds what saves a restarted agent from writing to the kernel
	// what is there already. Losing it costs one transaction. Default
	// /run/ropeway.
	StateDir string
	// Clsact attaches the eBPF programs by clsact also where the kernel has tcx.
	Clsact bool
	// KeepForward leaves other programs' forward chains as they are, also where
	// their policy drops pods' packets.
	KeepForward bool
	Log         *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.BPFPinDir == "" {
		o.BPFPinDir = "/sys/fs/bpf/ropeway"
	}
	if o.StateDir == "" {
		o.StateDir = "/run/ropeway"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Validate says what is wrong with the options.
func (o Options) Validate() error {
	if o = o.withDefaults(); strings.Contains(filepath.Base(o.BPFPinDir), ".") {
		return fmt.Errorf("BPFPinDir %q: a bpffs allows no dot in a name", o.BPFPinDir)
	}
	return nil
}

// Linux is the kernel of the network namespace that its methods are called in:
// the caller keeps to one, by a locked thread if the process has several.
type Linux struct {
	options Options
	log     *slog.Logger

	mu     sync.Mutex
	tunnel *bpf.Tunnel // nil until it could be opened
	nft    *nftables   // nil until it could be opened

	firewalls  *firewalls                // others who write to nftables
	legacyTold bool                      // that some of their chains cannot be looked at
	refused    map[plan.Transport]string // why transports could not be used in the last Set
	loose      map[string]bool           // uplink -> its rp_filter was not strict after the last Set
	strict     map[string]time.Time      // uplink -> when somebody's strict rp_filter was last undone
}

var _ Dataplane = (*Linux)(nil)

// New returns the dataplane of this machine. It touches nothing yet; what the
// kernel lacks is told by Probe, and by the first Set.
func New(o Options) (*Linux, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("dataplane options: %w", err)
	}
	o = o.withDefaults()
	return &Linux{
		options: o, log: o.Log, firewalls: &firewalls{pause: firewallPause},
		refused: map[plan.Transport]string{}, loose: map[string]bool{}, strict: map[string]time.Time{},
	}, nil
}

// Close gives back what the process holds. What is in the kernel stays.
func (l *Linux) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tunnel == nil {
		return nil
	}
	err := l.tunnel.Close()
	l.tunnel = nil
	return err
}

// pass is one run of Set: the wanted state, what was found, what came of it.
type pass struct {
	l      *Linux
	k      *kernel
	want   plan.State
	report Report

	devices      map[int]netlink.Link // index -> device
	addresses    []assigned
	hops         map[netip.Addr]hopOrError // peer's address in the fabric -> how to reach it
	vxlanIndex   int                       // of the vxlan device, 0 if there is none
	staleEntries []entry                   // of the vxlan device
	strictFilter bool                      // net.ipv4.conf.all.rp_filter is 1
	attached     bool                      // the eBPF programs are at all uplinks
}

// Set implements Dataplane. Guards come before what they guard, and what sends
// comes last; nothing is removed before what replaces it is there.
func (l *Linux) Set(ctx context.Context, want plan.State) (Report, error) {
	if len(want.PodCIDRs) == 0 || len(want.Addresses) == 0 {
		// To obey would be to take the network away from running pods.
		return Report{}, fmt.Errorf("the state of node %q has no pod CIDR or no node address: nothing was changed", want.Self)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	k, err := openKernel(l.log)
	if err != nil {
		return Report{}, err
	}
	defer k.close()
	p := &pass{l: l, k: k, want: want, hops: map[netip.Addr]hopOrError{}, report: Report{
		Refuses: map[plan.Transport]string{}, Failed: map[netip.Prefix]string{},
		MTUs: map[netip.Addr]int{}, Faults: map[plan.Fault]string{},
	}}
	err = p.run(ctx)
	p.report.Changed = k.writes > 0
	return p.report, err
}

func (p *pass) run(ctx context.Context) error {
	var errs []error
	var err error
	if p.devices, err = p.k.links(); err != nil {
		return err
	}
	if p.addresses, err = p.k.addresses(); err != nil {
		return err
	}
	do := func(step func() error) {
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			return
		}
		errs = append(errs, step())
	}
	do(p.findUplinks)
	p.report.PodMTU = plan.PodMTU(p.want.MTU, p.want.Transports, p.underlayFamily(), p.smallestMTU())
	do(p.nodeSysctls)
	do(p.addSources)
	do(func() error { return p.setRules(ctx) })
	do(func() error { return p.acceptForward(ctx) })
	own := errors.Join(errs...) == nil
	do(func() error {
		err := p.setTunnel()
		p.refuse(plan.IPIP, err)
		p.refuse(plan.Direct, p.refuseDirect(err))
		return nil
	})
	do(func() error { p.refuse(plan.VXLAN, p.setVXLAN()); return nil })
	do(p.canSend)
	p.report.Local = own && errors.Join(errs...) == nil
	do(p.setRoutes)
	// What nobody is to use any more goes also if something failed: a node that
	// is gone must not be believed. What may still be in use because something
	// failed stays.
	failed := errors.Join(errs...) != nil
	do(p.pruneVXLAN)
	do(p.pruneTunnel)
	if !failed {
		do(p.removeSources)
	}
	return errors.Join(errs...)
}

// canSend fails if none of the wanted transports can be used. That one of them
// cannot is for the plan to deal with.
func (p *pass) canSend() error {
	var errs []error
	for _, t := range p.want.Transports {
		why := p.report.Refuses[t]
		if why == "" {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %s", t, why))
	}
	return errors.Join(errs...)
}

// refuse notes why a transport cannot be used.
func (p *pass) refuse(t plan.Transport, err error) {
	why := ""
	if err != nil {
		why = err.Error()
		p.report.Refuses[t] = why
	}
	if why != p.l.refused[t] {
		p.l.refused[t] = why
		p.l.log.Warn("use of a transport changed", "transport", t, "refused", why)
	}
}

// setRules writes the nftables table.
func (p *pass) setRules(ctx context.Context) error {
	if p.l.nft == nil {
		n, err := newNFTables(p.l.options.StateDir, p.l.firewalls.transact)
		if err != nil {
			return err
		}
		p.l.nft = n
	}
	changed, err := p.l.nft.set(ctx, rulesFor(p.want, p.clamps()))
	if changed {
		p.k.wrote("nftables table written")
	}
	return err
}

// Bytes of the headers that a TCP segment does not count.
const (
	tcpIPv4 = 20 + 20
	tcpIPv6 = 40 + 20
)

// clamps computes the largest segments. IPv6 travels by vxlan whatever is
// allowed.
func (p *pass) clamps() clamps {
	mtu := p.smallestMTU()
	if mtu == 0 {
		return clamps{}
	}
	all := append(slices.Clone(p.want.Transports), plan.VXLAN)
	return clamps{
		ipv4: plan.ClampMTU(p.want.Transports, p.underlayFamily(), mtu) - tcpIPv4,
		ipv6: plan.ClampMTU(all, p.underlayFamily(), mtu) - tcpIPv6,
	}
}
