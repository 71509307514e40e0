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

// What may befall the machine of machine_test.go, in any order, and what must hold in
// the end.

func (m *machine) anyPeer(t *rapid.T) *peer {
	return m.peers[rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node")]
}

// need is what a pod asks for: of the pool, kept, exact, or of what serves by
// itself.
func (m *machine) add(t *rapid.T) {
	p := m.anyPeer(t)
	m.serial++
	n := share.Need{ID: fmt.Sprintf("pod-%d", m.serial), Family: ipam.IPv4}
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0, 1, 2:
		n.Pools = []string{"P"}
	case 3:
		n.Pools = []string{"P"}
		n.KeptFor = share.Kept{Namespace: "d", Pod: rapid.SampledFrom([]string{"web-0", "web-1"}).Draw(t, "ordinal"), StatefulSet: "web", UID: "u",
			Interface: rapid.SampledFrom([]string{"", "net1"}).Draw(t, "interface")}
		for _, other := range m.peers { // one of them runs at a time
			for id, o := range other.needs {
				if o.KeptFor == n.KeptFor {
					delete(other.needs, id)
				}
			}
		}
	case 4:
		n.Exact = network.Addr()
		for range rapid.IntRange(0, 31).Draw(t, "address") {
			n.Exact = n.Exact.Next()
		}
	case 5:
		n.Pools = []string{""}
	case 6:
		n.Pools = []string{"U"}
	case 7:
		n.Exact = rapid.SampledFrom(addressesOf(underlay)).Draw(t, "address outside")
	}
	p.needs[n.ID] = n
}

func (m *machine) del(t *rapid.T) {
	p := m.anyPeer(t)
	if all := slices.Sorted(maps.Keys(p.needs)); len(all) > 0 && rapid.Bool().Draw(t, "give up") {
		delete(p.needs, rapid.SampledFrom(all).Draw(t, "need"))
		return
	}
	if all := slices.Sorted(maps.Keys(p.pods)); len(all) > 0 {
		delete(p.pods, rapid.SampledFrom(all).Draw(t, "pod"))
	}
}

// restart ends an agent; the next one may be shown what is older than what this
// one saw.
func (m *machine) restart(t *rapid.T) { m.restartOf(t, m.anyPeer(t)) }

func (m *machine) restartOf(t *rapid.T, p *peer) {
	p.memory, p.vetted, p.gives, p.needs = share.Memory{}, netip.Prefix{}, map[netip.Addr]string{}, map[string]share.Need{}
	p.view = rapid.IntRange(0, len(m.history)-1).Draw(t, "view")
	p.nodes = rapid.IntRange(0, len(m.history)-1).Draw(t, "nodes")
}

// lose is a node that is gone with its pods: the controller takes back its leases.
func (m *machine) lose(t *rapid.T) {
	p := m.anyPeer(t)
	clear(p.pods)
	m.restartOf(t, p)
	m.commit(func(w *world) bool {
		for prefix, l := range w.leases {
			switch {
			case l.Node != p.name:
			case l.KeptFor != share.Kept{}:
				l.Node, l.Generation = "", l.Generation+1
				w.leases[prefix] = m.stamp(l)
			default:
				delete(w.leases, prefix)
			}
		}
		return true
	})
}

// retire is the controller's way with shared blocks that are of no use.
func (m *machine) retire(t *rapid.T) {
	for _, l := range m.live().list() {
		if l.Sharing != share.Confirmed || !rapid.Bool().Draw(t, "this") {
			continue
		}
		next := l
		next.Sharing = share.Retired
		if next, ok := m.change(l, next); ok {
			m.endRetirement(next)
		}
	}
	for _, l := range m.live().list() {
		if l.Sharing == share.Retired {
			m.endRetirement(l)
		}
	}
}

func (m *machine) endRetirement(l share.Lease) {
	for _, o := range m.live().leases {
		if o.IsSingle() && l.Prefix.Overlaps(o.Prefix) {
			next := l
			next.Sharing = share.Confirmed
			m.change(l, next)
			return
		}
	}
	m.remove(l)
}

func (m *machine) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"add":     m.add,
		"add 2":   m.add,
		"del":     m.del,
		"restart": m.restart,
		"lose":    m.lose,
		"retire":  m.retire,
		"pass": func(t *rapid.T) {
			p := m.anyPeer(t)
			p.view = rapid.IntRange(p.view, len(m.history)-1).Draw(t, "view")
			p.nodes = rapid.IntRange(p.nodes, len(m.history)-1).Draw(t, "nodes")
			m.pass(p)
		},
		"pass now": func(t *rapid.T) { m.passNow(m.anyPeer(t)) },
		"time": func(t *rapid.T) {
			m.now = m.now.Add(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 5 * time.Second, time.Minute, -time.Hour}).Draw(t, "time"))
		},
		"late": func(t *rapid.T) {
			if len(m.late) > 0 {
				i := rapid.IntRange(0, len(m.late)-1).Draw(t, "call")
				m.commit(m.late[i])
				m.late = slices.Delete(m.late, i, i+1)
			}
		},
		"own range": func(t *rapid.T) {
			p := m.anyPeer(t)
			if m.nodeCIDR {
				m.commit(func(w *world) bool { w.podCIDRs[p.name] = podCIDRs[p.name]; return true })
				return
			}
			block := rapid.SampledFrom([]string{"10.0.0.0/29", "10.0.0.8/29"}).Draw(t, "block")
			if l, ok := m.create(share.Lease{Prefix: netip.MustParsePrefix(block), Node: p.name, Generation: 1}); ok {
				p.memory.Hold(l)
			}
		},
		"": func(*rapid.T) { m.check() },
	}
}

func (m *machine) passNow(p *peer) {
	p.view, p.nodes = len(m.history)-1, len(m.history)-1
	m.pass(p)
}

// settle lets everything run, with nothing failing, and checks that nobody waits
// for what is there.
func (m *machine) settle() {
	for _, do := range m.late {
		m.commit(do)
	}
	m.late, m.calm = nil, true
	for range 20 {
		for _, name := range []string{"a", "b", "c"} {
			p := m.peers[name]
			m.passNow(p)
			m.check()
		}
		m.now = m.now.Add(7 * time.Second)
	}
	shown := m.live()
	for _, p := range m.peers {
		for id, n := range p.needs {
			if n.KeptFor != (share.Kept{}) || n.Exact.IsValid() || n.Pools[0] == "" {
				continue
			}
			for _, r := range poolOf[n.Pools[0]] {
				for _, a := range addressesOf(r) {
					l, leased := shown.leases[netip.PrefixFrom(a, 32)]
					if (isShared(shown, a) || r == underlay) && (!leased || l.Node != "" && m.peers[l.Node].holder(a) == "") {
						m.t.Fatalf("pod %s waits on node %s, and nobody has %s: %+v", id, p.name, a, shown.list())
					}
				}
			}
		}
	}
}

func isShared(w world, a netip.Addr) bool {
	return slices.ContainsFunc(w.list(), func(l share.Lease) bool { return l.Sharing == share.Confirmed && l.Prefix.Contains(a) })
}

func TestNoAddressTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		t.Repeat(m.actions())
		m.settle()
		m.check()
	})
}
