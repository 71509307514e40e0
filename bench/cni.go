package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/containernetworking/plugins/pkg/testutils"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// The hidden commands of the plugins' part; they are run on a node.
const (
	pluginCommand = "__plugin"
	paceCommand   = "__pace"
)

const (
	pace       = 10 // sandboxes added and deleted per second
	paceLength = 10 * time.Second
)

// Names of what is measured, in the order of the table.
const (
	ownPlugin      = "ropeway"
	ownHostLocal   = "ropeway with host-local"
	peerPlugin     = "ptp + host-local"
	bridgePlugin   = "bridge + host-local"
	ownChained     = "ropeway, portmap, bandwidth"
	peerChained    = "ptp + host-local, portmap, bandwidth"
	pluginState    = "/run/rwbench"
	pluginTurns    = 5   // rounds that count
	sandboxes      = 100 // in each round
	chainSandboxes = 10  // of chains, whose plugins take ten times as long
	atOnce         = 10
	firstHostPort  = 20000
)

// pluginRound is what one round of one plugin took.
type pluginRound struct {
	Add, Del                   []float64 // ms, one at a time
	AddPerSecond, DelPerSecond float64   // atOnce in parallel
}

// pluginRounds are all rounds.
type pluginRounds struct {
	Rounds map[string][]pluginRound // what is measured -> rounds
	// Empty is what an empty program takes to run, Wiring what the wiring of a
	// pod takes without any program; in ms.
	Empty, Wiring []float64
	Loaded        bool
}

// runPlugins is the command pluginCommand: confDir has the node's conflist, dir
// the reference plugins, podCIDR is the node's.
func runPlugins(ctx context.Context, confDir, dir, podCIDR string) error {
	contenders, err := contenders(confDir, podCIDR)
	if err != nil {
		return err
	}
	defer os.RemoveAll(pluginState)
	d := &driver{cni: libcni.NewCNIConfigWithCacheDir([]string{"/opt/cni/bin", dir}, filepath.Join(pluginState, "cache"), nil)}
	defer d.dropSandboxes()
	if err := d.makeSandboxes(sandboxes); err != nil {
		return err
	}
	r := pluginRounds{Rounds: map[string][]pluginRound{}}
	if r.Empty, err = floor(ctx, filepath.Join(dir, "empty")); err != nil {
		return err
	}
	if r.Wiring, err = d.wiring(); err != nil {
		return err
	}
	for turn := range pluginTurns + 1 {
		for i := range contenders {
			c := contenders[(i+turn)%len(contenders)]
			if err := d.awaitEmpty(ctx); err != nil {
				return err
			}
			round, err := d.round(ctx, c, turn)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if turn == 0 {
				continue // caches, leases
			}
			r.Rounds[c.name] = append(r.Rounds[c.name], round)
			fmt.Fprintf(os.Stderr, "         round %d: %s: ADD p50 %s ms, %s/s at %d in parallel; DEL p50 %s ms\n", turn, c.name,
				number(percentile(round.Add, 50)), number(round.AddPerSecond), atOnce, number(percentile(round.Del, 50)))
		}
	}
	r.Loaded = loadAverage() > 3 // the bench alone makes up to 2
	return json.NewEncoder(os.Stdout).Encode(r)
}

// runPace is the command paceCommand: for paceLength, a sandbox is added and
// another one deleted, pace times per second.
func runPace(ctx context.Context, confDir, podCIDR string) error {
	contenders, err := contenders(confDir, podCIDR)
	if err != nil {
		return err
	}
	defer os.RemoveAll(pluginState)
	d := &driver{cni: libcni.NewCNIConfigWithCacheDir([]string{"/opt/cni/bin"}, filepath.Join(pluginState, "cache"), nil)}
	defer d.dropSandboxes()
	if err := d.makeSandboxes(sandboxes); err != nil {
		return err
	}
	own := contenders[0].list
	tick := time.NewTicker(time.Second / pace)
	defer tick.Stop()
	for i := range int(paceLength.Seconds()) * pace {
		<-tick.C
		rc := d.runtimeConf("rwbench-pace", i%sandboxes)
		if _, err := d.cni.AddNetworkList(ctx, own, rc); err != nil {
			return err
		}
		if err := d.cni.DelNetworkList(ctx, own, rc); err != nil {
			return err
		}
	}
	return nil
}

// contender is a list of plugins that is measured.
type contender struct {
	name string
	list *libcni.NetworkConfigList
}

// contenders are the node's own plugin and the reference plugins, each alone and
// with the same plugins chained behind. Only addresses of the node's podCIDR may
// be given by host-local to our plugin: it has the upper half, since sandboxes of
// the two are never there at once but other pods are.
func contenders(confDir, podCIDR string) ([]contender, error) {
	own, err := ownPluginConf(confDir)
	if err != nil {
		return nil, err
	}
	hostLocal := func(subnet string) map[string]any {
		return map[string]any{"type": "host-local", "dataDir": pluginState + "/host-local", "subnet": subnet,
			"routes": []any{map[string]any{"dst": "0.0.0.0/0"}}}
	}
	delegating := maps.Clone(own)
	ipam := hostLocal(podCIDR)
	if ipam["rangeStart"], err = middle(podCIDR); err != nil {
		return nil, err
	}
	delegating["ipam"] = ipam
	ptp := map[string]any{"type": "ptp", "mtu": 1500, "ipam": hostLocal("10.98.0.0/16")}
	bridge := map[string]any{"type": "bridge", "bridge": "rwbench", "isGateway": true, "mtu": 1500, "ipam": hostLocal("10.99.0.0/16")}
	portmap := map[string]any{"type": "portmap", "snat": true, "capabilities": map[string]any{"portMappings": true}}
	bandwidth := map[string]any{"type": "bandwidth", "capabilities": map[string]any{"bandwidth": true}}
	var out []contender
	for _, c := range []struct {
		name    string
		plugins []map[string]any
	}{
		{ownPlugin, []map[string]any{own}},
		{ownHostLocal, []map[string]any{delegating}},
		{peerPlugin, []map[string]any{ptp}},
		{bridgePlugin, []map[string]any{bridge}},
		{ownChained, []map[string]any{own, portmap, bandwidth}},
		{peerChained, []map[string]any{ptp, portmap, bandwidth}},
	} {
		data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": fmt.Sprintf("rwbench%d", len(out)), "plugins": c.plugins})
		if err != nil {
			return nil, err
		}
		list, err := libcni.NetworkConfFromBytes(data)
		if err != nil {
			return nil, fmt.Errorf("the conflist of %s: %w", c.name, err)
		}
		out = append(out, contender{c.name, list})
	}
	return out, nil
}

// middle is the first address of the upper half of a range.
func middle(cidr string) (string, error) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil || !p.Addr().Is4() || p.Bits() > 24 {
		return "", fmt.Errorf("the node's podCIDR %q is no IPv4 range of at least 256 addresses (%w)", cidr, err)
	}
	a := p.Masked().Addr().As4()
	a[p.Bits()/8] |= 1 << (7 - p.Bits()%8)
	return netip.AddrFrom4(a).String(), nil
}

// ownPluginConf is the first plugin of the node's conflist.
func ownPluginConf(dir string) (map[string]any, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist"})
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("find the node's conflist in %s: %d files (%w)", dir, len(files), err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return nil, fmt.Errorf("read the node's conflist: %w", err)
	}
	var list struct {
		Plugins []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", files[0], err)
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("%s has no plugins", files[0])
	}
	return list.Plugins[0], nil
}

// driver adds and deletes sandboxes.
type driver struct {
	cni       *libcni.CNIConfig
	sandboxes []ns.NetNS
}

func (d *driver) makeSandboxes(n int) error {
	for range n {
		sandbox, err := testutils.NewNS()
		if err != nil {
			return fmt.Errorf("make a sandbox: %w", err)
		}
		d.sandboxes = append(d.sandboxes, sandbox)
	}
	return nil
}

// awaitEmpty waits until no sandbox has an interface: the agent may take what a DEL
// has retired down a moment later, where a runtime would remove the sandbox.
func (d *driver) awaitEmpty(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for i, s := range d.sandboxes {
		for {
			err := s.Do(func(ns.NetNS) error {
				_, err := netlink.LinkByName("eth0")
				return err
			})
			if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
				break
			}
			if err != nil {
				return fmt.Errorf("look into sandbox %d: %w", i, err)
			}
			if err := sleep(ctx, 50*time.Millisecond); err != nil {
				return fmt.Errorf("sandbox %d has its interface long after DEL: %w", i, err)
			}
		}
	}
	return nil
}

func (d *driver) dropSandboxes() {
	for _, s := range d.sandboxes {
		// What cannot be removed goes with the node.
		_ = s.Close()
		_ = testutils.UnmountNS(s)
	}
}

// round adds all sandboxes and deletes them: one at a time, and in parallel.
func (d *driver) round(ctx context.Context, c contender, turn int) (pluginRound, error) {
	var r pluginRound
	var err error
	list, n := c.list, sandboxes
	if len(list.Plugins) > 1 {
		n = chainSandboxes
	}
	add := func(id string) func(int) error {
		return func(i int) error {
			_, err := d.cni.AddNetworkList(ctx, list, d.runtimeConf(id, i))
			return err
		}
	}
	del := func(id string) func(int) error {
		return func(i int) error { return d.cni.DelNetworkList(ctx, list, d.runtimeConf(id, i)) }
	}
	one, ten := fmt.Sprintf("rwbench-%d-a", turn), fmt.Sprintf("rwbench-%d-b", turn)
	if r.Add, _, err = timed(n, 1, add(one)); err != nil {
		return r, err
	}
	if r.Del, _, err = timed(n, 1, del(one)); err != nil {
		return r, err
	}
	if _, r.AddPerSecond, err = timed(n, atOnce, add(ten)); err != nil {
		return r, err
	}
	_, r.DelPerSecond, err = timed(n, atOnce, del(ten))
	return r, err
}

func (d *driver) runtimeConf(id string, i int) *libcni.RuntimeConf {
	container := fmt.Sprintf("%s-%d", id, i)
	return &libcni.RuntimeConf{
		ContainerID: container, NetNS: d.sandboxes[i].Path(), IfName: "eth0",
		// No pod is named: the agent would wait for one that the API server
		// does not have, to know which address pools it asks for.
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_INFRA_CONTAINER_ID", container}},
		// For the plugins that declare the capability: a port, and 100 Mbit/s.
		CapabilityArgs: map[string]any{
			"portMappings": []map[string]any{{"hostPort": firstHostPort + i, "containerPort": 80, "protocol": "tcp"}},
			"bandwidth":    map[string]any{"ingressRate": 100_000_000, "ingressBurst": 10_000_000, "egressRate": 100_000_000, "egressBurst": 10_000_000},
		},
	}
}

// timed does one thing for each of n sandboxes, so many at a time, and returns
// what each took, in ms, and how many were done in a second.
func timed(n, parallel int, do func(i int) error) (took []float64, perSecond float64, err error) {
	took = make([]float64, n)
	var group errgroup.Group
	group.SetLimit(parallel)
	began := time.Now()
	for i := range n {
		group.Go(func() error {
			began := time.Now()
			if err := do(i); err != nil {
				return err
			}
			took[i] = milliseconds(time.Since(began))
			return nil
		})
	}
	err = group.Wait()
	return took, float64(n) / time.Since(began).Seconds(), err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// floor is what it takes to execute an empty program.
func floor(ctx context.Context, program string) ([]float64, error) {
	took, _, err := timed(sandboxes, 1, func(int) error { return exec.CommandContext(ctx, program).Run() })
	if err != nil {
		return nil, fmt.Errorf("run the empty program: %w", err)
	}
	return took, nil
}

// wiring is what the plugin's work in the kernel takes by itself.
func (d *driver) wiring() ([]float64, error) {
	attachment := func(i int) cniwire.Attachment {
		return cniwire.Attachment{Network: "rwbench-wiring", ContainerID: fmt.Sprint(i), IfName: "eth0"}
	}
	took, _, err := timed(sandboxes, 1, func(i int) error {
		_, err := podlink.Add(podlink.Config{
			Attachment: attachment(i), Netns: d.sandboxes[i].Path(), MTU: 1500,
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 97, 0, byte(i + 1)})},
		})
		return err
	})
	errs := []error{err}
	for i := range d.sandboxes {
		errs = append(errs, podlink.Del(attachment(i), d.sandboxes[i].Path()))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("wire sandboxes without a plugin: %w", err)
	}
	return took, nil
}
