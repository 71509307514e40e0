package plan_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/plan"
)

func TestMTU(t *testing.T) {
	both := []plan.Transport{plan.IPIP, plan.VXLAN}
	perRoute, smallest := plan.MTUPolicy{Mode: plan.MTUPerRoute}, plan.MTUPolicy{Mode: plan.MTUSmallest}
	fixed := func(n int) plan.MTUPolicy { return plan.MTUPolicy{Mode: plan.MTUFixed, Bytes: n} }
	tests := []struct {
		name                           string
		policy                         plan.MTUPolicy
		allowed                        []plan.Transport
		underlay                       plan.Family
		uplink                         int
		pod, clamp, local, ipip, vxlan int
	}{
		{"per route", perRoute, both, plan.IPv4, 1500, 1500, 1450, 1500, 1480, 1450},
		{"per route, IPv6 underlay", perRoute, both, plan.IPv6, 1500, 1500, 1430, 1500, 1460, 1430},
		{"no policy is per route", plan.MTUPolicy{}, both, plan.IPv4, 1500, 1500, 1450, 1500, 1480, 1450},
		{"direct only", perRoute, []plan.Transport{plan.Direct}, plan.IPv4, 1500, 1500, 1500, 1500, 1480, 1450},
		{"direct before ipip", smallest, []plan.Transport{plan.Direct, plan.IPIP}, plan.IPv4, 1500, 1480, 1480, 1500, 1480, 1450},
		{"only ipip", perRoute, both[:1], plan.IPv4, 1500, 1500, 1480, 1500, 1480, 1450},
		{"smallest", smallest, both, plan.IPv4, 1500, 1450, 1450, 1500, 1480, 1450},
		{"smallest of one", smallest, both[:1], plan.IPv4, 9000, 8980, 8980, 9000, 8980, 8950},
		{"fixed below", fixed(1400), both, plan.IPv4, 1500, 1400, 1450, 1400, 1400, 1400},
		{"fixed above does not enlarge routes", fixed(9000), both, plan.IPv4, 1500, 9000, 1450, 1500, 1480, 1450},
		{"unknown uplink", perRoute, both, plan.IPv4, 0, 0, 0, 0, 0, 0},
		{"unknown uplink, fixed", fixed(1400), both, plan.IPv4, 0, 1400, 0, 0, 0, 0},
		{"absurd uplink", perRoute, both, plan.IPv6, 40, 40, 68, 68, 68, 68},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			check := func(what string, got, want int) {
				if got != want {
					t.Errorf("%s: %d, want %d", what, got, want)
				}
			}
			check("pod", plan.PodMTU(tt.policy, tt.allowed, tt.underlay, tt.uplink), tt.pod)
			check("clamp", plan.ClampMTU(tt.allowed, tt.underlay, tt.uplink), tt.clamp)
			check("local", plan.RouteMTU(tt.policy, plan.Local, tt.underlay, tt.uplink), tt.local)
			check("ipip", plan.RouteMTU(tt.policy, plan.IPIP, tt.underlay, tt.uplink), tt.ipip)
			check("direct", plan.RouteMTU(tt.policy, plan.Direct, tt.underlay, tt.uplink), tt.local)
			check("vxlan", plan.RouteMTU(tt.policy, plan.VXLAN, tt.underlay, tt.uplink), tt.vxlan)
			check("unknown transport", plan.RouteMTU(tt.policy, "gre", tt.underlay, tt.uplink), tt.vxlan)
		})
	}
}

func TestVTEPMAC(t *testing.T) {
	seen := map[plan.MAC]string{}
	for _, uid := range []string{"", "a", "b", "6f9d6b9e-3c1f-4c55-9e6f-0a4d6a5f8f11", "6f9d6b9e-3c1f-4c55-9e6f-0a4d6a5f8f12"} {
		mac := plan.VTEPMAC(uid)
		if mac[0]&1 != 0 || mac[0]&2 == 0 {
			t.Errorf("%q: %s is not unicast and locally administered", uid, mac)
		}
		if other, twice := seen[mac]; twice {
			t.Errorf("%q and %q have the same MAC %s", uid, other, mac)
		}
		seen[mac] = uid
		if again, err := plan.ParseMAC(mac.String()); err != nil || again != mac {
			t.Errorf("%s reads back as %s, %v", mac, again, err)
		}
	}
	for _, bad := range []string{"", "02:00:5e:00:53", "02:00:5e:00:53:0g", "02-00-5e-00-53-01", "0200:5e:00:53:01:", "02:00:5e:00:53:01:02"} {
		if mac, err := plan.ParseMAC(bad); err == nil {
			t.Errorf("%q reads as %s", bad, mac)
		}
	}
}

func TestSourceOf(t *testing.T) {
	for in, want := range map[string]string{
		"10.244.1.0/26": "10.244.1.1", "10.244.1.9/26": "10.244.1.1", "10.244.1.0/31": "10.244.1.1", "10.244.1.7/32": "10.244.1.7",
		"fd00::/122": "fd00::1", "255.255.255.255/32": "255.255.255.255",
	} {
		if got := plan.SourceOf(netip.MustParsePrefix(in)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if got := plan.SourceOf(netip.Prefix{}); got.IsValid() {
		t.Errorf("nothing: %s", got)
	}
}

func TestDestinationsOfAStranger(t *testing.T) {
	network := plan.Network{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
	n := plan.Node{Name: "a", Blocks: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/26")}}
	if got := destinations(network, n, nil); len(got) != 1 || got[0] != n.Blocks[0] {
		t.Errorf("a node that is not in the list owns %v", got)
	}
	if got := destinations(network, plan.Node{Blocks: n.Blocks}, []plan.Node{n}); got != nil {
		t.Errorf("a node without a name owns %v", got)
	}
	if ok, why := plan.Reachable(plan.Snapshot{Network: network}, "a"); ok || !strings.Contains(why, `"a"`) {
		t.Errorf("a node that is not there: %t, %s", ok, why)
	}
}

func TestAllowed(t *testing.T) {
	network := plan.Network{Transports: []plan.Transport{"gre", plan.IPIP, plan.IPIP}}
	if got := plan.Allowed(network, plan.IPv4); len(got) != 1 || got[0] != plan.IPIP {
		t.Errorf("IPv4: %v", got)
	}
	if got := plan.Allowed(network, plan.IPv6); len(got) != 1 || got[0] != plan.VXLAN {
		t.Errorf("IPv6: %v", got)
	}
	network.Transports = []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN}
	if got := plan.Allowed(network, plan.IPv6); !slices.Equal(got, []plan.Transport{plan.Direct, plan.VXLAN}) {
		t.Errorf("IPv6 with direct: %v", got)
	}
	if got := plan.Allowed(plan.Network{}, plan.IPv4); len(got) != 2 || got[0] != plan.IPIP {
		t.Errorf("nothing configured: %v", got)
	}
}

// TestLargeCluster holds the plan to a time that a node with few cores can
// spend at each change, in a cluster of the largest size that Kubernetes names.
func TestLargeCluster(t *testing.T) {
	s := largeSnapshot(5000)
	state := plan.Compute(s)
	duties := plan.ProvenBy(s.Nodes, s.Self)
	verdicts := plan.Verdicts(s)
	if len(state.Routes) != 4999 || len(verdicts) != 5000 || len(duties) > 30 {
		t.Errorf("%d routes, %d verdicts, %d duties", len(state.Routes), len(verdicts), len(duties))
	}
	// What it costs grows as the cluster does, and not as its square (see
	// BenchmarkCompute for the time).
	allocations := func(s plan.Snapshot) float64 {
		return testing.AllocsPerRun(1, func() { plan.Compute(s); plan.Verdicts(s); plan.ProvenBy(s.Nodes, s.Self) })
	}
	if small, large := allocations(largeSnapshot(500)), allocations(s); large > 15*small {
		t.Errorf("%.0f allocations for 500 nodes, %.0f for 5000", small, large)
	}
}

func BenchmarkCompute(b *testing.B) {
	s := largeSnapshot(5000)
	for b.Loop() {
		plan.Compute(s)
	}
}

func largeSnapshot(count int) plan.Snapshot {
	s := plan.Snapshot{Self: "cn-chengdu.i-0000", Network: plan.Network{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	for i := range count {
		name := "cn-chengdu.i-" + string([]byte{byte('0' + i/1000), byte('0' + i/100%10), byte('0' + i/10%10), byte('0' + i%10)})
		s.Nodes = append(s.Nodes, plan.Node{
			Name: name, UID: "uid-" + name, Ready: true,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
			Blocks:    []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 26)},
		})
	}
	for _, n := range s.Nodes {
		for i := range 3 {
			s.Probes = append(s.Probes, plan.Publish(s.Nodes[i].Name, plan.Probe{To: n.Name, ToUID: n.UID, Family: plan.IPv4, Transport: plan.IPIP, Reachable: true}))
		}
	}
	return s
}
