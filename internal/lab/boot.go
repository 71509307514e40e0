package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ropeway.dev/ropeway/internal/lab/build"
	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/images"
	"ropeway.dev/ropeway/internal/lab/launch"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
	"ropeway.dev/ropeway/internal/lab/preflight"
	"ropeway.dev/ropeway/internal/lab/source"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// boot is one run of `up`: the steps from nothing to a cluster.
type boot struct {
	options  Options
	lab      *Lab
	lock     *ledger.Lock
	layout   cgroup.Layout
	archives []string // names in the lab's image directory
	dnsImage string
}

func (b *boot) say(format string, args ...any) { b.options.Progress(fmt.Sprintf(format, args...)) }

func (b *boot) manifest() *ledger.Manifest { return b.lab.manifest }

// run takes every step in order. What it makes is found by the lab's name, and
// the manifest that lists the hosts is on disk before the first of them is.
func (b *boot) run(ctx context.Context) error {
	watched, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	for _, step := range []func(context.Context) error{
		b.programs, b.images, b.secrets, b.network, b.imageStore, b.hosts,
		func(ctx context.Context) error { go b.watch(ctx, giveUp); return nil },
		b.controlPlane, b.nodes, b.podNetwork,
	} {
		if err := step(watched); err != nil {
			if cause := context.Cause(watched); cause != nil && ctx.Err() == nil {
				return cause // What the watch saw explains why the step failed.
			}
			return err
		}
		if err := watched.Err(); err != nil {
			return context.Cause(watched)
		}
	}
	b.manifest().Phase = ledger.Running
	return b.save()
}

// watchInterval is how often the hosts are looked at while they are needed.
const watchInterval = 500 * time.Millisecond

// watch gives a boot up as soon as a host goes down or one of its programs
// cannot run, rather than when somebody has waited for it in vain.
func (b *boot) watch(ctx context.Context, giveUp context.CancelCauseFunc) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		for _, h := range b.manifest().Hosts {
			if _, err := b.lab.look(h, b.programsOf(h)); err != nil {
				giveUp(err)
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// programsOf are the names of all programs of a host.
func (b *boot) programsOf(h ledger.Host) []string {
	var programs []string
	for _, p := range describe(b.manifest(), h, b.lab.Dir(), b.layout).Programs {
		programs = append(programs, p.Name)
	}
	return programs
}

func (b *boot) save() error { return b.lab.store.Write(b.manifest()) }

// programs checks the machine, builds what is missing and fills the lab's bin
// directory, this program included.
func (b *boot) programs(ctx context.Context) error {
	if b.options.Source == "" {
		root, err := source.Here()
		if err != nil {
			return err
		}
		b.options.Source = root
	}
	builder := b.builder()
	missing, err := builder.Missing()
	if err != nil {
		return err
	}
	needs := preflight.Needs{
		Nodes: b.options.Nodes, ProxyMode: b.options.ProxyMode,
		Building: len(missing) > 0, Compiler: strings.Contains(strings.Join(missing, " "), "runc"),
		StateDir: b.lab.Dir(), CacheDir: b.options.Cache,
	}
	if err := preflight.Check(ctx, needs); err != nil {
		return err
	}
	if b.layout, err = cgroup.Detect(); err != nil {
		return err
	}
	if len(missing) > 0 {
		b.say("building %d programs for the lab: once, about 10 minutes on two cores", len(missing))
	}
	if err := builder.Install(ctx, binDir(b.lab.Dir())); err != nil {
		return err
	}
	return b.placeSelf(ctx)
}

func (b *boot) builder() *build.Builder {
	return &build.Builder{Source: b.options.Source, Cache: filepath.Join(b.options.Cache, "parts"), Progress: b.options.Progress}
}

// selfPackage is the main package of ropeway-lab.
const selfPackage = source.Module + "/cmd/ropeway-lab"

// placeSelf puts ropeway-lab into the lab's bin directory, since hosts run it
// as their first process: a copy, for the lab must survive a rebuild. Another
// program (a test) that boots a lab builds it first.
func (b *boot) placeSelf(ctx context.Context) error {
	target := filepath.Join(binDir(b.lab.Dir()), "ropeway-lab")
	if info, ok := debug.ReadBuildInfo(); ok && info.Path == selfPackage {
		return build.Copy("/proc/self/exe", target)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", target, selfPackage)
	cmd.Dir = b.options.Source
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build ropeway-lab for the lab's hosts: %w\n%s", err, out)
	}
	return nil
}

// images builds the lab's images, or takes them from the cache, and puts them
// where they are imported from.
func (b *boot) images(ctx context.Context) error {
	program := func(name string) (string, error) {
		path := b.lab.Binary(name)
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("the lab has no program %s: %w", name, err)
		}
		return path, nil
	}
	built, err := images.Build(ctx, program, filepath.Join(b.options.Cache, "images"), b.options.Progress)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(imageDir(b.lab.Dir()), 0o755); err != nil {
		return fmt.Errorf("make the lab's image directory: %w", err)
	}
	for i, image := range built {
		name := fmt.Sprintf("%d-%s", i, filepath.Base(image.Path))
		if err := build.Place(image.Path, filepath.Join(imageDir(b.lab.Dir()), name)); err != nil {
			return err
		}
		b.archives = append(b.archives, name)
		if strings.Contains(image.Ref, "/coredns:") {
			b.dnsImage = image.Ref
		}
	}
	if b.dnsImage == "" {
		return errors.New("no image of CoreDNS is among the lab's images")
	}
	return nil
}

// secrets makes the hosts' directories and fills them.
func (b *boot) secrets(context.Context) error {
	for _, h := range b.manifest().Hosts {
		if err := makeHostDirs(h); err != nil {
			return err
		}
	}
	if err := writeSecrets(b.manifest(), time.Now()); err != nil {
		return err
	}
	if b.manifest().Switch {
		return nil
	}
	return writeCloud(b.manifest())
}

func makeHostDirs(h ledger.Host) error {
	dirs := []string{"scratch", "lib/etcd", "lib/kubelet", "cni-etc/net.d", "cni-opt/bin"}
	for name := range hostDirs() {
		dirs = append(dirs, name)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(h.Dir, dir), 0o755); err != nil {
			return fmt.Errorf("make the directories of host %s: %w", h.Name, err)
		}
	}
	// etcd insists on it.
	if err := os.Chmod(filepath.Join(h.Dir, "lib/etcd"), 0o700); err != nil {
		return fmt.Errorf("make the directories of host %s: %w", h.Name, err)
	}
	return nil
}

func (b *boot) network(ctx context.Context) error {
	if err := vpc.Up(ctx, network(b.manifest())); err != nil {
		return fmt.Errorf("make the lab's VPC: %w", err)
	}
	b.say("VPC is up: %d hosts, each in a vSwitch of its own", len(network(b.manifest()).Hosts))
	return nil
}

// hosts starts the first process of every host.
func (b *boot) hosts(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i := range b.manifest().Hosts {
		h := &b.manifest().Hosts[i]
		group.Go(func() (err error) {
			h.Init, err = b.start(ctx, *h)
			return err
		})
	}
	err := group.Wait()
	// Also when a host failed: the others are in the book.
	return errors.Join(err, b.save())
}

func (b *boot) start(ctx context.Context, h ledger.Host) (ledger.Process, error) {
	spec := describe(b.manifest(), h, b.lab.Dir(), b.layout)
	if h.Role == ledger.Node {
		var err error
		if spec, err = newBoot(spec); err != nil {
			return ledger.Process{}, err
		}
	}
	return b.launch(ctx, h, spec)
}

func (b *boot) launch(ctx context.Context, h ledger.Host, spec pidone.Spec) (ledger.Process, error) {
	group := ledger.HostCgroup(b.lab.Name(), h.Name)
	if err := b.layout.Create(group); err != nil {
		return ledger.Process{}, err
	}
	path := filepath.Join(h.Dir, "spec.json")
	if err := spec.Write(path); err != nil {
		return ledger.Process{}, err
	}
	return launch.Start(ctx, launch.Host{
		Binary: b.lab.Binary("ropeway-lab"), Netns: filepath.Join("/run/netns", h.Netns),
		Cgroup: group, Cgroups: b.layout, Spec: path, Log: filepath.Join(h.Logs(), "init.log"),
	}, b.lock.File())
}

// controlPlane waits for the control plane and gives the cluster its DNS.
func (b *boot) controlPlane(ctx context.Context) error {
	h := b.manifest().Hosts[0]
	if err := b.lab.await(ctx, h, "etcd", "kube-apiserver"); err != nil {
		return err
	}
	b.say("API server is ready at %s", b.lab.APIServer())
	if err := b.lab.await(ctx, h, "kube-controller-manager", "kube-scheduler"); err != nil {
		return err
	}
	manifest := strings.NewReader(config.DNS(clusterOf(b.manifest()), b.dnsImage))
	if _, err := b.lab.KubectlInput(ctx, manifest, "apply", "-f", "-"); err != nil {
		return fmt.Errorf("apply cluster DNS: %w", err)
	}
	return nil
}

// nodes lets the nodes join. Where the controller-manager gives them podCIDRs, they
// are created with them before their kubelets start: the first node has the first
// podCIDR, as in the scenario, whose address pools say so by name. The
// controller-manager alone does not keep the order: it may allocate twice for a
// node that it has just seen, and does not give what it then releases to the next.
func (b *boot) nodes(ctx context.Context) error {
	if b.options.AllocateNodeCIDRs {
		if err := b.createNodes(ctx); err != nil {
			return err
		}
	}
	for _, h := range b.manifest().Hosts {
		if h.Role != ledger.Node {
			continue
		}
		if err := os.WriteFile(gatePath(h), nil, 0o644); err != nil {
			return fmt.Errorf("let the kubelet of %s start: %w", h.Name, err)
		}
	}
	for _, n := range b.lab.Nodes() {
		if err := b.joined(ctx, n.Name); err != nil {
			return err
		}
	}
	b.say("nodes have joined: %s", strings.Join(nodeNames(b.lab.Nodes()), ", "))
	return b.settled(ctx)
}

// createNodes creates the Node objects.
func (b *boot) createNodes(ctx context.Context) error {
	var manifests []string
	for i, n := range b.lab.Nodes() {
		manifests = append(manifests, config.Node(clusterOf(b.manifest()), n.Name, i, b.options.CloudProvider == External))
	}
	if _, err := b.lab.KubectlInput(ctx, strings.NewReader(strings.Join(manifests, "---\n")), "create", "-f", "-"); err != nil {
		return fmt.Errorf("create the nodes with their podCIDRs: %w", err)
	}
	return nil
}

// joined waits until a node has registered: then it says what it has. It asks for
// one node at a time: `kubectl wait --for=create` of several goes on when the
// first is there, and then fails on the others.
func (b *boot) joined(ctx context.Context, node string) error {
	for _, condition := range []string{"create", "jsonpath={.status.capacity.cpu}"} {
		if _, err := b.lab.Kubectl(ctx, "wait", "--for="+condition, "--timeout=90s", "node/"+node); err != nil {
			return errors.Join(fmt.Errorf("wait for node %s to register: %w", node, err), b.lab.complaints())
		}
	}
	return nil
}

// settled waits until every program of every host runs.
func (b *boot) settled(ctx context.Context) error {
	for _, h := range b.manifest().Hosts {
		if err := b.lab.await(ctx, h, b.programsOf(h)...); err != nil {
			return err
		}
	}
	b.say("all programs run")
	return nil
}

func nodeNames(nodes []Node) []string {
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return names
}

// podNetwork installs the pod network, if one was asked for, and waits until
// nodes and cluster DNS are ready on it.
func (b *boot) podNetwork(ctx context.Context) error {
	install := b.options.Install
	if b.options.TestNetwork {
		install = installTestNetwork
	}
	if b.options.Bare || install == nil {
		b.say("nodes have no pod network and stay not ready until one is installed")
		return nil
	}
	if err := install(ctx, b.lab); err != nil {
		return fmt.Errorf("install the pod network: %w", err)
	}
	b.say("pod network is installed")
	return b.lab.AwaitReady(ctx)
}

// AwaitReady waits until all nodes and cluster DNS are ready, which takes a
// pod network.
func (l *Lab) AwaitReady(ctx context.Context) error {
	if _, err := l.Kubectl(ctx, "wait", "--for=condition=Ready", "node", "--all", "--timeout=120s"); err != nil {
		return errors.Join(fmt.Errorf("wait for the nodes to be ready: %w", err), l.complaints())
	}
	if _, err := l.Kubectl(ctx, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s"); err != nil {
		return fmt.Errorf("wait for cluster DNS: %w; see `ropeway-lab kubectl -- -n kube-system describe pods -l k8s-app=kube-dns`", err)
	}
	return nil
}
