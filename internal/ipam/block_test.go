package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

func prefixes(words string) []netip.Prefix {
	var out []netip.Prefix
	for _, w := range strings.Fields(words) {
		out = append(out, netip.MustParsePrefix(w))
	}
	return out
}

func TestNextBlock(t *testing.T) {
	tests := []struct {
		name                                   string
		cidrs, owned, taken, preferred, barred string
		family                                 ipam.Family
		bits                                   int
		want                                   string // empty: no block; "*": any
		wantInside                             string
		wantErr                                error
	}{
		{name: "the buddy of the only block", cidrs: "10.244.0.0/16", owned: "10.244.7.64/26", bits: 26, want: "10.244.7.0/26"},
		{name: "completes a half", cidrs: "10.244.0.0/16", owned: "10.244.7.0/26 10.244.7.64/26", bits: 26, want: "10.244.7.128/26"},
		{name: "the smallest range first", cidrs: "10.244.0.0/16", owned: "10.244.7.0/25 10.244.9.64/26", bits: 26, want: "10.244.9.0/26"},
		{name: "a buddy that is partly taken", cidrs: "10.244.0.0/16", owned: "10.244.7.0/25", taken: "10.244.7.128/26", bits: 26, want: "10.244.7.192/26"},
		{name: "the buddy is another's: elsewhere", cidrs: "10.244.0.0/16", owned: "10.244.7.0/26", taken: "10.244.7.64/26", bits: 26, want: "*"},
		{name: "its own podCIDR first", cidrs: "10.244.0.0/16", preferred: "10.244.3.0/24", bits: 26, want: "10.244.3.0/26"},
		{name: "grows in its podCIDR", cidrs: "10.244.0.0/16", preferred: "10.244.3.0/24", owned: "10.244.3.0/26", bits: 26, want: "10.244.3.64/26"},
		{name: "a full podCIDR: outside all", cidrs: "10.244.0.0/16", preferred: "10.244.3.0/24", owned: "10.244.3.0/24", barred: "10.244.0.0/23 10.244.2.0/24 10.244.8.0/21 10.244.16.0/20 10.244.32.0/19 10.244.64.0/18 10.244.128.0/17", bits: 26, wantInside: "10.244.4.0/22"},
		{name: "never in another's podCIDR", cidrs: "10.244.0.0/24", barred: "10.244.0.0/25", bits: 26, wantInside: "10.244.0.128/25"},
		{name: "a podCIDR that is another's too is not its own", cidrs: "10.244.0.0/23", preferred: "10.244.0.0/24", barred: "10.244.0.0/24", bits: 26, wantInside: "10.244.1.0/24"},
		{name: "a podCIDR outside the pod network", cidrs: "10.244.0.0/24", preferred: "10.9.0.0/24", bits: 26, wantInside: "10.244.0.0/24"},
		{name: "a podCIDR smaller than a block", cidrs: "10.244.0.0/24", preferred: "10.244.0.0/27", bits: 26, wantInside: "10.244.0.0/24"},
		{name: "around leases of other sizes", cidrs: "10.244.0.0/25", taken: "10.244.0.5/32", bits: 26, want: "10.244.0.64/26"},
		{name: "inside a lease of another size", cidrs: "10.244.0.0/24", taken: "10.244.0.0/25", bits: 26, wantInside: "10.244.0.128/25"},
		{name: "the second range when the first is full", cidrs: "10.244.0.0/26 10.245.0.0/26", taken: "10.244.0.0/26", bits: 26, want: "10.245.0.0/26"},
		{name: "a block as large as the network", cidrs: "10.244.0.0/26", bits: 26, want: "10.244.0.0/26"},
		{name: "IPv6", cidrs: "10.244.0.0/16 fd00:10:244::/48", owned: "fd00:10:244::7:40/122", family: ipam.IPv6, bits: 122, want: "fd00:10:244::7:0/122"},
		{name: "IPv6 beside IPv4", cidrs: "10.244.0.0/16 fd00:10:244::/48", family: ipam.IPv6, bits: 122, wantInside: "fd00:10:244::/48"},
		{name: "full", cidrs: "10.244.0.0/25", owned: "10.244.0.0/26", taken: "10.244.0.64/26", bits: 26, wantErr: ipam.ErrNoBlock},
		{name: "all of it others' podCIDRs", cidrs: "10.244.0.0/16", barred: "10.244.0.0/16", bits: 26, wantErr: ipam.ErrNoBlock},
		{name: "blocks larger than the network", cidrs: "10.244.0.0/27", bits: 26, wantErr: ipam.ErrNoBlock},
		{name: "no range of the family", cidrs: "10.244.0.0/16", family: ipam.IPv6, bits: 122, wantErr: ipam.ErrNoBlock},
		{name: "no network", bits: 26, wantErr: ipam.ErrNoBlock},
		{name: "no family", cidrs: "10.244.0.0/16", family: "IPX", bits: 26, wantErr: ipam.ErrInvalid},
		{name: "no prefix length", cidrs: "10.244.0.0/16", wantErr: ipam.ErrInvalid},
		{name: "IPv6's prefix length", cidrs: "10.244.0.0/16", bits: 122, wantErr: ipam.ErrInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := ipam.BlockRequest{Family: tt.family, PodCIDRs: prefixes(tt.cidrs), Bits: tt.bits, Owned: prefixes(tt.owned),
				Taken: prefixes(tt.taken + " " + tt.owned), Preferred: prefixes(tt.preferred), Avoid: prefixes(tt.barred), Seed: "a"}
			if r.Family == "" {
				r.Family = ipam.IPv4
			}
			got, err := ipam.NextBlock(r)
			switch {
			case tt.wantErr != nil:
				if !errors.Is(err, tt.wantErr) || !strings.Contains(err.Error(), " ") {
					t.Errorf("%s, %v, want %v", got, err, tt.wantErr)
				}
			case err != nil:
				t.Error(err)
			case tt.wantInside != "":
				if !cidr.Covers(netip.MustParsePrefix(tt.wantInside), got) || got.Bits() != tt.bits {
					t.Errorf("%s, want one inside %s", got, tt.wantInside)
				}
			case tt.want != "*" && got.String() != tt.want:
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestNextBlockFindsAllThereIs: whatever is taken, the answer is a whole free
// block if there is one, and ErrNoBlock only if there is none.
func TestNextBlockFindsAllThereIs(t *testing.T) {
	network := netip.MustParsePrefix("10.244.0.0/23")
	rapid.Check(t, func(t *rapid.T) {
		some := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, 244, rapid.ByteRange(0, 1).Draw(t, "net"), rapid.Byte().Draw(t, "host")})
			return netip.PrefixFrom(a, rapid.IntRange(24, 32).Draw(t, "bits")).Masked()
		}), 0, 6)
		bits := rapid.IntRange(24, 28).Draw(t, "bits")
		r := ipam.BlockRequest{Family: ipam.IPv4, PodCIDRs: []netip.Prefix{network}, Bits: bits, Seed: rapid.String().Draw(t, "seed"),
			Owned: some.Draw(t, "owned"), Taken: some.Draw(t, "taken"), Avoid: some.Draw(t, "avoid"), Preferred: some.Draw(t, "preferred")}
		barred := slices.Concat(r.Owned, r.Taken, r.Avoid)
		free := map[netip.Prefix]bool{}
		for a := network.Addr(); network.Contains(a); a = a.Next() {
			p := netip.PrefixFrom(a, bits)
			if p == p.Masked() && !slices.ContainsFunc(barred, p.Overlaps) {
				free[p] = true
			}
		}
		got, err := ipam.NextBlock(r)
		if err == nil != free[got] || errors.Is(err, ipam.ErrNoBlock) != (len(free) == 0) {
			t.Fatalf("%s, %v; free: %v", got, err, free)
		}
		own := slices.DeleteFunc(slices.Clone(r.Preferred), func(p netip.Prefix) bool { return p.Bits() > bits })
		for p := range free {
			if cidr.CoveredByAny(own, p) && !cidr.CoveredByAny(own, got) {
				t.Fatalf("%s, although %s is in the node's own podCIDRs", got, p)
			}
		}
	})
}

// TestBlocksOfNodesAggregate: nodes that take blocks in turn keep few routes,
// and the first blocks of nodes lie apart from one another.
func TestBlocksOfNodesAggregate(t *testing.T) {
	for _, network := range []struct {
		cidr   string
		family ipam.Family
		bits   int
	}{{"10.244.0.0/16", ipam.IPv4, 26}, {"fd00:10:244::/48", ipam.IPv6, 122}} {
		var taken []netip.Prefix
		owned := map[int][]netip.Prefix{}
		const nodes, each = 16, 12
		for range each {
			for n := range nodes {
				block, err := ipam.NextBlock(ipam.BlockRequest{Family: network.family, PodCIDRs: prefixes(network.cidr), Bits: network.bits,
					Owned: owned[n], Taken: taken, Seed: fmt.Sprintf("cn-chengdu.i-%d", n)})
				if err != nil {
					t.Fatal(err)
				}
				taken, owned[n] = append(taken, block), append(owned[n], block)
			}
		}
		routes := 0
		for _, blocks := range owned {
			routes += len(cidr.Aggregate(blocks))
		}
		if routes > 3*nodes {
			t.Errorf("%s: %d routes for %d nodes of %d blocks each", network.cidr, routes, nodes, each)
		}
	}
}

// TestNextBlockDoesNotEnumerate: a network of 2^74 blocks, hundreds of them
// leased, costs no more than the leases do: otherwise the test does not end.
func TestNextBlockDoesNotEnumerate(t *testing.T) {
	var taken []netip.Prefix
	for i := range 400 {
		block, err := ipam.NextBlock(ipam.BlockRequest{Family: ipam.IPv6, PodCIDRs: prefixes("fd00:10:244::/48"), Bits: 122, Taken: taken, Seed: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, block)
	}
	if n := len(cidr.Aggregate(taken)); n != len(taken) {
		t.Errorf("of %d first blocks of nodes only %d lie apart", len(taken), n)
	}
}
