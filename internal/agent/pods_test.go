package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/plan"
)

func TestPathsArePluginsPaths(t *testing.T) {
	cfg := Config{}
	cfg.Defaults()
	if cfg.inRunDir(socketName) != cniwire.SocketPath || cfg.inRunDir(tombstoneName) != cniwire.TombstoneDir {
		t.Errorf("the agent looks at %s and %s", cfg.inRunDir(socketName), cfg.inRunDir(tombstoneName))
	}
}

// TestAddIsIdempotent: CNI specification 1.1.0, section 3: an ADD may be
// repeated; the agent gives the same addresses.
func TestAddIsIdempotent(t *testing.T) {
	_, m := one(t)
	a := m.start()
	first := a.add("p1")
	if again := a.add("p1"); !slices.Equal(first, again) {
		t.Errorf("got %v and then %v", first, again)
	}
	if other := a.add("p2"); slices.Equal(first, other) {
		t.Errorf("two pods have %v", other)
	}
	resp, err := a.call(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("p1")})
	if err != nil || !slices.Equal(resp.Addresses, first) {
		t.Errorf("CHECK: %v, %v", resp.Addresses, err)
	}
	for range 2 {
		if _, err := a.call(cniwire.Request{Verb: cniwire.Del, Attachment: attachment("p1")}); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	a.refused(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("p1")}, cniwire.CodeMismatch, "no address is recorded")
}

// A retired link is the agent's to remove, and it tries until it has.
func TestRetiredLinksAreReaped(t *testing.T) {
	_, m := one(t)
	a := m.start()
	a.add("p1")
	m.kernel.mu.Lock()
	m.kernel.reapErr = errors.New("the kernel is busy")
	before := m.kernel.reaped
	m.kernel.mu.Unlock()
	resp, err := a.call(cniwire.Request{Verb: cniwire.Del, Attachment: attachment("p1"), Retired: true})
	if err != nil || !resp.Reaps {
		t.Fatalf("%+v, %v", resp, err)
	}
	reaped := func(times int) {
		eventually(t, func() string {
			m.kernel.mu.Lock()
			defer m.kernel.mu.Unlock()
			if m.kernel.reaped < before+times {
				return fmt.Sprintf("links were reaped %d times", m.kernel.reaped-before)
			}
			return ""
		})
	}
	reaped(2)
	m.kernel.mu.Lock()
	m.kernel.reapErr = nil
	before = m.kernel.reaped
	m.kernel.mu.Unlock()
	reaped(1)
	if resp, err := a.call(cniwire.Request{Verb: cniwire.Del, Attachment: attachment("p1")}); err != nil || resp.Reaps {
		t.Errorf("a DEL that left no link: %+v, %v", resp, err)
	}
}

// A disk that is full, or cannot be written, is an I/O failure of the
// specification's, with what to do about it.
func TestDiskErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EROFS, syscall.EIO} {
		got := wireError(fmt.Errorf("write to the address journal: %w", &os.PathError{Op: "write", Path: "/run/ropeway/journal", Err: errno}))
		if got.Code != cniwire.CodeIO || !strings.Contains(got.Msg, "/run/ropeway/journal") || !strings.Contains(got.Msg, "make room on") {
			t.Errorf("%v: %+v", errno, got)
		}
	}
}

func TestAddAnswer(t *testing.T) {
	api, m := one(t)
	api.change(func(a *fakeAPI) { a.network.PodCIDRs = prefixes("10.244.0.0/16", "fd00:10:244::/48") })
	a := m.start()
	a.waitServing()
	resp, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p1"), IPAM: "calico-ipam"})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Addresses) != 2 || !resp.Addresses[0].Is4() || !resp.Addresses[1].Is6() {
		t.Fatalf("got %v, want one address of each family", resp.Addresses)
	}
	if resp.MTU != dataplane.FakeUplinkMTU || resp.HostInterface != podlink.HostLinkName("k8s-pod-network", "p1", "eth0") || resp.AgentVersion != "test" {
		t.Errorf("got %+v", resp)
	}
	for i, addr := range resp.Addresses {
		if !resp.Subnets[i].Contains(addr) || !resp.Subnets[i].Contains(resp.Gateways[i]) || resp.Gateways[i] == addr {
			t.Errorf("%v in %v by %v", addr, resp.Subnets[i], resp.Gateways[i])
		}
	}
	only6, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p2"), IPAM: "calico-ipam", Families: []string{"IPv6"}})
	if err != nil || len(only6.Addresses) != 1 || !only6.Addresses[0].Is6() {
		t.Errorf("IPv6 only: %v, %v", only6.Addresses, err)
	}
}

func TestWrongRequests(t *testing.T) {
	_, m := one(t)
	a := m.start()
	a.waitServing()
	add := func(change func(*cniwire.Request)) cniwire.Request {
		req := cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p"), IPAM: "ropeway-ipam"}
		change(&req)
		return req
	}
	a.refused(add(func(r *cniwire.Request) { r.IPv4Pools = []string{"nowhere"} }), cniwire.CodeNoAddress, "there is no pool nowhere")
	a.refused(add(func(r *cniwire.Request) { r.Wanted = addrs("192.0.2.1") }), cniwire.CodeNoAddress, "this node cannot give it")
	a.refused(add(func(r *cniwire.Request) { r.Families = []string{"IPv6"} }), cniwire.CodeInvalidConfig, "no such podCIDR")
	a.refused(add(func(r *cniwire.Request) { r.Attachment.ContainerID = "" }), cniwire.CodeInvalidEnvironment, "")
}

// TestNoNetwork: without a network in force, ADD says so and STATUS tells it.
func TestNoNetwork(t *testing.T) {
	api, m := one(t)
	m.config.timing.addWait = 50 * time.Millisecond
	api.change(func(a *fakeAPI) { a.problem = "there is no ClusterNetwork named default: create one" })
	a := m.start()
	a.waitNotServing("no ClusterNetwork named default")
	a.refused(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p"), IPAM: "ropeway-ipam"}, cniwire.CodeTryAgainLater, "no ClusterNetwork named default")
	a.refused(cniwire.Request{Verb: cniwire.Status}, cniwire.CodeNotAvailable, "no ClusterNetwork named default")
	api.change(func(a *fakeAPI) { a.problem = "" })
	a.waitServing()
	a.add("p")
	// It is gone again: what works goes on working.
	api.change(func(a *fakeAPI) { a.problem = "there is no ClusterNetwork named default: create one" })
	a.add("p2")
	if _, err := a.call(cniwire.Request{Verb: cniwire.Status}); err != nil {
		t.Errorf("STATUS: %v", err)
	}
}

// TestAddWaitsForLease: an ADD that comes before the first lease waits for it,
// and no longer than it is told to.
func TestAddWaitsForLease(t *testing.T) {
	api, m := one(t)
	api.change(func(a *fakeAPI) { a.hang = make(chan struct{}) })
	a := m.start()
	got := make(chan []netip.Addr, 1)
	go func() { got <- a.add("early") }()
	eventually(t, func() string {
		now, _ := a.node.board.get()
		if !strings.Contains(now.notReady, "have not been read") && !strings.Contains(now.notReady, "waits for its first block") {
			return "the reason that pods wait for: " + now.notReady
		}
		return ""
	})
	select {
	case addrs := <-got:
		t.Fatalf("ADD was answered %v without a lease", addrs)
	default:
	}
	api.change(func(a *fakeAPI) { close(a.hang); a.hang = nil })
	if addrs := <-got; len(addrs) != 1 {
		t.Errorf("got %v", addrs)
	}
}

func TestAddGivesUpWaiting(t *testing.T) {
	api, m := one(t)
	m.config.timing.addWait = 50 * time.Millisecond
	api.change(func(a *fakeAPI) { a.down = true })
	a := m.start()
	a.waitNotServing("the API server has not answered yet")
	a.refused(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p"), IPAM: "ropeway-ipam"}, cniwire.CodeTryAgainLater, "the API server has not answered yet")
	a.refused(cniwire.Request{Verb: cniwire.Node}, cniwire.CodeTryAgainLater, "the API server has not answered yet")
	if m.conflist() != "" {
		t.Error("a conflist appeared on a node that knows nothing")
	}
}

// TestAddNeverWaitsForAPI: invariant 7. While addresses are free, an API server
// that takes every call and answers none delays no pod.
func TestAddNeverWaitsForAPI(t *testing.T) {
	api, m := one(t)
	m.config.timing.call, m.config.timing.addWait = time.Hour, time.Hour // whatever waits, waits for too long
	a := m.start()
	a.add("first")
	hang := make(chan struct{})
	api.change(func(a *fakeAPI) { a.hang = hang })
	defer close(hang)
	for i := range 20 {
		a.add(fmt.Sprint("p", i))
	}
}

// TestManyAtOnce: invariant 1, with the race detector: pods that come and go at
// the same time never share an address, and blocks are leased ahead of them.
func TestManyAtOnce(t *testing.T) {
	api, m := one(t)
	a := m.start()
	a.waitServing()
	const workers, rounds = 8, 12
	held := make(chan map[string]netip.Addr, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			mine := map[string]netip.Addr{}
			for i := range rounds {
				name := fmt.Sprintf("p-%d-%d", w, i)
				mine[name] = a.add(name)[0]
				if i%4 == 3 {
					if _, err := a.call(cniwire.Request{Verb: cniwire.Del, Attachment: attachment(name)}); err != nil {
						t.Errorf("DEL: %v", err)
					}
					delete(mine, name)
				}
			}
			held <- mine
		})
	}
	wg.Wait()
	close(held)
	holders := map[netip.Addr]string{}
	for mine := range held {
		for name, addr := range mine {
			if other, taken := holders[addr]; taken {
				t.Errorf("%s and %s both have %s", name, other, addr)
			}
			holders[addr] = name
		}
	}
	if len(holders) != workers*rounds*3/4 || len(api.leasesOf("a")) < 2 {
		t.Errorf("%d pods from the blocks %v", len(holders), api.leasesOf("a"))
	}
}

// TestBlocksRunOut: the last block's last address is given, then a sentence says
// what to do; a DEL makes room.
func TestBlocksRunOut(t *testing.T) {
	api, m := one(t)
	m.config.timing.addWait = 100 * time.Millisecond
	api.change(func(a *fakeAPI) { a.network.PodCIDRs, a.network.BlockBits[plan.IPv4] = prefixes("10.244.0.0/28"), 29 })
	a := m.start()
	a.waitServing()
	n := 0
	eventually(t, func() string {
		resp, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment(fmt.Sprint("p", n)), IPAM: "ropeway-ipam"})
		if err == nil && len(resp.Addresses) == 1 {
			n++
		}
		if n < 13 { // two blocks of 8: their bases and one address of the node are no pod's
			return fmt.Sprintf("13 pods, not %d: %v", n, err)
		}
		return ""
	})
	eventually(t, func() string {
		if c := api.status("a").AddressesUsable; c.Status || !strings.Contains(c.Message, "podCIDRs") {
			return fmt.Sprintf("the condition that says it, which is %+v", c)
		}
		return ""
	})
	a.refused(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("late"), IPAM: "ropeway-ipam"}, cniwire.CodeNoAddress, "add a range to ClusterNetwork's podCIDRs")
	if _, err := a.call(cniwire.Request{Verb: cniwire.Status}); err != nil {
		t.Errorf("a full node is no unavailable node: %v", err)
	}
	if _, err := a.call(cniwire.Request{Verb: cniwire.Del, Attachment: attachment("p0")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if _, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("late"), IPAM: "ropeway-ipam"}); err != nil {
			return err.Error()
		}
		return ""
	})
}

// TestHostLocalIsRecorded: addresses that another IPAM plugin gives are held, and
// refused where nobody could reach them.
func TestHostLocalIsRecorded(t *testing.T) {
	api, m := one(t, "10.244.7.0/24")
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	a := m.start()
	a.waitServing()
	node, err := a.call(cniwire.Request{Verb: cniwire.Node})
	if err != nil || !slices.Equal(node.NodeCIDRs, prefixes("10.244.7.0/24")) {
		t.Fatalf("NODE: %v, %v", node.NodeCIDRs, err)
	}
	given := func(container string, addr string) cniwire.Request {
		return cniwire.Request{Verb: cniwire.Add, Attachment: attachment(container), IPAM: "host-local", Addresses: addrs(addr)}
	}
	resp, err := a.call(given("p1", "10.244.7.2"))
	if err != nil || !slices.Equal(resp.Addresses, addrs("10.244.7.2")) || resp.MTU == 0 {
		t.Fatalf("got %+v, %v", resp, err)
	}
	if again, err := a.call(given("p1", "10.244.7.2")); err != nil || !slices.Equal(again.Addresses, resp.Addresses) {
		t.Errorf("again: %v, %v", again.Addresses, err)
	}
	a.refused(given("p2", "10.244.7.2"), cniwire.CodeNoAddress, "held by")
	a.refused(given("p2", "10.244.8.2"), cniwire.CodeInvalidConfig, "in none of this node's CIDRs")
	a.refused(given("p2", "10.244.7.1"), cniwire.CodeNoAddress, "the node's own")
	for i := range 5 { // our own allocator steps around it
		if got := a.add(fmt.Sprint("ours", i)); got[0] == resp.Addresses[0] {
			t.Errorf("%v was given twice", got)
		}
	}
}

func TestHostLocalWithoutNodeCIDRMode(t *testing.T) {
	_, m := one(t, "10.244.7.0/24")
	m.config.timing.addWait = 50 * time.Millisecond
	a := m.start()
	a.waitServing()
	req := cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p"), IPAM: "host-local", Addresses: addrs("10.244.7.200")}
	a.refused(req, cniwire.CodeInvalidConfig, "addressSource to NodeCIDR")
}

// TestNodeCIDRProblems: wrong podCIDRs are named, and running pods untouched.
func TestNodeCIDRProblems(t *testing.T) {
	api, m := one(t, "10.244.7.0/24")
	m.config.timing.addWait = 50 * time.Millisecond
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	a := m.start()
	a.waitServing()
	held := a.add("old")
	tests := []struct{ cidr, reason, says string }{
		{"10.99.0.0/24", plan.ReasonOutsidePodNetwork, "outside the pod network"},
		{"", plan.ReasonNoNodeCIDR, "--allocate-node-cidrs=true"},
	}
	for _, tt := range tests {
		api.setNode("a", func(n *plan.Node) { n.NodeCIDRs = prefixes(strings.Fields(tt.cidr)...) })
		eventually(t, func() string {
			if c := api.status("a").AddressesUsable; c.Status || c.Reason != tt.reason {
				return "the condition " + tt.reason
			}
			return ""
		})
		a.refused(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("new"), IPAM: "ropeway-ipam"}, cniwire.CodeTryAgainLater, tt.says)
		if resp, err := a.call(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("old")}); err != nil || !slices.Equal(resp.Addresses, held) {
			t.Errorf("the running pod lost its address: %v, %v", resp.Addresses, err)
		}
	}
	api.setNode("a", func(n *plan.Node) { n.NodeCIDRs = prefixes("10.244.7.0/24") })
	a.waitServing()
	if got := a.add("new"); slices.Equal(got, held) {
		t.Errorf("%v was given twice", got)
	}
}

// TestGC: CNI specification 1.1.0, section 4 (GC).
func TestGC(t *testing.T) {
	_, m := one(t)
	a := m.start()
	a.add("stays")
	a.add("gone")
	if _, err := a.call(cniwire.Request{Verb: cniwire.GC, Attachment: cniwire.Attachment{Network: "another"}}); err != nil {
		t.Fatal(err)
	}
	req := cniwire.Request{Verb: cniwire.GC, Attachment: cniwire.Attachment{Network: "k8s-pod-network"}, Valid: []cniwire.Attachment{{ContainerID: "stays", IfName: "eth0"}}}
	if _, err := a.call(req); err != nil {
		t.Fatal(err)
	}
	if _, err := a.call(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("stays")}); err != nil {
		t.Errorf("the valid one was freed: %v", err)
	}
	a.refused(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("gone")}, cniwire.CodeMismatch, "")
}

// TestLooksForLeaksAreOftenEnough: two looks in a row free what is gone
// (addresses.Sweep), and design.md, section 5, gives them a minute.
func TestLooksForLeaksAreOftenEnough(t *testing.T) {
	var c Config
	c.Defaults()
	if looks := 2 * c.timing.resync; looks > time.Minute {
		t.Errorf("what leaked is back after %s, want a minute at most", looks)
	}
}

// TestConfigSays: wrong configuration is refused with all that is wrong.
func TestConfigSays(t *testing.T) {
	cfg := Config{ConfName: "a/b.json", BinDir: "bin", ListenAddress: "9797", VethMTU: 9, TakeOver: []string{"../x"}}
	cfg.Defaults()
	err := cfg.Validate()
	for _, want := range []string{"no node name", "plugin directory", ".conflist", "host:port", "MTU 9", `"../x"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	good := Config{NodeName: "n"}
	good.Defaults()
	if err := good.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}
