package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/agent/nodekernel"
	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

// kernelNode is a node of real parts in a network namespace: everything of the
// agent but the API server.
type kernelNode struct {
	*machine
	ns    *netnstest.NS
	linux *dataplane.Linux
	wire  *probe.Sockets
}

// The next three put the agent's parts into the node's namespace, whatever
// thread they are called on.

type inNetns struct {
	ns    *netnstest.NS
	linux *dataplane.Linux
}

func (d inNetns) Set(ctx context.Context, want plan.State) (r dataplane.Report, err error) {
	return r, errors.Join(d.ns.Do(func() (e error) { r, err = d.linux.Set(ctx, want); return nil }), err)
}

func (d inNetns) Observe(ctx context.Context) (o dataplane.Observed, err error) {
	return o, d.ns.Do(func() (e error) { o, e = d.linux.Observe(ctx); return e })
}

func (d inNetns) Clean(ctx context.Context) error {
	return d.ns.Do(func() error { return d.linux.Clean(ctx) })
}

type wireInNetns struct {
	ns *netnstest.NS
	*probe.Sockets
}

func (w wireInNetns) Listen(a []netip.Addr) error {
	return w.ns.Do(func() error { return w.Sockets.Listen(a) })
}

func (w wireInNetns) Send(p probe.Path, message []byte) error {
	return w.ns.Do(func() error { return w.Sockets.Send(p, message) })
}

type kernelInNetns struct{ ns *netnstest.NS }

func (k kernelInNetns) ReapLinks() error { return k.ns.Do(nodekernel.Kernel{}.ReapLinks) }
func (k kernelInNetns) PodLinks() (l []dataplane.PodLink, err error) {
	return l, k.ns.Do(func() (e error) { l, e = nodekernel.Kernel{}.PodLinks(); return e })
}

func (k kernelInNetns) ForeignPods() (p []addresses.ForeignPod, err error) {
	return p, k.ns.Do(func() (e error) { p, e = nodekernel.Kernel{}.ForeignPods(); return e })
}

// twoKernels is a router with two nodes behind it, in subnets of their own, of
// the fabric's family.
func twoKernels(t *testing.T, api *fakeAPI, family plan.Family) (router *netnstest.NS, nodes []*kernelNode) {
	t.Helper()
	return kernels(t, api, family, 2)
}

// kernels is twoKernels with any number of nodes.
func kernels(t *testing.T, api *fakeAPI, family plan.Family, count int) (router *netnstest.NS, nodes []*kernelNode) {
	t.Helper()
	router = netnstest.New(t)
	sh(t, router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	bpffs := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() { // two agents that start at once may each have mounted it
		for unix.Unmount(bpffs, unix.MNT_DETACH) == nil {
		}
	})
	for i := range count {
		name := fmt.Sprintf("node-%d", i)
		api.addNode(name)
		k := &kernelNode{machine: newMachine(t, api, nil, name), ns: netnstest.New(t)}
		gateway, address := fmt.Sprintf("192.168.%d.1", i), fmt.Sprintf("192.168.%d.10", i)
		if family == plan.IPv6 {
			gateway, address = fmt.Sprintf("fd01:%d::1", i), fmt.Sprintf("fd01:%d::a", i)
		}
		api.setNode(name, func(n *plan.Node) { n.Addresses = addrs(address) })
		bits := map[plan.Family]string{plan.IPv4: "/24", plan.IPv6: "/64 nodad"}[family]
		// Machines that have been up for a while: no address is being checked for doubles.
		sh(t, router, fmt.Sprintf("ip link add n%d type veth peer name eth0 netns %s; sysctl -qw net.ipv6.conf.n%d.accept_dad=0; ip addr add %s%s dev n%d; ip link set n%d up", i, k.ns.Path(), i, gateway, bits, i, i))
		sh(t, k.ns, fmt.Sprintf("sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip addr add %s%s dev eth0; ip link set eth0 up; ip route add default via %s", address, bits, gateway))
		k.config.Log = slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", name)
		linux, err := dataplane.New(dataplane.Options{BPFPinDir: filepath.Join(bpffs, name), StateDir: k.root + "/run", Log: k.config.Log})
		if err != nil {
			t.Fatal(err)
		}
		k.linux = linux
		t.Cleanup(func() { _ = linux.Close() })
		if err := k.ns.Do(func() (e error) { k.wire, e = probe.NewSockets(bareProbes(), k.config.Log); return e }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.wire.Close() })
		nodes = append(nodes, k)
	}
	return router, nodes
}

// start starts the node's agent.
func (k *kernelNode) start() *runningAgent {
	k.t.Helper()
	return k.startOn(parts{dataplane: inNetns{k.ns, k.linux}, client: k.api.client(k.name), kernel: kernelInNetns{k.ns}, wire: wireInNetns{k.ns, k.wire}})
}

// pod starts a pod as the plugin does: asks the agent, and wires.
func (k *kernelNode) pod(a *runningAgent, name string) (*netnstest.NS, netip.Addr) {
	k.t.Helper()
	ns := netnstest.New(k.t)
	resp, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment(name), IPAM: "ropeway-ipam", Netns: ns.Path()})
	if err != nil {
		k.t.Fatal(err)
	}
	err = k.ns.Do(func() error {
		_, err := podlink.Add(podlink.Config{Attachment: attachment(name), Netns: ns.Path(), MTU: resp.MTU, Addresses: resp.Addresses})
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
	return ns, resp.Addresses[0]
}

func try(ns *netnstest.NS, script string) (string, error) {
	var out bytes.Buffer
	err := ns.Do(func() error {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd.Run()
	})
	return out.String(), err
}

func sh(t *testing.T, ns *netnstest.NS, script string) string {
	t.Helper()
	out, err := try(ns, script)
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// TestTwoAgentsOnRealKernels: two nodes join without a controller by proving
// each other, pods reach one another by ipip, a live change to vxlan loses not
// one packet, a router that drops vxlan is noticed, an agent's restart changes
// nothing, and Clean leaves nothing.
func TestTwoAgentsOnRealKernels(t *testing.T) {
	netnstest.NeedRoot(t)
	api := newFakeAPI()
	api.alive = false
	router, nodes := twoKernels(t, api, plan.IPv4)
	agents := []*runningAgent{nodes[0].start(), nodes[1].start()}
	eventually(t, func() string {
		for i, k := range nodes {
			if k.conflist() == "" {
				return fmt.Sprintf("the conflist on %s; probes: %+v", k.name, agents[i].node.prober.Results())
			}
		}
		return ""
	})
	eventually(t, func() string {
		for _, a := range agents {
			for _, transport := range []plan.Transport{plan.IPIP, plan.VXLAN} {
				if !proves(a, plan.IPv4, transport) {
					return fmt.Sprintf("%s to be proven by %s: %+v", transport, a.name, a.node.prober.Results())
				}
			}
		}
		return ""
	})
	pod0, _ := nodes[0].pod(agents[0], "pod-0")
	_, addr1 := nodes[1].pod(agents[1], "pod-1")
	sh(t, pod0, "ping -q -c 2 -i 0.05 -W 2 "+addr1.String())

	changed := make(chan struct{})
	stream := make(chan string, 1)
	go func() {
		out, err := try(pod0, "ping -q -c 200 -i 0.01 -W 2 "+addr1.String())
		stream <- fmt.Sprint(out, err)
	}()
	go func() {
		defer close(changed)
		api.change(func(a *fakeAPI) { a.network.Transports = []plan.Transport{plan.VXLAN, plan.IPIP} })
	}()
	<-changed
	eventually(t, func() string {
		out, _ := try(nodes[0].ns, "ip route show proto 112")
		if !strings.Contains(out, "rw-vxlan") {
			return "a route by vxlan: " + out
		}
		return ""
	})
	if out := <-stream; !strings.Contains(out, "200 received") {
		t.Errorf("the live change of transports lost packets:\n%s", out)
	}

	agents[0].stop()
	sh(t, pod0, "ping -q -c 2 -i 0.05 -W 2 "+addr1.String())
	agents[0] = nodes[0].start()
	agents[0].waitServing()
	sh(t, pod0, "ping -q -c 2 -i 0.05 -W 2 "+addr1.String())

	// The fabric stops passing vxlan: the agents find out and use ipip.
	sh(t, router, "nft 'add table ip rwt; add chain ip rwt f { type filter hook forward priority 0; }; add rule ip rwt f udp dport 4789 drop'")
	eventually(t, func() string {
		if proves(agents[0], plan.IPv4, plan.VXLAN) {
			return "vxlan to be found failing"
		}
		if out, err := try(pod0, "ping -q -c 1 -W 1 "+addr1.String()); err != nil {
			return "the pod to be reached by ipip: " + out
		}
		return ""
	})
	for i, a := range agents {
		a.stop()
		cfg := nodes[i].config
		cfg.Defaults()
		if err := clean(t.Context(), cfg, inNetns{nodes[i].ns, nodes[i].linux}, func() error { return nil }); err != nil {
			t.Errorf("clean: %v", err)
		}
		// The pods' own links and routes are the pods'; nothing else may stay.
		if out := sh(t, nodes[i].ns, "ip -o link show dev rw-vxlan 2>&1 || true; ip route show proto 112; nft list tables; ip -o addr show dev lo"); strings.Contains(out, "mtu") || strings.Contains(out, "via") || strings.Contains(out, "ropeway") || strings.Contains(out, "10.244.") && !strings.Contains(out, "dev rwp") {
			t.Errorf("left behind:\n%s", out)
		}
	}
}

func proves(a *runningAgent, family plan.Family, transport plan.Transport) bool {
	for _, r := range a.node.prober.Results() {
		if r.Transport == transport && r.Family == family {
			return r.Reachable
		}
	}
	return false
}

// TestProbesOfEachFamily: both families of the pod network are proven over a
// fabric of either family, by what can carry them.
func TestProbesOfEachFamily(t *testing.T) {
	for fabric, want := range map[plan.Family][]string{
		plan.IPv4: {"IPv4 ipip", "IPv4 vxlan", "IPv6 vxlan"},
		plan.IPv6: {"IPv4 vxlan", "IPv6 vxlan"},
	} {
		t.Run(string(fabric), func(t *testing.T) {
			api := newFakeAPI()
			api.change(func(a *fakeAPI) { a.network.PodCIDRs = prefixes("10.244.0.0/16", "fd00:10:244::/48") })
			_, nodes := twoKernels(t, api, fabric)
			for _, a := range []*runningAgent{nodes[0].start(), nodes[1].start()} {
				eventually(t, func() string {
					var got []string
					for _, r := range a.node.prober.Results() {
						if r.Reachable {
							got = append(got, string(r.Family)+" "+string(r.Transport))
						}
					}
					if !slices.Equal(got, want) {
						return fmt.Sprintf("%v proven by %s, want %v: %+v", got, a.name, want, a.node.prober.Results())
					}
					return ""
				})
			}
		})
	}
}

// TestReplacedBehindOurBack: what somebody else removes from the kernel is there
// again after the next look.
func TestReplacedBehindOurBack(t *testing.T) {
	netnstest.NeedRoot(t)
	api := newFakeAPI()
	_, nodes := twoKernels(t, api, plan.IPv4)
	a, b := nodes[0].start(), nodes[1].start()
	a.waitServing()
	b.waitServing()
	routes := func() string { out, _ := try(nodes[0].ns, "ip route show proto 112"); return out }
	eventually(t, func() string {
		if !strings.Contains(routes(), "eth0") {
			return "a route to the other node"
		}
		return ""
	})
	sh(t, nodes[0].ns, "ip route flush proto 112; nft delete table inet ropeway")
	start := time.Now()
	eventually(t, func() string {
		if !strings.Contains(routes(), "eth0") {
			return "the route to be back"
		}
		if _, err := try(nodes[0].ns, "nft list table inet ropeway"); err != nil {
			return "the table to be back"
		}
		return ""
	})
	t.Logf("healed in %v", time.Since(start))
}
