package share_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/share"
)

// The machine is a cluster of three nodes whose agents do what Decide says, over
// an API server that is linear, and views of it that are late, of each node as
// late as it pleases, and older again after a restart. Calls fail before or after
// they were done, or are done later. After each step no address is held by two
// pods; and once nothing fails any more, no pod waits while its pool has an
// address that no pod has.

var (
	network  = netip.MustParsePrefix("10.0.0.0/27")
	underlay = netip.MustParsePrefix("10.1.0.4/30") // outside the pod network
	poolOf   = map[string][]netip.Prefix{"P": {netip.MustParsePrefix("10.0.0.0/30"), netip.MustParsePrefix("10.0.0.10/32")}, "U": {underlay}}
	podCIDRs = map[string]netip.Prefix{"a": netip.MustParsePrefix("10.0.0.16/29"), "b": netip.MustParsePrefix("10.0.0.0/29"), "c": netip.MustParsePrefix("10.0.0.24/29")}
)

// world is what the API server has.
type world struct {
	leases   map[netip.Prefix]share.Lease
	podCIDRs map[string]netip.Prefix
}

func (w world) clone() world { return world{maps.Clone(w.leases), maps.Clone(w.podCIDRs)} }

func (w world) list() []share.Lease {
	out := slices.Collect(maps.Values(w.leases))
	slices.SortFunc(out, func(a, b share.Lease) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

// peer is a node with its agent.
type peer struct {
	name   string
	view   int // of leases: position in history
	nodes  int // of podCIDRs
	memory share.Memory
	vetted netip.Prefix // podCIDR that leases were read after
	needs  map[string]share.Need
	pods   map[string]netip.Addr // pod -> its address; outlives the agent
	gives  map[netip.Addr]string // address -> group, as of the last pass
	blocks []netip.Prefix        // podCIDR and leased ones, as of the last pass
}

func (p *peer) holder(a netip.Addr) string {
	for pod, held := range p.pods {
		if held == a {
			return pod
		}
	}
	return ""
}

type machine struct {
	now     time.Time
	history []world
	peers   map[string]*peer
	late    []func(*world) bool // calls that are still on their way
	serial  int
	t       interface{ Fatalf(string, ...any) }
	draw    *rapid.T
	calm    bool // nothing fails any more
	// nodeCIDR says that nodes' own ranges are podCIDRs, and not blocks.
	nodeCIDR bool
}

func newMachine(t *rapid.T) *machine {
	m := &machine{t: t, draw: t, nodeCIDR: rapid.Bool().Draw(t, "node CIDR")}
	m.init()
	return m
}

func (m *machine) init() {
	m.now, m.peers = time.Unix(1000, 0), map[string]*peer{}
	m.history = []world{{map[netip.Prefix]share.Lease{}, map[string]netip.Prefix{}}}
	for name := range podCIDRs {
		m.peers[name] = &peer{name: name, needs: map[string]share.Need{}, pods: map[string]netip.Addr{}, gives: map[netip.Addr]string{}}
	}
}

func (m *machine) live() world { return m.history[len(m.history)-1] }

// call does something at the API server, or does not, or later. It reports what
// its caller hears.
func (m *machine) call(do func(*world) bool) bool {
	how := 0
	if !m.calm {
		how = rapid.SampledFrom([]int{0, 0, 0, 0, 1, 2, 3}).Draw(m.draw, "fault")
	}
	switch how {
	case 1:
		return false
	case 2:
		m.commit(do)
		return false
	case 3:
		m.late = append(m.late, do)
		return false
	}
	return m.commit(do)
}

// quiet is a machine where nothing fails, for what is played step by step.
func quiet(t *testing.T, nodeCIDR bool) *machine {
	m := &machine{t: t, nodeCIDR: nodeCIDR, calm: true}
	m.init()
	return m
}

func (m *machine) commit(do func(*world) bool) bool {
	next := m.live().clone()
	ok := do(&next)
	if ok {
		m.history = append(m.history, next)
	}
	return ok
}

func (m *machine) stamp(l share.Lease) share.Lease {
	m.serial++
	l.Version = fmt.Sprint(m.serial)
	if l.ObjectUID == "" {
		l.ObjectUID = "uid-" + l.Version
	}
	return l
}

// create, change and remove are the API server's calls; the last two have the
// object that was seen as a precondition.
func (m *machine) create(l share.Lease) (share.Lease, bool) {
	l = m.stamp(l)
	return l, m.call(func(w *world) bool {
		if _, there := w.leases[l.Prefix]; there {
			return false
		}
		w.leases[l.Prefix] = l
		return true
	})
}

func (m *machine) change(seen, l share.Lease) (share.Lease, bool) {
	l = m.stamp(l)
	return l, m.call(func(w *world) bool {
		if w.leases[l.Prefix].Version != seen.Version {
			return false
		}
		w.leases[l.Prefix] = l
		return true
	})
}

func (m *machine) remove(seen share.Lease) bool {
	return m.call(func(w *world) bool {
		if w.leases[seen.Prefix].Version != seen.Version {
			return false
		}
		delete(w.leases, seen.Prefix)
		return true
	})
}

// pass is what an agent does with what it is shown.
func (m *machine) pass(p *peer) {
	if !p.memory.Started() {
		if !m.calm && rapid.IntRange(0, 3).Draw(m.draw, "read") == 0 {
			return
		}
		p.vetted = m.history[p.nodes].podCIDRs[p.name]
		p.memory.Start(p.name, m.live().list(), m.now)
	}
	w := world{m.history[p.view].leases, m.history[p.nodes].podCIDRs}
	shown := p.memory.Show(p.name, w.list(), m.now)
	if own := w.podCIDRs[p.name]; own.IsValid() && own != p.vetted {
		p.vetted = own
		p.memory.Start(p.name, m.live().list(), m.now)
		shown = p.memory.Show(p.name, w.list(), m.now)
	}
	p.memory.Track(p.name, shown, func(a netip.Addr) bool { return p.holder(a) != "" }, m.now)
	m.divide(p, w, shown)
	m.serve(p, shown)
	m.act(p, share.Decide(m.input(p, w, shown)))
}

// divide works out what the node may give, as plan.RangesOf and the agent do.
func (m *machine) divide(p *peer, w world, shown []share.Lease) {
	p.gives, p.blocks = map[netip.Addr]string{}, nil
	var except []netip.Prefix
	for _, l := range shown {
		switch {
		case l.Sharing != "" || l.IsSingle() && l.Node != p.name:
			except = append(except, l.Prefix)
		case l.Node == p.name && !l.IsSingle() && !l.Unsure:
			p.blocks = append(p.blocks, l.Prefix)
		}
	}
	if own := w.podCIDRs[p.name]; own.IsValid() && own == p.vetted {
		p.blocks = append(p.blocks, own)
	}
	for _, b := range p.blocks {
		for a := b.Addr(); b.Contains(a); a = a.Next() {
			if !slices.ContainsFunc(except, func(e netip.Prefix) bool { return e.Contains(a) }) {
				p.gives[a] = ""
			}
		}
	}
	for _, l := range shown {
		if idle := p.memory.Idle()[l.Address()]; l.IsSingle() && l.Node == p.name && l.Usable() && !idle.Leaving {
			p.gives[l.Address()] = l.Group()
		}
	}
}

// serve gives waiting pods what they can have.
func (m *machine) serve(p *peer, shown []share.Lease) {
	for _, id := range slices.Sorted(maps.Keys(p.needs)) {
		n := p.needs[id]
		groups := n.Pools
		switch {
		case n.KeptFor != share.Kept{}:
			groups = nil
			for _, l := range shown {
				if l.KeptFor == n.KeptFor && l.Node == p.name {
					groups = []string{l.Group()}
				}
			}
		case n.Exact.IsValid():
			groups = []string{share.Apart(n.Exact), ""}
		}
		for _, a := range slices.Concat(addressesOf(network), addressesOf(underlay)) {
			group, gives := p.gives[a]
			idle, single := p.memory.Idle()[a]
			rested := !single || !idle.Used || m.now.Sub(idle.Since) >= share.Rest
			if gives && slices.Contains(groups, group) && (!n.Exact.IsValid() || n.Exact == a) && rested && p.holder(a) == "" {
				p.pods[id] = a
				delete(p.needs, id)
				break
			}
		}
	}
}

func addressesOf(p netip.Prefix) (out []netip.Addr) {
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		out = append(out, a)
	}
	return out
}

func (m *machine) input(p *peer, w world, shown []share.Lease) share.Input {
	in := share.Input{Node: p.name, PodCIDRs: []netip.Prefix{network}, Bits: map[ipam.Family]int{ipam.IPv4: 29}, Leases: shown,
		Pools: poolOf, Idle: p.memory.Idle(), Avoid: p.memory.Avoid, Lost: p.memory.Lost, Declared: p.memory.Declared(), Holder: p.holder, Now: m.now}
	for node, cidr := range w.podCIDRs {
		in.Ranges = append(in.Ranges, share.Range{Prefix: cidr, Node: node, NodeCIDR: true})
	}
	for _, l := range shown {
		if l.Sharing == "" && !l.IsSingle() {
			in.Ranges = append(in.Ranges, share.Range{Prefix: l.Prefix, Node: l.Node})
		}
	}
	slices.SortFunc(in.Ranges, func(a, b share.Range) int { return a.Prefix.Compare(b.Prefix) })
	for _, a := range addressesOf(underlay) {
		if p.holder(a) != "" && !slices.ContainsFunc(shown, func(l share.Lease) bool { return l.Prefix.Addr() == a }) {
			in.Found = map[netip.Addr]string{a: "U"}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(p.needs)) {
		in.Needs = append(in.Needs, p.needs[id])
	}
	return in
}

// act does what was decided, as the agent does.
func (m *machine) act(p *peer, d share.Decision) {
	for _, a := range d.Answer {
		if _, gives := p.gives[a.Lease.Address()]; !gives {
			next := a.Lease
			next.Grant, next.Reason = a.Grant, a.Reason
			m.change(a.Lease, next)
		}
	}
	for _, l := range d.Unshare {
		m.remove(l)
	}
	for _, block := range d.Share {
		if l, ok := m.create(share.Lease{Prefix: block, Generation: 1, Sharing: share.Declared}); ok {
			m.confirm(l)
		}
	}
	for _, l := range d.Confirm {
		m.confirm(l)
	}
	for _, c := range d.Claim {
		m.claim(p, c)
	}
	for _, l := range d.Take {
		next := l
		next.Node, next.Generation = p.name, l.Generation+1
		if next, ok := m.change(l, next); ok {
			p.memory.Hold(next)
		}
	}
	for _, l := range d.Drop {
		m.remove(l)
	}
	for _, l := range d.LetGo {
		m.letGo(p, l)
	}
}

func (m *machine) claim(p *peer, c share.Claim) {
	l, ok := m.create(c.Lease)
	if !ok {
		p.memory.Lose(c.Address(), m.now)
		return
	}
	if within := c.From == "" && network.Contains(c.Address()); within && m.live().leases[c.Within].Sharing != share.Confirmed {
		return
	}
	p.memory.Hold(l)
}

func (m *machine) letGo(p *peer, l share.Lease) {
	if p.holder(l.Address()) != "" {
		return
	}
	p.memory.Leave(l, m.now)
	delete(p.gives, l.Address())
	if l.KeptFor == (share.Kept{}) {
		m.remove(l)
		return
	}
	next := l
	next.Node, next.Generation = "", l.Generation+1
	m.change(l, next)
}

// confirm is the second step of sharing a block, on what the API server itself
// says.
func (m *machine) confirm(l share.Lease) {
	w := m.live()
	for _, cidr := range w.podCIDRs {
		if cidr.Overlaps(l.Prefix) {
			m.remove(l)
			return
		}
	}
	for _, o := range w.leases {
		if o.Sharing == "" && !o.IsSingle() && o.Prefix.Overlaps(l.Prefix) {
			m.remove(l)
			return
		}
	}
	next := l
	next.Sharing = share.Confirmed
	m.change(l, next)
}

// check is invariant 1.
func (m *machine) check() {
	held := map[netip.Addr]string{}
	for name, p := range m.peers {
		for pod, a := range p.pods {
			if other, twice := held[a]; twice {
				m.t.Fatalf("%s is held by %s and by %s on node %s; leases: %v", a, other, pod, name, m.live().list())
			}
			held[a] = pod + " on node " + name
		}
	}
}
