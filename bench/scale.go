package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/bench/scale"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/plan"
)

// The two sizes of cluster that the claims are about.
const (
	smallNodes = 1000
	largeNodes = 5000
)

// How the lab's cloud behaves while a whole cluster's routes are published: a
// call takes cloudLatency, during which the VPC takes no other change, and an
// entry is Pending for cloudDelay.
const (
	cloudLatency = 100 * time.Millisecond
	cloudDelay   = 2 * time.Second
	maxBatch     = 50  // entries in a call
	listPage     = 100 // entries in a page of a listing
)

// idleTime is how long programs are left alone before their memory is read, and
// how long a restarted controller is watched for writes.
const idleTime = 12 * time.Second

// scaleRun is what the parts of the section share.
type scaleRun struct {
	*bench
	cfg     *rest.Config
	access  scale.Access
	cluster *scale.Cluster
	hosts   *scale.Hosts
	real    realNodes
	// small and large count the nodes of the two clusters.
	small, large int
}

// realNodes are the numbers of the nodes that have a real agent.
type realNodes struct {
	joiner   int   // joins again and again
	provers  []int // the nodes that prove the joiner
	observer int   // another, which learns from the provers
	large    int   // gets its agent when there are large nodes
}

func (r realNodes) all() []int { return append([]int{r.joiner, r.observer, r.large}, r.provers...) }

func (r realNodes) set() map[int]bool {
	out := map[int]bool{}
	for _, i := range r.all() {
		out[i] = true
	}
	return out
}

// chooseReal picks them: whom the joiner is proven by is a matter of names.
func chooseReal(small int) realNodes {
	joiner := small - 1
	r := realNodes{joiner: joiner}
	var nodes []plan.Node
	number := map[string]int{}
	for i := range small {
		number[scale.NodeName(i)] = i
		nodes = append(nodes, plan.Node{Name: scale.NodeName(i), Ready: true})
	}
	for _, name := range plan.Provers(nodes, scale.NodeName(joiner)) {
		r.provers = append(r.provers, number[name])
	}
	free := slices.DeleteFunc(slices.Collect(maps.Values(number)), func(i int) bool { return i == joiner || slices.Contains(r.provers, i) })
	slices.Sort(free)
	r.observer, r.large = free[0], free[1]
	return r
}

// scale measures controller and agents in clusters of thousands of nodes.
func (b *bench) scale(ctx context.Context) error {
	real := chooseReal(b.nodes[0])
	return b.onBed(ctx, "scale", real.all(), func(on bed) error {
		s := &scaleRun{bench: b, small: b.nodes[0], large: b.nodes[1], real: real, hosts: on.hosts}
		return s.playAll(ctx, on)
	})
}

func (s *scaleRun) playAll(ctx context.Context, on bed) (err error) {
	if s.cfg, err = on.server.Config(); err != nil {
		return err
	}
	if s.access, err = scale.NewAccess(s.cfg, filepath.Join(s.programs, "ropeway"), on.dir); err != nil {
		return err
	}
	if s.cluster, err = scale.NewCluster(s.cfg); err != nil {
		return err
	}
	s.hosts.Use(s.access)
	load := loadAverage()
	sizes := map[int]size{}
	if sizes[smallNodes], err = s.playSmall(ctx); err != nil {
		return fmt.Errorf("%d nodes: %w", s.small, err)
	}
	if sizes[largeNodes], err = s.playLarge(ctx); err != nil {
		return fmt.Errorf("%d nodes: %w", s.large, err)
	}
	s.claim(sizes, load > 1.5)
	return nil
}

// size is what was measured of a cluster of one size.
type size struct {
	controller controllerSize
	agent      agentSize
	restart    restartSize
}

// populate brings the cluster to n nodes.
func (s *scaleRun) populate(ctx context.Context, from, n int) error {
	began := time.Now()
	if err := s.cluster.Populate(ctx, from, n, s.real.set()); err != nil {
		return err
	}
	s.say("scale: %d nodes are on the API server (%.0f s)", n, time.Since(began).Seconds())
	return nil
}

// playSmall measures with the smaller cluster: first as a whole, then one node that
// joins, a route that is deleted, and changes of transport.
func (s *scaleRun) playSmall(ctx context.Context) (out size, err error) {
	if err := s.populate(ctx, 0, s.small); err != nil {
		return out, err
	}
	out.controller.unmarked = s.small - len(s.real.all()) // those have no agent yet
	cloud, controller, err := s.publishAll(ctx, s.small, &out.controller)
	if err != nil {
		return out, err
	}
	defer cloud.Stop()
	defer func() { err = errors.Join(err, controller.Stop()) }()
	observer, err := s.startAgent(ctx, s.real.observer, s.small, &out.agent)
	if err != nil {
		return out, err
	}
	agents := []*scale.Agent{observer}
	defer func() {
		for _, a := range agents {
			err = errors.Join(err, a.Stop())
		}
	}()
	for _, i := range s.real.provers {
		a, err := s.hosts.StartAgent(ctx, i)
		if err != nil {
			return out, err
		}
		agents = append(agents, a)
		if err := a.AwaitRoutes(ctx, s.small-1, time.Minute); err != nil {
			return out, err
		}
	}
	return out, s.join(ctx, cloud)
}

// playLarge measures with the larger cluster.
func (s *scaleRun) playLarge(ctx context.Context) (out size, err error) {
	if err := s.populate(ctx, s.small, s.large); err != nil {
		return out, err
	}
	out.controller.unmarked = s.large - s.small
	cloud, controller, err := s.publishAll(ctx, s.large, &out.controller)
	if err != nil {
		return out, err
	}
	defer cloud.Stop()
	out.restart, controller, err = s.restart(ctx, cloud, controller)
	defer func() { err = errors.Join(err, controller.Stop()) }()
	if err != nil {
		return out, err
	}
	agent, err := s.startAgent(ctx, s.real.large, s.large, &out.agent)
	if err != nil {
		return out, err
	}
	return out, agent.Stop()
}

// controllerSize is what publishing all routes took.
type controllerSize struct {
	nodes     int
	unmarked  int                // of the nodes, at first
	available time.Duration      // until the cloud has all routes Available
	told      time.Duration      // until the condition says so
	marked    time.Duration      // until all nodes are marked available
	calls     map[string]int     // until the condition says so
	after     map[string]int     // while it was left alone then
	writes    map[string]float64 // of the API server
	memory    scale.Memory
}

// least is the fewest calls that can do it: entries by 50, one look at the
// tables, one listing that proves an empty table before, one listing after.
func (c controllerSize) least() int {
	return (c.nodes+maxBatch-1)/maxBatch + 1 + 2 + (c.nodes+listPage-1)/listPage
}

func (c controllerSize) all() int {
	total := 0
	for _, n := range c.calls {
		total += n
	}
	return total
}

// publishAll starts a cloud with empty tables and a controller, and waits until
// everything is done. The caller stops both.
func (s *scaleRun) publishAll(ctx context.Context, nodes int, out *controllerSize) (*scale.Cloud, *scale.Controller, error) {
	cloud, err := scale.StartCloud(ctx, scale.CloudOptions{Nodes: nodes, Delay: cloudDelay, Latency: cloudLatency,
		Lab: s.name + "-scale", Hosts: s.real.set(), Dir: s.access.Dir})
	if err != nil {
		return nil, nil, err
	}
	if err := s.cluster.Configure(ctx, cloud, v1alpha1.TransportDirect, v1alpha1.TransportIPIP); err != nil {
		return nil, nil, errors.Join(err, stopped(cloud))
	}
	before, err := scale.Writes(ctx, s.cfg)
	if err != nil {
		return nil, nil, errors.Join(err, stopped(cloud))
	}
	controller, err := scale.StartController(ctx, s.access)
	if err != nil {
		return nil, nil, errors.Join(err, stopped(cloud))
	}
	out.nodes = nodes
	if err := s.watchPublishing(ctx, cloud, controller, before, out); err != nil {
		return nil, nil, errors.Join(err, controller.Stop(), stopped(cloud))
	}
	return cloud, controller, nil
}

func stopped(cloud *scale.Cloud) error {
	cloud.Stop()
	return nil
}

// publishPatience bounds how long a whole cluster's routes may take.
const publishPatience = 8 * time.Minute

func (s *scaleRun) watchPublishing(ctx context.Context, cloud *scale.Cloud, controller *scale.Controller, before map[string]float64, out *controllerSize) error {
	took := func() time.Duration { return time.Since(controller.Started) }
	marked := func() {
		metrics, err := controller.Metrics(ctx) // an error: it has just been started
		if n := scale.Sum(metrics, "ropeway_node_condition_writes_total"); err == nil && out.marked == 0 && int(n) >= out.unmarked {
			out.marked = took()
		}
	}
	err := poll(ctx, publishPatience, "all routes Available", func() (bool, error) {
		marked()
		n, err := cloud.Available(ctx)
		return n >= out.nodes, err
	})
	if err != nil {
		return err
	}
	out.available = took()
	// Before that, the condition may still speak of a smaller cluster. Often, so
	// that what is called afterwards is told apart.
	err = pollEvery(ctx, 50*time.Millisecond, publishPatience, "all routes told of", func() (bool, error) { return s.published(ctx), nil })
	if err != nil {
		return err
	}
	out.told = took()
	if out.calls, err = cloud.Calls(ctx); err != nil {
		return err
	}
	err = poll(ctx, publishPatience, "all nodes marked", func() (bool, error) { marked(); return out.marked > 0, nil })
	if err != nil {
		return err
	}
	if err := sleep(ctx, idleTime); err != nil {
		return err
	}
	if out.after, err = cloud.Calls(ctx); err != nil {
		return err
	}
	for action, n := range out.calls {
		out.after[action] -= n
	}
	maps.DeleteFunc(out.after, func(_ string, n int) bool { return n == 0 })
	after, err := scale.Writes(ctx, s.cfg)
	out.writes = scale.Grown(before, after)
	if err != nil {
		return err
	}
	out.memory, err = controller.Memory()
	s.say("scale: %d nodes: routes Available after %.1f s, told after %.1f s, nodes marked after %.1f s; %d cloud calls (least %d); controller %.0f MiB (peak %.0f)",
		out.nodes, out.available.Seconds(), out.told.Seconds(), out.marked.Seconds(), out.all(), out.least(), out.memory.Now, out.memory.Most)
	return err
}

// published says whether the controller has said that all routes are there.
func (s *scaleRun) published(ctx context.Context) bool {
	cn, err := s.cluster.Network(ctx)
	return err == nil && meta.IsStatusConditionTrue(cn.Status.Conditions, routes.ConditionPublished)
}

// poll asks again and again.
func poll(ctx context.Context, most time.Duration, what string, done func() (bool, error)) error {
	return pollEvery(ctx, 250*time.Millisecond, most, what, done)
}

func pollEvery(ctx context.Context, every, most time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if err := sleep(ctx, every); err != nil {
			return fmt.Errorf("%s: not within %s: %w", what, most, err)
		}
	}
}

// restartSize is what a controller does that finds nothing to do.
type restartSize struct {
	cloudWrites, cloudReads int
	calls                   map[string]int
	writes                  map[string]float64 // of the API server
	memory                  scale.Memory
}

// restart stops the controller and starts another, and looks at what that does.
func (s *scaleRun) restart(ctx context.Context, cloud *scale.Cloud, old *scale.Controller) (out restartSize, _ *scale.Controller, err error) {
	if err := errors.Join(old.Stop(), cloud.ForgetCalls(ctx)); err != nil {
		return out, old, err
	}
	before, err := scale.Writes(ctx, s.cfg)
	if err != nil {
		return out, old, err
	}
	controller, err := scale.StartController(ctx, s.access)
	if err != nil {
		return out, old, err
	}
	err = poll(ctx, time.Minute, "the restarted controller lists the tables", func() (bool, error) {
		calls, err := cloud.Calls(ctx)
		return calls["DescribeRouteEntryList"] >= s.large/listPage, err
	})
	if err == nil {
		err = sleep(ctx, idleTime)
	}
	if err != nil {
		return out, controller, err
	}
	if out.calls, err = cloud.Calls(ctx); err != nil {
		return out, controller, err
	}
	for action, n := range out.calls {
		if strings.HasPrefix(action, "Describe") || strings.HasPrefix(action, "List") {
			out.cloudReads += n
		} else {
			out.cloudWrites += n
		}
	}
	after, err := scale.Writes(ctx, s.cfg)
	out.writes = scale.Grown(before, after)
	if err != nil {
		return out, controller, err
	}
	out.memory, err = controller.Memory()
	s.say("scale: restart with nothing to do: cloud calls %v, API writes %v, %.0f MiB (peak %.0f)", out.calls, out.writes, out.memory.Now, out.memory.Most)
	return out, controller, err
}

// agentSize is what one agent costs.
type agentSize struct {
	nodes     int
	converged time.Duration // until its kernel has all routes
	first     int64         // bytes that the API server sent until then
	heartbeat float64       // bytes for one kubelet's report of its status
	pod       float64       // bytes for the life of a pod of its node, and of one of another's
	memory    scale.Memory
	objects   map[string]int
	probes    float64 // messages per second
	proves    float64 // nodes that it was chosen for
}

// wholeCluster is what all nodes send per second: each is proven by three others,
// and costs those what one costs the agent that was measured. How many nodes one
// agent proves is a matter of names.
func (a agentSize) wholeCluster() float64 {
	return a.probes / a.proves * provers * float64(a.nodes)
}

// provers is how many nodes prove one.
const provers = 3

// heartbeats is how many reports of kubelets are played.
const heartbeats = 200

// podLives is how many pods come and go on the agent's node, and on another.
const podLives = 200

// startAgent starts an agent and measures it. The caller stops it.
func (s *scaleRun) startAgent(ctx context.Context, node, nodes int, out *agentSize) (*scale.Agent, error) {
	a, err := s.hosts.StartAgent(ctx, node)
	if err != nil {
		return nil, err
	}
	out.nodes = nodes
	if err := s.watchAgent(ctx, a, out); err != nil {
		return nil, errors.Join(err, a.Stop())
	}
	return a, nil
}

func (s *scaleRun) watchAgent(ctx context.Context, a *scale.Agent, out *agentSize) error {
	if err := a.AwaitRoutes(ctx, out.nodes-1, time.Minute); err != nil {
		return err
	}
	out.converged, out.first = time.Since(a.Started), a.Received()
	before, err := a.Metrics(ctx)
	if err != nil {
		return err
	}
	began, received := time.Now(), a.Received()
	for i := range heartbeats {
		if err := s.cluster.Heartbeat(ctx, i%out.nodes); err != nil {
			return err
		}
	}
	if err := sleep(ctx, idleTime); err != nil {
		return err
	}
	out.heartbeat = float64(a.Received()-received) / heartbeats
	if out.pod, err = s.podBytes(ctx, a, out.nodes); err != nil {
		return err
	}
	after, err := a.Metrics(ctx)
	if err != nil {
		return err
	}
	const sent = "ropeway_agent_probe_messages_sent_total"
	out.probes = (scale.Sum(after, sent) - scale.Sum(before, sent)) / time.Since(began).Seconds()
	if out.proves = scale.Sum(after, "ropeway_agent_probed_nodes"); out.proves == 0 {
		return fmt.Errorf("the agent of node %d proves no other node: its probes say nothing of a cluster's", a.Node())
	}
	if out.objects, err = s.hosts.KernelObjects(ctx, a.Node()); err != nil {
		return err
	}
	out.memory, err = a.Memory()
	s.say("scale: agent with %d peers: converged after %.2f s, %.1f MiB read, %.0f bytes a heartbeat, %.0f a pod, %.1f MiB (peak %.1f, files %.1f), %.1f probes/s for %.0f nodes, kernel %v",
		out.nodes-1, out.converged.Seconds(), float64(out.first)/mib, out.heartbeat, out.pod, out.memory.Now, out.memory.Most, out.memory.File, out.probes, out.proves, out.objects)
	return err
}

// podBytes is what the agent reads for a pod that comes and goes on its own node and one
// that does so on another, without what it reads meanwhile anyway.
func (s *scaleRun) podBytes(ctx context.Context, a *scale.Agent, nodes int) (float64, error) {
	const settle = 2 * time.Second
	quiet := a.Received()
	began := time.Now()
	if err := sleep(ctx, settle); err != nil {
		return 0, err
	}
	idle := float64(a.Received()-quiet) / time.Since(began).Seconds()
	received := a.Received()
	began = time.Now()
	if err := errors.Join(s.cluster.Pods(ctx, a.Node(), podLives), s.cluster.Pods(ctx, (a.Node()+1)%nodes, podLives), sleep(ctx, settle)); err != nil {
		return 0, err
	}
	return (float64(a.Received()-received) - idle*time.Since(began).Seconds()) / podLives, nil
}
