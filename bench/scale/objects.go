package scale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// writers is how many nodes are written at a time.
const writers = 16

// Cluster are the API objects.
type Cluster struct {
	api client.Client
}

// NewCluster returns the cluster of an API server.
func NewCluster(cfg *rest.Config) (*Cluster, error) {
	fast := rest.CopyConfig(cfg)
	fast.QPS, fast.Burst = 5000, 5000
	api, err := kube.NewClient(fast)
	return &Cluster{api: api}, err
}

// Populate registers the nodes from to until, as their kubelets do, and lets
// all but the silent ones speak as agents do whose peers reach them.
func (c *Cluster) Populate(ctx context.Context, from, until int, silent map[int]bool) error {
	uids := make([]types.UID, until)
	if err := c.each(ctx, from, until, func(ctx context.Context, i int) (err error) {
		uids[i], err = c.Register(ctx, i)
		return err
	}); err != nil {
		return err
	}
	return c.each(ctx, from, until, func(ctx context.Context, i int) error {
		if silent[i] {
			return nil
		}
		return c.speak(ctx, i, from, uids)
	})
}

func (c *Cluster) each(ctx context.Context, from, until int, do func(context.Context, int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i := from; i < until && ctx.Err() == nil; i++ {
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}

// Register makes the Node object and returns its UID.
func (c *Cluster) Register(ctx context.Context, i int) (types.UID, error) {
	n := node(i)
	if err := c.api.Create(ctx, n); err != nil {
		return "", fmt.Errorf("register node %d: %w", i, err)
	}
	return n.UID, nil
}

// Remove deletes what the API server has of a node.
func (c *Cluster) Remove(ctx context.Context, i int) error {
	var errs []error
	for _, obj := range []client.Object{&corev1.Node{}, &v1alpha1.NodeNetwork{}} {
		obj.SetName(NodeName(i))
		errs = append(errs, client.IgnoreNotFound(c.api.Delete(ctx, obj)))
	}
	return errors.Join(errs...)
}

// images are as many as a kubelet reports at most, and of a usual length.
const images = 50

// node is a Node as a kubelet registers it: most of it is nothing to Ropeway,
// but it is what watching nodes costs.
func node(i int) *corev1.Node {
	name, cidr := NodeName(i), PodCIDR(i).String()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}, Annotations: map[string]string{
		"node.alpha.kubernetes.io/ttl": "300", "volumes.kubernetes.io/controller-managed-attach-detach": "true",
	}}}
	for _, label := range []string{"beta.kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/instance-type", "kubernetes.io/arch", "kubernetes.io/hostname",
		"kubernetes.io/os", "node.kubernetes.io/instance-type", "topology.kubernetes.io/region", "topology.kubernetes.io/zone", "team.example.com/owner"} {
		n.Labels[label] = "ecs.g7.large"
	}
	n.Spec = corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}, ProviderID: region + "." + instanceID(i)}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: Address(i).String()}, {Type: corev1.NodeHostName, Address: name}}
	n.Status.Capacity = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110")}
	n.Status.Allocatable = n.Status.Capacity
	n.Status.NodeInfo = corev1.NodeSystemInfo{MachineID: name, SystemUUID: name, BootID: name, KernelVersion: "6.18.0", OSImage: "Debian GNU/Linux",
		ContainerRuntimeVersion: "containerd://2.2.0", KubeletVersion: "v1.35.0", OperatingSystem: "linux", Architecture: "amd64"}
	for _, kind := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure, corev1.NodeReady} {
		status := corev1.ConditionFalse
		if kind == corev1.NodeReady {
			status = corev1.ConditionTrue
		}
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: kind, Status: status, Reason: "KubeletReports", Message: "kubelet reports that all is well",
			LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now()})
	}
	for k := range images {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{SizeBytes: 123456789,
			Names: []string{fmt.Sprintf("registry.example.com/team-%02d/service@sha256:%064x", k, k), fmt.Sprintf("registry.example.com/team-%02d/service:v1.%d", k, k)}})
	}
	return n
}

// proves is how many nodes each proves.
const proves = 3

// speak makes the node's NodeNetwork, with proofs of the nodes that follow it.
func (c *Cluster) speak(ctx context.Context, i, first int, uids []types.UID) error {
	nn := &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: NodeName(i),
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: NodeName(i), UID: uids[i]}}}}
	if err := c.api.Create(ctx, nn); err != nil {
		return fmt.Errorf("let node %d speak: %w", i, err)
	}
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	nn.Status = v1alpha1.NodeNetworkStatus{
		NodeUID: string(uids[i]), ReadySince: &now, AgentVersion: "v0.1.0", Addresses: []string{Address(i).String()}, CIDRs: []string{PodCIDR(i).String()},
		Sources: []string{Source(i).String()}, VTEP: plan.VTEPMAC(string(uids[i])).String(), Pods: 30,
		Peers: map[string]int32{"direct": int32(len(uids) - 1)},
	}
	for _, t := range []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN} {
		nn.Status.Transports = append(nn.Status.Transports, v1alpha1.TransportStatus{Name: string(t), Supported: true})
	}
	for k := 1; k <= proves; k++ {
		to := first + (i-first+k)%(len(uids)-first)
		// A transport that nobody has proven is not changed to, and these
		// nodes do not look again.
		for _, t := range []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN} {
			nn.Status.Probes = append(nn.Status.Probes, v1alpha1.ProbeResult{Node: NodeName(to), NodeUID: string(uids[to]),
				Family: string(plan.IPv4), Transport: string(t), Reachable: true, Since: now})
		}
	}
	for kind, message := range map[string]string{v1alpha1.ConditionProgrammed: "the kernel is as planned",
		v1alpha1.ConditionAddressesUsable: "pods get addresses from [" + PodCIDR(i).String() + "]", v1alpha1.ConditionConflistInstalled: "the conflist is installed"} {
		meta.SetStatusCondition(&nn.Status.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: "Good", Message: message, LastTransitionTime: now})
	}
	if err := c.api.Status().Update(ctx, nn); err != nil {
		return fmt.Errorf("let node %d speak: %w", i, err)
	}
	return nil
}

// Heartbeat reports a node's status as its kubelet does every few minutes.
func (c *Cluster) Heartbeat(ctx context.Context, i int) error {
	now, err := json.Marshal(metav1.Now())
	if err != nil {
		return err
	}
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","lastHeartbeatTime":%s}]}}`, now)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: NodeName(i)}}
	if err := c.api.Status().Patch(ctx, n, client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
		return fmt.Errorf("report the status of node %d: %w", i, err)
	}
	return nil
}

// Pods plays the life of n pods on node i, as API server and kubelet have it: bound,
// running with an address, and deleted.
func (c *Cluster) Pods(ctx context.Context, i, n int) error {
	addr := PodCIDR(i).Addr()
	return c.each(ctx, 0, n, func(ctx context.Context, k int) error {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: fmt.Sprintf("%s-pod-%d", NodeName(i), k), Labels: map[string]string{"app": "web"}}}
		p.Spec = corev1.PodSpec{NodeName: NodeName(i), Containers: []corev1.Container{{Name: "web", Image: "registry.example.com/team/web:v1", Env: []corev1.EnvVar{{Name: "LEVEL", Value: "info"}}}}}
		if err := c.api.Create(ctx, p); err != nil {
			return fmt.Errorf("create pod %s: %w", p.Name, err)
		}
		p.Status.Phase, p.Status.PodIP, p.Status.PodIPs = corev1.PodRunning, addr.String(), []corev1.PodIP{{IP: addr.String()}}
		if err := c.api.Status().Update(ctx, p); err != nil {
			return fmt.Errorf("report the status of pod %s: %w", p.Name, err)
		}
		if err := c.api.Delete(ctx, p, client.GracePeriodSeconds(0)); err != nil {
			return fmt.Errorf("delete pod %s: %w", p.Name, err)
		}
		return nil
	})
}

// Configure makes the ClusterNetwork, or corrects it: node CIDRs, these
// transports, and the cloud behind that endpoint.
func (c *Cluster) Configure(ctx context.Context, cloud *Cloud, transports ...v1alpha1.Transport) error {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: secretName}, StringData: cloud.Keys()}
	if err := c.api.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("store the cloud's credentials: %w", err)
	}
	// The controller writes its status at the same time.
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { return c.configure(ctx, cloud.Endpoint(), transports) })
	if err != nil {
		return fmt.Errorf("configure the network: %w", err)
	}
	return nil
}

func (c *Cluster) configure(ctx context.Context, endpoint string, transports []v1alpha1.Transport) error {
	cn := &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterNetworkName}}
	err := c.api.Get(ctx, client.ObjectKeyFromObject(cn), cn)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	cn.Spec.PodCIDRs, cn.Spec.AddressSource, cn.Spec.Transports = []string{podNetwork().String()}, v1alpha1.AddressesFromNodeCIDR, transports
	cn.Spec.Cloud = &v1alpha1.CloudSpec{Provider: provider, RegionID: region, VPCID: vpcID, Endpoint: endpoint, CredentialsSecret: secretName}
	if cn.UID == "" {
		return c.api.Create(ctx, cn)
	}
	return c.api.Update(ctx, cn)
}

// Network returns the ClusterNetwork.
func (c *Cluster) Network(ctx context.Context) (*v1alpha1.ClusterNetwork, error) {
	cn := &v1alpha1.ClusterNetwork{}
	return cn, c.api.Get(ctx, client.ObjectKey{Name: v1alpha1.ClusterNetworkName}, cn)
}
