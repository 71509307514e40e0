package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

func isDefault(p *pool.Pool) { p.Default = true }

// try is an ADD that may fail.
func (a *runningAgent) try(container string, pod cniwire.Pod) (netip.Addr, error) {
	resp, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment(container), IPAM: "spiderpool", Pod: pod})
	if err != nil {
		return netip.Addr{}, err
	}
	return resp.Addresses[0], nil
}

func podNamed(name string) cniwire.Pod {
	return cniwire.Pod{Namespace: "default", Name: name, UID: "uid-" + name}
}

// insist is an ADD that is tried again for as long as it is told to, as the
// kubelet does.
func (a *runningAgent) insist(container string, pod cniwire.Pod) netip.Addr {
	a.t.Helper()
	for range 20 {
		got, err := a.try(container, pod)
		if err == nil {
			return got
		}
		if !strings.Contains(err.Error(), "code 11") && !strings.Contains(err.Error(), "try again") {
			a.t.Logf("ADD %s on %s: %v", container, a.name, err)
		}
	}
	a.t.Errorf("ADD %s on %s did not succeed", container, a.name)
	return netip.Addr{}
}

func (a *runningAgent) del(container string) {
	a.t.Helper()
	if _, err := a.call(cniwire.Request{Verb: cniwire.Del, Attachment: attachment(container)}); err != nil {
		a.t.Errorf("DEL %s on %s: %v", container, a.name, err)
	}
}

// sayOf lets pods say something, with annotations, or as a StatefulSet's.
func (a *fakeAPI) sayOf(pod string, words kube.PodWords) {
	a.change(func(a *fakeAPI) {
		if a.words == nil {
			a.words = map[string]kube.PodWords{}
		}
		a.words["default/"+pod] = words
	})
}

// routeTo returns how a node's kernel reaches an address.
func (a *runningAgent) routeTo(address netip.Addr) plan.Route {
	state := a.node.look().State
	i := slices.IndexFunc(state.Routes, func(r plan.Route) bool { return r.Dst == netip.PrefixFrom(address, 32) })
	if i < 0 {
		return plan.Route{}
	}
	return state.Routes[i]
}

// TestSharedPool: a pool in no node's range serves pods on any node, down to its
// last address, and each is routed to the node that it is on.
func TestSharedPool(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.9.1-10.244.9.3", isDefault))
	a, b := agents["a"], agents["b"]
	held := map[netip.Addr]string{}
	for pod, on := range map[string]*runningAgent{"p1": a, "p2": b, "p3": a} {
		got := on.insist(pod, podNamed(pod))
		if other, twice := held[got]; twice || !netip.MustParsePrefix("10.244.9.0/30").Contains(got) {
			t.Errorf("%s has %s, which %q has", pod, got, other)
		}
		held[got] = pod
		peer := map[*runningAgent]*runningAgent{a: b, b: a}[on]
		eventually(t, func() string {
			if r := peer.routeTo(got); r.Peer != on.name || r.Transport != plan.IPIP {
				return fmt.Sprintf("a route by tunnel to %s on %s: %+v", got, on.name, r)
			}
			return ""
		})
	}
	// The next waits, and has what the first leaves, at once.
	_, err := b.try("p4", podNamed("p4"))
	if err == nil || !strings.Contains(err.Error(), "that nodes share are all in use") {
		t.Errorf("a fourth pod: %v", err)
	}
	waiting := make(chan netip.Addr)
	go func() { waiting <- b.insist("p4", podNamed("p4")) }()
	a.del("p1")
	if got := <-waiting; held[got] != "p1" {
		t.Errorf("p4 has %s, of %q", got, held[got])
	}
	eventually(t, func() string {
		if st := api.status("b"); st.Pools["SpiderIPPool/p"] != 2 {
			return fmt.Sprintf("b says that it has two of the pool: %v", st.Pools)
		}
		return ""
	})
}

// TestAsManyAddressesAsPods: every pod of a pool that is as large as the pods are
// many is made anew, all at once, on nodes of chance.
func TestAsManyAddressesAsPods(t *testing.T) {
	const pods = 12
	_, agents := twoNodes(t, spiderPool(t, "p", fmt.Sprintf("10.244.9.1-10.244.9.%d", pods), isDefault))
	on := func(pod, generation int) *runningAgent {
		return agents[[]string{"a", "b"}[(pod*7+generation*(pod%3))%2]]
	}
	for generation := range 3 {
		var wg sync.WaitGroup
		got := make([]netip.Addr, pods)
		for i := range pods {
			wg.Go(func() {
				name := fmt.Sprintf("p%d-%d", i, generation)
				got[i] = on(i, generation).insist(name, podNamed(name))
			})
			if generation > 0 {
				wg.Go(func() { on(i, generation-1).del(fmt.Sprintf("p%d-%d", i, generation-1)) })
			}
		}
		wg.Wait()
		slices.SortFunc(got, netip.Addr.Compare)
		if len(slices.Compact(got)) != pods {
			t.Fatalf("generation %d: %v", generation, got)
		}
	}
}

// TestStatefulSetKeepsItsAddress: over a restart on the node, and on another; not
// while the former sandbox is there.
func TestStatefulSetKeepsItsAddress(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.9.1-10.244.9.2", isDefault))
	a, b := agents["a"], agents["b"]
	for _, pod := range []string{"web-0", "web-1"} {
		api.sayOf(pod, kube.PodWords{StatefulSet: "web", StatefulSetUID: "uid-web"})
	}
	first := a.insist("c1", podNamed("web-0"))
	other := b.insist("c2", podNamed("web-1"))
	a.del("c1")
	if got := a.insist("c3", podNamed("web-0")); got != first {
		t.Errorf("web-0 had %s, and after a restart %s", first, got)
	}
	if got, err := b.try("c4", podNamed("web-0")); err == nil || !strings.Contains(err.Error(), "has not let go of it yet") {
		t.Errorf("while its sandbox on a is there, web-0 has %v on b: %v", got, err)
	}
	b.del("c2") // web-1's is free, and is not web-0's for that
	a.del("c3")
	if got := b.insist("c5", podNamed("web-0")); got != first {
		t.Errorf("web-0 had %s, and on another node %s", first, got)
	}
	if got := a.insist("c6", podNamed("web-1")); got != other {
		t.Errorf("web-1 had %s, and on another node %s", other, got)
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	kept := 0
	for _, l := range api.leases {
		if l.KeptFor != (share.Kept{}) {
			kept++
		}
	}
	if kept != 2 { // a view from before a lease was made leads to no second one
		t.Errorf("%d addresses are kept for two pods: %+v", kept, api.leases)
	}
}

// TestWhatWasDoneIsInTheView: nothing is decided on a view that was begun before
// something was done, though it comes to its end afterwards: it would lease a second
// address for a pod, or give again from a block that was given back.
func TestWhatWasDoneIsInTheView(t *testing.T) {
	_, agents := twoNodes(t, spiderPool(t, "p", "10.244.9.1-10.244.9.4", isDefault))
	a := agents["a"]
	a.insist("p1", podNamed("p1"))
	a.waitPasses()
	decidable := func() (share, lease bool) {
		n := a.node
		n.sharer.mu.Lock()
		defer n.sharer.mu.Unlock()
		n.leaser.mu.Lock()
		defer n.leaser.mu.Unlock()
		return n.sharer.input != nil, n.leaser.view != nil
	}
	eventually(t, func() string {
		if share, lease := decidable(); !share || !lease {
			return "views to decide on"
		}
		return ""
	})
	a.client.mu.Lock()
	a.client.viewed = func() { a.node.sharer.consume(); a.node.leaser.consume() }
	a.client.mu.Unlock()
	a.waitPasses()
	if share, lease := decidable(); share || lease {
		t.Errorf("a view that was begun before something was done counts: of single addresses %t, of blocks %t", share, lease)
	}
	a.client.mu.Lock()
	a.client.viewed = nil
	a.client.mu.Unlock()
	eventually(t, func() string {
		if share, lease := decidable(); !share || !lease {
			return "views to decide on, after nothing is done any more"
		}
		return ""
	})
}

// TestStatefulSetKeepsEachInterfacesAddress: a pod of a StatefulSet with two interfaces
// on one pool has both, and each keeps its own on another node, in whatever order they
// are made.
func TestStatefulSetKeepsEachInterfacesAddress(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.9.1-10.244.9.4", isDefault))
	api.sayOf("web-0", kube.PodWords{StatefulSet: "web", StatefulSetUID: "uid-web"})
	ask := func(verb cniwire.Verb, container, ifName string) cniwire.Request {
		at := attachment(container)
		at.IfName = ifName
		return cniwire.Request{Verb: verb, Attachment: at, IPAM: "spiderpool", Pod: podNamed("web-0")}
	}
	add := func(on, container, ifName string) (got netip.Addr) {
		t.Helper()
		var err error
		for range 20 { // as the kubelet does
			var resp cniwire.Response
			if resp, err = agents[on].call(ask(cniwire.Add, container, ifName)); err == nil {
				return resp.Addresses[0]
			}
		}
		t.Fatalf("ADD %s of web-0 on %s: %v", ifName, on, err)
		return got
	}
	first, second := add("a", "c1", "eth0"), add("a", "c1", "net1")
	if first == second {
		t.Fatalf("both interfaces have %s", first)
	}
	for _, ifName := range []string{"net1", "eth0"} {
		if _, err := agents["a"].call(ask(cniwire.Del, "c1", ifName)); err != nil {
			t.Fatal(err)
		}
	}
	if got := add("b", "c2", "net1"); got != second {
		t.Errorf("net1 had %s, and on another node %s", second, got)
	}
	if got := add("b", "c2", "eth0"); got != first {
		t.Errorf("eth0 had %s, and on another node %s", first, got)
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	for _, l := range api.leases {
		if of := map[netip.Addr]string{first: "", second: "net1"}[l.Address()]; l.IsSingle() && l.KeptFor.Interface != of {
			t.Errorf("%s is kept for interface %q, want %q", l.Address(), l.KeptFor.Interface, of)
		}
	}
}

// TestFixedAddressMoves: an address of a's podCIDR, asked for on b, goes there
// once a has let go of it: by a tunnel, and a gives it to nobody.
func TestFixedAddressMoves(t *testing.T) {
	api, agents := twoNodes(t)
	a, b := agents["a"], agents["b"]
	for _, pod := range []string{"fixed", "taken"} {
		address := map[string]string{"fixed": "10.244.0.2", "taken": "10.244.0.3"}[pod]
		api.sayOf(pod, kube.PodWords{Annotations: map[string]string{pool.AnnotationIPs: `["` + address + `"]`}})
	}
	if got := a.insist("c1", podNamed("fixed")); got.String() != "10.244.0.2" {
		t.Fatalf("on a: %s", got)
	}
	a.insist("c2", podNamed("taken"))
	if got, err := b.try("c3", podNamed("taken")); err == nil || !strings.Contains(err.Error(), "pod default/taken has the address 10.244.0.3 on node a") {
		t.Errorf("while a pod on a has it: %v, %v", got, err)
	}
	a.del("c1")
	if got := b.insist("c4", podNamed("fixed")); got.String() != "10.244.0.2" {
		t.Errorf("on b: %s", got)
	}
	eventually(t, func() string {
		if r := a.routeTo(netip.MustParseAddr("10.244.0.2")); r.Peer != "b" || r.Transport != plan.IPIP {
			return fmt.Sprintf("a's route to it: %+v", r)
		}
		return ""
	})
	for i := range 3 {
		if got := a.add(fmt.Sprint("more", i)); got[0].String() == "10.244.0.2" {
			t.Error("a gave it to another pod")
		}
	}
	b.del("c4")
	if got := a.insist("c5", podNamed("fixed")); got.String() != "10.244.0.2" {
		t.Errorf("back on a: %s", got)
	}
}

// TestSharedWithoutAPI: an agent that starts while the API server is down keeps
// what pods hold, and gives no single address that it cannot be sure of.
func TestSharedWithoutAPI(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.9.1-10.244.9.4", isDefault))
	a := agents["a"]
	first := a.insist("p1", podNamed("p1"))
	a.waitPasses()
	a.stop()
	api.change(func(f *fakeAPI) { f.down = true })
	m := a.machine
	again := m.start()
	again.waitServing()
	if got, err := again.try("p1", podNamed("p1")); err != nil || got != first {
		t.Errorf("p1 had %s and has %v, %v", first, got, err)
	}
	again.del("p1")
	if got, err := again.try("p2", podNamed("p2")); err == nil {
		t.Errorf("without the API server a new pod got %s", got)
	}
	api.change(func(f *fakeAPI) { f.down = false })
	again.insist("p3", podNamed("p3"))
}

// TestPodCIDRAfterSharing: a node whose podCIDR is assigned around a shared block
// gives nothing of the block, however late it hears of it.
func TestPodCIDRAfterSharing(t *testing.T) {
	api, agents := twoNodes(t, spiderPool(t, "p", "10.244.9.1-10.244.9.4", isDefault))
	shared := agents["a"].insist("p1", podNamed("p1"))
	api.addNode("c", "10.244.9.0/24")
	c := newMachine(t, api, agents["a"].fabric, "c").start()
	c.waitServing()
	api.change(func(f *fakeAPI) { f.pools = nil })
	c.waitPasses()
	for i := range 4 {
		if got := c.add(fmt.Sprint("c", i)); netip.MustParsePrefix("10.244.9.0/26").Contains(got[0]) {
			t.Errorf("c gave %s of the shared block, of which a has %s", got[0], shared)
		}
	}
	api.mu.Lock()
	defer api.mu.Unlock()
	if !slices.ContainsFunc(api.leases, func(l kube.Lease) bool { return l.Sharing == share.Confirmed }) {
		t.Errorf("leases: %+v", api.leases)
	}
}

// TestRefusedAddressIsHadLater: a node that refused an address to another, since a pod
// had it, lets it have the address once the pod is gone, though nothing else of what
// the other gives changed in between.
func TestRefusedAddressIsHadLater(t *testing.T) {
	api, agents := twoNodes(t)
	a, b := agents["a"], agents["b"]
	const address = "10.244.0.2"
	api.sayOf("fixed", kube.PodWords{Annotations: map[string]string{pool.AnnotationIPs: `["` + address + `"]`}})
	a.insist("c1", podNamed("fixed"))
	if got, err := b.try("c2", podNamed("fixed")); err == nil {
		t.Fatalf("on b, while a pod on a has it: %v", got)
	}
	a.del("c1")
	var err error
	for range 4 { // the first ones may come while the refusal stands
		if _, err = b.try("c3", podNamed("fixed")); err == nil {
			return
		}
	}
	t.Errorf("on b, once it is free: %v", err)
}
