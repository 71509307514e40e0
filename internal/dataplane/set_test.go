package dataplane

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

// inventory is everything in a node's kernel that Set could have made.
func (n *testNode) inventory() string {
	n.f.t.Helper()
	out := n.f.sh(n.ns, `(ip -o link show type vxlan; ip -o addr | grep -v 'fe80::' | sed 's/ *valid_lft.*//') | sed 's/^[0-9]*: //'; ip route; ip -6 route | grep -v fe80; ip neigh show nud permanent; nft list ruleset; `+
		`tc filter show dev eth0 ingress; tc filter show dev eth0 egress; tc qdisc show dev eth0 | grep -v noqueue || true; `+
		`sysctl -a 2>/dev/null -r 'net.ipv4.conf.*.rp_filter|eth0.accept_ra$'`)
	pins, _ := filepath.Glob(filepath.Join(n.f.bpffs, n.name(), "*"))
	return out + strings.Join(pins, "\n")
}

// sameInventory fails the test with the lines that only one of both has.
func sameInventory(t *testing.T, what, got, want string) {
	t.Helper()
	only := func(mark, a, b string) (out []string) {
		other := strings.Split(b, "\n")
		for _, line := range strings.Split(a, "\n") {
			if !slices.Contains(other, line) {
				out = append(out, mark+line)
			}
		}
		return out
	}
	if differ := append(only("- ", want, got), only("+ ", got, want)...); len(differ) > 0 {
		t.Errorf("%s:\n%s", what, strings.Join(differ, "\n"))
	}
}

// TestCleanLeavesNothing: after Clean the kernel is as it was.
func TestCleanLeavesNothing(t *testing.T) {
	for name, o := range map[string]Options{"tcx": {}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
			n := f.nodes[0]
			n.dataplane = n.open(o)
			f.sh(n.ns, "sysctl -qw net.ipv4.conf.eth0.rp_filter=1 net.ipv6.conf.eth0.accept_ra=1")
			before := n.inventory()
			if _, err := n.set(); err != nil {
				t.Fatal(err)
			}
			if now := n.inventory(); now == before {
				t.Fatal("Set changed nothing that the test could see")
			}
			pod := n.addPod(1500)
			for range 2 { // twice, the first time by a process that made nothing
				n.dataplane.Close()
				n.dataplane = n.open(o)
				if err := n.ns.Do(func() error { return n.dataplane.Clean(context.Background()) }); err != nil {
					t.Fatal(err)
				}
			}
			f.sh(n.ns, "ip link del "+pod.link)
			// Routers are listened to as long as the node forwards, which goes on.
			was, is := "net.ipv6.conf.eth0.accept_ra = 1", "net.ipv6.conf.eth0.accept_ra = 2"
			if !strings.Contains(before, was) {
				t.Fatalf("the test sees no accept_ra:\n%s", before)
			}
			sameInventory(t, "after Clean", n.inventory(), strings.Replace(before, was, is, 1))
			// The programs are really gone, not only their pins.
			if out := f.sh(n.ns, "ip -d link show eth0"); strings.Contains(out, "tcx") || strings.Contains(out, "prog") {
				t.Errorf("a program is left at the uplink:\n%s", out)
			}
			// Where it no longer forwards, they are listened to as before.
			f.sh(n.ns, "sysctl -qw net.ipv6.conf.eth0.accept_ra=1")
			if _, err := n.set(); err != nil {
				t.Fatal(err)
			}
			f.sh(n.ns, "sysctl -qw net.ipv6.conf.all.forwarding=0")
			if err := n.ns.Do(func() error { return n.dataplane.Clean(context.Background()) }); err != nil {
				t.Fatal(err)
			}
			sameInventory(t, "after Clean of a node that does not forward", n.inventory(), before)
			// And it can be set again.
			n.pods = nil
			if r, err := n.set(); err != nil || !r.Changed {
				t.Errorf("Set after Clean: %v, %+v", err, r)
			}
		})
	}
}

// TestSetIsIdempotent: a second Set, also by a process that knows nothing of the
// first one, changes nothing.
func TestSetIsIdempotent(t *testing.T) {
	for name, o := range map[string]Options{"tcx": {}, "clsact": {Clsact: true}} {
		t.Run(name, func(t *testing.T) {
			f := newFabric(t, 3, plan.IPIP, plan.VXLAN)
			n := f.nodes[0]
			n.dataplane = n.open(o)
			if r, err := n.set(); err != nil || !r.Changed {
				t.Fatalf("first Set: %v, %+v", err, r)
			}
			first := n.inventory()
			for _, again := range []*Linux{n.dataplane, n.open(o)} {
				n.dataplane.Close()
				n.dataplane = again
				if r, err := n.set(); err != nil || r.Changed {
					t.Errorf("Set again: changed %v, %v", r.Changed, err)
				}
			}
			sameInventory(t, "after Set again", n.inventory(), first)
		})
	}
}

// TestSetHeals: what another program removed or changed is put right.
func TestSetHeals(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	a, b := n.addPod(1500), f.nodes[1].addPod(1500)
	whole := n.inventory()
	for name, harm := range map[string]string{
		"route deleted":      "ip route del 10.244.2.0/24",
		"routes flushed":     "ip route flush proto 112 table main; ip route add " + a.v4.String() + " dev " + a.link + " proto 112 scope link",
		"route changed":      "ip route replace 10.244.2.0/24 via 192.168.1.1 dev eth0 onlink proto 112 mtu 900",
		"device deleted":     "ip link del rw-vxlan",
		"device down":        "ip link set rw-vxlan down",
		"device's MTU":       "ip link set rw-vxlan mtu 1000",
		"device's MAC":       "ip link set rw-vxlan address 02:00:00:00:00:99",
		"another device":     "ip link del rw-vxlan; ip link add rw-vxlan type vxlan id 5 dstport 4789",
		"source removed":     "ip addr del 10.244.1.1/32 dev lo; ip addr del fd00:244:0:1::1/128 dev lo",
		"neighbours flushed": "ip neigh flush dev rw-vxlan nud permanent",
		"neighbour changed":  "ip neigh replace 10.244.2.1 lladdr 02:00:00:00:00:01 dev rw-vxlan nud permanent",
		"forwarding entry":   "bridge fdb replace $(bridge fdb show dev rw-vxlan | cut -d' ' -f1) dev rw-vxlan dst 192.0.2.9 self permanent",
		"rules flushed":      "nft flush ruleset",
		"a chain flushed":    "nft flush chain inet ropeway nat",
		"an element deleted": "nft delete element inet ropeway nodes4 '{ 192.168.2.2 }'",
		"pins removed":       "rm -rf " + filepath.Join(f.bpffs, n.name()),
		"uplink's routes":    "ip link set eth0 down; ip link set eth0 up; ip addr replace fd00:1::2/64 dev eth0 nodad; ip route replace default via 192.168.1.1; ip -6 route replace default via fd00:1::1",
	} {
		f.sh(n.ns, harm)
		if r, err := n.set(); err != nil || !r.Changed {
			t.Errorf("%s: Set: %v, %+v", name, err, r)
		}
		sameInventory(t, name, n.inventory(), whole)
		f.ping(a.ns, b.v4.String())
		f.ping(a.ns, b.v6.String())
		if t.Failed() {
			return
		}
	}
}

// TestNodesComeAndGo: a node's departure leaves nothing of it, and touches
// nobody else.
func TestNodesComeAndGo(t *testing.T) {
	f := newFabric(t, 3, plan.IPIP, plan.VXLAN)
	f.nodes[2].gone = true
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	two := f.nodes[0].inventory()
	s := f.stream(a, b, 1000)
	for range 3 {
		f.nodes[2].gone = false
		f.setAll()
		f.ping(a.ns, f.nodes[2].source().String())
		f.nodes[2].gone = true
		f.setAll()
		sameInventory(t, "after the third node is gone", f.nodes[0].inventory(), two)
		f.noPing(a.ns, f.nodes[2].source().String())
	}
	f.end(s)
	d, err := f.nodes[0].dataplane.tunnel.Destinations()
	if err != nil || len(d) != 1 {
		t.Errorf("eBPF destinations %v, %v: want the second node's only", d, err)
	}
}

// TestRoutesOfAPodThatIsBeingWired: its link is newer than the list of devices that a
// Set has gone by for a while, and its routes are not Set's to delete.
func TestRoutesOfAPodThatIsBeingWired(t *testing.T) {
	f := newFabric(t, 1, plan.IPIP)
	n := f.nodes[0]
	f.setAll()
	err := n.ns.Do(func() error {
		k, err := openKernel(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer k.close()
		devices, err := k.links()
		if err != nil {
			return err
		}
		pod := n.addPod(1500)
		table, err := k.readRoutes(devices)
		if err != nil {
			return err
		}
		if len(table.ours) == 0 {
			t.Error("no route of Set's was found")
		}
		for dst := range table.ours {
			if dst.IsSingleIP() && (dst.Addr() == pod.v4 || dst.Addr() == pod.v6) {
				t.Errorf("the route to the pod's %s is taken for one of Set's", dst)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestObserve: what Observe says is what Set made, read by a process that made
// nothing.
func TestObserve(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	pod := n.addPod(1500)
	for _, tr := range []plan.Transport{plan.IPIP, plan.VXLAN} {
		f.network.Transports = []plan.Transport{tr}
		f.setAll()
		var got Observed
		fresh := n.open(Options{})
		if err := n.ns.Do(func() (err error) { got, err = fresh.Observe(context.Background()); return err }); err != nil {
			t.Fatal(err)
		}
		device, mtu := "eth0", 1480
		if tr == plan.VXLAN {
			device, mtu = VXLANDeviceName, 1450
		}
		outer := addr("192.168.2.2")
		want := []ObservedRoute{
			{Dst: netip.MustParsePrefix("10.244.2.0/24"), Transport: tr, Outer: outer, Device: device, MTU: mtu},
			{Dst: netip.MustParsePrefix("fd00:244:0:2::/64"), Transport: plan.VXLAN, Outer: outer, Device: VXLANDeviceName, MTU: 1450},
		}
		if !slices.Equal(got.Routes, want) {
			t.Errorf("routes %+v, want %+v", got.Routes, want)
		}
		if len(got.Sources) != 2 || got.Sources[0] != n.source() {
			t.Errorf("sources %v", got.Sources)
		}
		if len(got.Pods) != 1 || got.Pods[0].Name != pod.link || !slices.Contains(got.Pods[0].Addresses, pod.v4) {
			t.Errorf("pods %+v", got.Pods)
		}
	}
}

// TestSetReportsTheTruth: what cannot be done is said and harms nothing else.
func TestSetReportsTheTruth(t *testing.T) {
	f := newFabric(t, 3, plan.IPIP, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	a, b := n.addPod(1500), f.nodes[1].addPod(1500)
	third := f.nodes[2].cidr()

	f.sh(n.ns, "ip route del "+third.String()+"; ip route add "+third.String()+" via 192.168.1.1 proto bird")
	r, err := n.set()
	if err == nil || !strings.Contains(r.Failed[third], "another program") {
		t.Errorf("a foreign route in the way: %v, %v", r.Failed, err)
	}
	if out := f.sh(n.ns, "ip route show "+third.String()); !strings.Contains(out, "bird") {
		t.Errorf("the foreign route is gone: %s", out)
	}
	f.ping(a.ns, b.v4.String())
	// Though something failed, nodes that are gone are not believed any more.
	f.nodes[1].gone = true
	n.set()
	if d, err := n.dataplane.tunnel.Destinations(); err != nil || len(d) != 1 {
		t.Errorf("after a node went, beside a failure: %v, %v", d, err)
	}
	f.nodes[1].gone = false
	f.sh(n.ns, "ip route del "+third.String())

	f.sh(n.ns, "ip route add unreachable 192.168.3.2")
	r, err = n.set()
	if err == nil || !strings.Contains(r.Failed[third], "no route") {
		t.Errorf("a peer that the FIB does not know: %v, %v", r.Failed, err)
	}
	f.ping(a.ns, b.v4.String())
	f.sh(n.ns, "ip route del unreachable 192.168.3.2")
	if _, err = n.set(); err != nil {
		t.Errorf("afterwards: %v", err)
	}

	for name, s := range map[string]plan.State{"zero": {}, "no address": {PodCIDRs: f.network.PodCIDRs}} {
		err := n.ns.Do(func() error { _, err := n.dataplane.Set(context.Background(), s); return err })
		if err == nil || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("Set of a %s state: %v", name, err)
		}
	}
	f.ping(a.ns, b.v4.String())
}

// TestUplinkIsTheFIBsAnswer: each peer is reached by the device that the FIB
// says, and a change of it is followed.
func TestUplinkIsTheFIBsAnswer(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP)
	f.setAll()
	n := f.nodes[0]
	a, b := n.addPod(1500), f.nodes[1].addPod(1500)
	// A second wire to the router, smaller; only the second node is behind it.
	f.sh(f.router, "ip link add second type veth peer name eth1 netns "+n.ns.Path()+"; ip addr add 10.9.9.1/24 dev second; ip link set second up")
	f.sh(n.ns, "ip addr add 10.9.9.2/24 dev eth1; ip link set eth1 up mtu 1400; ip route add 192.168.2.0/24 via 10.9.9.1")
	r, err := n.set()
	if err != nil || len(r.Uplinks) != 2 {
		t.Fatalf("Set: %v, %+v", err, r)
	}
	if out := f.sh(n.ns, "ip route show 10.244.2.0/24"); !strings.Contains(out, "via 10.9.9.1 dev eth1") || !strings.Contains(out, "mtu 1380") {
		t.Errorf("route to the second node's pods: %s", out)
	}
	f.ping(a.ns, b.v4.String())
	f.sh(n.ns, "ip route del 192.168.2.0/24 via 10.9.9.1")
	if r, err = n.set(); err != nil || len(r.Uplinks) != 1 {
		t.Fatalf("Set: %v, %+v", err, r)
	}
	f.ping(a.ns, b.v4.String())
	if i, err := n.dataplane.tunnel.Attached(); err != nil || len(i) != 1 {
		t.Errorf("programs are attached to devices %v, %v", i, err)
	}
}

// TestSeveralPaths: where the FIB answers with several next hops, peers are spread
// over them; those of one that dies go by another, the others stay.
func TestSeveralPaths(t *testing.T) {
	f := newFabric(t, 1, plan.IPIP)
	n := f.nodes[0]
	for i := 2; i <= 9; i++ {
		f.nodes = append(f.nodes, &testNode{f: f, index: i})
	}
	f.sh(f.router, "ip link add second type veth peer name eth1 netns "+n.ns.Path()+"; ip addr add 10.9.9.1/24 dev second; ip link set second up")
	f.sh(n.ns, "ip addr add 10.9.9.2/24 dev eth1; ip link set eth1 up; ip route del default; "+
		"ip route add default nexthop via 192.168.1.1 nexthop via 10.9.9.1")
	routes := func() (by map[string]string) {
		t.Helper()
		if r, err := n.set(); err != nil || len(r.Failed) > 0 {
			t.Fatalf("Set: %v, %+v", err, r)
		}
		by = map[string]string{}
		for _, other := range f.nodes[1:] {
			out := f.sh(n.ns, "ip route show "+other.cidr().String())
			_, device, _ := strings.Cut(out, " dev ")
			by[other.name()], _, _ = strings.Cut(device, " ")
		}
		return by
	}
	spread := routes()
	if devices := slices.Collect(maps.Values(spread)); !slices.Contains(devices, "eth0") || !slices.Contains(devices, "eth1") {
		t.Fatalf("peers are not spread over both devices: %v", spread)
	}
	for _, harm := range []struct {
		at         *netnstest.NS
		kill, heal string
	}{
		{f.router, "ip link set second down", "ip link set second up"}, // no carrier
		{n.ns, "ip link set eth1 down", "ip link set eth1 up"},
	} {
		f.sh(harm.at, harm.kill)
		for peer, device := range routes() {
			if device != "eth0" {
				t.Errorf("%s: %s is sent to by %s", harm.kill, peer, device)
			}
		}
		f.sh(harm.at, harm.heal)
		eventually(t, "the same spread again", func() bool { return maps.Equal(routes(), spread) })
	}
}

// TestUplinkRenamed: an uplink that gets another name is the same uplink.
func TestUplinkRenamed(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	n := f.nodes[0]
	f.sh(n.ns, "sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
	f.setAll()
	a, b := n.addPod(1500), f.nodes[1].addPod(1500)
	s := f.stream(a, b, 1000)
	f.sh(n.ns, "ip link set eth0 name wan0")
	if r, err := n.set(); err != nil || len(r.Uplinks) != 1 || r.Uplinks[0].Name != "wan0" {
		t.Fatalf("Set: %v, %+v", err, r)
	}
	f.ping(a.ns, b.v4.String())
	f.ping(b.ns, a.v4.String())
	f.end(s)
	// A node that boots with the new name is set up like any.
	if r, err := n.set(); err != nil || r.Changed {
		t.Errorf("Set again: %v, %+v", err, r)
	}
	if err := n.ns.Do(func() error { return n.dataplane.Clean(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	if got := f.sh(n.ns, "cat /proc/sys/net/ipv4/conf/wan0/rp_filter"); got != "1\n" {
		t.Errorf("Clean left rp_filter %s of an uplink that was renamed, which had 1", got)
	}
}

// TestFormerSettingsFollowADevice: by its index, as long as nothing else has its
// name; and what an older release wrote, without indexes, is kept.
func TestFormerSettingsFollowADevice(t *testing.T) {
	device := func(name string) netlink.Link { return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name}} }
	for _, c := range []struct {
		name      string
		devices   map[int]netlink.Link
		was, want former
	}{
		{"the same name", map[int]netlink.Link{2: device("eth0")},
			former{"ipv4/conf/eth0/rp_filter": "1", "eth0": "2"}, former{"ipv4/conf/eth0/rp_filter": "1", "eth0": "2"}},
		{"another name", map[int]netlink.Link{2: device("wan0"), 3: device("eth1")},
			former{"ipv4/conf/eth0/rp_filter": "1", "ipv6/conf/eth0/accept_ra": "1", "eth0": "2", "ipv4/conf/eth1/rp_filter": "1", "eth1": "3"},
			former{"ipv4/conf/wan0/rp_filter": "1", "ipv6/conf/wan0/accept_ra": "1", "wan0": "2", "ipv4/conf/eth1/rp_filter": "1", "eth1": "3"}},
		{"its name is another's", map[int]netlink.Link{2: device("wan0"), 5: device("eth0")},
			former{"ipv4/conf/eth0/rp_filter": "1", "eth0": "2"}, former{"ipv4/conf/eth0/rp_filter": "1", "eth0": "2"}},
		{"the device is gone", map[int]netlink.Link{3: device("eth1")},
			former{"ipv4/conf/eth0/rp_filter": "1", "eth0": "2"}, former{"ipv4/conf/eth0/rp_filter": "1", "eth0": "2"}},
		{"an older release's", map[int]netlink.Link{2: device("wan0")},
			former{"ipv4/conf/eth0/rp_filter": "1"}, former{"ipv4/conf/eth0/rp_filter": "1"}},
	} {
		c.was.follow(c.devices)
		if !maps.Equal(c.was, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.was, c.want)
		}
	}
}

// TestUpgrade: the programs and maps of another release are replaced while
// packets flow.
func TestUpgrade(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP)
	f.setAll()
	n := f.nodes[0]
	a, b := n.addPod(1500), f.nodes[1].addPod(1500)
	s := f.stream(a, b, 1000)
	pins := filepath.Join(f.bpffs, n.name())
	// As if those maps were of another layout.
	if err := os.Rename(filepath.Join(pins, "v2"), filepath.Join(pins, "v1")); err != nil {
		t.Fatal(err)
	}
	n.dataplane.Close()
	n.dataplane = n.open(Options{})
	if r, err := n.set(); err != nil || !r.Changed {
		t.Fatalf("Set: %v, %+v", err, r)
	}
	f.ping(a.ns, b.v4.String())
	f.end(s)
	if left, _ := filepath.Glob(filepath.Join(pins, "v*")); len(left) != 1 || filepath.Base(left[0]) != "v2" {
		t.Errorf("pins %v: want the new release's only", left)
	}
}
