package openapi

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// TestVPCFollows: the lab's real VPC carries what the cloud's tables say, and
// keeps what others wrote.
func TestVPCFollows(t *testing.T) {
	netnstest.NeedRoot(t)
	lab := fmt.Sprintf("rwo%d", os.Getpid())
	spec := vpc.Spec{Lab: lab, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}
	for _, in := range testSpec().Instances {
		spec.Hosts = append(spec.Hosts, vpc.Host{Name: in.Host, Netns: "rwlab-" + lab + "-" + in.Host,
			Addresses: []netip.Prefix{netip.PrefixFrom(in.Addresses[0], 24), netip.PrefixFrom(in.Addresses[1], 64)}})
	}
	if err := vpc.Up(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vpc.Down(context.Background(), lab); err != nil {
			t.Error(err)
		}
	})
	foreign := netip.MustParsePrefix("10.99.0.0/24")
	if err := vpc.SetRoute(t.Context(), lab, vpc.Route{Dst: foreign, Host: "a"}); err != nil {
		t.Fatal(err)
	}
	cidr := netip.MustParsePrefix
	fabric := &VPC{Lab: lab}
	for _, c := range []struct {
		name  string
		plane Plane
		again bool // by a new process
		want  []string
	}{
		{"two routes", Plane{Tables: []Table{{Routes: map[netip.Prefix]string{cidr("10.244.0.0/24"): "a", cidr("fd00:10:244::/64"): "b"}}}}, false,
			[]string{"0 10.244.0.0/24 a", "0 10.99.0.0/24 a", "0 fd00:10:244::/64 b"}},
		{"one moves, one goes", Plane{Tables: []Table{{Routes: map[netip.Prefix]string{cidr("10.244.0.0/24"): "b"}}}}, false,
			[]string{"0 10.244.0.0/24 b", "0 10.99.0.0/24 a"}},
		{"a second table", Plane{
			Tables: []Table{{Routes: map[netip.Prefix]string{cidr("10.244.0.0/24"): "b"}},
				{Number: 7, Hosts: []string{"c"}, Routes: map[netip.Prefix]string{cidr("10.244.0.0/24"): "a"}}},
			Checked: map[string]bool{"a": true}, Blocked: map[string]bool{"ipip": true},
		}, false, []string{"0 10.244.0.0/24 b", "0 10.99.0.0/24 a", "7 10.244.0.0/24 a"}},
		{"by a new process", Plane{
			Tables: []Table{{Routes: map[netip.Prefix]string{cidr("10.244.0.0/24"): "c"}},
				{Number: 7, Hosts: []string{"c"}, Routes: map[netip.Prefix]string{cidr("10.244.0.0/24"): "a"}}},
		}, true, []string{"0 10.244.0.0/24 c", "0 10.99.0.0/24 a", "7 10.244.0.0/24 a"}},
		{"the second table goes", Plane{Tables: []Table{{Hosts: []string{"c"}, Routes: map[netip.Prefix]string{}}}}, false,
			[]string{"0 10.99.0.0/24 a"}},
	} {
		if c.again {
			fabric = &VPC{Lab: lab}
		}
		if err := fabric.Set(t.Context(), c.plane); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if got := carried(t, lab); !slices.Equal(got, c.want) {
			t.Errorf("%s: the VPC carries %q, want %q", c.name, got, c.want)
		}
	}
	err := fabric.Set(t.Context(), Plane{Tables: []Table{{Routes: map[netip.Prefix]string{cidr("10.244.1.0/24"): "nobody", cidr("10.244.2.0/24"): "c"}}}})
	if got := carried(t, lab); err == nil || !slices.Contains(got, "0 10.244.2.0/24 c") {
		t.Errorf("with one route that cannot be: %v, the VPC carries %q", err, got)
	}
}

func carried(t *testing.T, lab string) []string {
	t.Helper()
	routes, err := vpc.Routes(t.Context(), lab)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range routes {
		out = append(out, fmt.Sprintf("%d %s %s", r.Table, r.Dst, r.Host))
	}
	slices.Sort(out)
	return out
}
