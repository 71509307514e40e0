package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/vpc"
)

// The transports as the ClusterNetwork spells them, and what the VPC counts
// when it forwards them.
var wire = map[string]string{"ipip": "proto-4", "vxlan": "udp-4789"}

// Install shows that every network component runs, as the document's first step does.
func (s *stage) install(ctx context.Context) error {
	return s.r.Step(ctx, "every component in kube-system is Running 1/1", func(ctx context.Context) error {
		err := s.until(ctx, 2*time.Minute, func() error { return s.componentsRun(ctx) })
		if _, show := s.kubectl(ctx, "get", "po", "-n", "kube-system", "-o", "wide"); show != nil {
			return show
		}
		return err
	})
}

func (s *stage) componentsRun(ctx context.Context) error {
	out, err := s.quiet(ctx, "get", "po", "-n", "kube-system", "--no-headers")
	if err != nil {
		return err
	}
	agents := 0
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] != "1/1" || f[2] != "Running" {
			return fmt.Errorf("not Running 1/1: %s", strings.TrimSpace(line))
		}
		if strings.HasPrefix(f[0], "ropeway-agent-") {
			agents++
		}
	}
	if nodes := len(s.nodes()); agents != nodes {
		return fmt.Errorf("%d of %d nodes have a ropeway-agent", agents, nodes)
	}
	return nil
}

// Tunnel plays the document's tunnel mode by one transport, on a cluster on
// which Ropeway is installed, whatever the transport was before.
func (s *stage) tunnel(ctx context.Context, transport string) error {
	if transport == "ipip" && s.is6 {
		return errors.New("this scenario is about IP in IP, which is spoken for IPv4 only: play tunnel-vxlan, or bring a lab up with --ip-family ipv4 or dual")
	}
	if err := s.r.Step(ctx, "the test Deployment is ready on every node", func(ctx context.Context) error { return s.deploy(ctx) }); err != nil {
		return err
	}
	if err := s.r.Step(ctx, "change to "+transport+" on the live cluster; nothing is lost", func(ctx context.Context) error { return s.change(ctx, transport) }); err != nil {
		return err
	}
	before, err := vpc.Counters(ctx, s.l.Name())
	if err != nil {
		return err
	}
	for _, f := range s.each() {
		f.probes(ctx)
	}
	return s.r.Step(ctx, "on the wire: "+transport+", and no bare pod packet", func(ctx context.Context) error { return s.onTheWire(ctx, transport, before) })
}

// deploy applies the test Deployment, two pods for each node, and waits.
func (s *stage) deploy(ctx context.Context) error {
	file, err := os.CreateTemp("", "ropeway-test-*.yaml")
	if err != nil {
		return fmt.Errorf("writing the test Deployment: %w", err)
	}
	defer os.Remove(file.Name())
	fmt.Fprintf(file, workload, 2*len(s.nodes()))
	if err := file.Close(); err != nil {
		return fmt.Errorf("writing the test Deployment: %w", err)
	}
	if _, err := s.quiet(ctx, "apply", "-f", file.Name()); err != nil {
		return err
	}
	if _, err := s.quiet(ctx, "rollout", "status", "deploy/test", "--timeout=90s"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "get", "po", "-o", "wide"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "get", "svc"); err != nil {
		return err
	}
	return s.addressesInNetwork(ctx)
}

// addressesInNetwork checks that each pod's address is in the pod network and
// no two are equal.
func (s *stage) addressesInNetwork(ctx context.Context) error {
	out, err := s.quiet(ctx, "get", "clusternetwork", "default", "-o", "jsonpath={.spec.podCIDRs[*]}")
	if err != nil {
		return err
	}
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	seen := map[netip.Addr]string{}
	for _, p := range pods {
		if other, twice := seen[p.address]; twice {
			return fmt.Errorf("pods %s and %s both have %s", other, p.name, p.address)
		}
		seen[p.address] = p.name
		inside := false
		for _, text := range strings.Fields(out) {
			cidr, err := netip.ParsePrefix(text)
			inside = inside || err == nil && cidr.Contains(p.address)
		}
		if !inside {
			return fmt.Errorf("pod %s has %s, which is outside of %s", p.name, p.address, out)
		}
	}
	return nil
}

// change sets the one transport while a pod pings a pod on another node fifty
// times a second.
func (s *stage) change(ctx context.Context, transport string) error {
	from, to, err := s.acrossNodes(ctx)
	if err != nil {
		return err
	}
	out, err := s.pingWhile(ctx, from, to, func(ctx context.Context) error {
		patch := fmt.Sprintf(`{"spec":{"transports":[%q]}}`, transport)
		if _, err := s.kubectl(ctx, "patch", "clusternetwork", "default", "--type", "merge", "-p", patch); err != nil {
			return err
		}
		return s.until(ctx, 60*time.Second, func() error { return s.everyPeerBy(ctx, transport) })
	})
	if err != nil {
		return err
	}
	return noneLost(out)
}

// everyPeerBy checks that every node says it reaches every other by transport.
func (s *stage) everyPeerBy(ctx context.Context, transport string) error {
	peers, err := s.peersBy(ctx)
	if err != nil {
		return err
	}
	nodes := len(s.nodes())
	if len(peers) != nodes {
		return fmt.Errorf("%d of %d nodes have published a NodeNetwork", len(peers), nodes)
	}
	for node, by := range peers {
		if by[transport] != nodes-1 {
			return fmt.Errorf("node %s reaches its peers by %v, not all by %s", node, by, transport)
		}
	}
	return nil
}

// somePeerBy checks that a node says it reaches one of the others by transport.
func (s *stage) somePeerBy(ctx context.Context, node, transport string) error {
	peers, err := s.peersBy(ctx)
	if err == nil && peers[node][transport] == 0 {
		err = fmt.Errorf("node %s reaches its peers by %v, none by %s", node, peers[node], transport)
	}
	return err
}

// peersBy is how many peers each node reaches by each transport.
func (s *stage) peersBy(ctx context.Context) (map[string]map[string]int, error) {
	out, err := s.quiet(ctx, "get", "nodenetworks", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct{ Peers map[string]int }
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("reading NodeNetworks: %w", err)
	}
	peers := map[string]map[string]int{}
	for _, item := range list.Items {
		peers[item.Metadata.Name] = item.Status.Peers
	}
	return peers, nil
}

var reply = regexp.MustCompile(`ttl=(\d+) `)

// probes are the document's five.
func (s *stage) probes(ctx context.Context) {
	_ = s.step(ctx, "(1) a pod pings a pod on another node, ttl=62", func(ctx context.Context) error {
		from, to, err := s.acrossNodes(ctx)
		if err != nil {
			return err
		}
		return s.ping(ctx, from, to.address.String(), "62")
	})
	_ = s.step(ctx, "(2) a pod reaches the outside", func(ctx context.Context) error {
		pods, err := s.pods(ctx, "app=test")
		if err != nil {
			return err
		}
		outside := "8.8.8.8"
		if s.is6 {
			outside = "2001:4860:4860::8888"
		}
		return s.ping(ctx, pods[0], outside, "")
	})
	_ = s.step(ctx, "(3) curl of the ClusterIP from a pod: HTTP 200, JSON", func(ctx context.Context) error { return s.curlClusterIP(ctx) })
	_ = s.step(ctx, "(4) every node reaches its own pods and remote ones", func(ctx context.Context) error { return s.nodesReachPods(ctx) })
	_ = s.step(ctx, "(5) pods on one node reach one another", func(ctx context.Context) error {
		pods, err := s.pods(ctx, "app=test")
		if err != nil {
			return err
		}
		a, b, err := onSameNode(pods)
		if err != nil {
			return err
		}
		return s.ping(ctx, a, b.address.String(), "63")
	})
}

// ping sends one ICMP echo from a pod; ttl "" takes any.
func (s *stage) ping(ctx context.Context, from pod, to, ttl string) error {
	out, err := s.kubectl(ctx, "exec", from.name, "--", "ping", "-c1", "-W2", to)
	if err != nil {
		return err
	}
	m := reply.FindStringSubmatch(out)
	if m == nil {
		return fmt.Errorf("no answer from %s", to)
	}
	if ttl != "" && m[1] != ttl {
		return fmt.Errorf("the answer from %s has ttl=%s, want %s", to, m[1], ttl)
	}
	return nil
}

func (s *stage) curlClusterIP(ctx context.Context) error {
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	ip, err := s.clusterIP(ctx, "test")
	if err != nil {
		return err
	}
	var out string
	err = s.until(ctx, 20*time.Second, func() (err error) { // kube-proxy hears of new pods by itself
		out, err = s.kubectl(ctx, "exec", pods[0].name, "--", "curl", "-s", "-i", "--max-time", "5", url(ip, 80))
		return err
	})
	if err != nil {
		return err
	}
	for _, want := range []string{"HTTP/1.1 200 OK", "Content-Type: application/json"} {
		if !strings.Contains(out, want) {
			return fmt.Errorf("the answer of %s has no %q", ip, want)
		}
	}
	return nil
}

// nodesReachPods curls every pod from every node, and uses exec and logs, which
// go from the API server through the kubelet.
func (s *stage) nodesReachPods(ctx context.Context) error {
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	for _, node := range s.nodes() {
		for _, p := range pods {
			out, err := s.l.NodeExec(ctx, node, "curl", "-s", "--max-time", "5", url(p.address.String(), 80))
			if err != nil || !bytes.Contains(out, []byte("{")) {
				return fmt.Errorf("node %s does not reach pod %s on node %s at %s: %v: %s", node, p.name, p.node, p.address, err, lastLine(out))
			}
			s.note("node %s reaches pod %s (%s) on %s", node, p.name, p.address, p.node)
		}
	}
	if _, err := s.kubectl(ctx, "exec", pods[0].name, "--", "hostname"); err != nil {
		return err
	}
	_, err = s.kubectl(ctx, "logs", "--tail=2", pods[0].name)
	return err
}

// onTheWire compares what the VPC has forwarded since before.
func (s *stage) onTheWire(ctx context.Context, transport string, before map[string]uint64) error {
	now, err := vpc.Counters(ctx, s.l.Name())
	if err != nil {
		return err
	}
	grown := func(counter string) uint64 { return now[counter] - before[counter] }
	s.note("the VPC forwarded since the change: protocol 4: %d, UDP 4789: %d, bare pod packets: %d",
		grown("proto-4"), grown("udp-4789"), grown("pod-cidr-bare"))
	if grown(wire[transport]) == 0 {
		return fmt.Errorf("the VPC saw no %s packet", transport)
	}
	if n := grown("pod-cidr-bare"); n != 0 {
		return fmt.Errorf("%d packets with a pod's bare address crossed the VPC", n)
	}
	return nil
}
