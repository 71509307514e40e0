package vendorccm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// What it is known by.
const (
	Namespace  = "kube-system"
	Lease      = "ccm"
	Workload   = "cloud-controller-manager"
	leaseEvery = 2 * time.Second
	// Command is what the lab's program is run as to be it, with Flags.
	Command = "vendor-ccm"
)

// Flags are the command line of Command for the Config: the vendor's flags, and
// where the cloud is.
func (c Config) Flags() []string {
	return []string{
		fmt.Sprintf("--configure-cloud-routes=%t", c.Routes), "--cluster-cidr=" + c.ClusterCIDR.String(),
		"--route-reconciliation-period=" + c.Period.String(), "--cloud-endpoint=" + c.Cloud.URL, "--cloud-region=" + c.Cloud.Region,
		"--cloud-vpc=" + c.Cloud.VPC, "--access-key-id=" + c.Cloud.Key.ID, "--access-key-secret=" + c.Cloud.Key.Secret,
	}
}

// NewCommand is Command, for a pod.
func NewCommand() *cobra.Command {
	var (
		c    Config
		cidr string
	)
	cmd := &cobra.Command{
		Use: Command, Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if c.ClusterCIDR, err = netip.ParsePrefix(cidr); err != nil {
				return fmt.Errorf("--cluster-cidr: %w", err)
			}
			api, err := rest.InClusterConfig()
			if err != nil {
				return fmt.Errorf("find the API server from inside a pod: %w", err)
			}
			c.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
			return Run(cmd.Context(), api, c)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&c.Routes, "configure-cloud-routes", true, "write routes")
	f.StringVar(&cidr, "cluster-cidr", "", "the pod network")
	f.DurationVar(&c.Period, "route-reconciliation-period", 0, "time between sweeps")
	f.StringVar(&c.Cloud.URL, "cloud-endpoint", "", "URL of the OpenAPI")
	f.StringVar(&c.Cloud.Region, "cloud-region", "", "region")
	f.StringVar(&c.Cloud.VPC, "cloud-vpc", "", "VPC")
	f.StringVar(&c.Cloud.Key.ID, "access-key-id", "", "AccessKey")
	f.StringVar(&c.Cloud.Key.Secret, "access-key-secret", "", "its secret")
	return cmd
}

// Deployment is the workload as the vendor's manifest has it, with the flags of
// the Config.
func (c Config) Deployment() *appsv1.Deployment {
	app := map[string]string{"app": Workload}
	command := []string{
		"/cloud-controller-manager", "--leader-elect=true", "--cloud-config=/etc/kubernetes/config/cloud-config.conf",
		fmt.Sprintf("--configure-cloud-routes=%t", c.Routes), "--cluster-cidr=" + c.ClusterCIDR.String(),
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: Workload, Labels: app},
		Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: app}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: app},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: Workload, Image: "registry.example/acs/cloud-controller-manager:v2.14.0", Command: command}}},
		}},
	}
}

// runner is a stand-in in a cluster.
type runner struct {
	cfg    Config
	api    kubernetes.Interface
	nodes  listers.NodeLister
	routes *Routes
	events chan event
}

// event is a node that was made, changed so that it counts, or deleted.
type event struct {
	node    string
	deleted bool
}

// Run works in a cluster until ctx is done: it renews the Lease, initializes
// nodes, and, with Routes, keeps the table and the condition.
func Run(ctx context.Context, api *rest.Config, cfg Config) error {
	cfg.Defaults()
	clients, err := kubernetes.NewForConfig(api)
	if err != nil {
		return fmt.Errorf("reach the API server: %w", err)
	}
	factory := informers.NewSharedInformerFactory(clients, 0)
	r := &runner{cfg: cfg, api: clients, nodes: factory.Core().V1().Nodes().Lister(), events: make(chan event, 4096)}
	r.routes = NewRoutes(cfg, r.setCondition)
	informer := factory.Core().V1().Nodes().Informer()
	if _, err := informer.AddEventHandler(r.handler()); err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.renew(ctx) })
	group.Go(func() error { r.work(ctx); return nil })
	return group.Wait()
}

// handler sends what counts: not a providerID that comes later, and of the
// podCIDRs only the first.
func (r *runner) handler() cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { r.events <- event{node: o.(*corev1.Node).Name} },
		UpdateFunc: func(before, after any) {
			a, b := before.(*corev1.Node), after.(*corev1.Node)
			if a.UID != b.UID || a.Spec.PodCIDR != b.Spec.PodCIDR {
				r.events <- event{node: b.Name}
			}
		},
		DeleteFunc: func(o any) {
			if n, ok := o.(*corev1.Node); ok {
				r.events <- event{node: n.Name, deleted: true}
			}
		},
	}
}

// work gathers events and sweeps, one after the other: the API takes no two
// changes at once.
func (r *runner) work(ctx context.Context) {
	period := time.NewTicker(r.cfg.Period)
	defer period.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-period.C:
			if r.cfg.Routes {
				r.log("sweep", r.routes.Sweep(ctx, r.all()))
			}
		case first := <-r.events:
			select {
			case <-ctx.Done():
				return
			case <-time.After(r.cfg.Gather):
			}
			r.drain(ctx, first)
		}
	}
}

func (r *runner) log(what string, err error) {
	if err != nil {
		r.cfg.Log.Warn("the vendor's controller failed", "at", what, "err", err)
	}
}

func (r *runner) all() []*corev1.Node {
	all, err := r.nodes.List(labels.Everything())
	r.log("list nodes", err)
	return all
}

// drain handles what has come meanwhile, at most a batch.
func (r *runner) drain(ctx context.Context, first event) {
	batch := []event{first}
	for more := true; more && len(batch) < r.cfg.Batch; {
		select {
		case e := <-r.events:
			batch = append(batch, e)
		default:
			more = false
		}
	}
	var present []*corev1.Node
	for _, e := range batch {
		n, err := r.nodes.Get(e.node)
		switch {
		case e.deleted && r.cfg.Routes:
			r.log("delete", r.routes.Deleted(ctx, e.node))
		case err == nil:
			r.log("initialize", r.initialize(ctx, n))
			present = append(present, n)
		}
	}
	if !r.cfg.Routes {
		return
	}
	again, err := r.routes.Event(ctx, present)
	r.log("create", err)
	for _, name := range again {
		time.AfterFunc(r.cfg.Retry, func() {
			select {
			case r.events <- event{node: name}:
			default: // dropped in silence when full
			}
		})
	}
}

// uninitialized is the taint that a kubelet with --cloud-provider=external sets.
const uninitialized = "node.cloudprovider.kubernetes.io/uninitialized"

// initialize takes the taint off a node; with routes on, the node is made
// unavailable first, unless something has said otherwise already.
func (r *runner) initialize(ctx context.Context, n *corev1.Node) error {
	var rest []corev1.Taint
	for _, t := range n.Spec.Taints {
		if t.Key != uninitialized {
			rest = append(rest, t)
		}
	}
	if len(rest) == len(n.Spec.Taints) {
		return nil
	}
	if r.cfg.Routes {
		if err := r.patchCondition(ctx, n.Name, corev1.ConditionTrue, "Node created without a route"); err != nil {
			return err
		}
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": rest}})
	if err != nil {
		return err
	}
	_, err = r.api.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

func (r *runner) setCondition(ctx context.Context, node string, created bool) error {
	if created {
		return r.patchCondition(ctx, node, corev1.ConditionFalse, "RouteController created a route")
	}
	return r.patchCondition(ctx, node, corev1.ConditionTrue, "RouteController failed to create a route")
}

// patchCondition writes the condition if its status is another; initialization
// does not make an available node unavailable.
func (r *runner) patchCondition(ctx context.Context, node string, status corev1.ConditionStatus, message string) error {
	n, err := r.api.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable && (c.Status == status || c.Status == corev1.ConditionFalse && message == "Node created without a route") {
			return nil
		}
	}
	reason := "NoRouteCreated"
	if status == corev1.ConditionFalse {
		reason = "RouteCreated"
	}
	now := metav1.Now()
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeNetworkUnavailable, Status: status, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now,
	}}}})
	if err != nil {
		return err
	}
	_, err = r.api.CoreV1().Nodes().PatchStatus(ctx, node, patch)
	return err
}

// renew holds the Lease.
func (r *runner) renew(ctx context.Context) error {
	leases := r.api.CoordinationV1().Leases(Namespace)
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	for {
		now := metav1.NewMicroTime(time.Now())
		lease, err := leases.Get(ctx, Lease, metav1.GetOptions{})
		spec := coordinationv1.LeaseSpec{HolderIdentity: &r.cfg.Identity, RenewTime: &now}
		switch {
		case apierrors.IsNotFound(err):
			_, err = leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: Lease}, Spec: spec}, metav1.CreateOptions{})
		case err == nil:
			lease.Spec = spec
			_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			r.log("renew the Lease", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
