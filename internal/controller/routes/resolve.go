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
	// byAddress is the last list of instances, and seen the nodes that it was
	// made for: an address may be another instance's once the node is another.
	// Both are nil before the first.
	byAddress map[netip.Addr]string
	seen      map[string]bool // UID
	listed    time.Time
	doubt     bool      // the cloud does not know an instance that was found so
	tries     backoff   // lists that did not show all
	next      time.Time // when to list anew; zero: no node needs it
}

// Instances are listed anew after listEvery in any case, since an instance can be
// replaced by one with the same address while its Node stays; for a new node not
// before listSoonest has passed.
const (
	listEvery   = 5 * time.Minute
	listSoonest = 5 * time.Second
)

// resolve fills p.instances.hops. Machines are listed only while there are nodes
// without a providerID. A list that fails holds nothing else up.
func (p *Planner) resolve(ctx context.Context, in Input) {
	r, now := &p.instances, p.cfg.Now()
	instances := p.provider.Instances()
	found := r.known(in, instances, p.resolving.err)
	if found.byAddress == 0 {
		r.next, r.tries, r.doubt, p.resolving = time.Time{}, backoff{}, false, trouble{}
		return
	}
	r.plan(found, p.resolving)
	if now.Before(r.next) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.CallTimeout)
	defer cancel()
	list, err := instances.List(ctx)
	if err != nil {
		p.note(&p.resolving, fmt.Errorf("list the instances, to find nodes without a providerID by their address: %w", err))
		r.known(in, instances, p.resolving.err)
		r.plan(found, p.resolving)
		return
	}
	p.resolving = trouble{}
	r.learn(in, list)
	r.listed, r.doubt = now, false
	if found = r.known(in, instances, nil); found.unknown > 0 {
		r.tries.fail(now, listSoonest, listEvery, 0)
	} else {
		r.tries = backoff{}
	}
	r.plan(found, p.resolving)
}

// learn takes in a list of instances.
func (r *resolver) learn(in Input, list []cloud.Instance) {
	r.byAddress, r.seen = map[netip.Addr]string{}, map[string]bool{}
	for _, i := range list {
		for _, a := range i.Addresses {
			r.byAddress[a.Unmap()] = i.ID
		}
	}
	for _, w := range in.Wants {
		r.seen[w.UID] = true
	}
}

// found says how many nodes need a list of the instances, and why.
type found struct {
	byAddress int // nodes without a providerID
	unknown   int // of those, that the list does not show
	fresh     int // of those, that the list was not made for
}

// plan says when to list next.
func (r *resolver) plan(f found, failing trouble) {
	switch {
	case failing.err != nil:
		r.next = failing.until
	case r.byAddress == nil:
		r.next = r.listed // never: at once
	case f.fresh > 0 || r.doubt:
		r.next = r.listed.Add(listSoonest)
	case f.unknown > 0:
		r.next = r.tries.until
	default:
		r.next = r.listed.Add(listEvery)
	}
}

// known works out every node's instance. failing is why instances cannot be
// listed, if so.
func (r *resolver) known(in Input, instances cloud.Instances, failing error) found {
	r.hops = make(map[string]hop, len(in.Wants))
	var f found
	for _, w := range in.Wants {
		if _, done := r.hops[w.Node]; done {
			continue
		}
		h := r.find(w, instances, failing)
		r.hops[w.Node] = h
		if w.ProviderID == "" {
			f.byAddress++
			if !r.seen[w.UID] {
				f.fresh++
			} else if h.instance == "" {
				f.unknown++
			}
		}
	}
	return f
}

func (r *resolver) find(w Want, instances cloud.Instances, failing error) hop {
	if w.ProviderID != "" {
		if id, ok := instances.Parse(w.ProviderID); ok {
			return hop{instance: id}
		}
		return hop{problem: fmt.Sprintf("node %s has the providerID %q, which names no instance of this cloud and region: "+
			"correct the kubelet's --provider-id and register the node anew", w.Node, w.ProviderID)}
	}
	switch {
	case r.seen[w.UID]:
	case failing != nil:
		return hop{problem: fmt.Sprintf("node %s has no providerID, and cannot be found by its address: %v; "+
			"start its kubelet with --provider-id=REGION.INSTANCE, or see to it that instances can be listed", w.Node, failing)}
	default:
		return hop{} // to be looked for
	}
	for _, a := range w.Addresses {
		if id, ok := r.byAddress[a.Unmap()]; ok {
			return hop{instance: id}
		}
	}
	return hop{problem: fmt.Sprintf("node %s has no providerID, and no instance of the VPC has its address %v: "+
		"start its kubelet with --provider-id=REGION.INSTANCE, or see whether it is in this VPC", w.Node, w.Addresses)}
}
