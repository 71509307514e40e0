package scenario

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/source"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// The files that the document's user edits for its non-tunnel mode, in the
// checkout's test/scenario.
const (
	hostLocalConfig  = "calico-config.host-local.yaml"
	spiderpoolConfig = "calico-config.spiderpool.yaml"
	nonTunnel        = "calico-node-env.non-tunnel.yaml"
	spiderIPPools    = "spiderippools.yaml"
)

// document is where a file of the document's is.
func document(name string) (string, error) {
	root, err := source.Here()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "test", "scenario", name), nil
}

// routedHostLocal plays the document's non-tunnel mode with host-local, on a
// cluster on which Ropeway is installed, whatever its mode was: the document's
// own ConfigMap and environment, routes that Ropeway publishes in the VPC, the
// five probes, and then the live change between the modes.
func (s *stage) routedHostLocal(ctx context.Context) error {
	if err := s.r.Step(ctx, "the document's ConfigMap and its three Never, applied as they are", s.installHostLocal); err != nil {
		return err
	}
	if err := s.r.Step(ctx, "the test Deployment: each address is of its own node's podCIDR", s.deployOnNodeCIDRs); err != nil {
		return err
	}
	if err := s.r.Step(ctx, "the VPC's route table leads to every node's podCIDR, and every peer is reached directly", s.vpcLeads); err != nil {
		return err
	}
	before, err := vpc.Counters(ctx, s.l.Name())
	if err != nil {
		return err
	}
	s.probes(ctx)
	_ = s.r.Step(ctx, "on the wire: bare pod packets, and not one in a tunnel", func(ctx context.Context) error { return s.nothingTunnelled(ctx, before) })
	_ = s.r.Step(ctx, "change to ipip on the live cluster; nothing is lost", func(ctx context.Context) error { return s.change(ctx, "ipip") })
	return s.r.Step(ctx, "and back to direct; nothing is lost", func(ctx context.Context) error { return s.change(ctx, "direct") })
}

func (s *stage) installHostLocal(ctx context.Context) error {
	return s.installDocument(ctx, hostLocalConfig, nonTunnel)
}

// installDocument runs `ropeway install` with files of the document's and the
// cloud's credentials, by the version that the lab has.
func (s *stage) installDocument(ctx context.Context, names ...string) error {
	cloud, err := s.cloudAccess(ctx)
	if err != nil {
		return err
	}
	image, err := s.quiet(ctx, "-n", "kube-system", "get", "ds", "ropeway-agent", "-o", "jsonpath={.spec.template.spec.containers[0].image}")
	if err != nil {
		return err
	}
	p := s.product
	p.Version = image[strings.LastIndex(image, ":")+1:]
	line := []string{"ropeway", "install", "--apply"}
	for _, name := range names {
		file, err := document(name)
		if err != nil {
			return err
		}
		p.Args = append(p.Args, "--calico-manifest", file)
		line = append(line, "--calico-manifest", name)
	}
	access := cloud.Args()
	p.Args = append(p.Args, access...)
	var said strings.Builder
	p.Progress = func(line string) { fmt.Fprintln(&said, line) }
	err = p.Apply(ctx, s.l)
	s.r.Command(quote(append(line, access...)), []byte(said.String()))
	return err
}

// deployOnNodeCIDRs deploys anew, as the document does, and compares addresses
// with the nodes' podCIDRs.
func (s *stage) deployOnNodeCIDRs(ctx context.Context) error {
	if _, err := s.quiet(ctx, "delete", "deploy", "test", "--ignore-not-found", "--cascade=foreground", "--timeout=60s"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "get", "nodes", "-o", "custom-columns=NAME:.metadata.name,podCIDR:.spec.podCIDR"); err != nil {
		return err
	}
	if err := s.deploy(ctx); err != nil {
		return err
	}
	return s.inNodeCIDRs(ctx)
}

// inNodeCIDRs wants each pod's address in its node's podCIDR.
func (s *stage) inNodeCIDRs(ctx context.Context) error {
	cidrs, err := s.nodeCIDRs(ctx)
	if err != nil {
		return err
	}
	pods, err := s.pods(ctx, "app=test")
	if err != nil {
		return err
	}
	for _, p := range pods {
		if !cidrs[p.node].Contains(p.address) {
			return fmt.Errorf("pod %s on node %s has %s, which is outside of the node's podCIDR %s", p.name, p.node, p.address, cidrs[p.node])
		}
	}
	return nil
}

// nodeCIDRs maps nodes -> their first podCIDR.
func (s *stage) nodeCIDRs(ctx context.Context) (map[string]netip.Prefix, error) {
	out, err := s.quiet(ctx, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.spec.podCIDR} {end}`)
	if err != nil {
		return nil, err
	}
	cidrs := map[string]netip.Prefix{}
	for _, pair := range strings.Fields(out) {
		name, text, _ := strings.Cut(pair, "=")
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("node %s has the podCIDR %q: boot the lab with --allocate-node-cidrs: %w", name, text, err)
		}
		cidrs[name] = cidr
	}
	return cidrs, nil
}

// vpcLeads waits until the VPC's own table leads each node's podCIDR to that
// node, and every peer goes by it; then it shows both sides.
func (s *stage) vpcLeads(ctx context.Context) error {
	cidrs, err := s.nodeCIDRs(ctx)
	if err != nil {
		return err
	}
	err = s.until(ctx, 60*time.Second, func() error {
		routes, err := vpc.Routes(ctx, s.l.Name())
		if err != nil {
			return err
		}
		leads := map[netip.Prefix]string{}
		for _, r := range routes {
			leads[r.Dst] = r.Host
		}
		for node, cidr := range cidrs {
			if leads[cidr] != node {
				return fmt.Errorf("the VPC leads %s of node %s to %q", cidr, node, leads[cidr])
			}
		}
		return s.everyPeerBy(ctx, "direct")
	})
	if err != nil {
		return err
	}
	if _, err := s.showVPC(ctx); err != nil {
		return err
	}
	return s.ropeway(ctx, "routes")
}

// nothingTunnelled compares what the VPC has forwarded since before: where only
// direct is allowed there are no probes by tunnels either.
func (s *stage) nothingTunnelled(ctx context.Context, before map[string]uint64) error {
	now, err := vpc.Counters(ctx, s.l.Name())
	if err != nil {
		return err
	}
	grown := func(counter string) uint64 { return now[counter] - before[counter] }
	s.note("the VPC forwarded since the probes began: bare pod packets: %d, protocol 4: %d, UDP 4789: %d",
		grown("pod-cidr-bare"), grown("proto-4"), grown("udp-4789"))
	if grown("pod-cidr-bare") == 0 {
		return fmt.Errorf("no bare pod packet crossed the VPC")
	}
	if n := grown("proto-4") + grown("udp-4789"); n != 0 {
		return fmt.Errorf("%d packets crossed the VPC in a tunnel", n)
	}
	return nil
}
