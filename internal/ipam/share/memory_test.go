package share_test

import (
	"net/netip"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/share"
)

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func single(address, node, uid string) share.Lease {
	return share.Lease{Prefix: netip.PrefixFrom(netip.MustParseAddr(address), 32), Node: node, ObjectUID: uid, Version: "1", Generation: 1}
}

// TestDeletedSinceTheStart: what the API server said at the start is shown for as long
// as the cache may be older, and no longer once the cache has shown it.
func TestDeletedSinceTheStart(t *testing.T) {
	asked := single("10.0.0.2", "away", "uid-1")
	asked.From = "home"
	var m share.Memory
	m.Start("home", []share.Lease{asked}, noon)
	shown := func(want int, cached ...share.Lease) {
		t.Helper()
		if got := m.Show("home", cached, noon.Add(time.Second)); len(got) != want {
			t.Errorf("with %v in the cache, shown are %v, want %d", cached, got, want)
		}
	}
	shown(1)        // the cache is older
	shown(1, asked) // it has caught up
	shown(0)        // the lease is deleted
}

// input is of a node that has one single address, for one pod.
func input(l share.Lease, idle share.Idle, needs ...share.Need) share.Input {
	return share.Input{Node: "a", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Leases: []share.Lease{l}, Needs: needs, Now: noon,
		Idle:   map[netip.Addr]share.Idle{l.Address(): idle},
		Avoid:  func(netip.Addr) bool { return false },
		Lost:   func(netip.Addr) (string, time.Time) { return "", time.Time{} },
		Holder: func(netip.Addr) string { return "" }}
}

// TestUnsureIsGivenBackAtOnce: a lease whose answer was lost is leased again without a
// pause, and the pod that waits for it is told.
func TestUnsureIsGivenBackAtOnce(t *testing.T) {
	kept := share.Kept{Namespace: "default", Pod: "web-0", StatefulSet: "web", UID: "uid"}
	for name, need := range map[string]share.Need{
		"for one pod":           {ID: "pod", Family: ipam.IPv4, Exact: netip.MustParseAddr("10.0.0.2")},
		"kept for a pod of web": {ID: "pod", Family: ipam.IPv4, Pools: []string{"P"}, KeptFor: kept},
	} {
		l := single("10.0.0.2", "a", "uid-1")
		l.Unsure, l.KeptFor = true, need.KeptFor
		in := input(l, share.Idle{Since: noon}, need)
		in.Pools = map[string][]netip.Prefix{"P": {l.Prefix}}
		d := share.Decide(in)
		if len(d.LetGo) != 1 || d.Wait["pod"] == "" {
			t.Errorf("%s: lets go of %v, waits for %q", name, d.LetGo, d.Wait["pod"])
		}
	}
}

// TestSpareBeginsAnew: an address that a pod waits for is kept for its next try, however
// long it has waited before.
func TestSpareBeginsAnew(t *testing.T) {
	l := single("10.0.0.2", "a", "uid-1")
	var m share.Memory
	m.Start("a", nil, noon)
	m.Hold(l)
	nobody := func(netip.Addr) bool { return false }
	m.Track("a", []share.Lease{l}, nobody, noon)
	need := share.Need{ID: "pod", Family: ipam.IPv4, Exact: l.Address()}
	later := noon.Add(share.Spare - time.Second)
	m.Await(share.Decide(input(l, m.Idle()[l.Address()], need)).Awaited, later)
	in := input(l, m.Idle()[l.Address()])
	in.Now = noon.Add(share.Spare + time.Second)
	if d := share.Decide(in); len(d.LetGo) > 0 || !d.Again.Equal(later.Add(share.Spare)) {
		t.Errorf("lets go of %v, looks again at %v, want %v", d.LetGo, d.Again, later.Add(share.Spare))
	}
}

// TestKeptIsNotTakenTwiceAtOnce: an address that another node took, or changed, is not
// tried again while the cache shows it free.
func TestKeptIsNotTakenTwiceAtOnce(t *testing.T) {
	kept := share.Kept{Namespace: "default", Pod: "web-0", StatefulSet: "web", UID: "uid"}
	l := single("10.0.0.2", "", "uid-1")
	l.KeptFor = kept
	var m share.Memory
	m.Start("a", nil, noon)
	m.Lose(l.Address(), noon)
	m.Track("a", []share.Lease{l}, func(netip.Addr) bool { return false }, noon)
	in := input(l, share.Idle{}, share.Need{ID: "pod", Family: ipam.IPv4, Pools: []string{"P"}, KeptFor: kept})
	in.Pools, in.Lost, in.Idle = map[string][]netip.Prefix{"P": {l.Prefix}}, m.Lost, nil
	if d := share.Decide(in); len(d.Take) > 0 || d.Wait["pod"] == "" || !d.Again.After(noon) {
		t.Errorf("takes %v, waits for %q, looks again at %v", d.Take, d.Wait["pod"], d.Again)
	}
	in.Lost = func(netip.Addr) (string, time.Time) { return "", time.Time{} }
	if d := share.Decide(in); len(d.Take) != 1 {
		t.Errorf("later takes %v, want the address", d.Take)
	}
}

// TestSpareOfAUsedUpPool: where the pool has no other address, pods of other nodes wait
// for one that no pod of this node took.
func TestSpareOfAUsedUpPool(t *testing.T) {
	l := single("10.0.0.2", "a", "uid-1")
	l.Pool = "P"
	for pool, last := range map[string]bool{"10.0.0.2/31": true, "10.0.0.0/30": false, "10.0.0.0/16": false} {
		in := input(l, share.Idle{Since: noon})
		in.Leases = append(in.Leases, share.Lease{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Sharing: share.Confirmed},
			share.Lease{Prefix: netip.MustParsePrefix("10.0.0.3/32"), Node: "b", Pool: "P"})
		in.Pools = map[string][]netip.Prefix{"P": {netip.MustParsePrefix(pool)}}
		in.Now = noon.Add(share.Rest)
		if d := share.Decide(in); (len(d.LetGo) == 1) != last {
			t.Errorf("of pool %s lets go of %v", pool, d.LetGo)
		}
	}
}
