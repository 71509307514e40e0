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

	"ropeway.dev/ropeway/internal/agent/addresses"
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
	a.refused(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("late"), IPAM: "ropeway-ipam"}, cniwire.CodeNoAddress, "add a range to ClusterNetwork's podCIDRs")
	if _, err := a.call(cniwire.Request{Verb: cniwire.Status}); err != nil {
		t.Errorf("a full node is no unavailable node: %v", err)
	}
	if c := api.status("a").AddressesUsable; c.Status || !strings.Contains(c.Message, "podCIDRs") {
		t.Errorf("the condition does not say it: %+v", c)
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

// TestKillAndRestart: a new agent on the same run directory knows every pod,
// applies what the plugin left meanwhile, and gives nothing twice.
func TestKillAndRestart(t *testing.T) {
	_, m := one(t)
	a := m.start()
	p1, p2 := a.add("p1"), a.add("p2")
	a.stop()
	// The agent was killed while it wrote its journal, and a DEL came after.
	f, err := os.OpenFile(m.root+"/run/journal", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`12345678 {"op":"hol`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := cniwire.WriteTombstone(m.root+"/run/tombstones", cniwire.Tombstone{Attachment: attachment("p2")}); err != nil {
		t.Fatal(err)
	}
	a = m.start()
	if again := a.add("p1"); !slices.Equal(again, p1) {
		t.Errorf("p1 had %v and now has %v", p1, again)
	}
	a.refused(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("p2")}, cniwire.CodeMismatch, "")
	for i := range 10 {
		if got := a.add(fmt.Sprint("new", i)); slices.Equal(got, p1) || slices.Equal(got, p2) {
			t.Errorf("%v was given again: it is held, or has just been freed", got)
		}
	}
}

// TestTombstoneBeforeNextAllocation: a DEL that found no agent is applied before
// the next ADD, also if it appears while the agent runs.
func TestTombstoneBeforeNextAllocation(t *testing.T) {
	_, m := one(t)
	a := m.start()
	a.add("p1")
	if err := cniwire.WriteTombstone(m.root+"/run/tombstones", cniwire.Tombstone{Attachment: attachment("p1")}); err != nil {
		t.Fatal(err)
	}
	a.add("p2")
	a.refused(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("p1")}, cniwire.CodeMismatch, "")
	if left, err := cniwire.ReadTombstones(m.root + "/run/tombstones"); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestRestartWithoutAPI: the API server is down when a new agent starts. The
// conflist stays, pods are served from the ranges that the node had, and the
// kernel is kept as it was.
func TestRestartWithoutAPI(t *testing.T) {
	api, m := one(t)
	a := m.start()
	api.say("a", false)
	p1 := a.add("p1")
	eventually(t, func() string {
		if m.conflist() == "" {
			return "the conflist"
		}
		return ""
	})
	last := m.dataplane.States()[len(m.dataplane.States())-1]
	a.stop()
	api.change(func(a *fakeAPI) { a.down = true })
	before := len(m.dataplane.States())
	a = m.start()
	if got := a.add("p2"); slices.Equal(got, p1) {
		t.Errorf("%v was given twice", got)
	}
	if _, err := a.call(cniwire.Request{Verb: cniwire.Status}); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	eventually(t, func() string {
		if len(m.dataplane.States()) == before {
			return "the kernel to be set again"
		}
		return ""
	})
	for _, s := range m.dataplane.States()[before:] {
		if fmt.Sprint(s) != fmt.Sprint(last) {
			t.Errorf("the kernel was changed from %v to %v", last, s)
		}
	}
	if m.conflist() == "" {
		t.Error("the conflist is gone")
	}
	if code, _ := get(a, "/readyz"); code != 200 {
		t.Errorf("/readyz: %d", code)
	}
}

// TestLostRunDirectory: with nothing left but the kernel, the next agent holds
// what the kernel shows and keeps the node's own address.
func TestLostRunDirectory(t *testing.T) {
	api, m := one(t)
	a := m.start()
	p1 := a.add("p1")
	now, _ := a.node.board.get()
	source := now.sources
	a.stop()
	if err := os.RemoveAll(m.root + "/run"); err != nil {
		t.Fatal(err)
	}
	alias, err := podlink.Alias(attachment("p1"), cniwire.Pod{Namespace: "default", Name: "p1", UID: "u"})
	if err != nil {
		t.Fatal(err)
	}
	block := api.leasesOf("a")[0]
	lost, foreign := block.Addr().Next().Next().Next().Next(), block.Addr().Next().Next().Next()
	m.kernel.links = []dataplane.PodLink{
		{Name: "rwp1", Addresses: p1, Alias: alias},
		{Name: "rwp2", Addresses: []netip.Addr{lost}}, // its alias is lost
	}
	m.kernel.foreign = []addresses.ForeignPod{{Link: "cali123", Address: foreign}}
	a = m.start()
	if again := a.add("p1"); !slices.Equal(again, p1) {
		t.Errorf("p1 had %v and now has %v", p1, again)
	}
	for i := range 10 {
		got := a.add(fmt.Sprint("new", i))[0]
		if got == p1[0] || got == lost || got == foreign || slices.Contains(source, got) {
			t.Errorf("%v was given, and is in use", got)
		}
	}
	if now, _ := a.node.board.get(); !slices.Equal(now.sources, source) {
		t.Errorf("the node's own address changed from %v to %v", source, now.sources)
	}
	// The links go, without a DEL: what only they spoke for is free again.
	m.kernel.mu.Lock()
	m.kernel.links, m.kernel.foreign = m.kernel.links[:1], nil
	m.kernel.mu.Unlock()
	eventually(t, func() string {
		if a.node.book.IsHeld(lost) || a.node.book.IsHeld(foreign) {
			return "addresses of links that are gone to be freed"
		}
		return ""
	})
}

// TestHostLocalFilesAreHeld: what host-local gave before Ropeway came is nobody
// else's.
func TestHostLocalFilesAreHeld(t *testing.T) {
	api, m := one(t, "10.244.7.0/24")
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	m.write("cni/networks/k8s-pod-network/10.244.7.2", "old\r\neth0")
	m.write("cni/networks/k8s-pod-network/last_reserved_ip.0", "10.244.7.2")
	m.write("cni/networks/k8s-pod-network/lock", "")
	a := m.start()
	for i := range 5 {
		if got := a.add(fmt.Sprint("p", i)); got[0] == netip.MustParseAddr("10.244.7.2") {
			t.Errorf("%v was given, and host-local has it", got)
		}
	}
	resp, err := a.call(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("old")})
	if err != nil || !slices.Equal(resp.Addresses, addrs("10.244.7.2")) {
		t.Errorf("CHECK of the old pod: %v, %v", resp.Addresses, err)
	}
}

// TestSwitchOfSource: addresses come from node CIDRs from now on; pods that run
// keep theirs, and their blocks stay leased.
func TestSwitchOfSource(t *testing.T) {
	api, m := one(t, "10.244.7.0/24")
	api.setNode("a", func(n *plan.Node) { n.NodeCIDRs = nil })
	a := m.start()
	old := a.add("old")
	api.setNode("a", func(n *plan.Node) { n.NodeCIDRs = prefixes("10.244.7.0/24") })
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	eventually(t, func() string {
		now, _ := a.node.board.get()
		if !now.nodeCIDRMode {
			return "the change"
		}
		return ""
	})
	if got := a.add("new"); !netip.MustParsePrefix("10.244.7.0/24").Contains(got[0]) {
		t.Errorf("a new pod has %v", got)
	}
	if got := a.add("old"); !slices.Equal(got, old) {
		t.Errorf("the old pod had %v and now has %v", old, got)
	}
	now, _ := a.node.board.get()
	if _, ok := now.owns(old[0]); !ok {
		t.Errorf("the old pod's address %v is in none of %v any more", old, now.cidrs)
	}
}

// TestLostLeaseIsLeasedAgain: somebody deleted the AddressBlock under a pod.
func TestLostLeaseIsLeasedAgain(t *testing.T) {
	api, m := one(t)
	a := m.start()
	a.add("p1")
	lease := api.leasesOf("a")[0]
	api.change(func(a *fakeAPI) { a.leases = nil })
	eventually(t, func() string {
		if !slices.Contains(api.leasesOf("a"), lease) {
			return "the lease of " + lease.String()
		}
		return ""
	})
}

// TestNodeMadeAnew: the Node object was deleted and registered again: leases are
// adopted, pods keep their addresses.
func TestNodeMadeAnew(t *testing.T) {
	api, m := one(t)
	a := m.start()
	held := a.add("p1")
	api.change(func(a *fakeAPI) { a.nodes[0].UID = "uid-2" })
	eventually(t, func() string {
		api.mu.Lock()
		defer api.mu.Unlock()
		if api.leases[0].NodeUID != "uid-2" || api.leases[0].Generation != 2 || api.published["a"].NodeUID != "uid-2" {
			return "the lease to be adopted and the node's word renewed"
		}
		return ""
	})
	if again := a.add("p1"); !slices.Equal(again, held) {
		t.Errorf("the pod had %v and now has %v", held, again)
	}
	if got := api.status("a").VTEP; got != plan.VTEPMAC("uid-2") {
		t.Errorf("VTEP %v is not the new node's", got)
	}
}

// TestNodeMadeAnewWithAnotherPodCIDR: new pods are of the new podCIDR; one that
// runs keeps its address, and the block around it is leased, so that others go on
// sending to it.
func TestNodeMadeAnewWithAnotherPodCIDR(t *testing.T) {
	api, m := one(t, "10.244.7.0/24")
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	a := m.start()
	old := a.add("old")
	api.setNode("a", func(n *plan.Node) { n.UID, n.NodeCIDRs = "uid-2", prefixes("10.244.9.0/24") })
	eventually(t, func() string {
		st := api.status("a")
		if st.NodeUID != "uid-2" || !slices.Contains(st.CIDRs, netip.MustParsePrefix("10.244.9.0/24")) ||
			!slices.ContainsFunc(st.CIDRs, func(p netip.Prefix) bool { return p.Contains(old[0]) }) {
			return fmt.Sprintf("the node to have its new podCIDR and a block around %v, not %v", old, st.CIDRs)
		}
		return ""
	})
	if got := a.add("new"); !netip.MustParsePrefix("10.244.9.0/24").Contains(got[0]) {
		t.Errorf("a new pod has %v", got)
	}
	if again := a.add("old"); !slices.Equal(again, old) {
		t.Errorf("the old pod had %v and now has %v", old, again)
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
