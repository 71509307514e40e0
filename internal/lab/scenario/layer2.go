package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// layer2 plays the direct mode on a network that needs no cloud: the nodes are
// on one switch, each has a host route to every other's range, and pods' packets
// cross it as they are.
func (s *stage) layer2(ctx context.Context) error {
	if s.l.Fabric() != lab.Switch {
		return errors.New("this scenario is about hosts on a switch: bring a lab up with --fabric switch")
	}
	if err := s.r.Step(ctx, "the test Deployment is ready on every node", s.deploy); err != nil {
		return err
	}
	if err := s.r.Step(ctx, "direct is allowed, and every peer is reached by a host route", s.hostRoutes); err != nil {
		return err
	}
	before, err := vpc.Counters(ctx, s.l.Name())
	if err != nil {
		return err
	}
	s.probes(ctx)
	return s.r.Step(ctx, "on the wire: bare pod packets, and no tunnelled pod traffic", func(ctx context.Context) error { return s.bareOnTheWire(ctx, before) })
}

// hostRoutes allows direct and looks at the nodes' route tables.
func (s *stage) hostRoutes(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "patch", "clusternetwork", "default", "--type", "merge", "-p", `{"spec":{"transports":["direct","ipip"],"cloud":null}}`); err != nil {
		return err
	}
	if err := s.until(ctx, 60*time.Second, func() error { return s.everyPeerBy(ctx, "direct") }); err != nil {
		return err
	}
	for _, n := range s.l.Nodes() {
		out, err := s.l.NodeExec(ctx, n.Name, "sh", "-c", "ip route show proto 112; ip -6 route show proto 112")
		if err != nil {
			return err
		}
		for _, peer := range s.l.Nodes() {
			if peer.Name != n.Name && !strings.Contains(string(out), " via "+peer.Addresses[0].Addr().String()+" dev eth0") {
				return fmt.Errorf("node %s has no host route by node %s (%s):\n%s", n.Name, peer.Name, peer.Addresses[0].Addr(), out)
			}
		}
		for line := range strings.Lines(string(out)) {
			s.note("node %s: %s", n.Name, strings.TrimSpace(line))
		}
	}
	return nil
}
