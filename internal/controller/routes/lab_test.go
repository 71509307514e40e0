package routes_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/cloud/alibaba"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/lab/openapi"
)

// calls counts what reaches the cloud, by action and result.
type calls struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *calls) called(action string, _ time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		action += " refused"
	}
	c.count[action]++
}

func (c *calls) writes() (all int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for action, n := range c.count {
		if action != "DescribeRouteEntryList" && action != "DescribeRouteTableList" {
			all += n
		}
	}
	return all
}

// labCloud is the lab's OpenAPI in this process with so many instances, and how
// to make a provider for it.
func labCloud(t *testing.T, instances, quota int, delay time.Duration, c *calls) func(context.Context, routes.Setup) (cloud.Provider, error) {
	t.Helper()
	spec := openapi.Spec{
		Region: "cn-chengdu", Account: "1234567890123456", VPC: "vpc-2vc1", CIDRs: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")},
		RouteTable: "vtb-2vc1", SecurityGroup: "sg-2vc1", Role: "ropeway", Key: openapi.AccessKey{ID: "LTAItest", Secret: "hush-hush"},
		VSwitches: []openapi.VSwitch{{ID: "vsw-a", Zone: "cn-chengdu-a", CIDR: netip.MustParsePrefix("172.16.0.0/16")}},
		Settings:  openapi.Settings{Quota: quota, Delay: openapi.Duration(delay), CredentialLife: openapi.Duration(time.Hour), TokenRequired: true},
	}
	for i := range instances {
		spec.Instances = append(spec.Instances, openapi.Instance{
			ID: fmt.Sprintf("i-%04d", i), Host: fmt.Sprint("node", i), Type: "ecs.g7.large", VSwitch: "vsw-a", Interface: fmt.Sprint("eni-", i),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(1 + i>>8), byte(i)})}, Status: "Running",
		})
	}
	server, err := openapi.New(spec, openapi.Options{})
	if err != nil {
		t.Fatal(err)
	}
	listener := httptest.NewServer(server)
	t.Cleanup(listener.Close)
	return func(ctx context.Context, s routes.Setup) (cloud.Provider, error) {
		return alibaba.New(ctx, cloud.Settings{
			Region: s.Region, VPC: s.VPC, Tables: s.Tables, Endpoint: listener.URL, Called: c.called,
			Secret: map[string][]byte{"accessKeyID": []byte("LTAItest"), "accessKeySecret": []byte("hush-hush")},
		})
	}
}

func labInput(nodes int) routes.Input {
	in := routes.Input{Setup: routes.Setup{Provider: "alibaba", Region: "cn-chengdu", VPC: "vpc-2vc1", Tables: []string{"vtb-2vc1"}},
		Cluster: "0f3c2a4e-1111-4222-8333-444455556666", Mode: routes.Write, Nodes: nodes}
	for i := range nodes {
		in.Wants = append(in.Wants, routes.Want{
			Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244 + byte(i>>8), byte(i), 0}), 24), Node: fmt.Sprint("node-", i), UID: fmt.Sprint("uid-", i),
			Created: int64(i), ProviderID: fmt.Sprintf("cn-chengdu.i-%04d", i),
		})
	}
	return in
}

// lead runs a Planner until the condition holds, and then ends it.
func lead(t *testing.T, make func(context.Context, routes.Setup) (cloud.Provider, error), in routes.Input, until func(*routes.Status) bool) {
	t.Helper()
	changed := newSignal()
	p := routes.New(routes.Config{
		Make: make, Confirm: func(context.Context) (routes.Input, error) { return in, nil }, Changed: changed.tell,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), StaleAfter: 200 * time.Millisecond, Settle: 100 * time.Millisecond,
	})
	p.Set(in)
	ctx, cancel := context.WithCancel(t.Context())
	done := newSignal()
	go func() { p.Run(ctx); done.tell() }()
	deadline := time.After(60 * time.Second)
	for !until(p.Status()) {
		select {
		case <-changed:
		case <-deadline:
			cancel()
			t.Fatalf("not within a minute: %s", p.Status().Sentence())
		}
	}
	cancel()
	<-done
}

// signal says that something has happened, many times in one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) tell() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// TestAgainstTheLabsCloud: the real provider, over HTTP, with asynchronous
// states, a quota, and a leader that comes after another.
func TestAgainstTheLabsCloud(t *testing.T) {
	const nodes, quota = 230, 220
	c := &calls{count: map[string]int{}}
	make := labCloud(t, nodes, quota, 150*time.Millisecond, c)
	in := labInput(nodes)
	full := func(s *routes.Status) bool {
		_, good := s.Wanted()
		return good == quota && s.Count(routes.OverQuota) == nodes-quota
	}
	lead(t, make, in, full)
	if n := c.writes(); n > 10 {
		t.Errorf("%d writes for 220 entries, 5 are the least: %v", n, c.count)
	}
	before := c.writes()
	lead(t, make, in, full)
	// This cloud does not say its quota: a new leader asks once for those
	// that wait, and then not again for minutes.
	if n := c.writes() - before; n > 1 {
		t.Errorf("a restart wrote %d times: %v", n, c.count)
	}
	t.Logf("calls: %v", c.count)
	in.Wants = in.Wants[3:] // three nodes are gone: three that waited get their place
	lead(t, make, in, func(s *routes.Status) bool {
		_, good := s.Wanted()
		return good == quota && s.Count(routes.OverQuota) == nodes-quota-3 && s.Count(routes.Stale) == 0
	})
}

// Defect 9 of the vendor's controller: a node with an IPv6 podCIDR only was
// taken for one of IPv4.
func TestDefect9IPv6(t *testing.T) {
	c := &calls{count: map[string]int{}}
	make := labCloud(t, 2, 200, 0, c)
	in := labInput(2)
	in.Wants[1].Dst = netip.MustParsePrefix("fd00:10:244:1::/64")
	lead(t, make, in, func(s *routes.Status) bool { _, good := s.Wanted(); return good == 2 })
	lead(t, make, in, func(s *routes.Status) bool { _, good := s.Wanted(); return good == 2 && len(s.Problems) == 0 })
	if n := c.writes(); n != 1 {
		t.Errorf("%d writes for two entries of two families, want 1", n)
	}
}
