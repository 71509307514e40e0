package scenario

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/lab/openapi"
	"ropeway.dev/ropeway/internal/lab/product"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// routed plays the non-tunnel mode: Ropeway publishes each node's range in the
// VPC's route table by the cloud's own API, and pods' packets cross the VPC as
// they are. Deleting a route by hand sends its destination back through the
// tunnel until Ropeway has published it again.
func (s *stage) routed(ctx context.Context) error {
	if err := s.r.Step(ctx, "the test Deployment is ready on every node", s.deploy); err != nil {
		return err
	}
	if err := s.r.Step(ctx, "Ropeway publishes the routes, and every peer is reached directly", s.publish); err != nil {
		return err
	}
	before, err := vpc.Counters(ctx, s.l.Name())
	if err != nil {
		return err
	}
	s.probes(ctx)
	if err := s.r.Step(ctx, "on the wire: bare pod packets, and no tunnelled pod traffic", func(ctx context.Context) error { return s.bareOnTheWire(ctx, before) }); err != nil {
		return err
	}
	return s.r.Step(ctx, "a route is deleted by hand: by the tunnel, until it is published again", s.routeDeleted)
}

// cloudAccess puts the cloud's credentials into a Secret, as the manual says.
func (s *stage) cloudAccess(ctx context.Context) (product.Access, error) {
	return product.CloudAccess(ctx, s.l)
}

// publish gives Ropeway the cloud's credentials and asks for the direct mode,
// with the tunnel as its fallback.
func (s *stage) publish(ctx context.Context) error {
	cloud, err := s.cloudAccess(ctx)
	if err != nil {
		return err
	}
	patch := fmt.Sprintf(`{"spec":{"transports":["direct","ipip"],"cloud":{"provider":"alibaba","regionID":%q,"vpcID":%q,"endpoint":%q,"credentialsSecret":%q}}}`,
		cloud.Region, cloud.VPC, cloud.Endpoint, cloud.Secret)
	if _, err := s.kubectl(ctx, "patch", "clusternetwork", "default", "--type", "merge", "-p", patch); err != nil {
		return err
	}
	// Where direct has failed several times just now, it is held back for a while.
	if err := s.until(ctx, 3*time.Minute, func() error { return s.everyPeerBy(ctx, "direct") }); err != nil {
		return err
	}
	routes, err := s.showVPC(ctx)
	if err == nil && len(routes) < len(s.nodes()) {
		err = fmt.Errorf("the VPC has %d routes for %d nodes", len(routes), len(s.nodes()))
	}
	return err
}

// routeDeleted deletes a pod's route by the cloud's console, where it cannot be made
// again for a while, under a ping to that pod.
func (s *stage) routeDeleted(ctx context.Context) error {
	console, err := s.l.Cloud()
	if err != nil {
		return err
	}
	from, to, err := s.acrossNodes(ctx)
	if err != nil {
		return err
	}
	cloud, err := console.Snapshot(ctx)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(cloud.Entries, func(e openapi.Entry) bool { return e.Dst.Contains(to.address) })
	if at < 0 {
		return fmt.Errorf("no route of the VPC's leads to %s of pod %s", to.address, to.name)
	}
	route := cloud.Entries[at]
	cut := func(ctx context.Context) error {
		if err := s.deleteRoute(ctx, console, route); err != nil {
			return err
		}
		return s.until(ctx, 60*time.Second, func() error { return s.somePeerBy(ctx, from.node, "ipip") })
	}
	out, err := s.pingWhile(ctx, from, to, cut)
	if cleared := console.ClearFaults(ctx); err == nil {
		err = cleared
	}
	if err != nil {
		return err
	}
	lost, err := pingsLost(out)
	if err != nil {
		return err
	}
	s.note("%.1f s were lost, from the deletion to the tunnel", float64(lost)*pingEvery.Seconds())
	out, err = s.pingWhile(ctx, from, to, func(ctx context.Context) error {
		return s.until(ctx, 3*time.Minute, func() error { return s.everyPeerBy(ctx, "direct") })
	})
	if err != nil {
		return err
	}
	return noneLost(out)
}

// deleteRoute deletes an entry, and lets nobody make it again.
func (s *stage) deleteRoute(ctx context.Context, console *openapi.Client, e openapi.Entry) error {
	_, err := console.Inject(ctx, openapi.Fault{Action: "CreateRouteEntr*", Kind: openapi.FaultError, Code: "Throttling.User"})
	if err != nil {
		return err
	}
	s.note("deleted by the console: %s -> %s", e.Dst, e.NextHop)
	return s.until(ctx, 30*time.Second, func() error { // another change may be under way
		_, err := console.Call(ctx, "2016-04-28", "DeleteRouteEntry", map[string]string{
			"RouteTableId": e.Table, "DestinationCidrBlock": e.Dst.String(), "NextHopId": e.NextHop,
		})
		return err
	})
}

// showVPC prints the VPC's own route table.
func (s *stage) showVPC(ctx context.Context) ([]vpc.Route, error) {
	routes, err := vpc.Routes(ctx, s.l.Name())
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		s.note("the VPC's route table: %s -> %s", r.Dst, r.Host)
	}
	return routes, nil
}

// bareOnTheWire compares what the VPC has forwarded since before: the probes by
// the tunnel go on, a few packets a second, so traffic is sent that cannot be
// mistaken for them.
func (s *stage) bareOnTheWire(ctx context.Context, before map[string]uint64) error {
	from, to, err := s.acrossNodes(ctx)
	if err != nil {
		return err
	}
	const packets = 200
	out, err := s.l.Kubectl(ctx, "exec", from.name, "--", "ping", "-q", "-i", "0.01", "-c", fmt.Sprint(packets), to.address.String())
	if err != nil || !bytes.Contains(out, []byte(" 0% packet loss")) {
		return fmt.Errorf("%d pings: %v: %s", packets, err, lastLine(out))
	}
	now, err := vpc.Counters(ctx, s.l.Name())
	if err != nil {
		return err
	}
	bare, tunnelled := now["pod-cidr-bare"]-before["pod-cidr-bare"], now["proto-4"]-before["proto-4"]
	s.note("the fabric forwarded since the change: bare pod packets: %d, protocol 4: %d", bare, tunnelled)
	if bare < 2*packets {
		return fmt.Errorf("only %d bare pod packets crossed the fabric", bare)
	}
	if tunnelled >= packets {
		return fmt.Errorf("%d packets crossed the fabric in a tunnel", tunnelled)
	}
	return nil
}
