package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/bench/scale"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/test/apiserver"
)

// The shared pools: of one there are as many addresses as pods, of the other a
// quarter more.
const (
	exactPool = "exact"
	sparePool = "spare"

	sharedTurns   = 3 // how often all pods are made anew
	sharedWriters = 16
	sharedPatient = 6 * time.Minute       // for one pool
	sharedRetry   = 50 * time.Millisecond // of an ADD that is to be tried again
)

// sharedRun measures shared pools: real agents and a real API server, and pods
// that are no more than what a plugin asks for.
type sharedRun struct {
	*bench
	api     client.Client
	config  *rest.Config
	hosts   *scale.Hosts
	cluster *scale.Cluster
	access  scale.Access
	agents  []*scale.Agent
	sockets []string

	controller *scale.Controller
}

// sharedPod is a pod on a node.
type sharedPod struct {
	node    int
	name    string
	uid     string
	address netip.Addr
}

// shared measures how fast pods get addresses that any node may give.
func (b *bench) shared(ctx context.Context) error {
	numbers := make([]int, b.sharedNodes)
	for i := range numbers {
		numbers[i] = i
	}
	return b.onBed(ctx, "shared", numbers, func(on bed) (err error) {
		s := &sharedRun{bench: b, hosts: on.hosts}
		defer func() { err = errors.Join(err, s.stop()) }()
		if err := s.start(ctx, on.server, on.dir); err != nil {
			return err
		}
		for _, name := range []string{exactPool, sparePool} {
			load := loadAverage()
			if err := s.measure(ctx, name, load > 1.5); err != nil {
				return fmt.Errorf("pool %s: %w", name, err)
			}
		}
		return nil
	})
}

// start makes the cluster's objects and starts controller and agents.
func (s *sharedRun) start(ctx context.Context, server *apiserver.Server, dir string) error {
	cfg, err := server.Config()
	if err != nil {
		return err
	}
	s.config = cfg
	cfg.QPS, cfg.Burst = 5000, 5000
	if s.access, err = scale.NewAccess(cfg, filepath.Join(s.programs, "ropeway"), dir); err != nil {
		return err
	}
	s.hosts.Use(s.access)
	if s.api, err = kube.NewClient(cfg); err != nil {
		return err
	}
	if s.cluster, err = scale.NewCluster(cfg); err != nil {
		return err
	}
	if s.controller, err = scale.StartController(ctx, s.access); err != nil {
		return err
	}
	network := &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterNetworkName}}
	network.Spec = v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.0.0.0/8"}, AddressSource: v1alpha1.AddressesFromNodeCIDR}
	objects := []client.Object{network,
		sharedPool(exactPool, netip.MustParsePrefix("10.200.0.0/16"), s.sharedPods),
		sharedPool(sparePool, netip.MustParsePrefix("10.201.0.0/16"), s.sharedPods+s.sharedPods/4)}
	for _, o := range objects {
		if err := s.api.Create(ctx, o); err != nil {
			return fmt.Errorf("create %s: %w", o.GetName(), err)
		}
	}
	for i := range s.sharedNodes {
		if _, err := s.cluster.Register(ctx, i); err != nil {
			return err
		}
		agentDir := filepath.Join(dir, scale.NodeName(i))
		a, err := s.hosts.StartAgentIn(ctx, agentDir, i)
		if err != nil {
			return err
		}
		s.agents, s.sockets = append(s.agents, a), append(s.sockets, filepath.Join(scale.RunDir(agentDir), filepath.Base(cniwire.SocketPath)))
	}
	return s.awaitAgents(ctx)
}

// sharedPool has the first addresses of a subnet.
func sharedPool(name string, subnet netip.Prefix, addresses int) *v1alpha1.AddressPool {
	first := subnet.Addr().Next()
	last := first
	for range addresses - 1 {
		last = last.Next()
	}
	p := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec = v1alpha1.AddressPoolSpec{Subnets: []string{subnet.String()}, Ranges: []string{first.String() + "-" + last.String()}}
	return p
}

func (s *sharedRun) awaitAgents(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, a := range s.agents {
		for {
			metrics, err := a.Metrics(ctx)
			if err == nil && metrics["ropeway_agent_ready"] == 1 {
				break
			}
			if err = errors.Join(a.Alive(), sleep(ctx, 100*time.Millisecond)); err != nil {
				return fmt.Errorf("the agent of node %d is not ready: %w", a.Node(), err)
			}
		}
	}
	return nil
}

func (s *sharedRun) stop() error {
	var errs []error
	for _, a := range s.agents {
		errs = append(errs, a.Stop())
	}
	if s.controller != nil {
		errs = append(errs, s.controller.Stop())
	}
	return errors.Join(errs...)
}

// measure creates all pods of a pool, makes all anew on other nodes again and
// again, and deletes them.
func (s *sharedRun) measure(ctx context.Context, name string, loaded bool) error {
	ctx, cancel := context.WithTimeout(ctx, sharedPatient)
	defer cancel()
	rates, calls := map[string][]float64{}, map[string][]float64{}
	before, err := scale.LeaseCalls(ctx, s.config)
	if err != nil {
		return err
	}
	note := func(phase string, took time.Duration) error {
		now, err := scale.LeaseCalls(ctx, s.config)
		rate, each := float64(s.sharedPods)/took.Seconds(), (now-before)/float64(s.sharedPods)
		rates[phase], calls[phase], before = append(rates[phase], rate), append(calls[phase], each), now
		s.say("shared: pool %s, %d pods on %d nodes: %s: %s addresses/s, %s calls about leases for each", name, s.sharedPods, s.sharedNodes, phase, number(rate), number(each))
		return err
	}
	pods, err := s.makePods(ctx, name, 0)
	if err != nil {
		return err
	}
	took, err := s.play(ctx, nil, pods)
	if err != nil {
		return err
	}
	if err := note("create", took); err != nil {
		return err
	}
	for turn := range sharedTurns {
		next, err := s.makePods(ctx, name, turn+1)
		if err != nil {
			return err
		}
		if took, err = s.play(ctx, pods, next); err != nil {
			return err
		}
		if err := note("again", took); err != nil {
			return err
		}
		pods = next
	}
	began := time.Now()
	if _, err = s.play(ctx, pods, nil); err == nil {
		err = s.awaitNoLease(ctx, pods)
	}
	if err != nil {
		return err
	}
	if err := note("delete", time.Since(began)); err != nil {
		return err
	}
	for phase, values := range rates {
		s.samples["shared."+phase+"."+name] = sample{values: values, loaded: loaded,
			detail: fmt.Sprintf("%d pods on %d nodes, agents that are asked as the plugin asks them; %s calls of the API server about leases for each", s.sharedPods, s.sharedNodes, number(median(calls[phase])))}
	}
	return nil
}

// makePods makes pod objects, each turn's on other nodes, which are not part of
// what is measured.
func (s *sharedRun) makePods(ctx context.Context, poolName string, turn int) ([]*sharedPod, error) {
	pods := make([]*sharedPod, s.sharedPods)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(sharedWriters)
	for i := range pods {
		p := &sharedPod{node: (i + turn) % s.sharedNodes, name: fmt.Sprintf("%s-%d-%d", poolName, turn, i)}
		pods[i] = p
		g.Go(func() error {
			o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: p.name,
				Annotations: map[string]string{pool.AnnotationPool: fmt.Sprintf(`{"ipv4": [%q]}`, poolName)}}}
			o.Spec = corev1.PodSpec{NodeName: scale.NodeName(p.node), Containers: []corev1.Container{{Name: "c", Image: "none"}}}
			err := s.api.Create(ctx, o)
			p.uid = string(o.UID)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("create pods: %w", err)
	}
	return pods, nil
}

// play ends some pods and starts others, all at once: a pod that starts follows
// one that ends. It returns how long it took until all are answered.
func (s *sharedRun) play(ctx context.Context, end, start []*sharedPod) (time.Duration, error) {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for i := range max(len(end), len(start)) {
		g.Go(func() error {
			if end != nil {
				if _, err := cniwire.Call(ctx, s.sockets[end[i].node], end[i].request(cniwire.Del)); err != nil {
					return fmt.Errorf("DEL of pod %s: %w", end[i].name, err)
				}
			}
			if start == nil {
				return nil
			}
			return s.add(ctx, start[i])
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return time.Since(began), distinct(start)
}

func (p *sharedPod) request(verb cniwire.Verb) cniwire.Request {
	return cniwire.Request{Verb: verb, Attachment: cniwire.Attachment{Network: "k8s-pod-network", ContainerID: p.name, IfName: "eth0"},
		Pod: cniwire.Pod{Namespace: metav1.NamespaceDefault, Name: p.name, UID: p.uid}, IPAM: "ropeway-ipam"}
}

// add asks until there is an address, as a kubelet does.
func (s *sharedRun) add(ctx context.Context, p *sharedPod) error {
	for {
		answer, err := cniwire.Call(ctx, s.sockets[p.node], p.request(cniwire.Add))
		if err == nil {
			p.address = answer.Addresses[0]
			return nil
		}
		refused, ok := errors.AsType[*cniwire.Error](err)
		if !ok || refused.Code != cniwire.CodeTryAgainLater {
			return fmt.Errorf("ADD of pod %s: %w", p.name, err)
		}
		if gone := sleep(ctx, sharedRetry); gone != nil {
			return fmt.Errorf("ADD of pod %s: %w", p.name, errors.Join(err, gone))
		}
	}
}

// distinct is an error if two pods have one address.
func distinct(pods []*sharedPod) error {
	has := map[netip.Addr]*sharedPod{}
	for _, p := range pods {
		if other := has[p.address]; other != nil {
			return fmt.Errorf("the pods %s and %s both have %s", p.name, other.name, p.address)
		}
		has[p.address] = p
	}
	return nil
}

// sharedLook is between looks at the leases that are left: each is a list of all.
const sharedLook = 200 * time.Millisecond

// awaitNoLease waits until no address that a pod had is leased any more. One that was
// leased for a pod which then had another is kept for a while, and no pod's.
func (s *sharedRun) awaitNoLease(ctx context.Context, pods []*sharedPod) error {
	had := make(map[netip.Prefix]bool, len(pods))
	for _, p := range pods {
		had[netip.PrefixFrom(p.address, p.address.BitLen())] = true
	}
	for {
		var all v1alpha1.AddressBlockList
		if err := s.api.List(ctx, &all); err != nil {
			return fmt.Errorf("read the leases: %w", err)
		}
		left := 0
		for i := range all.Items {
			if p, err := netip.ParsePrefix(all.Items[i].Spec.CIDR); err == nil && had[p] {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		if err := sleep(ctx, sharedLook); err != nil {
			return fmt.Errorf("%d addresses are leased, and no pod is left: %w", left, err)
		}
	}
}
