package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

// faultLab is a router and three nodes behind it that reach one another by all
// transports, until the router does something wrong.
type faultLab struct {
	t      *testing.T
	api    *fakeAPI
	router *netnstest.NS
	nodes  []*kernelNode
	agents []*runningAgent
}

func newFaultLab(t *testing.T) *faultLab {
	netnstest.NeedRoot(t)
	l := &faultLab{t: t, api: newFakeAPI()}
	l.api.change(func(a *fakeAPI) { a.network.Transports = []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN} })
	l.router, l.nodes = kernels(t, l.api, plan.IPv4, 3)
	for _, k := range l.nodes {
		l.agents = append(l.agents, k.start())
	}
	for _, a := range l.agents {
		a.waitServing()
	}
	lead(t, l.router, "add", l.agents)
	l.sound()
	return l
}

// probe is what one node has published of another by a transport.
func (l *faultLab) probe(from, to int, transport plan.Transport) plan.Probe {
	for _, p := range l.api.status(l.nodes[from].name).Probes {
		if p.To == l.nodes[to].name && p.Transport == transport {
			return p.Probe
		}
	}
	return plan.Probe{}
}

// await is eventually with a bound for what takes seconds where nothing else
// runs.
func (l *faultLab) await(missing func() string) {
	l.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for what := missing(); what != ""; what = missing() {
		if time.Now().After(deadline) {
			l.t.Fatalf("waited for too long: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// sound waits until every path is proven and nothing is said to be wrong.
func (l *faultLab) sound() {
	l.t.Helper()
	l.await(func() string {
		for _, k := range l.nodes {
			st := l.api.status(k.name)
			if len(st.Probes) != 6 {
				return fmt.Sprintf("%s to know six paths, not %d", k.name, len(st.Probes))
			}
			for _, p := range st.Probes {
				if !p.Reachable || p.Fault != "" {
					return fmt.Sprintf("a path to be sound: %+v", p.Probe)
				}
			}
		}
		return ""
	})
}

// named waits until a path's fault has that name, and its sentence those words.
func (l *faultLab) named(from, to int, transport plan.Transport, want plan.Fault, says ...string) plan.Probe {
	l.t.Helper()
	var p plan.Probe
	l.await(func() string {
		p = l.probe(from, to, transport)
		if p.Fault != want {
			return fmt.Sprintf("%s, not %+v", want, p)
		}
		return ""
	})
	for _, word := range says {
		if !strings.Contains(p.Reason, word) {
			l.t.Errorf("the sentence does not say %q: %s", word, p.Reason)
		}
	}
	return p
}

// drop makes the router drop what the rules say, until the returned function is
// called.
func (l *faultLab) drop(rules ...string) (undo func()) {
	l.t.Helper()
	script := "nft add table ip rwf; nft 'add chain ip rwf f { type filter hook forward priority 0; }'"
	for _, r := range rules {
		script += "; nft 'add rule ip rwf f " + r + " drop'"
	}
	sh(l.t, l.router, script)
	return func() { sh(l.t, l.router, "nft delete table ip rwf") }
}

// cidr is a node's own range.
func (l *faultLab) cidr(i int) string { return l.agents[i].node.look().State.CIDRs[0].String() }

// TestFaultsOnRealKernels injects each fault that a fabric may have, and waits
// until the node that sees it has published its name; and then until all is
// sound again.
func TestFaultsOnRealKernels(t *testing.T) {
	l := newFaultLab(t)
	for _, c := range []struct {
		name string
		run  func(t *testing.T, l *faultLab) (undo func())
	}{
		// First, while direct is in use: what has failed is not gone back to at once.
		{"MTU 1400 in the path", narrowPath},
		{"everything fails at once", allFails},
		{"protocol 4 and UDP 4789 blocked", tunnelsBlocked},
		{"pod CIDR not allowed", podCIDRNotAllowed},
		{"SourceDestCheck on", sourceDestCheckOn},
		{"route missing", routeIsMissing},
		{"wrong next hop", wrongNextHop},
		{"rp_filter strict", strictFilter},
		{"checksum offload", badOffload},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.t = t
			c.run(t, l)()
			l.sound()
		})
	}
}

func tunnelsBlocked(_ *testing.T, l *faultLab) func() {
	undo := l.drop("ip protocol 4 ip daddr 192.168.1.10", "udp dport 4789 ip daddr 192.168.2.10")
	l.named(0, 1, plan.IPIP, plan.Protocol4Blocked, "192.168.0.10 sends inside protocol 4 does not arrive at 192.168.1.10")
	l.named(0, 2, plan.VXLAN, plan.VXLANBlocked, "inside UDP 4789 does not arrive at 192.168.2.10")
	l.named(1, 0, plan.IPIP, plan.Protocol4Blocked, "answers inside protocol 4 do not come back", "in at 192.168.1.10")
	return undo
}

// podCIDRNotAllowed: by a group that lets answers in, as a cloud's does. What node-1
// sends to others' pods, and the connections from before, prove nothing for theirs.
func podCIDRNotAllowed(_ *testing.T, l *faultLab) func() {
	undo := l.drop("oifname n1 ip saddr 10.244.0.0/16 ct state new")
	l.named(0, 1, plan.Direct, plan.PodCIDRNotAllowed, "security group", l.agents[0].node.look().State.Sources[0].String())
	return undo
}

// sourceDestCheckOn: without the cloud's word, both ends say what it can be.
func sourceDestCheckOn(_ *testing.T, l *faultLab) func() {
	undo := l.drop("oifname n1 ip daddr 10.244.0.0/16", "iifname n1 ip saddr 10.244.0.0/16")
	l.named(0, 1, plan.Direct, plan.RouteMissing, "node-1", "takes in its own addresses only")
	l.named(1, 0, plan.Direct, plan.PodCIDRNotAllowed, "from 192.168.1.10 for a forgery", "sends from its own addresses only")
	return undo
}

func routeIsMissing(t *testing.T, l *faultLab) func() {
	sh(t, l.router, "ip route del "+l.cidr(1))
	l.named(2, 1, plan.Direct, plan.RouteMissing, "no route", "node-1")
	if p := l.probe(2, 0, plan.Direct); p.Fault != "" {
		t.Errorf("another node's path: %+v", p)
	}
	return func() { sh(t, l.router, "ip route add "+l.cidr(1)+" via 192.168.1.10") }
}

func wrongNextHop(t *testing.T, l *faultLab) func() {
	sh(t, l.router, "ip route replace "+l.cidr(1)+" via 192.168.2.10")
	l.named(0, 1, plan.Direct, plan.WrongNextHop, "arrive at node node-2")
	return func() { sh(t, l.router, "ip route replace "+l.cidr(1)+" via 192.168.1.10") }
}

// narrowPath: the hole is found by each transport, routes take its size, and what
// fits still passes.
func narrowPath(t *testing.T, l *faultLab) func() {
	l.nodes[0].sends(plan.Direct)
	pod0, _ := l.nodes[0].pod(l.agents[0], "pod-0")
	_, addr1 := l.nodes[1].pod(l.agents[1], "pod-1")
	sh(t, pod0, "ping -q -c 1 -W 5 -M do -s 1472 "+addr1.String())
	undo := l.drop("oifname n1 meta length > 1400")
	for transport, size := range map[plan.Transport]int{plan.Direct: 1400, plan.IPIP: 1380, plan.VXLAN: 1350} {
		p := l.named(0, 1, transport, plan.MTUBlackHole, fmt.Sprintf("more than %d bytes", size))
		if !p.Reachable || p.PathMTU != size {
			t.Errorf("%+v, want %d bytes", p, size)
		}
	}
	l.await(func() string {
		if out, _ := try(l.nodes[0].ns, "ip route show proto 112 "+l.cidr(1)); !strings.Contains(out, "mtu 1400") {
			return "a route of 1400 bytes: " + out
		}
		return ""
	})
	sh(t, pod0, "ping -q -c 1 -W 5 -M do -s 1372 "+addr1.String())
	if out, err := try(pod0, "ping -q -c 1 -W 5 -M do -s 1373 "+addr1.String()); err == nil {
		t.Errorf("a larger packet passes: %s", out)
	}
	return undo
}

// strictFilter: somebody's rp_filter is undone, and named.
func strictFilter(t *testing.T, l *faultLab) func() {
	sh(t, l.nodes[1].ns, "sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
	l.await(func() string {
		said := l.api.status("node-1").Faults[plan.ReversePathFilter]
		if !strings.Contains(said, "eth0") {
			return fmt.Sprintf("%s, not %q", plan.ReversePathFilter, said)
		}
		return ""
	})
	if got := sh(t, l.nodes[1].ns, "cat /proc/sys/net/ipv4/conf/eth0/rp_filter"); got != "2\n" {
		t.Errorf("rp_filter is %s", got)
	}
	return func() {}
}

// badOffload: where the interface does not compute the checksum inside a vxlan
// packet, the node does.
func badOffload(t *testing.T, l *faultLab) func() {
	// What the sum over the pseudo header is, which stands in for the checksum.
	const length = 8 + 48
	src, dst := l.agents[0].node.look().State.Sources[0].As4(), l.agents[1].node.look().State.Sources[0].As4()
	sum := uint32(17 + length)
	for i := 0; i < 4; i += 2 {
		sum += uint32(src[i])<<8 + uint32(src[i+1]) + uint32(dst[i])<<8 + uint32(dst[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	// It lies behind UDP (8), VXLAN (8), Ethernet (14), IPv4 (20), and 6 bytes of UDP.
	undo := l.drop(fmt.Sprintf("oifname n1 udp dport 4789 @th,448,16 %#x", sum))
	l.await(func() string {
		if l.api.status("node-0").Faults[plan.ChecksumOffload] == "" {
			return fmt.Sprintf("%s, not %+v", plan.ChecksumOffload, l.probe(0, 1, plan.VXLAN))
		}
		return ""
	})
	l.await(func() string {
		if p := l.probe(0, 1, plan.VXLAN); p.Fault != "" || !p.Reachable {
			return fmt.Sprintf("the node to compute checksums itself: %+v", p)
		}
		return ""
	})
	if out := sh(t, l.nodes[0].ns, "ethtool -k rw-vxlan"); !strings.Contains(out, "tx-checksum-ip-generic: off") {
		t.Errorf("the device leaves checksums to the interface:\n%s", out)
	}
	return undo
}

// allFails: an alarm, and nothing else.
func allFails(t *testing.T, l *faultLab) func() {
	routes := func() string { return sh(t, l.nodes[0].ns, "ip route show proto 112") }
	before := routes()
	undo := l.drop("ip saddr 0.0.0.0/0")
	l.await(func() string {
		if l.api.status("node-0").Faults[plan.ProberFault] == "" {
			return "the alarm"
		}
		return ""
	})
	for _, p := range l.api.status("node-0").Probes {
		if !p.Reachable {
			t.Errorf("%+v", p.Probe)
		}
	}
	if now := routes(); now != before {
		t.Errorf("routes were\n%sand are\n%s", before, now)
	}
	return undo
}
