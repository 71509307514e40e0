package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// binaries builds the plugin as it is shipped, under all its names, and the
// reference plugins that the tests chain and delegate to. Once per run.
var binaries = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // a test's build cache
	dir := binDir
	const plugins = "github.com/containernetworking/plugins/plugins/"
	for _, args := range [][]string{
		{"-o", filepath.Join(dir, "ropeway"), "."},
		{"-o", dir + "/", plugins + "ipam/host-local", plugins + "main/ptp", plugins + "main/macvlan", plugins + "meta/portmap", plugins + "meta/bandwidth", plugins + "meta/tuning"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-p", "2"}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("go build %v: %w: %s", args, err, out)
		}
	}
	for _, name := range append(ipamNames(), "calico") {
		if err := os.Link(filepath.Join(dir, "ropeway"), filepath.Join(dir, name)); err != nil {
			return dir, err
		}
	}
	return dir, nil
})

var binDir string //nolint:gochecknoglobals // of binaries

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rwt-cni-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// node is a network namespace with an agent; /run and /var/lib are its own.
type node struct {
	t     *testing.T
	ns    *netnstest.NS
	bin   string
	agent *cniwire.FakeAgent
	cni   *libcni.CNIConfig
	reap  func() // the agent's; nil: one that does not
}

func newNode(t *testing.T, ranges ...string) *node {
	t.Helper()
	netnstest.NeedRoot(t)
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, ns: netnstest.New(t), bin: bin}
	n.ns.Enter(t)
	privateMounts(t)
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+key, []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil)
	n.startAgent(nil, ranges...)
	return n
}

// privateMounts gives the test's thread, and the plugins it starts, a /run and
// a /var/lib of their own, so that configurations run as they are written and
// nothing of the machine is touched. The thread ends with the test.
func privateMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	err := errors.Join(
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("rwt", "/run", "tmpfs", 0, ""),
		unix.Mount("rwt", "/var/lib", "tmpfs", 0, ""),
	)
	if err != nil {
		t.Fatalf("making private mounts: %v", err)
	}
}

func (n *node) startAgent(observe func(cniwire.Request), ranges ...string) {
	n.t.Helper()
	cfg := cniwire.FakeConfig{MTU: 1480, Observe: observe, Reap: n.reap}
	for _, r := range ranges {
		p := netip.MustParsePrefix(r)
		cfg.Ranges, cfg.NodeCIDRs = append(cfg.Ranges, p), append(cfg.NodeCIDRs, p)
	}
	n.startAgentWith(cfg)
}

func (n *node) startAgentWith(cfg cniwire.FakeConfig) {
	n.t.Helper()
	agent, err := cniwire.NewFakeAgent(cniwire.RunDir, cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.agent = agent
	n.t.Cleanup(agent.Close)
}

// pod is a sandbox.
type pod struct {
	*netnstest.NS
	rt *libcni.RuntimeConf
}

func (n *node) pod(id string) *pod {
	n.t.Helper()
	ns := netnstest.New(n.t)
	return &pod{NS: ns, rt: &libcni.RuntimeConf{
		ContainerID: id, NetNS: ns.Path(), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", "pod-" + id}, {"K8S_POD_UID", "uid-" + id}, {"K8S_POD_INFRA_CONTAINER_ID", id}},
	}}
}

func conflist(t *testing.T, version string, plugins ...string) *libcni.NetworkConfigList {
	t.Helper()
	if len(plugins) == 0 {
		plugins = []string{`{"type": "ropeway"}`}
	}
	list, err := libcni.NetworkConfFromBytes([]byte(fmt.Sprintf(`{"cniVersion": %q, "name": "rwt-net", "plugins": [%s]}`, version, strings.Join(plugins, ","))))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (n *node) add(list *libcni.NetworkConfigList, p *pod) (*types100.Result, error) {
	n.t.Helper()
	result, err := n.cni.AddNetworkList(n.t.Context(), list, p.rt)
	if err != nil {
		return nil, err
	}
	return types100.GetResult(result)
}

func (n *node) mustAdd(list *libcni.NetworkConfigList, p *pod) *types100.Result {
	n.t.Helper()
	r, err := n.add(list, p)
	if err != nil {
		n.t.Fatalf("ADD: %v", err)
	}
	return r
}

func (n *node) mustDel(list *libcni.NetworkConfigList, p *pod) {
	n.t.Helper()
	if err := n.cni.DelNetworkList(n.t.Context(), list, p.rt); err != nil {
		n.t.Fatalf("DEL: %v", err)
	}
}

// code is the specification's code of a failure, 0 if there is none in it.
func code(err error) uint {
	var e *types.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// run is one execution as a runtime does it, without a library between.
type run struct {
	name   string // of the plugin; ropeway if empty
	verb   string
	id     string // of the container; c1 if empty
	netns  string
	args   string
	conf   string
	stdout *os.File        // instead of the buffer
	ctx    context.Context // whose end is the process's; the test's if nil
	before func(*exec.Cmd)
}

func (n *node) run(r run) (stdout string, failure *types.Error) {
	n.t.Helper()
	if r.name == "" {
		r.name = "ropeway"
	}
	if r.id == "" {
		r.id = "c1"
	}
	if r.ctx == nil {
		r.ctx = n.t.Context()
	}
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, r.name))
	cmd.Env = []string{"CNI_COMMAND=" + r.verb, "CNI_CONTAINERID=" + r.id, "CNI_NETNS=" + r.netns, "CNI_IFNAME=eth0", "CNI_PATH=" + n.bin, "CNI_ARGS=" + r.args}
	cmd.Stdin = strings.NewReader(r.conf)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if r.stdout != nil {
		cmd.Stdout = r.stdout
	}
	if r.before != nil {
		r.before(cmd)
	}
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	if out.Len() == 0 {
		return "", &types.Error{Code: 0, Msg: err.Error() + ": " + stderr.String()}
	}
	failure = &types.Error{}
	if jsonErr := json.Unmarshal(out.Bytes(), failure); jsonErr != nil {
		n.t.Fatalf("%s failed (%v) and printed no error of the specification (section 5): %q, %q", r.verb, err, out.String(), stderr.String())
	}
	return out.String(), failure
}

// state is what an attachment could leave on the node. Neighbours that the
// kernel learns come and go at moments of their own: a pod's announce themselves.
func (n *node) state() string {
	n.t.Helper()
	var b strings.Builder
	for _, args := range [][]string{{"-o", "link"}, {"route", "show", "table", "all"}, {"-6", "route", "show", "proto", "112"}, {"neigh", "show", "nud", "permanent"}} {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			n.t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		b.Write(out)
	}
	files, err := filepath.Glob("/var/lib/cni/networks/*/[0-9]*")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f, "lock") && !strings.Contains(f, "last_reserved") {
			fmt.Fprintln(&b, f)
		}
	}
	return b.String()
}

func (n *node) ping(from *pod, to string) error {
	return from.Do(func() error {
		out, err := exec.Command("ping", "-c", "1", "-W", "3", to).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ping %s: %w: %s", to, err, out)
		}
		return nil
	})
}

func addrs(t *testing.T, r *types100.Result) []netip.Addr {
	t.Helper()
	out, err := addressesOf(r.IPs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (n *node) skelArgs(id string) *skel.CmdArgs {
	return &skel.CmdArgs{ContainerID: id, IfName: "eth0", Path: n.bin}
}
