// Package dataplane makes the node's kernel equal to a plan.State: addresses,
// routes, tunnels, translation and guards. It observes, adds before it deletes,
// reports the true state after a partial failure, and leaves nothing behind
// when told to clean. What it made outlives the agent.
package dataplane

import (
	"context"
	"net/netip"

	"ropeway.dev/ropeway/internal/dataplane/bpf"
	"ropeway.dev/ropeway/internal/plan"
)

// Dataplane is the node's kernel, in three verbs.
type Dataplane interface {
	// Set makes the kernel equal to want, idempotently. The Report is true
	// also when the error is not nil: what could be done is done.
	Set(ctx context.Context, want plan.State) (Report, error)
	// Observe reads what is in the kernel now, from the kernel only.
	Observe(ctx context.Context) (Observed, error)
	// Clean removes everything that Set ever made.
	Clean(ctx context.Context) error
}

// A packet that this node sends behind a header of this IP protocol, with this
// mark, leaves an uplink without the header: bare, by the next hop that the
// header's destination has. Probes of the direct transport are sent so,
// whatever transport is in use. Without the eBPF programs, which Set attaches,
// it arrives as a packet that nobody takes in.
const (
	BareProtocol = bpf.BareProtocol
	BareMark     = bpf.BareMark
)

// Report is what a Set achieved.
type Report struct {
	// Refuses maps transport -> why this node cannot use it.
	Refuses map[plan.Transport]string
	// Failed maps destination -> why its route is not as wanted.
	Failed map[netip.Prefix]string
	// Uplinks are the devices that the FIB answered for the peers.
	Uplinks []Uplink
	// MTUs maps a peer's address in the fabric -> bytes that the way to it takes,
	// as far as this node knows.
	MTUs map[netip.Addr]int
	// Faults maps what was found wrong with the node and mended -> a sentence.
	Faults map[plan.Fault]string
	// PodMTU is the MTU that new pods get, in bytes.
	PodMTU int
	// Local is true when the node's own part is as wanted and at least one of
	// the wanted transports can be used: pods can be started here, though an
	// error may name routes to other nodes that failed, or a transport that is
	// refused. It is true whenever there is no error.
	Local bool
	// Changed is false when the kernel already was as wanted.
	Changed bool
}

// Uplink is a device through which peers are reached.
type Uplink struct {
	Name  string
	Index int
	MTU   int
}

// Observed is what is in the kernel, by our marks on it.
type Observed struct {
	Sources []netip.Addr
	Routes  []ObservedRoute
	Pods    []PodLink
}

// ObservedRoute is one route of ours to another node's destination.
type ObservedRoute struct {
	Dst       netip.Prefix
	Transport plan.Transport
	// Outer is the owner's address in the fabric; of an IPv6 direct route, the
	// next hop, which may be a router.
	Outer  netip.Addr
	Device string
	MTU    int
}

// PodLink is the host's end of a pod's veth and the addresses routed to it.
type PodLink struct {
	Name      string
	Index     int
	Addresses []netip.Addr
	// Alias is the link's alias: the attachment and pod that it was made for
	// (see podlink.Alias).
	Alias string
}
