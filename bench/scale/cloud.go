package scale

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/lab/openapi"
)

// Cloud is the lab's cloud in this process.
type Cloud struct {
	server   *openapi.Server
	vpc      *someHosts
	front    net.Listener
	admin    *openapi.Client
	spec     openapi.Spec
	stop     context.CancelFunc
	finished chan struct{}
}

// CloudOptions say how the cloud behaves.
type CloudOptions struct {
	Nodes          int
	Delay, Latency time.Duration // of a route entry's states; of a call
	// Lab is the VPC that follows the route table, Hosts are the nodes that are
	// really there.
	Lab   string
	Hosts map[int]bool
	Dir   string // for its socket
}

// StartCloud starts a cloud that has the instances of all nodes. The caller
// calls Stop.
func StartCloud(ctx context.Context, o CloudOptions) (*Cloud, error) {
	c := &Cloud{finished: make(chan struct{}), spec: openapi.Spec{
		Region: region, Account: "1234567890123456", VPC: vpcID, CIDRs: []netip.Prefix{fabric()}, RouteTable: tableID, SecurityGroup: "sg-2vcscale",
		Allowed: []netip.Prefix{podNetwork()}, Key: openapi.AccessKey{ID: "LTAIscale", Secret: "of the bench"}, Role: "ropeway",
		VSwitches: []openapi.VSwitch{{ID: "vsw-2vcscale", Zone: region + "-a", CIDR: fabric()}},
		Settings: openapi.Settings{Quota: o.Nodes + 10, Delay: openapi.Duration(o.Delay), Latency: openapi.Duration(o.Latency),
			CredentialLife: openapi.Duration(time.Hour)},
	}}
	for i := range o.Nodes {
		c.spec.Instances = append(c.spec.Instances, openapi.Instance{ID: instanceID(i), Host: NodeName(i), Type: "ecs.g7.large", VSwitch: "vsw-2vcscale",
			Interface: fmt.Sprintf("eni-2vcscale%05d", i), Addresses: []netip.Addr{Address(i)}, Status: "Running"})
	}
	c.vpc = &someHosts{vpc: &openapi.VPC{Lab: o.Lab}, hosts: o.Hosts, since: map[netip.Prefix]time.Time{}}
	var err error
	if c.server, err = openapi.New(c.spec, openapi.Options{Fabric: c.vpc, Log: slog.New(slog.DiscardHandler)}); err != nil {
		return nil, err
	}
	return c, c.serve(ctx, filepath.Join(o.Dir, fmt.Sprintf("cloud%d.sock", o.Nodes)))
}

func (c *Cloud) serve(ctx context.Context, socket string) error {
	var err error
	if c.front, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		return fmt.Errorf("open the cloud's API: %w", err)
	}
	back, err := net.Listen("unix", socket)
	if err != nil {
		return errors.Join(fmt.Errorf("open the cloud's back door: %w", err), c.front.Close())
	}
	c.admin = openapi.NewClient(socket)
	ctx, c.stop = context.WithCancel(ctx)
	api, admin := &http.Server{Handler: c.server}, &http.Server{Handler: c.server.Admin()}
	go api.Serve(c.front)
	go admin.Serve(back)
	go func() {
		defer close(c.finished)
		c.server.Follow(ctx)
		api.Close()
		admin.Close()
	}()
	return nil
}

// Stop ends the cloud.
func (c *Cloud) Stop() {
	c.stop()
	<-c.finished
}

// Endpoint is where the OpenAPI answers.
func (c *Cloud) Endpoint() string { return "http://" + c.front.Addr().String() }

// Keys are the data of a Secret with credentials.
func (c *Cloud) Keys() map[string]string {
	return map[string]string{"accessKeyID": c.spec.Key.ID, "accessKeySecret": c.spec.Key.Secret}
}

// Calls are the calls since the cloud was started, or ForgetCalls: action -> how
// many, refused ones included.
func (c *Cloud) Calls(ctx context.Context) (map[string]int, error) {
	snap, err := c.admin.Snapshot(ctx)
	out := map[string]int{}
	for action, results := range snap.Counts {
		for n := range maps.Values(results) {
			out[action] += n
		}
	}
	return out, err
}

// ForgetCalls begins counting anew.
func (c *Cloud) ForgetCalls(ctx context.Context) error { return c.admin.ForgetCalls(ctx) }

// Available counts the entries that are.
func (c *Cloud) Available(ctx context.Context) (int, error) {
	snap, err := c.admin.Snapshot(ctx)
	n := 0
	for _, e := range snap.Entries {
		if e.Status == openapi.Available {
			n++
		}
	}
	return n, err
}

// AvailableSince is when the VPC began to forward to a node that is really
// there, and whether it does.
func (c *Cloud) AvailableSince(i int) (time.Time, bool) {
	c.vpc.mu.Lock()
	defer c.vpc.mu.Unlock()
	t, there := c.vpc.since[PodCIDR(i)]
	return t, there
}

// SetDelay changes how long entries stay in a passing state.
func (c *Cloud) SetDelay(ctx context.Context, d time.Duration) error {
	return c.admin.Change(ctx, func(s *openapi.Settings) { s.Delay = openapi.Duration(d) })
}

// DeleteByHand deletes a node's entry as a person at the console would.
func (c *Cloud) DeleteByHand(ctx context.Context, i int) error {
	// Ropeway's own change may be under way: a person at the console tries again.
	return until(ctx, 100*time.Millisecond, 20*time.Second, "delete a route by hand", func(ctx context.Context) (bool, error) {
		_, err := c.admin.Call(ctx, "2016-04-28", "DeleteRouteEntry", map[string]string{
			"RegionId": region, "RouteTableId": tableID, "DestinationCidrBlock": PodCIDR(i).String(), "NextHopId": instanceID(i)})
		return err == nil, err
	})
}

// someHosts lets the VPC follow for the hosts that are there.
type someHosts struct {
	vpc   *openapi.VPC
	hosts map[int]bool

	mu    sync.Mutex
	since map[netip.Prefix]time.Time // destination -> when it was there first
}

// Set implements openapi.Fabric.
func (s *someHosts) Set(ctx context.Context, p openapi.Plane) error {
	real := map[string]bool{}
	for i := range s.hosts {
		real[NodeName(i)] = true
	}
	only := openapi.Plane{Checked: map[string]bool{}, Blocked: p.Blocked}
	for _, t := range p.Tables {
		routes := map[netip.Prefix]string{}
		for dst, host := range t.Routes {
			if real[host] {
				routes[dst] = host
			}
		}
		only.Tables = append(only.Tables, openapi.Table{Number: t.Number, Routes: routes})
	}
	err := s.vpc.Set(ctx, only)
	s.note(only)
	return err
}

func (s *someHosts) note(p openapi.Plane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	there := map[netip.Prefix]bool{}
	for _, t := range p.Tables {
		for dst := range t.Routes {
			there[dst] = true
			if _, known := s.since[dst]; !known {
				s.since[dst] = time.Now()
			}
		}
	}
	maps.DeleteFunc(s.since, func(dst netip.Prefix, _ time.Time) bool { return !there[dst] })
}
