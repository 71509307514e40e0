package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/ipam/journal"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// one returns a cluster of one node, and its machine.
func one(t *testing.T, podCIDRs ...string) (*fakeAPI, *machine) {
	t.Helper()
	api := newFakeAPI()
	api.addNode("a", podCIDRs...)
	return api, newMachine(t, api, probe.NewFakeFabric(), "a")
}

// TestConflistComesLast: invariant 3. The kernel is set, the
// node says so, the controller has spoken, and only then the conflist is there.
func TestConflistComesLast(t *testing.T) {
	api, m := one(t)
	a := m.start()
	eventually(t, func() string {
		if !api.status("a").Programmed.Status {
			return "the node has not said that it is programmed"
		}
		return ""
	})
	a.add("early") // the server works before the conflist is there
	a.waitPasses()
	if m.conflist() != "" {
		t.Fatal("the conflist is there before the controller has spoken")
	}
	if len(m.dataplane.States()) == 0 {
		t.Fatal("the node said it was programmed before it was")
	}
	api.say("a", true)
	eventually(t, func() string {
		if m.conflist() == "" {
			return "the conflist"
		}
		return ""
	})
	if info, err := os.Stat(m.root + "/net.d/10-ropeway.conflist"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(m.root + "/bin/ropeway"); err != nil {
		t.Errorf("the conflist is there and the plugin is not: %v", err)
	}
}

// TestConflistWaitsForProof: with the controller alive and another node Ready,
// the controller's word alone is not enough; nor are probes of a former node.
func TestConflistWaitsForProof(t *testing.T) {
	api, m := one(t)
	api.addNode("b")
	api.change(func(a *fakeAPI) {
		a.published["b"] = kube.NodeStatus{NodeUID: "uid-b", Sources: addrs("10.244.255.1"), Programmed: kube.Condition{Status: true},
			Probes: []kube.Probe{{Probe: plan.Probe{From: "b", To: "a", ToUID: "uid-former", Family: plan.IPv4, Transport: plan.VXLAN, Reachable: true}}}}
	})
	a := m.start()
	api.say("a", true)
	a.add("early")
	eventually(t, func() string {
		if !api.status("a").Programmed.Status {
			return "the node's word"
		}
		return ""
	})
	a.waitPasses()
	if m.conflist() != "" {
		t.Fatal("the conflist is there though nobody has reached the node")
	}
	api.change(func(a *fakeAPI) {
		st := a.published["b"]
		st.Probes = []kube.Probe{{Probe: plan.Probe{From: "b", To: "a", ToUID: "uid-a", Family: plan.IPv4, Transport: plan.VXLAN, Reachable: true}}}
		a.published["b"] = st
	})
	eventually(t, func() string {
		if m.conflist() == "" {
			return "the conflist, after a peer has reached the node"
		}
		return ""
	})
}

// TestJoinWithoutController: invariant 11. Two nodes join with nobody but one
// another, and each proves the other through the fabric.
func TestJoinWithoutController(t *testing.T) {
	api := newFakeAPI()
	api.alive = false
	api.addNode("a")
	api.addNode("b")
	fabric := probe.NewFakeFabric()
	ma, mb := newMachine(t, api, fabric, "a"), newMachine(t, api, fabric, "b")
	ma.start()
	mb.start()
	eventually(t, func() string {
		if ma.conflist() == "" || mb.conflist() == "" {
			return "conflists on both nodes"
		}
		return ""
	})
	eventually(t, func() string {
		for _, n := range []string{"a", "b"} {
			if len(api.status(n).Probes) != 2 {
				return "published results of both transports by " + n
			}
		}
		return ""
	})
}

// TestBrokenTransportIsLeft: where the fabric drops protocol 4, nodes find out
// and their plans use vxlan; a restart does not forget it.
func TestBrokenTransportIsLeft(t *testing.T) {
	api := newFakeAPI()
	api.addNode("a")
	api.addNode("b")
	fabric := probe.NewFakeFabric()
	fabric.Block(plan.IPIP, true)
	ma, mb := newMachine(t, api, fabric, "a"), newMachine(t, api, fabric, "b")
	a := ma.start()
	mb.start()
	eventually(t, func() string { return transportIs(ma, plan.VXLAN) })
	eventually(t, func() string {
		if e := api.status("a").Exceptions; len(e) != 1 || e[0].Node != "b" || e[0].Transport != plan.VXLAN {
			return "the exception in the NodeNetwork"
		}
		return ""
	})
	before := len(ma.dataplane.States())
	a.stop()
	ma.start().waitServing()
	eventually(t, func() string {
		if len(ma.dataplane.States()) < before+2 {
			return "the new agent to set the kernel twice"
		}
		return ""
	})
	for _, s := range ma.dataplane.States()[before:] {
		for _, r := range s.Routes {
			if r.Transport != plan.VXLAN {
				t.Errorf("a restart moved the route to %s to %s, which fails", r.Dst, r.Transport)
			}
		}
	}
}

func transportIs(m *machine, want plan.Transport) string {
	states := m.dataplane.States()
	if len(states) == 0 || len(states[len(states)-1].Routes) == 0 {
		return "a route on " + m.name
	}
	for _, r := range states[len(states)-1].Routes {
		if r.Transport != want {
			return "route to " + r.Dst.String() + " by " + string(want)
		}
	}
	return ""
}

// TestLiveChangeOfTransport: only routes change; leases, addresses and ranges
// stay, and pods are served all the while.
func TestLiveChangeOfTransport(t *testing.T) {
	api := newFakeAPI()
	api.addNode("a")
	api.addNode("b")
	fabric := probe.NewFakeFabric()
	ma, mb := newMachine(t, api, fabric, "a"), newMachine(t, api, fabric, "b")
	a := ma.start()
	mb.start().add("other")
	held := a.add("pod")
	eventually(t, func() string { return transportIs(ma, plan.IPIP) })
	before := ma.dataplane.States()[len(ma.dataplane.States())-1]
	leases := api.leasesOf("a")
	api.change(func(a *fakeAPI) { a.network.Transports = []plan.Transport{plan.VXLAN} })
	eventually(t, func() string { return transportIs(ma, plan.VXLAN) })
	after := ma.dataplane.States()[len(ma.dataplane.States())-1]
	if !slices.Equal(before.CIDRs, after.CIDRs) || !slices.Equal(before.Sources, after.Sources) || !slices.Equal(leases, api.leasesOf("a")) {
		t.Errorf("more than routes changed: %v -> %v", before, after)
	}
	if again := a.add("pod"); !slices.Equal(again, held) {
		t.Errorf("the pod's addresses changed from %v to %v", held, again)
	}
}

// TestKernelFailure: while the kernel cannot be set, nothing is served and
// nobody is told otherwise; it is tried again.
func TestKernelFailure(t *testing.T) {
	api, m := one(t)
	broken := errors.New("vxlan: operation not supported")
	m.config.timing.addWait = 50 * time.Millisecond
	failing := make([]error, 5000)
	for i := range failing {
		failing[i] = broken
	}
	m.dataplane.Fail(failing...)
	a := m.start()
	api.say("a", true)
	eventually(t, func() string {
		c := api.status("a").Programmed
		if c.Status || !strings.Contains(c.Message, "vxlan: operation not supported") {
			return "the failure in the NodeNetwork"
		}
		return ""
	})
	a.refused(cniwire.Request{Verb: cniwire.Status}, cniwire.CodeNotAvailable, "not set up yet")
	a.refused(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("p"), IPAM: "ropeway-ipam"}, cniwire.CodeTryAgainLater, "vxlan: operation not supported")
	if m.conflist() != "" {
		t.Error("the conflist is there on a node that cannot carry packets")
	}
	if code, body := get(a, "/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "vxlan") {
		t.Errorf("/readyz: %d %s", code, body)
	}
}

func get(a *runningAgent, path string) (int, string) {
	rec := httptest.NewRecorder()
	(&web{config: a.node.config, node: a.node}).handler().ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
	return rec.Code, rec.Body.String()
}

func TestHTTP(t *testing.T) {
	_, m := one(t)
	a := m.start()
	held := a.add("pod")
	for path, wants := range map[string][]string{
		"/healthz":  {"ok"},
		"/readyz":   {"ok"},
		"/v1/state": {`"node":"a"`, held[0].String(), `"podMTU":`, `"CIDRs"`},
		"/metrics":  {"ropeway_ipam_addresses_held 1", `ropeway_agent_cni_request_duration_seconds_count{code="0",verb="ADD"} 1`, "ropeway_agent_ready 1", `ropeway_agent_lease_calls_total{action="claim",result="success"} 1`},
	} {
		code, body := get(a, path)
		if code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
		for _, want := range wants {
			if !strings.Contains(body, want) {
				t.Errorf("%s lacks %q in\n%s", path, want, body)
			}
		}
	}
}

func TestStuckLoopIsUnhealthy(t *testing.T) {
	_, m := one(t)
	a := m.start()
	a.waitServing()
	a.stop()
	a.node.beat.Store(time.Now().Add(-stuckAfter - time.Second).UnixNano())
	if code, body := get(a, "/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "has not looked") {
		t.Errorf("%d %s", code, body)
	}
}

// TestPartOfTheKernel: a route that cannot be set, or a transport that the
// kernel lacks, does not keep a node from joining; it is told.
func TestPartOfTheKernel(t *testing.T) {
	api, m := one(t)
	api.addNode("b", "10.244.9.0/24")
	half := halfDataplane{m.dataplane}
	a := m.startWith(half)
	a.add("pod")
	eventually(t, func() string {
		st := api.status("a")
		if !st.Programmed.Status || st.Programmed.Reason != reasonPartly || !strings.Contains(st.Programmed.Message, "no route to host") {
			return "the partial failure in the NodeNetwork"
		}
		return ""
	})
	if code, _ := get(a, "/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d", code)
	}
}

// TestNewRangesWaitForTheKernel: while the kernel cannot be set, pods get
// addresses of the ranges that it has, and of no others.
func TestNewRangesWaitForTheKernel(t *testing.T) {
	api, m := one(t)
	m.config.timing.addWait = 50 * time.Millisecond
	dp := &switchedDataplane{Dataplane: m.dataplane}
	a := m.startWith(dp)
	a.waitServing()
	first := api.leasesOf("a")[0]
	dp.broken.Store(true)
	for i := range 61 { // a block of 64, less its base, the node's address, and one
		if got := a.add(fmt.Sprint("p", i)); !first.Contains(got[0]) {
			t.Fatalf("%v was given, and the kernel does not have its range", got)
		}
	}
	eventually(t, func() string {
		if len(api.leasesOf("a")) < 2 {
			return "another lease"
		}
		return ""
	})
	a.waitPasses()
	a.add("last")
	a.refused(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("late"), IPAM: "ropeway-ipam"}, cniwire.CodeTryAgainLater, "another block is being leased")
	dp.broken.Store(false)
	eventually(t, func() string {
		if _, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment("late"), IPAM: "ropeway-ipam"}); err != nil {
			return err.Error()
		}
		return ""
	})
}

// switchedDataplane can be broken and mended.
type switchedDataplane struct {
	dataplane.Dataplane
	broken atomic.Bool
}

func (d *switchedDataplane) Set(ctx context.Context, want plan.State) (dataplane.Report, error) {
	if d.broken.Load() {
		return dataplane.Report{}, errors.New("netlink: no buffer space available")
	}
	return d.Dataplane.Set(ctx, want)
}

// halfDataplane fails to set routes to peers.
type halfDataplane struct{ dataplane.Dataplane }

func (d halfDataplane) Set(ctx context.Context, want plan.State) (dataplane.Report, error) {
	report, err := d.Dataplane.Set(ctx, want)
	return report, errors.Join(err, errors.New("route to 10.244.9.0/24: no route to host"))
}

func TestPortInUse(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	_, m := one(t)
	m.config.ListenAddress = strings.TrimPrefix(server.URL, "http://")
	cfg := m.config
	cfg.Defaults()
	err := run(t.Context(), cfg, parts{dataplane: m.dataplane, client: m.api.client("a"), kernel: m.kernel, wire: m.fabric.Wire()})
	if err == nil || !strings.Contains(err.Error(), "is another program using the port") {
		t.Errorf("got %v, want a sentence about the port", err)
	}
}

// TestSecondAgent: an agent that is started by mistake beside another one touches
// nothing, says so and ends; one that is started while the former ends waits for it.
func TestSecondAgent(t *testing.T) {
	_, m := one(t)
	first := m.start()
	held := first.add("p1")
	start := func(lock time.Duration) (*node, error) {
		cfg := m.config
		cfg.timing.lock = lock
		cfg.Defaults()
		return newNode(t.Context(), cfg, parts{dataplane: m.dataplane, client: m.api.client("a"), kernel: m.kernel, wire: m.fabric.Wire()})
	}
	if _, err := start(time.Millisecond); !errors.Is(err, journal.ErrLocked) || !strings.Contains(err.Error(), "another agent is running") {
		t.Errorf("the second agent: %v", err)
	}
	if again := first.add("p1"); !slices.Equal(again, held) {
		t.Errorf("the first agent gave %v, and now %v", held, again)
	}
	go first.stop()
	n, err := start(longEnough)
	if err != nil {
		t.Fatalf("after the first: %v", err)
	}
	if err := n.book.Close(); err != nil {
		t.Error(err)
	}
}

// TestBrokenTemplate: what is installed stays, a person is told where the fault
// is, and a mended template is taken up.
func TestBrokenTemplate(t *testing.T) {
	api, m := one(t)
	m.write("template", `{"name": "net", "cniVersion": "0.3.1", "plugins": [{"type": "ropeway", "ipam": {"type": "ropeway-ipam"}}]}`)
	m.config.ConflistTemplateFile = filepath.Join(m.root, "template")
	a := m.start()
	api.say("a", false)
	eventually(t, func() string {
		if !strings.Contains(m.conflist(), `"net"`) {
			return "the conflist"
		}
		return ""
	})
	good := m.conflist()
	m.write("template", "{\n  \"name\": \"net\",,\n}")
	eventually(t, func() string {
		if !strings.Contains(a.client.eventsNow(), "line 2, column 17") {
			return "an event that says where: " + a.client.eventsNow()
		}
		return ""
	})
	eventually(t, func() string {
		if c := api.status("a").Conflist; c.Status || !strings.Contains(c.Message, "line 2, column 17") {
			return "the condition in the NodeNetwork"
		}
		return ""
	})
	if m.conflist() != good {
		t.Errorf("the conflist changed to %q", m.conflist())
	}
	if _, body := get(a, "/v1/state"); !strings.Contains(body, "line 2, column 17") {
		t.Errorf("the state does not say it: %s", body)
	}
	a.add("pod") // pods go on
	m.write("template", strings.Replace(good, `"net"`, `"net2"`, 1))
	eventually(t, func() string {
		if !strings.Contains(m.conflist(), "net2") || !api.status("a").Conflist.Status {
			return "the mended conflist, and the condition"
		}
		return ""
	})
}

func TestClean(t *testing.T) {
	api, m := one(t)
	m.config.TakeOver = []string{"calico"}
	m.write("bin/calico", "calico of calico")
	m.write("net.d/05-calico.conflist", `{"name": "c", "cniVersion": "1.0.0", "plugins": [{"type": "calico"}]}`)
	a := m.start()
	api.say("a", false)
	a.add("pod")
	eventually(t, func() string {
		if m.conflist() == "" {
			return "the conflist"
		}
		// It is set aside once ours is there.
		if _, err := os.Stat(m.root + "/net.d/05-calico.conflist"); !os.IsNotExist(err) {
			return fmt.Sprintf("that Calico's conflist does not hide it (%v)", err)
		}
		return ""
	})
	cfg := m.config
	cfg.Defaults()
	links := 0
	podLinks := func() error { links++; return nil }
	if err := clean(t.Context(), cfg, m.dataplane, podLinks); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("beside an agent that runs: %v, want %v", err, journal.ErrLocked)
	}
	if m.conflist() == "" || m.dataplane.Cleaned() || links > 0 {
		t.Error("a node was cleaned under an agent that runs")
	}
	a.stop()
	for range 2 {
		if err := clean(t.Context(), cfg, m.dataplane, podLinks); err != nil {
			t.Fatal(err)
		}
	}
	if links != 2 {
		t.Errorf("pods' links were removed %d times, want each time", links)
	}
	var left []string
	for _, dir := range []string{"bin", "net.d", "run"} {
		entries, err := os.ReadDir(filepath.Join(m.root, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, dir+"/"+e.Name())
		}
	}
	if got := strings.Join(left, " "); got != "bin/calico net.d/05-calico.conflist" {
		t.Errorf("left behind: %s", got)
	}
	if !m.dataplane.Cleaned() {
		t.Error("the kernel was not cleaned")
	}
}
