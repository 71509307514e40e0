package routes

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// resolver knows which instance each node is: by its providerID, or, where the
// kubelet was not given one, by its address in the VPC.
type resolver struct {
	hops map[string]hop // node -> instance
	// byAddress is the last list of instances; nil before the first.
	byAddress map[netip.Addr]string
	tries     backoff
}

// resolve fills p.instances.hops. Machines are listed only while a node without
// a providerID is unknown.
func (p *Planner) resolve(ctx context.Context, in Input) error {
	r := &p.instances
	instances := p.provider.Instances()
	if r.known(in, instances) {
		r.tries = backoff{}
		return nil
	}
	now := p.cfg.Now()
	if r.tries.wait(now) > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.CallTimeout)
	defer cancel()
	list, err := instances.List(ctx)
	if err != nil {
		return fmt.Errorf("list the instances, to find nodes without a providerID by their address: %w", err)
	}
	r.byAddress = map[netip.Addr]string{}
	for _, i := range list {
		for _, a := range i.Addresses {
			r.byAddress[a.Unmap()] = i.ID
		}
	}
	if !r.known(in, instances) {
		r.tries.fail(now, 5*time.Second, 5*time.Minute, 0)
	}
	return nil
}

// known works out every node's instance, and says whether another list of
// instances could not help.
func (r *resolver) known(in Input, instances cloud.Instances) bool {
	r.hops = make(map[string]hop, len(in.Wants))
	all := true
	for _, w := range in.Wants {
		if _, done := r.hops[w.Node]; done {
			continue
		}
		h := r.find(w, instances)
		r.hops[w.Node] = h
		all = all && (h.instance != "" || w.ProviderID != "")
	}
	return all
}

func (r *resolver) find(w Want, instances cloud.Instances) hop {
	if w.ProviderID != "" {
		if id, ok := instances.Parse(w.ProviderID); ok {
			return hop{instance: id}
		}
		return hop{problem: fmt.Sprintf("node %s has the providerID %q, which names no instance of this cloud and region: "+
			"correct the kubelet's --provider-id and register the node anew", w.Node, w.ProviderID)}
	}
	for _, a := range w.Addresses {
		if id, ok := r.byAddress[a.Unmap()]; ok {
			return hop{instance: id}
		}
	}
	return hop{problem: fmt.Sprintf("node %s has no providerID, and no instance of the VPC has its address %v: "+
		"start its kubelet with --provider-id=REGION.INSTANCE, or see whether it is in this VPC", w.Node, w.Addresses)}
}

// again returns when instances are listed anew; zero if never.
func (r *resolver) again(in Input) time.Time {
	for _, w := range in.Wants {
		if w.ProviderID == "" && r.hops[w.Node].instance == "" {
			return r.tries.until
		}
	}
	return time.Time{}
}
