package lease

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/plan"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func network(cidrs ...string) plan.Network {
	return plan.Network{PodCIDRs: prefixes(cidrs...), BlockBits: map[plan.Family]int{plan.IPv4: 26, plan.IPv6: 122}}
}

func mine(list ...string) []Lease {
	var out []Lease
	for _, p := range prefixes(list...) {
		out = append(out, Lease{Prefix: p, Mine: true})
	}
	return out
}

func usage(total, held int, emptyFor time.Duration) Usage {
	u := Usage{Total: total, Free: total - held, Held: held}
	if held == 0 {
		u.EmptySince = now.Add(-emptyFor)
	}
	return u
}

// withPool is a node with enough addresses of its own, and with a pool of which pods
// have so many, from the first on; blocks are those that it has in its podCIDR.
func withPool(ranges string, held int, blocks ...string) Input {
	all := append([]string{"10.244.7.192/26"}, blocks...)
	in := Input{Network: network("10.244.0.0/16"), NodeCIDRs: prefixes("10.244.7.0/24"), OthersCIDRs: prefixes("10.244.6.0/24"), Sources: addrs("10.244.7.193"),
		Leases: mine(all...), Usage: map[netip.Prefix]Usage{}, Pools: [][]netip.Prefix{prefixes(strings.Fields(ranges)...)}}
	in.Pooled = in.Pools[0]
	for _, p := range prefixes(all...) {
		in.Usage[p] = Usage{Held: 1}
	}
	in.Usage[netip.MustParsePrefix(all[0])] = usage(60, 1, 0)
	in.HeldIn = func(p netip.Prefix) int {
		n := 0
		for a := in.Pools[0][0].Addr(); n < held && p.Contains(a); a = a.Next() {
			n++
		}
		return n
	}
	return in
}

// emptyFor lets the first block of the podCIDR have been empty for long enough.
func emptyFor(in Input) Input {
	in.Usage[in.Leases[1].Prefix] = Usage{EmptySince: now.Add(-EmptyFor)}
	return in
}

func TestDecide(t *testing.T) {
	b0, b1 := netip.MustParsePrefix("10.244.0.0/26"), netip.MustParsePrefix("10.244.0.64/26")
	b2, b3 := netip.MustParsePrefix("10.244.0.128/26"), netip.MustParsePrefix("10.244.0.192/26")
	source := addrs("10.244.0.1")
	nodeCIDR := network("10.244.0.0/16")
	nodeCIDR.NodeCIDR = true
	tests := []struct {
		name    string
		in      Input
		claims  int    // how many
		within  string // where they lie
		adopt   string
		release string
		problem string
	}{
		{name: "first block", in: Input{Network: network("10.244.0.0/16")}, claims: 1, within: "10.244.0.0/16"},
		{name: "first blocks, dual", in: Input{Network: network("10.244.0.0/16", "fd00:10:244::/48")}, claims: 2},
		{name: "first block inside the own podCIDR", claims: 1, within: "10.244.7.0/24",
			in: Input{Network: network("10.244.0.0/16"), NodeCIDRs: prefixes("10.244.7.0/24"), OthersCIDRs: prefixes("10.244.0.0/24")}},
		{name: "never inside another's podCIDR", claims: 1, within: "10.244.0.128/25",
			in: Input{Network: network("10.244.0.0/24"), OthersCIDRs: prefixes("10.244.0.0/25")}},
		{name: "enough is free",
			in: Input{Network: network("10.244.0.0/16"), Leases: mine("10.244.0.0/26"), Usage: map[netip.Prefix]Usage{b0: usage(60, 45, 0)}}},
		{name: "ahead of need, beside the first", claims: 1, within: "10.244.0.64/26",
			in: Input{Network: network("10.244.0.0/16"), Leases: mine("10.244.0.0/26"), Usage: map[netip.Prefix]Usage{b0: usage(60, 46, 0)}}},
		{name: "nothing left", problem: "no IPv4 block can be leased",
			in: Input{Network: network("10.244.0.0/26"), Leases: []Lease{{Prefix: b0}}}},
		{name: "of the former self", adopt: "10.244.0.0/26",
			in: Input{Network: network("10.244.0.0/16"), Leases: []Lease{{Prefix: b0, Mine: true, Stale: true}}, Usage: map[netip.Prefix]Usage{b0: usage(60, 0, 0)}}},
		{name: "surplus", release: "10.244.0.64/26",
			in: Input{Network: network("10.244.0.0/16"), Sources: source, Leases: mine("10.244.0.0/26", "10.244.0.64/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 10, 0), b1: usage(60, 0, EmptyFor)}}},
		{name: "surplus, not for long enough",
			in: Input{Network: network("10.244.0.0/16"), Sources: source, Leases: mine("10.244.0.0/26", "10.244.0.64/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 10, 0), b1: usage(60, 0, EmptyFor-time.Second)}}},
		{name: "the rest would run short",
			in: Input{Network: network("10.244.0.0/16"), Sources: source, Leases: mine("10.244.0.0/26", "10.244.0.64/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 40, 0), b1: usage(60, 0, EmptyFor)}}},
		{name: "the node's own address stays",
			in: Input{Network: network("10.244.0.0/16"), Sources: source, Leases: mine("10.244.0.0/26", "10.244.0.64/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 0, EmptyFor), b1: usage(60, 3, 0)}}},
		{name: "the last one stays",
			in: Input{Network: network("10.244.0.0/16"), Leases: mine("10.244.0.0/26"), Usage: map[netip.Prefix]Usage{b0: usage(60, 0, EmptyFor)}}},
		{name: "twice as many, as one route", claims: 2, within: "10.244.0.128/25",
			in: Input{Network: network("10.244.0.0/16"), Leases: mine("10.244.0.0/26", "10.244.0.64/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 46, 0), b1: usage(60, 46, 0)}}},
		{name: "one more, where there is little left", claims: 1, within: "10.244.0.128/25",
			in: Input{Network: network("10.244.0.0/24"), Leases: mine("10.244.0.0/26", "10.244.0.64/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 46, 0), b1: usage(60, 46, 0)}}},
		{name: "twice as many in the own podCIDR, whatever is left", claims: 2, within: "10.244.0.128/25",
			in: Input{Network: network("10.244.0.0/23"), NodeCIDRs: prefixes("10.244.0.0/24"), OthersCIDRs: prefixes("10.244.1.0/24"), Leases: mine("10.244.0.0/26", "10.244.0.64/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 46, 0), b1: usage(60, 46, 0)}}},
		{name: "podCIDRs outside the pod network take nothing of it", claims: 2, within: "10.244.0.128/25",
			in: Input{Network: network("10.244.0.0/16"), OthersCIDRs: prefixes("10.100.0.0/15"), Leases: mine("10.244.0.0/26", "10.244.0.64/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 46, 0), b1: usage(60, 46, 0)}}},
		{name: "twice as many, IPv6 beside another's podCIDR", claims: 2, within: "fd00:10:244::80/121",
			in: Input{Network: network("fd00:10:244::/56"), OthersCIDRs: prefixes("fd00:10:244:1::/64"), Leases: mine("fd00:10:244::/122", "fd00:10:244::40/122"),
				Usage: map[netip.Prefix]Usage{netip.MustParsePrefix("fd00:10:244::/122"): usage(60, 46, 0), netip.MustParsePrefix("fd00:10:244::40/122"): usage(60, 46, 0)}}},
		{name: "the other half is another's in part", claims: 1, within: "10.244.0.128/25",
			in: Input{Network: network("10.244.0.0/16"), Leases: append(mine("10.244.0.0/26", "10.244.0.64/26"), Lease{Prefix: b3}),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 46, 0), b1: usage(60, 46, 0)}}},
		{name: "what was leased together goes together", release: "10.244.0.128/26 10.244.0.192/26",
			in: Input{Network: network("10.244.0.0/16"), Sources: source, Leases: mine("10.244.0.0/26", "10.244.0.64/26", "10.244.0.128/26", "10.244.0.192/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 10, 0), b1: usage(60, 10, 0), b2: usage(60, 0, EmptyFor), b3: usage(60, 0, EmptyFor)}}},
		{name: "a part of it stays, and is no route more",
			in: Input{Network: network("10.244.0.0/16"), Sources: source, Leases: mine("10.244.0.0/26", "10.244.0.64/26", "10.244.0.128/26", "10.244.0.192/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 10, 0), b1: usage(60, 10, 0), b2: usage(60, 1, 0), b3: usage(60, 0, EmptyFor)}}},
		{name: "a part of it goes, where there is little left", release: "10.244.0.192/26",
			in: Input{Network: network("10.244.0.0/24"), Sources: source, Leases: mine("10.244.0.0/26", "10.244.0.64/26", "10.244.0.128/26", "10.244.0.192/26"),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 10, 0), b1: usage(60, 10, 0), b2: usage(60, 1, 0), b3: usage(60, 0, EmptyFor)}}},
		{name: "a part of it stays in the own podCIDR, though there is little left",
			in: Input{Network: network("10.244.0.0/23"), NodeCIDRs: prefixes("10.244.0.0/24"), OthersCIDRs: prefixes("10.244.1.0/24"), Sources: source,
				Leases: mine("10.244.0.0/26", "10.244.0.64/26", "10.244.0.128/26", "10.244.0.192/26"),
				Usage:  map[netip.Prefix]Usage{b0: usage(60, 10, 0), b1: usage(60, 10, 0), b2: usage(60, 1, 0), b3: usage(60, 0, EmptyFor)}}},
		{name: "node CIDR: no blocks", in: Input{Network: nodeCIDR, NodeCIDRs: prefixes("10.244.7.0/24")}},
		{name: "node CIDR: blocks from before go when they are empty", release: "10.244.0.0/26",
			in: Input{Network: nodeCIDR, Leases: mine("10.244.0.0/26", "10.244.0.64/26"), Sources: addrs("10.244.7.1"),
				Usage: map[netip.Prefix]Usage{b0: {EmptySince: now.Add(-EmptyFor)}, b1: {Held: 1}}}},
		{name: "a lost lease with a pod in it", claims: 1, within: "10.244.0.64/26",
			in: Input{Network: network("10.244.0.0/16"), Leases: mine("10.244.0.0/26"), Usage: map[netip.Prefix]Usage{b0: usage(60, 1, 0)}, Uncovered: addrs("10.244.0.70", "10.244.0.71")}},
		{name: "node CIDR: a pod of the podCIDR before", claims: 1, within: "10.244.7.0/26",
			in: Input{Network: nodeCIDR, NodeCIDRs: prefixes("10.244.9.0/24"), Uncovered: addrs("10.244.7.2")}},
		{name: "node CIDR: a pod of what is another node's podCIDR by now", problem: "another node's podCIDR",
			in: Input{Network: nodeCIDR, NodeCIDRs: prefixes("10.244.9.0/24"), OthersCIDRs: prefixes("10.244.7.0/24"), Uncovered: addrs("10.244.7.2")}},
		{name: "a lost lease that another node has", problem: "leased to another node",
			in: Input{Network: network("10.244.0.0/16"), Leases: append(mine("10.244.0.0/26"), Lease{Prefix: b1}),
				Usage: map[netip.Prefix]Usage{b0: usage(60, 1, 0)}, Uncovered: addrs("10.244.0.70")}},
		{name: "a host-local address of another network",
			in: Input{Network: network("10.244.0.0/16"), Leases: mine("10.244.0.0/26"), Usage: map[netip.Prefix]Usage{b0: usage(60, 1, 0)}, Uncovered: addrs("172.17.0.2")}},
		{name: "a pool in the own podCIDR", claims: 1, within: "10.244.7.0/26", in: withPool("10.244.7.10/31", 0)},
		{name: "a pool in another's podCIDR", in: withPool("10.244.6.10/31", 0)},
		{name: "a pool in no podCIDR", in: withPool("10.244.8.10/31", 0)},
		{name: "a pool that has enough", in: withPool("10.244.7.0/25", 47, "10.244.7.0/26")},
		{name: "a pool that runs short", claims: 1, within: "10.244.7.64/26", in: withPool("10.244.7.0/25", 48, "10.244.7.0/26")},
		{name: "a pool that has what no pod gets", claims: 1, within: "10.244.7.64/26", in: withPool("10.244.7.0/32 10.244.7.70/32", 0, "10.244.7.0/26")},
		{name: "a pool that has no more there", in: withPool("10.244.7.0/26", 64, "10.244.7.0/26")},
		{name: "a pool around another's lease", claims: 1, within: "10.244.7.128/26", in: func() Input {
			in := withPool("10.244.7.0/25 10.244.7.128/26", 0)
			in.Leases = append(in.Leases, Lease{Prefix: netip.MustParsePrefix("10.244.7.0/25")})
			return in
		}()},
		{name: "an empty block that a pool needs", in: emptyFor(withPool("10.244.7.0/26", 0, "10.244.7.0/26"))},
		{name: "an empty block that the pool does well without", release: "10.244.7.0/26",
			in: emptyFor(withPool("10.244.7.0/25", 0, "10.244.7.0/26", "10.244.7.64/26"))},
		{name: "an empty block without a pool", release: "10.244.7.0/26", in: emptyFor(withPool("10.244.8.0/26", 0, "10.244.7.0/26"))},
		{name: "node CIDR: no blocks for pools", in: func() Input {
			in := withPool("10.244.7.10/31", 0)
			in.Network.NodeCIDR, in.Leases = true, nil
			return in
		}()},
		{name: "bad block size", in: Input{Network: plan.Network{PodCIDRs: prefixes("10.244.0.0/16")}}, problem: "blockSize"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.Node, tt.in.Now = "n1", now
			got := Decide(tt.in)
			if len(got.Claim) != tt.claims {
				t.Errorf("claims %v, want %d", got.Claim, tt.claims)
			}
			for _, c := range got.Claim {
				if tt.within != "" && !netip.MustParsePrefix(tt.within).Contains(c.Addr()) {
					t.Errorf("claims %v, want it within %s", c, tt.within)
				}
			}
			if s := fmt.Sprint(got.Adopt); s != fmt.Sprint(prefixes(strings.Fields(tt.adopt)...)) {
				t.Errorf("adopts %s, want %q", s, tt.adopt)
			}
			if s := fmt.Sprint(got.Release); s != fmt.Sprint(prefixes(strings.Fields(tt.release)...)) {
				t.Errorf("releases %s, want %q", s, tt.release)
			}
			if s := strings.Join(got.Problems, "; "); tt.problem == "" && s != "" || !strings.Contains(s, tt.problem) {
				t.Errorf("problems %q, want %q in it", s, tt.problem)
			}
		})
	}
}

// TestDecideProperties: whatever the input, what is claimed is free, lies in the
// pod network and in nobody's podCIDR; what is released is ours, empty, and not
// where the node's own address is; and doing what was decided leaves nothing to
// claim.
func TestDecideProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		d := Decide(in)
		for _, c := range d.Claim {
			for _, l := range in.Leases {
				if l.Prefix.Overlaps(c) {
					t.Fatalf("claims %v, which overlaps the lease %v", c, l.Prefix)
				}
			}
			if !contains(in.Network.PodCIDRs, c.Addr()) {
				t.Fatalf("claims %v outside the pod network", c)
			}
			covers := slices.ContainsFunc(in.Uncovered, c.Contains)
			if !covers && slices.ContainsFunc(in.OthersCIDRs, c.Overlaps) {
				t.Fatalf("claims %v inside another node's podCIDR", c)
			}
		}
		for _, r := range d.Release {
			if u := in.Usage[r]; u.Held > 0 || slices.ContainsFunc(in.Sources, r.Contains) || !slices.Contains(in.Leases, Lease{Prefix: r, Mine: true}) {
				t.Fatalf("releases %v: %+v", r, u)
			}
		}
		if len(d.Claim) > 0 && len(d.Release) > 0 {
			t.Fatalf("claims %v and releases %v at once", d.Claim, d.Release)
		}
		for _, c := range d.Claim {
			in.Leases = append(in.Leases, Lease{Prefix: c, Mine: true})
			in.Usage[c] = Usage{Total: 62, Free: 62}
		}
		in.Uncovered = slices.DeleteFunc(in.Uncovered, func(a netip.Addr) bool { return contains(d.Claim, a) })
		if again := Decide(in); len(again.Claim) > 0 && len(d.Claim) > 0 && totalFree(in) > totalOf(in)/3 {
			t.Fatalf("claimed %v, and then still %v", d.Claim, again.Claim)
		}
	})
}

func totalFree(in Input) (n int) {
	for _, u := range in.Usage {
		n += u.Free
	}
	return n
}

func totalOf(in Input) (n int) {
	for _, u := range in.Usage {
		n += u.Total
	}
	return n
}

func drawInput(t *rapid.T) Input {
	in := Input{Network: network("10.244.0.0/20"), Node: "n1", Now: now, Usage: map[netip.Prefix]Usage{}}
	in.Network.NodeCIDR = rapid.Bool().Draw(t, "node CIDR mode")
	taken := rapid.SliceOfNDistinct(rapid.IntRange(0, 63), 0, 20, rapid.ID[int]).Draw(t, "leases")
	for _, i := range taken {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i / 4), byte(i % 4 * 64)}), 26)
		own := rapid.Bool().Draw(t, "mine")
		in.Leases = append(in.Leases, Lease{Prefix: p, Mine: own})
		if own {
			in.Usage[p] = usage(60, rapid.IntRange(0, 60).Draw(t, "held"), EmptyFor)
		}
	}
	for _, i := range rapid.SliceOfN(rapid.IntRange(0, 15), 0, 3).Draw(t, "others' podCIDRs") {
		in.OthersCIDRs = append(in.OthersCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24))
	}
	for _, i := range rapid.SliceOfN(rapid.IntRange(0, 5000), 0, 3).Draw(t, "uncovered") {
		in.Uncovered = append(in.Uncovered, netip.AddrFrom4([4]byte{10, 244, byte(i / 256), byte(i)}))
	}
	in.Sources = addrs("10.244.0.1")
	return in
}
