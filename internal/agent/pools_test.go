package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/kube"
)

// spiderPool is a pool as the scenario's spiderippools.yaml has them.
func spiderPool(t *testing.T, name, ips string, change ...func(*pool.Pool)) *pool.Pool {
	t.Helper()
	subnet := netip.MustParsePrefix("10.244.0.0/16")
	ranges, err := pool.ParseRanges("spec.ips", subnet, []string{ips})
	if err != nil {
		t.Fatal(err)
	}
	p := &pool.Pool{Kind: pool.KindSpiderIPPool, Name: name, UID: "uid-" + name, Subnets: []netip.Prefix{subnet}, Ranges: ranges}
	for _, c := range change {
		c(p)
	}
	return p
}

// twoNodes is a cluster in node-CIDR mode with the scenario's pools, and agents
// that serve.
func twoNodes(t *testing.T, pools ...*pool.Pool) (*fakeAPI, map[string]*runningAgent) {
	t.Helper()
	api, fabric := newFakeAPI(), probe.NewFakeFabric()
	api.network.NodeCIDR = true
	api.pools = pools
	api.addNode("a", "10.244.0.0/24")
	api.addNode("b", "10.244.1.0/24")
	agents := map[string]*runningAgent{}
	for _, name := range []string{"a", "b"} {
		m := newMachine(t, api, fabric, name)
		m.config.timing.addWait = 3 * time.Second // less than a refusal stands
		agents[name] = m.start()
		agents[name].waitServing()
	}
	return api, agents
}

// TestPoolsPerNode: the scenario's case. Each node serves the pool that names it,
// without its own address; what no pool states serves by itself.
func TestPoolsPerNode(t *testing.T) {
	forNode := func(node string) func(*pool.Pool) {
		return func(p *pool.Pool) { p.Default, p.NodeNames = true, []string{node} }
	}
	api, agents := twoNodes(t,
		spiderPool(t, "a", "10.244.0.1-10.244.0.4", forNode("a")),
		spiderPool(t, "b", "10.244.1.1-10.244.1.4", forNode("b")))
	for node, want := range map[string][]string{"a": {"10.244.0.2", "10.244.0.3", "10.244.0.4"}, "b": {"10.244.1.2", "10.244.1.3", "10.244.1.4"}} {
		for i := range want {
			if got := agents[node].add(fmt.Sprint("p", i)); got[0].String() != want[i] {
				t.Errorf("pod %d on %s has %v, want %s", i, node, got, want[i])
			}
		}
	}
	// The pool is used up, and nothing else serves a pod that it serves.
	a := agents["a"]
	req := cniwire.Request{Verb: cniwire.Add, Attachment: attachment("late"), IPAM: "spiderpool", Pod: cniwire.Pod{Namespace: "default", Name: "late", UID: "uid-late"}}
	a.refused(req, cniwire.CodeTryAgainLater, "SpiderIPPool/a on this node (3 addresses: 3 held")
	if events := a.client.eventsNow(); !strings.Contains(events, "default/late NoAddress: ") {
		t.Errorf("no event says why: %q", events)
	}
	// Without its pool the node's CIDR serves by itself, and what is held stays.
	api.change(func(f *fakeAPI) { f.pools = f.pools[1:] })
	a.waitPasses()
	if got := a.add("late"); got[0].String() != "10.244.0.5" {
		t.Errorf("without the pool: %v", got)
	}
	if st := api.status("b"); st.Pools["SpiderIPPool/b"] != 3 {
		t.Errorf("b says of its pools: %v", st.Pools)
	}
}

// TestPoolInAPodCIDRBesideBlocks: where addresses come from blocks, a pool that lies in
// a node's podCIDR is given there, as documented, by blocks that the node leases for it,
// and nowhere else.
func TestPoolInAPodCIDRBesideBlocks(t *testing.T) {
	api, fabric := newFakeAPI(), probe.NewFakeFabric()
	api.pools = []*pool.Pool{spiderPool(t, "p", "10.244.0.60-10.244.0.68", isDefault)}
	api.addNode("a", "10.244.0.0/24")
	api.addNode("b", "10.244.1.0/24")
	a, b := newMachine(t, api, fabric, "a").start(), newMachine(t, api, fabric, "b").start()
	a.waitServing()
	b.waitServing()
	seen := map[netip.Addr]bool{}
	for i := range 8 { // of the nine, one is the first of a block
		pod := fmt.Sprint("p", i)
		got := a.insist(pod, podNamed(pod))
		if !api.pools[0].Contains(got) || seen[got] {
			t.Fatalf("pod %d has %s beside %v", i, got, seen)
		}
		seen[got] = true
	}
	if got, err := b.try("q", podNamed("q")); err == nil {
		t.Errorf("on the other node a pod has %s", got)
	}
	api.change(func(f *fakeAPI) {
		for _, l := range f.leases {
			if l.Node == "b" && l.Prefix.Overlaps(netip.MustParsePrefix("10.244.0.0/24")) {
				t.Errorf("node b has leased %s", l.Prefix)
			}
		}
	})
}

// TestPoolsUnreadAfterARestart: an agent that hears of nodes before it hears of pools
// knows those of the agent before: it gives nothing of theirs to other pods, lets go of
// nothing that is kept, and the next agent knows them as well.
func TestPoolsUnreadAfterARestart(t *testing.T) {
	api, agents := twoNodes(t,
		spiderPool(t, "mine", "10.244.0.2-10.244.0.9"),
		spiderPool(t, "shared", "10.244.9.1-10.244.9.2"))
	named := func(name string) map[string]string {
		return map[string]string{pool.AnnotationPool: `{"ipv4": ["` + name + `"]}`}
	}
	api.sayOf("web-0", kube.PodWords{StatefulSet: "web", StatefulSetUID: "uid-web", Annotations: named("shared")})
	api.sayOf("its", kube.PodWords{Annotations: named("mine")})
	a := agents["a"]
	kept := a.insist("c1", podNamed("web-0"))
	a.del("c1")
	eventually(t, func() string {
		api.mu.Lock()
		defer api.mu.Unlock()
		if !slices.ContainsFunc(api.leases, func(l kube.Lease) bool { return l.IsSingle() && l.Node == "" }) {
			return "the kept address to be left to whoever comes"
		}
		return ""
	})
	for range 2 {
		a.stop()
		api.change(func(f *fakeAPI) { f.unpooled = true })
		a = a.machine.start()
		a.waitServing()
		a.waitPasses()
		if got := a.add("plain"); api.pools[0].Contains(got[0]) {
			t.Errorf("a pod that asks for no pool has %s", got[0])
		}
		a.del("plain")
		if got, err := a.try("c2", podNamed("web-0")); err == nil {
			t.Errorf("web-0 has %s", got)
		}
	}
	if got, err := a.try("c3", podNamed("its")); err != nil || got.String() != "10.244.0.2" {
		t.Errorf("a pod of the pool has %s, %v", got, err)
	}
	api.change(func(f *fakeAPI) { f.unpooled = false })
	if got := a.insist("c4", podNamed("web-0")); got != kept {
		t.Errorf("web-0 had %s, and has %s", kept, got)
	}
}

// TestUnderlay: pods' interfaces that another main plugin makes get addresses outside
// the pod network, each once, whatever the node; nobody routes them, and no pod of ours
// gets one. What a node has itself is not given. One that a pod has of before is leased.
func TestUnderlay(t *testing.T) {
	under := &pool.Pool{Kind: pool.KindSpiderIPPool, Name: "under", UID: "uid-under", Subnets: prefixes("192.168.0.0/24"),
		Ranges: prefixes("192.168.0.8/30"), Routes: []pool.Route{{Dst: netip.MustParsePrefix("172.16.0.0/12"), Via: netip.MustParseAddr("192.168.0.1")}}}
	api, agents := twoNodes(t, under) // a's own address is 192.168.0.10
	ask := func(on *runningAgent, verb cniwire.Verb, pod string) (cniwire.Response, error) {
		at := attachment(pod)
		at.IfName = "net1"
		return on.call(cniwire.Request{Verb: verb, Attachment: at, IPAM: "spiderpool", Pod: podNamed(pod), IPv4Pools: []string{"under"}, OtherMain: true})
	}
	a, b := agents["a"], agents["b"]
	found := netip.MustParseAddr("192.168.0.11")
	if err := a.node.book.Record(keyOf(attachment("found")), ipam.Owner{}, []netip.Addr{found}, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if !slices.Contains(api.leasesOf("a"), netip.PrefixFrom(found, 32)) {
			return "a lease of what a pod has of before"
		}
		return ""
	})
	held := map[netip.Addr]bool{}
	for pod, on := range map[string]*runningAgent{"p1": a, "p2": b} {
		resp, err := ask(on, cniwire.Add, pod)
		if err != nil {
			t.Fatal(err)
		}
		got := resp.Addresses[0]
		if held[got] || got != netip.MustParseAddr("192.168.0.8") && got != netip.MustParseAddr("192.168.0.9") {
			t.Errorf("%s has %s beside %v", pod, got, held)
		}
		held[got] = true
		if resp.Subnets[0] != netip.MustParsePrefix("192.168.0.0/24") || resp.Gateways[0].IsValid() || len(resp.Routes) != 1 {
			t.Errorf("%s was answered %+v", pod, resp)
		}
	}
	if resp, err := ask(b, cniwire.Add, "p3"); err == nil || !strings.Contains(err.Error(), "all in use") {
		t.Errorf("a third pod: %v %v", resp.Addresses, err)
	}
	api.sayOf("ours", kube.PodWords{Annotations: map[string]string{pool.AnnotationPool: `{"ipv4": ["under"]}`}})
	if got, err := a.try("ours", podNamed("ours")); err == nil || !strings.Contains(err.Error(), "under is outside the pod network") {
		t.Errorf("a pod of ours: %v %v", got, err)
	}
	for _, on := range agents {
		on.waitPasses()
		for _, r := range on.node.look().State.Routes {
			if under.Contains(r.Dst.Addr()) {
				t.Errorf("%s has a route to %s", on.name, r.Dst)
			}
		}
		if problems := on.node.look().State.Problems; len(problems) > 0 {
			t.Errorf("%s has problems: %v", on.name, problems)
		}
	}
	if _, err := ask(a, cniwire.Del, "p1"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if resp, err := ask(b, cniwire.Add, "p3"); err == nil {
			if !held[resp.Addresses[0]] {
				t.Errorf("the third pod has %s", resp.Addresses[0])
			}
			return
		}
	}
	t.Error("the third pod has none, though one has ended")
}

// TestStatedRangeIsSubtracted: a pool that nobody asks for keeps its addresses
// to itself, and those that ask get them.
func TestStatedRangeIsSubtracted(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "kept", "10.244.0.2-10.244.0.9"))
	a := agents["a"]
	if got := a.add("p1"); got[0].String() != "10.244.0.10" {
		t.Errorf("by itself: %v", got)
	}
	api.change(func(f *fakeAPI) {
		f.words = map[string]kube.PodWords{"default/p2": {Annotations: map[string]string{pool.AnnotationPool: `{"ipv4": ["kept"]}`}}}
	})
	if got := a.add("p2"); got[0].String() != "10.244.0.2" {
		t.Errorf("by annotation: %v", got)
	}
	// A live pod's address that a new pool states stays the pod's.
	api.change(func(f *fakeAPI) {
		f.pools = append(f.pools, spiderPool(t, "new", "10.244.0.10-10.244.0.11"))
		f.words["default/p3"] = kube.PodWords{Annotations: map[string]string{pool.AnnotationPool: `{"ipv4": ["new"]}`}}
	})
	a.waitPasses()
	if got := a.add("p3"); got[0].String() != "10.244.0.11" {
		t.Errorf("of the pool around a live address: %v", got)
	}
}

// TestExactAddress: by annotation, in a pool and outside any; taken, foreign and
// reserved ones are refused with a sentence.
func TestExactAddress(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.0.100-10.244.0.110"),
		spiderPool(t, "b's", "10.244.0.120", func(p *pool.Pool) { p.NodeNames = []string{"b"} }))
	api.change(func(f *fakeAPI) { f.reserved = prefixes("10.244.0.60/32") })
	a := agents["a"]
	a.waitPasses()
	ask := func(name, address string) cniwire.Request {
		api.change(func(f *fakeAPI) {
			if f.words == nil {
				f.words = map[string]kube.PodWords{}
			}
			f.words["default/"+name] = kube.PodWords{Annotations: map[string]string{pool.AnnotationIPs: `["` + address + `"]`}}
		})
		return cniwire.Request{Verb: cniwire.Add, Attachment: attachment(name), IPAM: "ropeway-ipam", Pod: cniwire.Pod{Namespace: "default", Name: name, UID: "u"}}
	}
	for name, address := range map[string]string{"own": "10.244.0.50", "pool": "10.244.0.105"} {
		if resp, err := a.call(ask(name, address)); err != nil || resp.Addresses[0].String() != address {
			t.Errorf("%s: %v, %v", address, resp.Addresses, err)
		}
	}
	for address, says := range map[string]string{
		"10.244.0.50":  "held by", // by the pod above
		"10.244.0.1":   "cannot give it",
		"10.244.0.60":  "cannot give it",
		"10.244.0.120": "cannot give it",
		"192.0.2.1":    "cannot give it",
		"fd00::1":      "cannot give it",
		"what":         "no address",
	} {
		a.refused(ask("x", address), cniwire.CodeNoAddress, says)
	}
	if got := a.node.book.Count(); got != 2 {
		t.Errorf("%d addresses are held", got)
	}
}

// TestUnknownPodWaits: what a pod asks for is never guessed.
func TestUnknownPodWaits(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.0.100-10.244.0.110"))
	a := agents["a"]
	api.change(func(f *fakeAPI) { f.unknown = true })
	req := cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p1"), IPAM: "ropeway-ipam", Pod: cniwire.Pod{Namespace: "default", Name: "p1", UID: "uid-p1"}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if resp, err := cniwire.Call(ctx, a.root+"/run/cni.sock", req); err == nil {
		t.Fatalf("a pod that is not known got %v", resp.Addresses)
	}
	answer := make(chan error, 1)
	var got cniwire.Response
	go func() {
		var err error
		got, err = a.call(req)
		answer <- err
	}()
	api.change(func(f *fakeAPI) {
		f.words = map[string]kube.PodWords{"default/p1": {Annotations: map[string]string{pool.AnnotationPool: `{"ipv4": ["p"]}`}}}
	})
	if err := <-answer; err != nil || got.Addresses[0].String() != "10.244.0.100" {
		t.Errorf("once it is known: %v, %v", got.Addresses, err)
	}
	req.Attachment.ContainerID, req.Pod.Name = "p2", "p2"
	_, err := a.call(req)
	if spoken, ok := errors.AsType[*cniwire.Error](err); !ok || spoken.Code != cniwire.CodeTryAgainLater || !strings.Contains(spoken.Msg, "not known yet") {
		t.Errorf("one that stays unknown: %v", err)
	}
}

// TestPodsThatAskWithoutAPI: an agent that starts while the API server is down
// knows what the pods asked for that its predecessor knew, and waits for others.
func TestPodsThatAskWithoutAPI(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.0.100-10.244.0.110"))
	a := agents["a"]
	api.sayOf("p1", kube.PodWords{UID: "uid-p1", Annotations: map[string]string{pool.AnnotationPool: `{"ipv4": ["p"]}`}})
	a.waitPasses()
	a.stop()
	api.change(func(f *fakeAPI) { f.down, f.unread = true, true })
	a.machine.config.timing.addWait = 50 * time.Millisecond
	again := a.machine.start()
	again.waitServing()
	if got, err := again.try("c1", podNamed("p1")); err != nil || got.String() != "10.244.0.100" {
		t.Errorf("a pod that was known: %v, %v", got, err)
	}
	for what, pod := range map[string]cniwire.Pod{"one that was not": podNamed("p2"), "another of the name": {Namespace: "default", Name: "p1", UID: "another"}} {
		if got, err := again.try("c2", pod); err == nil || !strings.Contains(err.Error(), "not known yet") {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
}

// TestPoolsWithoutAPI: an agent that starts while the API server is down goes on
// with the pools that its predecessor knew, whatever they select the node by.
func TestPoolsWithoutAPI(t *testing.T) {
	byLabel := func(p *pool.Pool) { p.Nodes = &pool.Selector{Labels: map[string]string{"zone": "x"}} }
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.0.2-10.244.0.9", isDefault, byLabel), spiderPool(t, "q", "10.244.0.16-10.244.0.23", byLabel))
	api.change(func(f *fakeAPI) { f.labels = map[string]map[string]string{"a": {"zone": "x"}} })
	api.sayOf("p3", kube.PodWords{Annotations: map[string]string{pool.AnnotationPool: `{"ipv4": ["q"]}`}})
	a := agents["a"]
	a.waitPasses()
	first := a.add("p1")
	a.stop()
	api.change(func(f *fakeAPI) { f.down = true })
	again := a.machine.start()
	again.waitServing()
	got := again.add("p2")
	if slices.Equal(got, first) || !api.pools[0].Contains(got[0]) || !api.pools[0].Contains(first[0]) {
		t.Errorf("of the default pool, p1 has %v, p2 %v", first, got)
	}
	if got := again.add("p3"); !api.pools[1].Contains(got[0]) {
		t.Errorf("of the pool that it names, p3 has %v", got)
	}
}

// TestInterfacesOfOnePod: each interface of a pod has an address of its own, of
// the same pool too, is told the pool's network each time that it asks, and lives
// apart from the others.
func TestInterfacesOfOnePod(t *testing.T) {
	gateway, routes := netip.MustParseAddr("10.244.0.254"), []pool.Route{{Dst: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("10.244.0.253")}}
	_, agents := twoNodes(t, spiderPool(t, "two", "10.244.0.2-10.244.0.3", isDefault, func(p *pool.Pool) { p.Gateways, p.Routes = []netip.Addr{gateway}, routes }))
	a := agents["a"]
	ask := func(verb cniwire.Verb, container, ifName string) cniwire.Request {
		at := attachment(container)
		at.IfName = ifName
		return cniwire.Request{Verb: verb, Attachment: at, IPAM: "spiderpool", Pod: podNamed(container)}
	}
	add := func(ifName, want string) {
		t.Helper()
		got, err := a.call(ask(cniwire.Add, "p", ifName))
		if err != nil || fmt.Sprint(got.Addresses) != "["+want+"]" {
			t.Errorf("%s has %v, %v; want %s", ifName, got.Addresses, err, want)
		}
		if network := fmt.Sprint(got.Subnets, got.Gateways, got.Routes); network != "[10.244.0.0/16] [10.244.0.254] [{192.0.2.0/24 10.244.0.253}]" {
			t.Errorf("%s is told the network %s, which is not its pool's", ifName, network)
		}
	}
	for range 2 { // the second time as a runtime that lost the answer asks
		add("eth0", "10.244.0.2")
		add("net1", "10.244.0.3")
	}
	a.refused(ask(cniwire.Add, "p", "net2"), cniwire.CodeTryAgainLater, "2 addresses: 2 held")
	if _, err := a.call(ask(cniwire.Del, "p", "eth0")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.call(ask(cniwire.Check, "p", "net1")); err != nil {
		t.Errorf("CHECK of the other interface: %v", err)
	}
	add("net1", "10.244.0.3")
	if got := a.node.book.Count(); got != 1 {
		t.Errorf("%d addresses are held, want net1's", got)
	}
}

// TestRoutesGoByFamily: of a pool of both families, an interface with an address of
// one has the routes of that one.
func TestRoutesGoByFamily(t *testing.T) {
	route := func(dst, via string) pool.Route {
		return pool.Route{Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(via)}
	}
	_, agents := twoNodes(t, spiderPool(t, "p", "10.244.0.2-10.244.0.3", isDefault, func(p *pool.Pool) {
		p.Subnets = append(p.Subnets, netip.MustParsePrefix("fd00::/64"))
		p.Routes = []pool.Route{route("10.0.0.0/8", "10.244.0.1"), route("fd01::/16", "fd00::1")}
	}))
	got, err := agents["a"].call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p"), IPAM: "spiderpool", Pod: podNamed("p")})
	if err != nil || fmt.Sprint(got.Routes) != "[{10.0.0.0/8 10.244.0.1}]" {
		t.Errorf("routes %v, %v", got.Routes, err)
	}
}

// TestExactAddressIsForOneInterface: what a pod's annotation asks for is its first
// interface's, also when a sandbox is made anew; the others get any address.
func TestExactAddressIsForOneInterface(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.0.100-10.244.0.110", isDefault))
	a := agents["a"]
	a.waitPasses()
	api.sayOf("p", kube.PodWords{Annotations: map[string]string{pool.AnnotationIPs: `["10.244.0.105"]`}})
	ask := func(container, ifName string) cniwire.Request {
		at := attachment(container)
		at.IfName = ifName
		return cniwire.Request{Verb: cniwire.Add, Attachment: at, IPAM: "spiderpool", Pod: podNamed("p")}
	}
	for range 2 { // the second time as a runtime that lost the answer asks
		for _, one := range [][2]string{{"eth0", "10.244.0.105"}, {"net1", "10.244.0.100"}} {
			if got, err := a.call(ask("c1", one[0])); err != nil || fmt.Sprint(got.Addresses) != "["+one[1]+"]" {
				t.Errorf("%s has %v, %v; want %s", one[0], got.Addresses, err, one[1])
			}
		}
	}
	// The next sandbox of the pod waits for the address rather than do without.
	a.refused(ask("c2", "eth0"), cniwire.CodeNoAddress, "held by")
}

// TestPoolShrinks: an address that its pool states no more stays its pod's, and
// neither the pool nor what serves by itself gives it again.
func TestPoolShrinks(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.0.2-10.244.0.5"))
	api.change(func(f *fakeAPI) {
		f.words = map[string]kube.PodWords{}
		for _, name := range []string{"p0", "p1", "p2", "p3", "p4"} {
			f.words["default/"+name] = kube.PodWords{Annotations: map[string]string{pool.AnnotationPool: `{"ipv4": ["p"]}`}}
		}
		f.words["default/exact"] = kube.PodWords{Annotations: map[string]string{pool.AnnotationIPs: `["10.244.0.2"]`}}
	})
	a := agents["a"]
	a.waitPasses()
	add := func(name, want string) {
		t.Helper()
		if got := a.add(name); fmt.Sprint(got) != "["+want+"]" {
			t.Errorf("%s has %v, want %s", name, got, want)
		}
	}
	add("p0", "10.244.0.2")
	add("p1", "10.244.0.3")
	api.change(func(f *fakeAPI) { f.pools = []*pool.Pool{spiderPool(t, "p", "10.244.0.4-10.244.0.5")} })
	a.waitPasses()
	add("plain", "10.244.0.6")
	add("p2", "10.244.0.4")
	add("p3", "10.244.0.5")
	ask := func(name string) cniwire.Request {
		return cniwire.Request{Verb: cniwire.Add, Attachment: attachment(name), IPAM: "ropeway-ipam", Pod: podNamed(name)}
	}
	a.refused(ask("p4"), cniwire.CodeTryAgainLater, "2 addresses: 2 held")
	a.refused(ask("exact"), cniwire.CodeNoAddress, "held by")
	a.stop()
	a = a.machine.start()
	a.waitServing()
	add("p0", "10.244.0.2")
	add("plain2", "10.244.0.7")
}
