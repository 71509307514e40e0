package controller

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller/nodes"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// observed is everything that a pass decides from. The objects are the cache's:
// they are not changed.
type observed struct {
	objects  *kube.Objects
	services []serviceRange
	policies policies

	// What follows from the network in force; filled by reason.
	snapshot plan.Snapshot
	verdicts map[string]plan.Verdict // node -> whether it is proven
	lost     map[string]bool         // nodes that nothing reaches, unless too many are
	problems []plan.Problem          // those about a node
	wrong    map[string][]string     // node -> their sentences
	noNet    string                  // why no network is in force, if so
	inForce  *v1alpha1.ClusterNetworkSpec
	fixed    []fixedAddress // that are to have entries of their own in the cloud

	rival rival // another writer of routes and of the node condition
}

type serviceRange struct {
	name   string // of the ServiceCIDR
	prefix netip.Prefix
}

// policies are the NetworkPolicies of the cluster.
type policies struct {
	known bool // they have been read
	count int
	first string // namespace/name of one
}

// memory is what a leader remembers from pass to pass. It is lost with the
// leadership, which only makes the next leader wait anew.
type memory struct {
	missing map[string]time.Time      // node that has leases but no Node -> since when
	nodes   map[types.UID]*nodeMemory // Node -> what was done to its condition
	told    map[told]string           // event -> its message as last recorded
	// cloudTold is told for what is wrong in the cloud, which is looked at by
	// another clock.
	cloudTold  map[told]string
	failing    map[string]bool // UIDs of nodes that probes do not reach by direct
	faults     map[plan.Fault]seenFault
	faultsAt   time.Time // when they were looked at last
	faultsTold map[told]string
	toldAt     time.Time     // when the ClusterNetwork's status was written
	untold     time.Duration // how long progress stays unsaid in it; 0: nothing is
	// rival is what was found out at rivalAt; rivalAgain has it looked for anew.
	rival      rival
	rivalAt    time.Time
	rivalAgain bool
	vendor     seenLease
	poolsTold  map[told]string
	machines   map[types.UID]machine // Node -> what was written of it lately
	// poolsWritten maps pool -> the version that a write left as it was.
	poolsWritten map[types.UID]string
	poolsLeft    bool // the status of some is still to be written
	unused       unusedSince
	unwanted     map[netip.Addr]time.Time // address with an entry of its own in the cloud -> since when nobody wants that
}

// told identifies an event that is recorded when its message changes.
type told struct{ object, reason string }

func newMemory() *memory {
	return &memory{rival: notKnownYet(), missing: map[string]time.Time{}, nodes: map[types.UID]*nodeMemory{}, told: map[told]string{}, cloudTold: map[told]string{},
		faults: map[plan.Fault]seenFault{}, faultsTold: map[told]string{},
		poolsTold: map[told]string{}, poolsWritten: map[types.UID]string{}, unused: unusedSince{}, machines: map[types.UID]machine{}}
}

// inBackground lets those who work in the cloud do so until the context ends or
// the returned function is called, which waits for their end: a call that has
// begun is the last of this leader.
func (c *controller) inBackground(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var working sync.WaitGroup
	for _, work := range []func(context.Context){c.planner.Run, c.nodes.Run, c.rights.run} {
		working.Go(func() { work(ctx) })
	}
	return func() {
		cancel()
		working.Wait()
		// A pass that outlived them has said what is wanted once more.
		c.planner.Set(routes.Input{})
		c.nodes.Set(nodes.Input{})
	}
}

// retryAfter is how soon a pass that failed is repeated.
const retryAfter = time.Second

// lead makes passes until the context ends: when something changed, but not
// more often than Interval, and every Resync.
func (c *controller) lead(ctx context.Context) {
	c.beat.Store(c.now().UnixNano())
	c.leading.Store(true)
	c.metrics.leader.Set(1)
	defer c.leading.Store(false)
	defer c.metrics.resign()
	m := newMemory()
	defer c.inBackground(ctx)()
	for ctx.Err() == nil {
		wait, wake := c.cfg.Resync, c.observer.Changed()
		start := c.now()
		c.beat.Store(start.UnixNano())
		err := c.pass(ctx, m)
		c.metrics.passSeconds.Observe(c.now().Sub(start).Seconds())
		if m.untold > 0 {
			wait = min(wait, m.untold)
		}
		if m.poolsLeft {
			wait = min(wait, c.cfg.Interval)
		}
		if m.faultsSettle() {
			wait = min(wait, faultSettles)
		}
		if err != nil && ctx.Err() == nil {
			wait = retryAfter
			if !errors.Is(err, kube.ErrNotSynced) {
				wake = nil // what is refused is not asked for at each change of something else
				c.metrics.passErrors.Inc()
				c.log.Error("not everything could be done; trying again", "err", err, "wait", wait)
			}
		}
		pause(ctx, c.cfg.Interval, nil)
		pause(ctx, wait, wake)
	}
}

// pause waits for a time, a value or the end.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-wake:
	}
}

// pass looks, decides and writes once. Each part is done even if another
// fails.
func (c *controller) pass(ctx context.Context, m *memory) error {
	o, err := c.observe(ctx)
	if err != nil {
		return err
	}
	j := judge(o)
	o.reason(j)
	c.count(o)
	c.tellProblems(o, m)
	if o.rival, err = c.lookForRival(ctx, o.objects.Nodes, m); err != nil {
		c.log.Warn("another writer of routes may be there; what was known last stands", "err", err)
	}
	// First, since it only says what is wanted: the conditions of thousands of
	// nodes take a while, which the cloud's routes do not wait for.
	c.planRoutes(o, m)
	return errors.Join(
		c.writeMachines(ctx, o, m),
		c.writeConditions(ctx, o, m),
		c.writeNetworkStatus(ctx, o, j, m),
		c.writePools(ctx, o, m),
		c.collect(ctx, o, m),
		c.tendShared(ctx, o, m),
	)
}

func (c *controller) observe(ctx context.Context) (*observed, error) {
	objects, err := c.observer.Objects(ctx)
	if err != nil {
		return nil, err
	}
	o := &observed{objects: objects}
	if c.services {
		var list networkingv1.ServiceCIDRList
		if err := c.observer.Reader().List(ctx, &list); err != nil {
			return nil, err
		}
		o.services = serviceRanges(list.Items)
	}
	list := &metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicyList"}}
	if c.observer.PoliciesSynced() {
		if err := c.observer.Reader().List(ctx, list); err != nil {
			return nil, err
		}
		o.policies = countPolicies(list.Items)
	}
	return o, nil
}

func serviceRanges(in []networkingv1.ServiceCIDR) []serviceRange {
	var out []serviceRange
	for _, s := range in {
		for _, text := range s.Spec.CIDRs {
			if p, err := netip.ParsePrefix(text); err == nil {
				out = append(out, serviceRange{name: s.Name, prefix: p})
			}
		}
	}
	return out
}

func countPolicies(in []metav1.PartialObjectMetadata) policies {
	p := policies{known: true, count: len(in)}
	for _, np := range in {
		if name := np.Namespace + "/" + np.Name; p.first == "" || name < p.first {
			p.first = name
		}
	}
	return p
}

// reason computes what follows from the network that is in force once the
// judgement is.
func (o *observed) reason(j judgement) {
	objects := *o.objects
	if objects.Network != nil {
		// What is being accepted in this pass counts in this pass.
		objects.Network = objects.Network.DeepCopy()
		j.apply(objects.Network)
	}
	o.snapshot, o.noNet = objects.Snapshot("")
	o.inForce, _ = kube.InForce(objects.Network)
	o.fixed = fixedAddresses(o.objects, o.snapshot, o.inForce)
	o.verdicts = plan.Verdicts(o.snapshot)
	o.lost = lostNodes(o.snapshot.Nodes, o.verdicts)
	o.problems = nodeProblems(plan.Compute(o.snapshot).Problems)
	o.wrong = map[string][]string{}
	for _, p := range o.problems {
		o.wrong[p.Node] = append(o.wrong[p.Node], p.Message)
	}
}

// lostNodes returns the nodes that are heard of and that nothing reaches; none
// where it is more than half of those that are heard of: pods could go to no other.
func lostNodes(nodes []plan.Node, verdicts map[string]plan.Verdict) map[string]bool {
	out, heard := map[string]bool{}, 0
	for _, n := range nodes {
		if n.Silent {
			continue
		}
		if heard++; verdicts[n.Name].Lost {
			out[n.Name] = true
		}
	}
	if len(out)*2 > heard {
		return nil
	}
	return out
}

// nodeProblems keeps those that are about a node: the plan's own about a
// network that is not in force, or about nobody in particular, say nothing here.
func nodeProblems(in []plan.Problem) []plan.Problem {
	var out []plan.Problem
	for _, p := range in {
		if p.Node != "" {
			out = append(out, p)
		}
	}
	return out
}
