package probe

import "ropeway.dev/ropeway/internal/plan"

// cutOff reports whether a path that worked may fail for a reason of this node's
// own: nobody has answered since, although several nodes did before.
func (p *Prober) cutOff(s *state) bool {
	if !s.known || !s.reachable || p.heard.After(s.missing) {
		return false
	}
	nodes := map[string]bool{}
	for k, other := range p.states {
		if other.known && other.reachable {
			nodes[k.node] = true
		}
	}
	return len(nodes) > 1
}

// judge draws the conclusions from what is known. The caller holds the lock.
func (p *Prober) judge() {
	// What failed before, or is not known yet, says nothing of this node.
	held, answering := false, false
	for k, s := range p.states {
		held, answering = held || s.held, answering || s.known && s.reachable && !s.held
		if !s.known {
			continue
		}
		fault, said := p.observe(k, s).diagnose()
		if s.reason != "" && !s.reachable {
			said = s.reason
		}
		if fault == s.fault && said == s.said {
			continue
		}
		if fault != "" && fault != s.fault {
			p.log.Warn("a path is not as it should be", "node", k.node, "family", k.family, "transport", k.transport, "fault", fault, "seen", said)
		}
		s.fault, s.said = fault, said
		notify(p.changed)
	}
	if alarm := held && !answering; alarm != p.alarm {
		p.alarm = alarm
		notify(p.changed)
	}
}

// observe gathers what is known of a path.
func (p *Prober) observe(k key, s *state) observation {
	o := observation{to: k.node, path: s.path, known: s.known, reachable: s.reachable, came: s.came, others: p.others(k), pathMTU: s.sizes.found, badChecksum: s.offload.broken}
	l := p.legs[place{k.node, k.family}]
	if l == nil {
		node, _ := p.view.node(k.node)
		_, canGoBare := p.view.path(node, k.family, plan.Direct)
		o.settled = !canGoBare // what cannot be tried needs no waiting for
		return o
	}
	o.legs, o.settled, o.stray = l.findings, l.settled(), l.stray
	if k.transport == plan.Direct && s.hops != 0 && l.hops > s.hops {
		o.detour = int(l.hops - s.hops)
	}
	return o
}

// others returns the transports that a node is reached by beside k's.
func (p *Prober) others(k key) []plan.Transport {
	var out []plan.Transport
	for other, s := range p.states {
		if other.node == k.node && other.family == k.family && other.transport != k.transport && s.known && s.reachable && s.misses == 0 {
			out = append(out, other.transport)
		}
	}
	return out
}
