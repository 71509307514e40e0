package probe

import (
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

// What arrives at a prober: requests, which it answers, and answers, which it
// takes.

// receive answers a request, or takes an answer.
func (p *Prober) receive(d Datagram) {
	m, err := parseMessage(d.Message)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.cluster != digest(p.view.ClusterID) {
		return
	}
	if d.Stray {
		p.strayed(d.From, m)
		return
	}
	from, known := p.view.nodeByAddress(d.From)
	switch {
	case !known:
	case m.kind == request:
		p.answer(from, d, m)
	case d.Port != Port: // answers come from there, wherever the request came from
	default:
		p.take(from, d.From, m)
	}
}

// take takes an answer.
func (p *Prober) take(from Node, source netip.Addr, m message) {
	k := key{node: from.Name, family: plan.FamilyOf(source), transport: m.transport}
	switch m.leg {
	case legPath:
		k = p.asked(k, m)
	case legSize:
		p.hitSize(p.asked(k, m), m)
		return
	case legChecksum:
		p.hitOffload(k, m)
		return
	default:
		p.hitLeg(place{k.node, k.family}, m)
		return
	}
	s := p.states[k]
	if s == nil || !s.waiting || m.nonce != s.nonce || m.target != digest(s.uid) {
		return
	}
	if k.transport != plan.Direct && m.via != k.transport {
		s.came = true // one way works; the answer by the other may still come
		return
	}
	p.hit(k, s, m.hops)
}

// asked completes the key of a path by direct: the answer comes from the address
// that the other node sends from, whichever of its addresses was asked.
func (p *Prober) asked(k key, m message) key {
	if k.transport != plan.Direct {
		return k
	}
	for other, s := range p.states {
		if k.address = other.address; k == other && (s.nonce == m.nonce || s.sizes.nonce == m.nonce) {
			return k
		}
	}
	return key{}
}

// hit notes an answer.
func (p *Prober) hit(k key, s *state, hops byte) {
	s.waiting, s.came, s.held, s.hops = false, false, false, hops
	p.heard = time.Now()
	if s.hits = max(s.hits-1, 0); s.hits > 0 {
		return
	}
	flipped := !s.known || !s.reachable
	s.misses = 0
	s.known, s.reachable, s.reason = true, true, ""
	if flipped {
		p.log.Info("node answers by this transport", "node", k.node, "family", k.family, "transport", k.transport)
		notify(p.changed)
	}
}

// answer sends a request back by the transport that it came by (by all, if it
// came bare or asks for that), to the address that the cluster knows for that
// node: a forged request reaches nobody else.
func (p *Prober) answer(to Node, d Datagram, m message) {
	if m.target != digest(p.view.Self.UID) {
		return
	}
	ways := []plan.Transport{m.transport}
	switch {
	case m.everyWay, m.transport == plan.Direct && m.leg != legPath && m.leg != legSize:
		ways = []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN, plain}
	case m.transport == plan.Direct && p.view.tunnels():
		ways = []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN}
	case m.transport == plan.Direct:
		ways = []plan.Transport{plan.Direct, plain}
	}
	m.kind, m.hops = answer, d.Hops
	for _, way := range ways {
		if way != m.transport && way != plain && !slices.Contains(p.view.Transports, way) {
			continue // where only direct is allowed, nothing travels in a tunnel
		}
		path, ok := p.wayBack(to, plan.FamilyOf(d.From), way)
		if !ok {
			continue
		}
		m.via = way
		if err := p.transmit(path, m.marshal()); err != nil {
			p.log.Debug("cannot answer a probe", "node", to.Name, "transport", way, "err", err)
		}
	}
}

// wayBack returns the path of an answer.
func (p *Prober) wayBack(to Node, family plan.Family, way plan.Transport) (Path, bool) {
	if way != plain {
		return p.view.path(to, family, way)
	}
	path, ok := p.view.path(to, family, plan.Direct)
	return path.along(legUnderlay), ok
}
