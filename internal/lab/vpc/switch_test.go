package vpc

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// onSwitch is threeHosts on a layer-2 network, in one subnet.
func onSwitch(t *testing.T) Spec {
	spec := threeHosts(newLab())
	spec.Switch = true
	for i, a := range []string{"1", "2", "3"} {
		spec.Hosts[i].Addresses = prefixes("192.168."+a+".1/16", "fd00:1:0:"+a+"::1/48")
	}
	bringLabUp(t, spec)
	return spec
}

// TestSwitchReach: hosts reach one another with the TTL untouched and by the
// MACs that they really have; the outside is one hop away.
func TestSwitchReach(t *testing.T) {
	spec := onSwitch(t)
	for to, ttl := range map[string]string{"192.168.2.1": "64", "fd00:1:0:3::1": "64", "8.8.8.8": "63", "2001:4860:4860::8888": "63"} {
		if out, ok := spec.ping(t, "a", to); !ok || !strings.Contains(out, " ttl="+ttl+" ") {
			t.Errorf("host a pings %s, want ttl=%s:\n%s", to, ttl, out)
		}
	}
	spec.in(t, "a", func() error {
		neighs, err := netlink.NeighList(0, netlink.FAMILY_V4)
		for _, n := range neighs {
			if want := MAC("b"); n.IP.Equal(net.ParseIP("192.168.2.1")) && n.HardwareAddr.String() != want.String() {
				t.Errorf("host b answers with %s, want its own %s", n.HardwareAddr, want)
			}
		}
		return err
	})
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- inNetns(OutsideNetns(spec.Lab), func() error { return ServeOutside(ctx) }) }()
	waitFor(t, "the outside answers HTTP", func() bool {
		ok := false
		spec.in(t, "b", func() error {
			ok = exec.Command("curl", "-s", "--max-time", "2", "http://8.8.8.8/").Run() == nil
			return nil
		})
		return ok
	})
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestSwitchHostRoutes: a host route to a neighbour carries, which is what the
// VPC is without; what no host routes is nobody's; and what crosses is counted.
func TestSwitchHostRoutes(t *testing.T) {
	spec := onSwitch(t)
	add := func(host string, f func(link int) error) {
		spec.in(t, host, func() error {
			link, err := netlink.LinkByName(hostLink)
			if err != nil {
				return err
			}
			return f(link.Attrs().Index)
		})
	}
	add("c", func(int) error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.244.9.1/32"))})
	})
	if _, ok := spec.ping(t, "a", "10.244.9.1"); ok {
		t.Error("the switch's router knows a pod")
	}
	add("a", func(link int) error {
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link, Dst: ipNet(netip.MustParsePrefix("10.244.9.0/24")), Gw: net.ParseIP("192.168.3.1")})
	})
	before := spec.counters(t)
	if out, ok := spec.ping(t, "a", "10.244.9.1"); !ok {
		t.Errorf("a host route to a neighbour does not carry:\n%s", out)
	}
	after := spec.counters(t)
	if bare := after["pod-cidr-bare"] - before["pod-cidr-bare"]; bare != 2 || after["proto-4"] != before["proto-4"] {
		t.Errorf("a ping to a pod counts %d bare packets, want 2; %v", bare, after)
	}
	if after["forwarded"]-before["forwarded"] < 2 {
		t.Errorf("forwarded: %v, then %v", before, after)
	}
}

// TestSwitchIsNoVPC: what a switch has not is refused by name.
func TestSwitchIsNoVPC(t *testing.T) {
	spec := onSwitch(t)
	ctx, lab := t.Context(), spec.Lab
	for what, err := range map[string]error{
		"a route":      SetRoute(ctx, lab, Route{Dst: netip.MustParsePrefix("10.244.9.0/24"), Host: "a"}),
		"a table":      Bind(ctx, lab, "a", 1),
		"a block":      Block(ctx, lab, "ipip", true),
		"source check": SetSourceCheck(ctx, lab, "a", true),
		"off":          SetOff(ctx, lab, "a", true),
	} {
		if !errors.Is(err, ErrSwitch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := Up(ctx, spec); !errors.Is(err, ErrExists) {
		t.Errorf("a second Up: %v", err)
	}
	apart := spec
	apart.Hosts = append([]Host(nil), spec.Hosts...)
	apart.Hosts[1].Addresses = prefixes("10.0.0.1/16")
	if err := apart.validate(); err == nil || !strings.Contains(err.Error(), "hosts on a switch share one") {
		t.Errorf("two subnets: %v", err)
	}
	if _, err := os.Stat(netnsPath(vpcNetns(lab))); err != nil {
		t.Error(err)
	}
}
