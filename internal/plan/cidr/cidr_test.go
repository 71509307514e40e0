package cidr_test

import (
	"math"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// universe is small enough to count every address of it.
var universe = netip.MustParsePrefix("10.0.0.0/24")

func anyPrefixes(t *rapid.T, label string) []netip.Prefix {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "host")})
		return netip.PrefixFrom(a, rapid.IntRange(24, 32).Draw(t, "bits"))
	}), 0, 12).Draw(t, label)
}

func addresses(prefixes []netip.Prefix) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for a := universe.Addr(); universe.Contains(a); a = a.Next() {
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			out[a] = true
		}
	}
	return out
}

// fewest reports whether no two of the prefixes could be one.
func fewest(prefixes []netip.Prefix) bool {
	for i := 1; i < len(prefixes); i++ {
		p, q := prefixes[i-1], prefixes[i]
		if p.Compare(q) >= 0 || p.Overlaps(q) || p.Bits() == q.Bits() && p.Bits() > 0 && cidr.Sibling(p) == q {
			return false
		}
	}
	return true
}

func TestAggregate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := anyPrefixes(t, "in")
		out := cidr.Aggregate(in)
		got, want := addresses(out), addresses(in)
		if len(got) != len(want) || !fewest(out) {
			t.Fatalf("%v became %v", in, out)
		}
		for a := range want {
			if !got[a] {
				t.Fatalf("%v became %v, without %s", in, out, a)
			}
		}
	})
}

func TestSubtract(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from, minus := anyPrefixes(t, "from"), anyPrefixes(t, "minus")
		out := cidr.Subtract(from, minus)
		got, holes := addresses(out), addresses(minus)
		want := 0
		for a := range addresses(from) {
			if !holes[a] {
				want++
			}
			if got[a] == holes[a] {
				t.Fatalf("%v without %v is %v: wrong at %s", from, minus, out, a)
			}
		}
		if len(got) != want || !fewest(out) {
			t.Fatalf("%v without %v is %v", from, minus, out)
		}
	})
}

func TestOverlapping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := cidr.Aggregate(anyPrefixes(t, "all"))
		for _, p := range anyPrefixes(t, "p") {
			want := slices.DeleteFunc(slices.Clone(all), func(q netip.Prefix) bool { return !q.Overlaps(p) })
			if got := cidr.Overlapping(all, p.Masked()); !slices.Equal(got, want) {
				t.Fatalf("%v that overlap %s: %v, want %v", all, p, got, want)
			}
		}
	})
}

// TestIntersect: an address is in the result exactly if it is in both lists.
func TestIntersect(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := anyPrefixes(t, "a"), cidr.Aggregate(anyPrefixes(t, "b"))
		for i := range a {
			a[i] = a[i].Masked()
		}
		both := cidr.Aggregate(cidr.Intersect(a, b))
		if want := cidr.Subtract(a, cidr.Subtract(a, b)); !slices.Equal(both, cidr.Aggregate(want)) {
			t.Fatalf("%v and %v have %v in common, want %v", a, b, both, want)
		}
	})
}

func TestFamiliesStayApart(t *testing.T) {
	all := []netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("10.0.0.0/8")}
	if got := cidr.Subtract(all, all[:1]); !slices.Equal(got, all[1:]) {
		t.Errorf("without all of IPv6: %v", got)
	}
	whole := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}
	if got := cidr.Aggregate(whole); len(got) != 1 || got[0].Bits() != 0 {
		t.Errorf("two halves of everything: %v", got)
	}
}

func TestPlain(t *testing.T) {
	tests := map[netip.Prefix]string{
		netip.MustParsePrefix("10.244.1.9/24"):                          "10.244.1.0/24",
		netip.PrefixFrom(netip.MustParseAddr("::ffff:10.244.1.9"), 120): "10.244.1.0/24",
		netip.PrefixFrom(netip.MustParseAddr("::ffff:10.244.1.9"), 95):  "invalid Prefix",
		netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33):           "invalid Prefix",
		{}: "invalid Prefix",
	}
	for in, want := range tests {
		if got := cidr.Plain(in); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestSizeAndLast(t *testing.T) {
	tests := []struct {
		prefix, last string
		size         uint64
	}{
		{"10.0.0.0/8", "10.255.255.255", 1 << 24},
		{"10.0.0.1/32", "10.0.0.1", 1},
		{"fd00::/64", "fd00::ffff:ffff:ffff:ffff", math.MaxUint64},
		{"fd00::/65", "fd00::7fff:ffff:ffff:ffff", 1 << 63},
		{"::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", math.MaxUint64},
	}
	for _, tt := range tests {
		p := netip.MustParsePrefix(tt.prefix)
		if cidr.Size(p) != tt.size || cidr.Last(p).String() != tt.last {
			t.Errorf("%s: %d addresses up to %s", p, cidr.Size(p), cidr.Last(p))
		}
	}
}

func TestCount(t *testing.T) {
	if got := cidr.Count([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/56")}); got != 256+256*(1<<64) {
		t.Errorf("%v addresses", got)
	}
}
