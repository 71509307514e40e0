package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// Reasons of the conditions that the agent gives.
const (
	reasonProgrammed = "Programmed"
	reasonPartly     = "PartlyProgrammed"
	reasonSetFailed  = "SetFailed"
	reasonUsable     = "Usable"
	reasonNoLease    = "NoLease"
	reasonNoRange    = "NoRange"
	reasonInstalled  = "Installed"
	reasonBroken     = "ConflistBroken"
	reasonForeign    = "ForeignConflist"
)

// status says what this node does, for its NodeNetwork.
func (n *node) status(s plan.Snapshot, want plan.State) kube.NodeStatus {
	own := self(s)
	st := kube.NodeStatus{
		NodeUID: own.UID, AgentVersion: n.config.Version,
		Addresses: want.Addresses, CIDRs: want.CIDRs, Sources: want.Sources, VTEP: want.VXLAN.MAC,
		NetworkGeneration: n.setBy,
		Refuses:           n.report.Refuses, Peers: map[plan.Transport]int{}, Pods: n.book.Count(), Pools: n.poolUse(),
		Programmed:      kube.Condition{Status: true, Reason: reasonProgrammed, Message: "the kernel is as planned"},
		AddressesUsable: n.addressesUsable(problemsOf(want.Problems, s.Self)),
	}
	st.Conflist = n.installer.condition()
	st.Faults = n.faults()
	switch {
	case n.setErr != nil && n.usable:
		// Pods are served all the same; what failed is among the exceptions.
		st.Programmed = kube.Condition{Status: true, Reason: reasonPartly, Message: n.setErr.Error()}
	case n.setErr != nil:
		st.Programmed = kube.Condition{Reason: reasonSetFailed, Message: n.setErr.Error()}
	}
	probed := s.Own
	if probed == nil {
		probed = publishedBy(s, s.Self) // by the agent before this one
	}
	for _, p := range probed {
		st.Probes = append(st.Probes, kube.Probe{Probe: p})
	}
	st.Peers, st.Exceptions = reached(s.Network, want)
	owners := ownersOf(want, n.report.Failed)
	for dst, why := range n.report.Failed {
		st.Exceptions = append(st.Exceptions, kube.Exception{Node: cmp.Or(owners[dst], want.Self), Reason: fmt.Sprintf("the route to %s could not be set: %s", dst, why)})
	}
	slices.SortFunc(st.Exceptions, func(a, b kube.Exception) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Reason, b.Reason))
	})
	return st
}

// faults are what is wrong with this node itself.
func (n *node) faults() map[plan.Fault]string {
	out := map[plan.Fault]string{}
	maps.Copy(out, n.prober.Faults())
	maps.Copy(out, n.report.Faults)
	if n.last.BadOffload != "" {
		out[plan.ChecksumOffload] = n.last.BadOffload + "; the node computes them itself, until its next boot"
	}
	return out
}

// reached counts peers by the transports that routes to them have, and names
// those that are not reached by the preferred one. A transport that no route has
// is not among the counts: by that, who publishes the fabric's routes knows that
// this node has left them.
func reached(network plan.Network, want plan.State) (map[plan.Transport]int, []kube.Exception) {
	counts := map[plan.Transport]int{}
	var exceptions []kube.Exception
	type pair struct {
		peer      string
		transport plan.Transport
	}
	counted, named := map[pair]bool{}, map[string]bool{}
	for _, r := range want.Routes {
		if by := (pair{r.Peer, r.Transport}); !counted[by] {
			counted[by] = true
			counts[r.Transport]++
		}
		preferred := plan.Allowed(network, plan.FamilyOf(r.Dst.Addr()))
		if r.OffFabric {
			preferred = slices.DeleteFunc(slices.Clone(preferred), func(t plan.Transport) bool { return t == plan.Direct })
		}
		if len(preferred) > 0 && r.Transport != preferred[0] && !named[r.Peer] {
			named[r.Peer] = true
			exceptions = append(exceptions, kube.Exception{Node: r.Peer, Transport: r.Transport, Reason: r.Reason})
		}
	}
	return counts, exceptions
}

// ownersOf maps the destinations that are routed to other nodes -> whose they
// are.
func ownersOf[T any](want plan.State, destinations map[netip.Prefix]T) map[netip.Prefix]string {
	out := make(map[netip.Prefix]string, len(destinations))
	for _, r := range want.Routes {
		if _, asked := destinations[r.Dst]; asked {
			out[r.Dst] = r.Peer
		}
	}
	return out
}

func (n *node) addressesUsable(problems []plan.Problem) kube.Condition {
	problem := n.leaser.problemNow()
	switch {
	case len(problems) > 0:
		return kube.Condition{Reason: problems[0].Reason, Message: joinMessages(problems)}
	case problem != "":
		return kube.Condition{Reason: reasonNoLease, Message: problem}
	case len(n.last.Ranges) == 0:
		return kube.Condition{Reason: reasonNoRange, Message: "the node has no range of pod addresses yet"}
	default:
		return kube.Condition{Status: true, Reason: reasonUsable, Message: fmt.Sprintf("pods get addresses from %v", prefixesOf(n.last.Ranges))}
	}
}

// publishAPI is where a node says what it does (kube.NodeClient).
type publishAPI interface {
	Publish(ctx context.Context, status kube.NodeStatus) error
}

// publisher publishes the latest status beside the node loop, again and again
// until it succeeded: an API server that does not answer holds up nothing.
type publisher struct {
	api    publishAPI
	config *Config
	log    *slog.Logger
	next   chan kube.NodeStatus // holds the latest one only
}

func newPublisher(api publishAPI, cfg *Config) *publisher {
	return &publisher{api: api, config: cfg, log: cfg.Log, next: make(chan kube.NodeStatus, 1)}
}

// publish replaces what is to be published. It has one caller.
func (p *publisher) publish(s kube.NodeStatus) {
	select {
	case <-p.next:
	default:
	}
	p.next <- s
}

// run publishes until ctx is done.
func (p *publisher) run(ctx context.Context) {
	pause := p.config.timing.retryMin
	failing := false
	for {
		var s kube.NodeStatus
		select {
		case <-ctx.Done():
			return
		case s = <-p.next:
		}
		for {
			err := p.once(ctx, s)
			if err == nil {
				pause, failing = p.config.timing.retryMin, false
				break
			}
			if !failing && ctx.Err() == nil {
				failing = true
				p.log.Warn("cannot publish what this node does; trying again", "err", err)
			}
			select {
			case <-ctx.Done():
				return
			case s = <-p.next:
			case <-time.After(pause):
				pause = min(2*pause, p.config.timing.retryMax)
			}
		}
	}
}

func (p *publisher) once(ctx context.Context, s kube.NodeStatus) error {
	ctx, cancel := context.WithTimeout(ctx, p.config.timing.call)
	defer cancel()
	return p.api.Publish(ctx, s)
}
