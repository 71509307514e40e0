package nodes

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	cloudnode "k8s.io/cloud-provider/controllers/node"
	"k8s.io/cloud-provider/controllers/nodelifecycle"
	controllersmetrics "k8s.io/component-base/metrics/prometheus/controllers"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/kube"
)

// workers initialise nodes, and bring their addresses up to date.
const workers = 8

// term does the work for one Setup: until the context ends, or something else
// is wanted, which is nil. An error says why it could not begin.
func (c *Controller) term(parent context.Context, in Input) error {
	ctx, cancel := context.WithCancel(kube.WithLog(parent, c.cfg.Log))
	defer cancel()
	made, err := c.cfg.Make(ctx, in.Setup)
	if err != nil {
		return fmt.Errorf("prepare to call the cloud: %w", err)
	}
	g := &gate{}
	writer, watcher, err := c.clients(g)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(watcher, 0, informers.WithTransform(slim))
	nodes := factory.Core().V1().Nodes()
	i := c.newInstances(made.Instances(), func() ([]*corev1.Node, error) { return nodes.Lister().List(labels.Everything()) })
	t := &tender{cfg: c.cfg, input: c.wanted, instances: i, api: writer, wake: make(chan struct{}, 1), checked: map[string]time.Time{}}
	if _, err := nodes.Informer().AddEventHandler(t.handler()); err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	guard := guarded{Interface: writer, gone: i.isGone, deleted: t.deleted}
	p := provider{made.Name(), i}
	init, err := cloudnode.NewCloudNodeController(nodes, guard, p, c.cfg.Update, workers)
	if err != nil {
		return fmt.Errorf("prepare to make nodes known: %w", err)
	}
	life, err := nodelifecycle.NewCloudNodeLifecycleController(nodes, guard, p, c.cfg.Monitor)
	if err != nil {
		return fmt.Errorf("prepare to look after nodes' instances: %w", err)
	}
	var running sync.WaitGroup
	defer g.close() // last: calls that do not end with the context
	defer running.Wait()
	defer cancel()
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	if !toolscache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) {
		return ctx.Err()
	}
	c.cfg.Log.Info("looking after the nodes' instances", "provider", made.Name(), "region", in.Setup.Region, "vpc", in.Setup.VPC)
	counts := controllersmetrics.NewControllerManagerMetrics("ropeway")
	for _, run := range []func(){
		func() { init.RunWithContext(ctx, counts) },
		func() { life.Run(ctx, counts) },
		func() { t.run(ctx, c.publish) },
	} {
		running.Go(run)
	}
	c.untilOther(ctx, in)
	return nil
}

// untilOther waits until another term is wanted.
func (c *Controller) untilOther(ctx context.Context, in Input) {
	for ctx.Err() == nil {
		if now := c.wanted(); !now.On || !reflect.DeepEqual(now, in) {
			return
		}
		c.pause(ctx, 0)
	}
}

// clients returns one that writes, through the gate and with an end to every
// call, and one that watches.
func (c *Controller) clients(g *gate) (writer, watcher kubernetes.Interface, err error) {
	api := rest.CopyConfig(c.cfg.API)
	api.QPS, api.Burst = max(api.QPS, 50), max(api.Burst, 100)
	if watcher, err = kubernetes.NewForConfig(api); err != nil {
		return nil, nil, fmt.Errorf("prepare to call the API server: %w", err)
	}
	api = rest.CopyConfig(api)
	api.Timeout = 10 * time.Second
	api.Wrap(g.wrap)
	if writer, err = kubernetes.NewForConfig(api); err != nil {
		return nil, nil, fmt.Errorf("prepare to call the API server: %w", err)
	}
	return writer, watcher, nil
}

func (c *Controller) newInstances(of cloud.Instances, nodes func() ([]*corev1.Node, error)) *instances {
	return &instances{
		cloud: of, catalog: &catalog{cloud: of, now: c.cfg.Now, timeout: c.cfg.CallTimeout},
		nodes: nodes, log: c.cfg.Log, now: c.cfg.Now, confirm: c.cfg.Confirm, every: c.cfg.Monitor,
		dual:     func() bool { return c.wanted().IPv6 },
		suspects: map[types.UID]*suspicion{}, verdicts: map[types.UID]verdict{},
	}
}

// slim drops what is large and of no use here. What is left may be written
// back: an update takes neither status nor managed fields, and status is
// patched by difference.
func slim(obj any) (any, error) {
	if n, ok := obj.(*corev1.Node); ok {
		n.ManagedFields = nil
		n.Status.Images, n.Status.VolumesInUse, n.Status.VolumesAttached = nil, nil, nil
	}
	return obj, nil
}
