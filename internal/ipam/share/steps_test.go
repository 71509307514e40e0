package share_test

import (
	"net/netip"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/share"
)

// These play, step by step, what random schedules seldom come to: each rule of
// the protocol is there for one of them.

// wants lets a pod wait on a node.
func (m *machine) wants(node, pod string, pools ...string) {
	m.peers[node].needs[pod] = share.Need{ID: pod, Family: ipam.IPv4, Pools: pools}
}

// shareP has a block of P shared by node a: 10.0.0.0/29.
func (m *machine) shareP() {
	m.wants("a", "first", "P")
	for range 4 {
		m.passNow(m.peers["a"])
	}
}

func (m *machine) podCIDR(node string) {
	m.commit(func(w *world) bool { w.podCIDRs[node] = podCIDRs[node]; return true })
}

// holds is how many pods of a node have an address.
func (m *machine) holds(t *testing.T, node string, want int) {
	t.Helper()
	m.check()
	if got := len(m.peers[node].pods); got != want {
		t.Errorf("%d pods on node %s have an address, want %d: %+v", got, node, want, m.live().list())
	}
}

// TestRetiredWhileItIsClaimed: a node that has not heard that a block is shared
// no more claims an address of it, which another node gives by itself.
func TestRetiredWhileItIsClaimed(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		m := quiet(t, false)
		m.shareP()
		m.holds(t, "a", 1)
		b := m.peers["b"]
		m.passNow(b)
		clear(m.peers["a"].pods)
		for range 3 {
			m.now = m.now.Add(share.Rest)
			m.passNow(m.peers["a"])
		}
		for _, l := range m.live().list() { // the controller's way
			next := l
			next.Sharing = share.Retired
			next, _ = m.change(l, next)
			m.endRetirement(next)
		}
		l, _ := m.create(share.Lease{Prefix: netip.MustParsePrefix("10.0.0.0/29"), Node: "c", Generation: 1})
		m.peers["c"].memory.Hold(l)
		m.passNow(m.peers["c"])
		for range 8 {
			m.wants("c", "by itself", "")
			m.passNow(m.peers["c"])
			m.peers["c"].pods["more"+string(rune('0'+len(m.peers["c"].pods)))] = m.peers["c"].pods["by itself"]
			delete(m.peers["c"].pods, "by itself")
		}
		m.wants("b", "late", "P")
		m.pass(b) // by what it has heard
		if restarted {
			b.memory, b.vetted = share.Memory{}, netip.Prefix{}
		}
		m.passNow(b)
		m.passNow(b)
		m.holds(t, "b", 0)
	}
}

// TestPodCIDRAroundASharedBlock: a node that hears of its podCIDR before it hears
// of the shared block in it does not give from the block.
func TestPodCIDRAroundASharedBlock(t *testing.T) {
	m := quiet(t, true)
	b := m.peers["b"]
	m.passNow(b)
	m.shareP()
	m.holds(t, "a", 1)
	m.podCIDR("b")
	b.nodes = len(m.history) - 1
	for i := range 8 {
		m.wants("b", "pod"+string(rune('0'+i)), "")
		m.pass(b)
	}
	m.holds(t, "b", 0) // the whole podCIDR is shared
}

// TestDeclaredAroundNobodysBlock: a podCIDR that was assigned first stands, also
// where whoever declared the block does not know of it.
func TestDeclaredInAPodCIDR(t *testing.T) {
	m := quiet(t, true)
	m.passNow(m.peers["a"])
	m.podCIDR("b")
	m.passNow(m.peers["b"])
	for i := range 8 {
		m.wants("b", "pod"+string(rune('0'+i)), "")
	}
	m.passNow(m.peers["b"])
	m.wants("a", "late", "P")
	for range 3 {
		m.peers["a"].view = len(m.history) - 1 // leases, and no podCIDRs
		m.pass(m.peers["a"])
	}
	m.holds(t, "b", 8)
	if pods := m.peers["a"].pods; len(pods) == 1 && podCIDRs["b"].Contains(pods["late"]) {
		t.Errorf("a gives %s of b's podCIDR", pods["late"])
	}
}

// TestShownAnOldState: an agent that starts and is shown what its predecessor
// gave back, and another node has now, does not use it.
func TestShownAnOldState(t *testing.T) {
	m := quiet(t, false)
	m.shareP()
	old := len(m.history) - 1
	a := m.peers["a"]
	clear(a.pods)
	for range 3 {
		m.now = m.now.Add(share.Rest)
		m.passNow(a)
	}
	for _, pod := range []string{"1", "2", "3", "4"} { // all of the block
		m.wants("b", pod, "P")
	}
	for range 3 {
		m.passNow(m.peers["b"])
	}
	m.holds(t, "b", 4)
	a.memory, a.view = share.Memory{}, old
	m.wants("a", "new", "P")
	m.pass(a)
	m.holds(t, "a", 0)
}

// TestGivenBackAfterAStart: what another node had when this one's agent started,
// and gave back a moment later, is had by this one at once: not when the agent has
// run for a minute.
func TestGivenBackAfterAStart(t *testing.T) {
	m := quiet(t, false)
	m.shareP()
	for _, pod := range []string{"1", "2", "3", "4"} { // with first's, all of P
		m.wants("a", pod, "P")
	}
	for range 6 {
		m.passNow(m.peers["a"])
	}
	m.holds(t, "a", 5)
	a, b := m.peers["a"], m.peers["b"]
	b.memory = share.Memory{}
	m.wants("b", "late", "P")
	m.passNow(b)
	m.holds(t, "b", 0)
	delete(a.pods, "2")
	for range 3 {
		m.now = m.now.Add(share.Rest)
		m.passNow(a)
	}
	for range 3 {
		m.passNow(b)
	}
	m.holds(t, "b", 1)
}

// TestKeptForItsPod: the address of a StatefulSet's pod is nobody else's while
// the pod is between two nodes, and comes with it; also to a node that is shown an
// old state of the lease it once had.
func TestKeptForItsPod(t *testing.T) {
	m := quiet(t, false)
	m.shareP()
	web := share.Need{ID: "web-0", Family: ipam.IPv4, Pools: []string{"P"}, KeptFor: share.Kept{Namespace: "d", Pod: "web-0", StatefulSet: "web", UID: "u"}}
	a, b := m.peers["a"], m.peers["b"]
	run := func(p *peer) netip.Addr {
		p.needs["web-0"] = web
		for range 3 {
			m.passNow(p)
		}
		m.check()
		return p.pods["web-0"]
	}
	end := func(p *peer) {
		delete(p.pods, "web-0")
		for range 3 {
			m.now = m.now.Add(share.Rest)
			m.passNow(p)
		}
	}
	first := run(a)
	onA := len(m.history) - 1
	if b.needs["web-0"] = web; !first.IsValid() {
		t.Fatal("web-0 got no address")
	}
	m.passNow(b)
	m.passNow(b)
	m.holds(t, "b", 0) // a has not let go of it
	end(a)
	for _, pod := range []string{"1", "2", "3", "4"} {
		m.wants("c", pod, "P")
	}
	for range 3 {
		m.passNow(m.peers["c"])
	}
	if got := run(b); got != first {
		t.Errorf("web-0 had %s and has %s", first, got)
	}
	a.memory, a.view = share.Memory{}, onA
	a.needs["web-0"] = web
	m.pass(a)
	m.check()
	delete(a.needs, "web-0")
	end(b)
	if got := run(a); got != first {
		t.Errorf("back on a, web-0 had %s and has %s", first, got)
	}
}

// TestAskedOfItsOwner: an address in another node's range is used once that node
// has let go of it, and not while a pod of that node has it.
func TestAskedOfItsOwner(t *testing.T) {
	m := quiet(t, true)
	m.podCIDR("c")
	a, c := m.peers["a"], m.peers["c"]
	m.passNow(c)
	m.wants("c", "mine", "")
	m.passNow(c)
	taken := c.pods["mine"]
	for pod, address := range map[string]netip.Addr{"refused": taken, "granted": taken.Next()} {
		a.needs[pod] = share.Need{ID: pod, Family: ipam.IPv4, Exact: address}
	}
	m.passNow(a)
	m.passNow(a)
	m.holds(t, "a", 0)
	for range 3 {
		m.passNow(c)
		m.passNow(a)
	}
	m.holds(t, "a", 1)
	for i := range 8 {
		m.wants("c", "pod"+string(rune('0'+i)), "")
	}
	m.passNow(c)
	m.holds(t, "c", 7)
}

// TestFoundOutsideThePodNetwork: an address that a pod has by another product's doing
// is leased before any other node gives it, and given back when the pod ends.
func TestFoundOutsideThePodNetwork(t *testing.T) {
	m := quiet(t, false)
	a, b := m.peers["a"], m.peers["b"]
	a.pods["taken over"] = underlay.Addr()
	m.passNow(a)
	for i := range 4 {
		m.wants("b", "pod"+string(rune('0'+i)), "U")
	}
	for range 3 {
		m.passNow(b)
	}
	m.holds(t, "b", 3)
	clear(a.pods)
	for range 3 {
		m.now = m.now.Add(share.Rest)
		m.passNow(a)
		m.passNow(b)
	}
	m.holds(t, "b", 4)
}

// TestExactOutsideThePodNetwork: only what some pool states is leased, and not what a
// node has itself.
func TestExactOutsideThePodNetwork(t *testing.T) {
	none := func(netip.Addr) (string, time.Time) { return "", time.Time{} }
	for want, in := range map[string]share.Input{
		"10.1.0.5": {Pools: poolOf},
		"the address 10.1.0.5 is outside the pod network [10.0.0.0/27]":        {},
		"the address 10.1.0.5 is reserved (SpiderReservedIP), or a node's own": {Pools: poolOf, Reserved: []netip.Prefix{netip.MustParsePrefix("10.1.0.5/32")}},
	} {
		in.Node, in.PodCIDRs, in.Lost = "a", []netip.Prefix{network}, none
		in.Needs = []share.Need{{ID: "p", Family: ipam.IPv4, Exact: netip.MustParseAddr("10.1.0.5")}}
		d := share.Decide(in)
		got := d.Wait["p"]
		if len(d.Claim) == 1 && !d.Claim[0].Within.IsValid() {
			got = d.Claim[0].Address().String()
		}
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestKeptOfOtherVersions: of two addresses that are kept for one interface one is
// dropped; what was kept before interfaces had their own is the further interface's that
// asks for it, unless the first one has it or a lease names an interface.
func TestKeptOfOtherVersions(t *testing.T) {
	first := share.Kept{Namespace: "d", Pod: "web-0", StatefulSet: "web", UID: "u"}
	net1 := first
	net1.Interface = "net1"
	kept := func(address, node string, k share.Kept) share.Lease {
		return share.Lease{Prefix: netip.MustParsePrefix(address + "/32"), Node: node, Generation: 1, KeptFor: k, Pool: "P", ObjectUID: address, Version: "1"}
	}
	for name, test := range map[string]struct {
		leases     []share.Lease
		wants      share.Kept
		take, drop string
	}{
		"two of one":                        {[]share.Lease{kept("10.0.0.1", "", first), kept("10.0.0.2", "", first)}, first, "10.0.0.1", "10.0.0.2"},
		"two of one, one is held":           {[]share.Lease{kept("10.0.0.1", "", first), kept("10.0.0.2", "b", first)}, first, "", "10.0.0.1"},
		"from before":                       {[]share.Lease{kept("10.0.0.1", "", first)}, net1, "10.0.0.1", ""},
		"from before, the first has it":     {[]share.Lease{kept("10.0.0.1", "b", first)}, net1, "", ""},
		"the first's, as another has its":   {[]share.Lease{kept("10.0.0.1", "", first), kept("10.0.0.2", "b", net1)}, net1, "", ""},
		"the first's, as another's is free": {[]share.Lease{kept("10.0.0.1", "", first), kept("10.0.0.2", "", net1)}, net1, "10.0.0.2", ""},
	} {
		in := share.Input{Node: "a", PodCIDRs: []netip.Prefix{network}, Bits: map[ipam.Family]int{ipam.IPv4: 29}, Leases: test.leases, Pools: poolOf,
			Needs: []share.Need{{ID: "p", Family: ipam.IPv4, Pools: []string{"P"}, KeptFor: test.wants}},
			Lost:  func(netip.Addr) (string, time.Time) { return "", time.Time{} }, Avoid: func(netip.Addr) bool { return false }}
		d := share.Decide(in)
		list := func(leases []share.Lease) (out string) {
			for _, l := range leases {
				out += l.Address().String()
			}
			return out
		}
		if list(d.Take) != test.take || list(d.Drop) != test.drop {
			t.Errorf("%s: takes %q, drops %q, want %q, %q", name, list(d.Take), list(d.Drop), test.take, test.drop)
		}
		if len(d.Take) == 1 && d.Take[0].KeptFor != test.wants {
			t.Errorf("%s: taken for %+v", name, d.Take[0].KeptFor)
		}
	}
}
