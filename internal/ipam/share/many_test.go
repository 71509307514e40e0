package share_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// crowd is a pool of 300 addresses, and five nodes each of which has pods that
// wait for 60 of them.
func crowd(node int, leases []share.Lease) share.Decision {
	in := share.Input{Node: fmt.Sprintf("node-%d", node), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Bits: map[ipam.Family]int{ipam.IPv4: 26},
		Pools:  map[string][]netip.Prefix{"P": cidr.FromRange(netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.1.44"))},
		Leases: leases, Avoid: func(netip.Addr) bool { return false }, Lost: func(netip.Addr) (string, time.Time) { return "", time.Time{} },
		Holder: func(netip.Addr) string { return "" }}
	for i := range 5 {
		in.Ranges = append(in.Ranges, share.Range{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(100 + i), 0}), 24), Node: fmt.Sprintf("node-%d", i), NodeCIDR: true})
	}
	for i := range 60 {
		in.Needs = append(in.Needs, share.Need{ID: fmt.Sprint(i), Family: ipam.IPv4, Pools: []string{"P"}})
	}
	return share.Decide(in)
}

// TestManyNodesAtOnce: nodes whose pods start together are in nobody's way, though
// none of them knows of the others' pods: they share the blocks of the pool
// between them, and lease different addresses.
func TestManyNodesAtOnce(t *testing.T) {
	shared, claimed := map[netip.Prefix]int{}, map[netip.Addr]int{}
	for node := range 5 {
		d := crowd(node, nil)
		for _, p := range d.Share {
			shared[p]++
		}
		if len(d.Share) == 0 || len(d.Wait) > 0 {
			t.Errorf("node %d shares %v; %v", node, d.Share, d.Wait)
		}
	}
	if len(shared) < 4 { // two parts of 60 begin in one block of 64
		t.Errorf("the nodes share %v", shared)
	}
	var all []share.Lease
	for i := range 5 {
		all = append(all, share.Lease{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 4), byte(i % 4 * 64)}), 26), Sharing: share.Confirmed})
	}
	for node := range 5 {
		for _, c := range crowd(node, all).Claim {
			if other, twice := claimed[c.Address()]; twice {
				t.Errorf("nodes %d and %d both claim %s", other, node, c.Address())
			}
			claimed[c.Address()] = node
		}
	}
	if len(claimed) != 300 {
		t.Errorf("%d addresses are claimed, want all", len(claimed))
	}
}

// TestOwnPartFirst: a node leases no address of another's part of a small pool while its
// own is not shared yet, or is just being shared, whoever does that.
func TestOwnPartFirst(t *testing.T) {
	block := func(i int, s share.Sharing) share.Lease {
		return share.Lease{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 4), byte(i % 4 * 64)}), 26), Sharing: s}
	}
	var all, known []share.Lease
	for node := range 5 {
		for _, c := range crowd(node, []share.Lease{block(0, share.Confirmed), block(1, share.Confirmed), block(2, share.Confirmed), block(3, share.Confirmed), block(4, share.Confirmed)}).Claim {
			l := c.Lease
			l.Prefix, l.Node = c.Prefix, fmt.Sprint(node)
			all = append(all, l)
		}
	}
	for shared := range 6 { // blocks, the next of which is declared
		known = known[:0]
		for i := range min(shared+1, 5) {
			known = append(known, block(i, map[bool]share.Sharing{true: share.Confirmed, false: share.Declared}[i < shared]))
		}
		for node := range 5 {
			d := crowd(node, known)
			for _, c := range d.Claim {
				if i := slices.IndexFunc(all, func(l share.Lease) bool { return l.Prefix == c.Prefix }); i < 0 || all[i].Node != fmt.Sprint(node) {
					t.Errorf("with %d blocks shared node %d claims %s of another's part", shared, node, c.Address())
				}
			}
			if len(d.Claim) < 60 && len(d.Share) == 0 && (shared == 5 || len(d.Wait) > 0) {
				t.Errorf("with %d blocks shared node %d claims %d, shares nothing; %v", shared, node, len(d.Claim), d.Wait)
			}
		}
	}
}

// TestPartOutsideThePodNetwork: of a pool that has both, what is outside is leased and
// not shared.
func TestPartOutsideThePodNetwork(t *testing.T) {
	in := share.Input{Node: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Bits: map[ipam.Family]int{ipam.IPv4: 26},
		Pools: map[string][]netip.Prefix{"P": {netip.MustParsePrefix("10.0.0.0/30"), netip.MustParsePrefix("192.168.0.0/30")}},
		Avoid: func(netip.Addr) bool { return false }, Lost: func(netip.Addr) (string, time.Time) { return "", time.Time{} }}
	for i := range 8 {
		in.Needs = append(in.Needs, share.Need{ID: fmt.Sprint(i), Family: ipam.IPv4, Pools: []string{"P"}})
	}
	d := share.Decide(in)
	if want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/26")}; !slices.Equal(d.Share, want) || len(d.Claim) != 4 || len(d.Wait) > 0 {
		t.Errorf("the node shares %v and claims %v; %v", d.Share, d.Claim, d.Wait)
	}
	for _, c := range d.Claim {
		if c.Within.IsValid() || !netip.MustParsePrefix("192.168.0.0/30").Contains(c.Address()) {
			t.Errorf("the node claims %s within %s", c.Address(), c.Within)
		}
	}
}

// TestGivenBackTogether: what has rested waits for what will have a moment later, and
// not for longer than that.
func TestGivenBackTogether(t *testing.T) {
	began := time.Unix(1000, 0)
	letGo := func(now time.Time, ended ...time.Duration) int {
		in := share.Input{Node: "a", Now: now, Idle: map[netip.Addr]share.Idle{}, Lost: func(netip.Addr) (string, time.Time) { return "", time.Time{} }}
		for i, after := range ended {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			in.Leases = append(in.Leases, share.Lease{Prefix: netip.PrefixFrom(a, 32), Node: "a", Pool: "P"})
			in.Idle[a] = share.Idle{Since: began.Add(after), Used: true}
		}
		d := share.Decide(in)
		if len(d.LetGo) < len(ended) && d.Again.IsZero() {
			t.Errorf("nothing says when the rest is given back")
		}
		return len(d.LetGo)
	}
	rested, soon := began.Add(share.Rest), share.Together/2
	for name, tt := range map[string]struct {
		now   time.Time
		ended []time.Duration
		want  int
	}{
		"one":                       {rested, []time.Duration{0}, 1},
		"another soon":              {rested, []time.Duration{0, soon}, 0},
		"both":                      {rested.Add(soon), []time.Duration{0, soon}, 2},
		"another later":             {rested, []time.Duration{0, 2 * share.Together}, 1},
		"one after the other":       {rested.Add(soon), []time.Duration{0, soon, 2 * soon, 3 * soon}, 0},
		"one after the other, late": {rested.Add(share.Together), []time.Duration{0, soon, 2 * soon, 3 * soon}, 3},
	} {
		if got := letGo(tt.now, tt.ended...); got != tt.want {
			t.Errorf("%s: %d are given back, want %d", name, got, tt.want)
		}
	}
}

// TestAsManyBlocksAsNeeded: what pods wait for is shared in one step, and no more
// than that; also what is being shared already counts.
func TestAsManyBlocksAsNeeded(t *testing.T) {
	d := crowd(1, []share.Lease{{Prefix: netip.MustParsePrefix("10.0.0.0/26"), Sharing: share.Confirmed}, {Prefix: netip.MustParsePrefix("10.0.0.64/26"), Sharing: share.Declared}})
	if len(d.Share) != 0 || len(d.Wait) > 0 {
		t.Errorf("the node's part is being shared, and %v more; %v", d.Share, d.Wait)
	}
	m := quiet(t, false)
	for i := range 6 { // the pool has 4 in one block, and 1 in another
		m.wants("a", fmt.Sprint(i), "P")
	}
	for range 3 {
		m.passNow(m.peers["a"])
	}
	m.holds(t, "a", 5)
}

// TestLostUntilSeen: an address that another node was faster to lease is tried
// again as soon as that node was seen to have given it back.
func TestLostUntilSeen(t *testing.T) {
	m := quiet(t, false)
	m.shareP()
	for _, pod := range []string{"1", "2", "3", "4"} { // with first's, all of P
		m.wants("a", pod, "P")
	}
	a, b := m.peers["a"], m.peers["b"]
	m.passNow(b)
	for range 6 {
		m.passNow(a)
	}
	m.holds(t, "a", 5)
	m.wants("b", "late", "P")
	for range 5 {
		m.pass(b) // by what it saw before, it loses all of them
	}
	m.passNow(b)
	delete(a.pods, "2")
	m.passNow(a)
	m.now = m.now.Add(share.Rest)
	m.passNow(a)
	for range 2 {
		m.passNow(b)
	}
	m.holds(t, "b", 1)
}

// TestLostIsTriedAgain: who waits for an address that could not be had looks again when
// it may be tried, though nothing happens until then.
func TestLostIsTriedAgain(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	until, address := now.Add(3*time.Second), netip.MustParseAddr("10.0.0.1")
	for name, need := range map[string]share.Need{
		"the one address that will do": {ID: "pod", Family: ipam.IPv4, Exact: address},
		"the pool's only address":      {ID: "pod", Family: ipam.IPv4, Pools: []string{"P"}},
	} {
		shared := netip.MustParsePrefix("10.0.0.0/29")
		d := share.Decide(share.Input{Node: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Now: now, Needs: []share.Need{need},
			Pools:  map[string][]netip.Prefix{"P": {netip.PrefixFrom(address, 32)}},
			Leases: []share.Lease{{Prefix: shared, Sharing: share.Confirmed}},
			Avoid:  func(netip.Addr) bool { return false },
			Lost: func(a netip.Addr) (string, time.Time) {
				if a == address {
					return "another node was faster", until
				}
				return "", time.Time{}
			}})
		if len(d.Claim) > 0 || d.Wait["pod"] == "" || !d.Again.Equal(until) {
			t.Errorf("%s: claims %v, waits for %q, looks again at %v; want %v", name, d.Claim, d.Wait["pod"], d.Again, until)
		}
	}
}

// TestABlockThatCannotBeShared: pods do not wait for it as long as there are addresses of
// others, whether this node or another has declared it; later it is tried again.
func TestABlockThatCannotBeShared(t *testing.T) {
	refused, now := netip.MustParsePrefix("10.0.0.0/26"), time.Unix(1000, 0)
	confirmed := share.Lease{Prefix: netip.MustParsePrefix("10.0.0.64/26"), Sharing: share.Confirmed}
	in := share.Input{Node: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Bits: map[ipam.Family]int{ipam.IPv4: 26},
		Pools: map[string][]netip.Prefix{"P": {netip.MustParsePrefix("10.0.0.0/25")}}, Leases: []share.Lease{confirmed},
		Avoid: func(netip.Addr) bool { return false }, Lost: func(netip.Addr) (string, time.Time) { return "", time.Time{} }, Now: now}
	for i := range 8 {
		in.Needs = append(in.Needs, share.Need{ID: fmt.Sprint(i), Family: ipam.IPv4, Pools: []string{"P"}})
	}
	if d := share.Decide(in); !slices.Equal(d.Share, []netip.Prefix{refused}) {
		t.Fatalf("the node shares %v, want its own part %s", d.Share, refused)
	}
	var m share.Memory
	m.LeaveUnshared([]netip.Prefix{refused}, now)
	for _, leases := range [][]share.Lease{{confirmed}, {confirmed, {Prefix: refused, Sharing: share.Declared}}} {
		in.Leases, in.Unshared, in.Now = leases, m.Unshared(), now
		d := share.Decide(in)
		if len(d.Claim) != 8 || len(d.Share)+len(d.Confirm) > 0 || !d.Again.After(now) {
			t.Errorf("with %v the node claims %d addresses, shares %v, confirms %v, looks again at %s", leases, len(d.Claim), d.Share, d.Confirm, d.Again)
		}
		in.Leases, in.Now = leases[:1], d.Again
		if d := share.Decide(in); !slices.Equal(d.Share, []netip.Prefix{refused}) {
			t.Errorf("later the node shares %v", d.Share)
		}
	}
}
