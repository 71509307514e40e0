package scale

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/lab/vpc"
	"ropeway.dev/ropeway/internal/plan"
)

// Hosts are the nodes that are really there: namespaces on a VPC.
type Hosts struct {
	lab    string
	access Access
}

// LayHosts makes a VPC with a namespace for each of the nodes; a VPC of an
// earlier run that was cut short goes first. The caller calls Down.
//
// Making a namespace ends a thread, and a program that was started by that
// thread dies with it: nothing may have been started before.
func LayHosts(ctx context.Context, lab string, nodes []int) (*Hosts, error) {
	h := &Hosts{lab: lab}
	if err := h.Down(); err != nil {
		return nil, err
	}
	spec := vpc.Spec{Lab: lab, PodCIDRs: []netip.Prefix{podNetwork()}}
	for _, i := range nodes {
		spec.Hosts = append(spec.Hosts, vpc.Host{Name: NodeName(i), Netns: h.netns(i), Addresses: []netip.Prefix{netip.PrefixFrom(Address(i), fabric().Bits())}})
	}
	if err := vpc.Up(ctx, spec); err != nil {
		return nil, err
	}
	for _, i := range nodes {
		if _, err := h.in(ctx, i, "sysctl", "-qw", "net.ipv4.ip_forward=1").CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("prepare node %d: %w", i, err), h.Down())
		}
	}
	return h, nil
}

// Use says how agents reach what they need; it comes before the first of them.
func (h *Hosts) Use(a Access) { h.access = a }

// Down takes the VPC and its namespaces away. The agents must have ended.
func (h *Hosts) Down() error { return vpc.Down(context.Background(), h.lab) }

func (h *Hosts) netns(i int) string { return fmt.Sprintf("rwlab-%s-n%05d", h.lab, i) }

// Netns is the path of a node's namespace.
func (h *Hosts) Netns(i int) string { return filepath.Join("/run/netns", h.netns(i)) }

// in is a command in a node's namespace.
func (h *Hosts) in(ctx context.Context, i int, command ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.netns(i)}, command...)...)
}

// Agent is a real agent on a real node.
type Agent struct {
	*program
	hosts *Hosts
	node  int
	relay *relay
}

// agentPort is where agents answer, in their namespaces.
const agentPort = "127.0.0.1:9797"

// agentScript gives an agent a bpffs of its own. $0 is the program.
const agentScript = `mount -t bpf bpf /sys/fs/bpf && exec "$0" "$@"`

// RunDir is where an agent that has that directory keeps its state.
func RunDir(dir string) string { return filepath.Join(dir, "run") }

// StartAgent starts the agent of a node, with an empty run directory. The
// caller calls Stop.
func (h *Hosts) StartAgent(ctx context.Context, i int, flags ...string) (*Agent, error) {
	dir, err := os.MkdirTemp(h.access.Dir, NodeName(i)+"-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for an agent: %w", err)
	}
	return h.StartAgentIn(ctx, dir, i, flags...)
}

// StartAgentIn starts the agent of a node in a directory, where it finds what
// the one before it has left. The caller calls Stop or Kill.
func (h *Hosts) StartAgentIn(ctx context.Context, dir string, i int, flags ...string) (*Agent, error) {
	r, err := newRelay(h.Netns(i), h.access.API)
	if err != nil {
		return nil, err
	}
	args := []string{"sh", "-ec", agentScript, h.access.Program, "agent", "--kubeconfig", h.access.Kubeconfig, "--node-name", NodeName(i),
		"--listen", agentPort, "--plugin-source", h.access.plugins()}
	for flag, sub := range map[string]string{"--cni-bin-dir": "bin", "--cni-conf-dir": "conf", "--run-dir": "run"} {
		path := filepath.Join(dir, sub)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return nil, errors.Join(err, r.close())
		}
		args = append(args, flag, path)
	}
	p, err := start(filepath.Join(h.access.Dir, filepath.Base(dir)+".log"), h.in(ctx, i, append(args, flags...)...))
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return &Agent{program: p, hosts: h, node: i, relay: r}, nil
}

// Stop ends the agent; what it has set stays.
func (a *Agent) Stop() error { return errors.Join(a.program.Stop(), a.relay.close()) }

// Kill ends the agent as kill -9 does.
func (a *Agent) Kill() error { return errors.Join(a.program.Kill(), a.relay.close()) }

// Cut cuts the agent off from the API server, or connects it again.
func (a *Agent) Cut(off bool) { a.relay.cut(off) }

// Node is the number of the agent's node.
func (a *Agent) Node() int { return a.node }

// Received is how many bytes the API server has sent to the agent.
func (a *Agent) Received() int64 { return a.relay.received.Load() }

// Metrics are the agent's.
func (a *Agent) Metrics(ctx context.Context) (map[string]float64, error) {
	dial := func(context.Context, string, string) (conn net.Conn, err error) {
		err = ns.WithNetNSPath(a.hosts.Netns(a.node), func(ns.NetNS) (err error) {
			conn, err = net.DialTimeout("tcp4", agentPort, 5*time.Second)
			return err
		})
		return conn, err
	}
	return scrape(ctx, dial, agentPort)
}

// AwaitRoutes waits until the node's kernel has that many routes of Ropeway's.
func (a *Agent) AwaitRoutes(ctx context.Context, n int, most time.Duration) error {
	return until(ctx, 50*time.Millisecond, most, fmt.Sprintf("%d routes on node %d", n, a.node), func(context.Context) (bool, error) {
		if err := a.Alive(); err != nil {
			return false, err
		}
		have, err := a.hosts.routes(a.node)
		return len(have) >= n, err
	})
}

// routes are Ropeway's in a node's kernel.
func (h *Hosts) routes(i int) (list []netlink.Route, err error) {
	err = ns.WithNetNSPath(h.Netns(i), func(ns.NetNS) (err error) {
		list, err = netlinksafe.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: podlink.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		return err
	})
	return list, err
}

// Transport is what the node's route to another's pods is for, by its MTU; ""
// without a route.
func (h *Hosts) Transport(from, to int) (string, error) {
	list, err := h.routes(from)
	for _, r := range list {
		if r.Dst != nil && r.Dst.String() == PodCIDR(to).String() {
			for _, t := range []plan.Transport{plan.IPIP, plan.VXLAN} {
				if r.MTU == vpc.DefaultMTU-plan.Overhead(t, plan.IPv4) {
					return string(t), err
				}
			}
			return string(plan.Direct), err
		}
	}
	return "", err
}

// Bare says whether the node's route to another's pods is for bare packets.
func (h *Hosts) Bare(from, to int) (bool, error) {
	t, err := h.Transport(from, to)
	return t == string(plan.Direct), err
}

// Knows says whether the node has a route to another's pods.
func (h *Hosts) Knows(from, to int) (bool, error) {
	t, err := h.Transport(from, to)
	return t != "", err
}

// KernelObjects counts what the agent keeps in a node's kernel.
func (h *Hosts) KernelObjects(ctx context.Context, i int) (map[string]int, error) {
	out := map[string]int{}
	for what, command := range map[string]string{
		"routes": "ip route show proto 112 table all", "neighbours": "ip neigh show nud permanent", "forwarding entries": "bridge fdb show dev rw-vxlan",
		"nft set elements": `nft -j list table inet ropeway | grep -o '"elem": \[[^]]*' | grep -o '"[0-9a-f:.]*"\|"addr"'`, "links": "ip -o link show",
	} {
		text, err := h.in(ctx, i, "sh", "-c", command).Output()
		if err != nil {
			return nil, fmt.Errorf("count %s: %w", what, err)
		}
		out[what] = strings.Count(string(text), "\n")
	}
	return out, nil
}

// Clean takes Ropeway off a node, as uninstall does.
func (h *Hosts) Clean(ctx context.Context, i int) error {
	dir, err := os.MkdirTemp(h.access.Dir, "clean-")
	if err != nil {
		return err
	}
	cmd := h.in(ctx, i, h.access.Program, "node-clean", "--cni-bin-dir", dir, "--cni-conf-dir", dir, "--run-dir", dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("take Ropeway off node %d: %w: %s", i, err, strings.TrimSpace(string(out)))
	}
	return nil
}
