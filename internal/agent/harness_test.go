package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/kube"
)

// fakeKernel has the pods' links that a test says.
type fakeKernel struct {
	mu      sync.Mutex
	links   []dataplane.PodLink
	foreign []addresses.ForeignPod
	reapErr error
	reaped  int // how often links were reaped
}

func (k *fakeKernel) PodLinks() ([]dataplane.PodLink, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.links), nil
}

func (k *fakeKernel) ForeignPods() ([]addresses.ForeignPod, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.foreign), nil
}

func (k *fakeKernel) ReapLinks() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reaped++
	return k.reapErr
}

// machine is a node that outlives its agents: directories, kernel, wire.
type machine struct {
	t         *testing.T
	name      string
	api       *fakeAPI
	root      string
	dataplane *dataplane.Fake
	kernel    *fakeKernel
	fabric    *probe.FakeFabric
	config    Config
}

func newMachine(t *testing.T, api *fakeAPI, fabric *probe.FakeFabric, name string) *machine {
	t.Helper()
	m := &machine{t: t, name: name, api: api, root: t.TempDir(), dataplane: dataplane.NewFake(), kernel: &fakeKernel{}, fabric: fabric}
	m.config = Config{NodeName: name, BinDir: m.root + "/bin", ConfDir: m.root + "/net.d", PluginSource: m.root + "/image",
		RunDir: m.root + "/run", HostLocalDir: m.root + "/cni/networks", ListenAddress: "127.0.0.1:0", Version: "test", Log: testLog(t),
		timing: timing{addWait: 5 * time.Second, lock: longEnough, resync: 200 * time.Millisecond, settle: time.Millisecond, reap: time.Millisecond,
			retryMin: 5 * time.Millisecond, retryMax: 50 * time.Millisecond, call: 500 * time.Millisecond}}
	for _, plugin := range []string{"ropeway-cni", "host-local", "portmap", "bandwidth"} {
		m.write("image/"+plugin, plugin)
	}
	return m
}

// testLog logs to the test, while it runs.
func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func (m *machine) write(path, content string) {
	m.t.Helper()
	full := filepath.Join(m.root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) conflist() string {
	data, err := os.ReadFile(m.root + "/net.d/10-ropeway.conflist")
	if err != nil {
		return ""
	}
	return string(data)
}

// agent is one run of the agent on a machine.
type runningAgent struct {
	*machine
	node   *node
	client *fakeClient
	words  func(cniwire.Pod) (kube.PodWords, bool) // of a client that is not a fake
	stop   func()
}

// start starts an agent; the test's end stops it.
func (m *machine) start() *runningAgent {
	m.t.Helper()
	return m.startWith(m.dataplane)
}

func (m *machine) startWith(dp dataplane.Dataplane) *runningAgent {
	m.t.Helper()
	c := m.api.client(m.name)
	a := m.startOn(parts{dataplane: dp, changes: m.dataplane.Changes(m.t.Context()), client: c, kernel: m.kernel, wire: m.fabric.Wire()})
	a.client = c
	return a
}

// startOn starts an agent on any parts.
func (m *machine) startOn(p parts) *runningAgent {
	m.t.Helper()
	cfg := m.config
	cfg.Defaults()
	if err := cfg.Validate(); err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n, err := newNode(ctx, cfg, p)
	if err != nil {
		cancel()
		m.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- errors.Join(n.work(ctx, p), n.book.Close()) }()
	a := &runningAgent{machine: m, node: n}
	a.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				m.t.Errorf("the agent of %s ended with %v", m.name, err)
			}
		case <-time.After(longEnough):
			m.t.Errorf("the agent of %s did not stop", m.name)
		}
	})
	m.t.Cleanup(a.stop)
	return a
}

// longEnough bounds what tests wait for. On a machine with forty runnable
// processes the kernel alone takes ten seconds to set a node up for the first
// time (eBPF programs, nft, devices), and joining takes three such rounds.
const longEnough = 2 * time.Minute

// eventually waits for a condition, which returns "" when it holds and else
// what is missing.
func eventually(t *testing.T, missing func() string) {
	t.Helper()
	deadline := time.After(longEnough)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		what := missing()
		if what == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("waited for too long: %s", what)
		case <-tick.C:
		}
	}
}

// call sends a request to the agent's real socket.
func (a *runningAgent) call(req cniwire.Request) (cniwire.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), longEnough)
	defer cancel()
	return cniwire.Call(ctx, a.root+"/run/cni.sock", req)
}

func attachment(container string) cniwire.Attachment {
	return cniwire.Attachment{Network: "k8s-pod-network", ContainerID: container, IfName: "eth0"}
}

// add adds a pod, which must succeed, and returns its addresses.
func (a *runningAgent) add(container string) []netip.Addr {
	a.t.Helper()
	resp, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment(container), IPAM: "ropeway-ipam",
		Pod: cniwire.Pod{Namespace: "default", Name: container, UID: "uid-" + container}})
	if err != nil {
		a.t.Fatalf("ADD %s: %v", container, err)
	}
	return resp.Addresses
}

// refused sends a request that must fail, and returns the error.
func (a *runningAgent) refused(req cniwire.Request, code uint, says string) {
	a.t.Helper()
	_, err := a.call(req)
	spoken, ok := errors.AsType[*cniwire.Error](err)
	if !ok || spoken.Code != code || !strings.Contains(spoken.Error(), says) {
		a.t.Errorf("%s: got %v, want code %d and %q", req.Verb, err, code, says)
	}
}

// waitPasses waits until the node loop has looked at everything again, twice:
// what it would do about what is so now, it has done.
func (a *runningAgent) waitPasses() {
	a.t.Helper()
	for range 3 {
		last := a.node.beat.Load()
		eventually(a.t, func() string {
			if a.node.beat.Load() == last {
				return "another pass of the node loop"
			}
			return ""
		})
	}
}

func (a *runningAgent) waitServing() {
	a.t.Helper()
	eventually(a.t, func() string {
		now, _ := a.node.board.get()
		return now.notReady
	})
}

// waitNotServing waits until the agent says so, and why.
func (a *runningAgent) waitNotServing(why string) {
	a.t.Helper()
	eventually(a.t, func() string {
		if now, _ := a.node.board.get(); !strings.Contains(now.notReady, why) {
			return fmt.Sprintf("%q as the reason, which is %q", why, now.notReady)
		}
		return ""
	})
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
