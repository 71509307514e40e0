package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// puppet plays the kubelets, the controllers of DaemonSets and Deployments, and
// ours as it judges the ClusterNetwork, until the test ends.
type puppet struct {
	c     client.Client
	stuck string // name of a node whose pods never get ready
}

func (p puppet) start(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(ctx, 20*time.Millisecond) == nil {
			p.turn(ctx) // what fails now is tried again at once
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func (p puppet) turn(ctx context.Context) {
	var nodes corev1.NodeList
	var sets appsv1.DaemonSetList
	var deployments appsv1.DeploymentList
	var pods corev1.PodList
	if errors.Join(p.c.List(ctx, &nodes), p.c.List(ctx, &sets), p.c.List(ctx, &deployments), p.c.List(ctx, &pods, client.InNamespace(Namespace))) != nil {
		return
	}
	wanted := map[string]corev1.PodTemplateSpec{}
	for i := range sets.Items {
		ds := &sets.Items[i]
		ready := int32(0)
		for _, n := range onNodes(ds, nodes.Items) {
			wanted[ds.Name+"-"+n.Name] = onNode(ds.Spec.Template, n.Name)
			if n.Name != p.stuck {
				ready++
			}
		}
		n := int32(len(onNodes(ds, nodes.Items)))
		ds.Status = appsv1.DaemonSetStatus{ObservedGeneration: ds.Generation, DesiredNumberScheduled: n, CurrentNumberScheduled: n, UpdatedNumberScheduled: n, NumberReady: ready}
		_ = p.c.Status().Update(ctx, ds)
	}
	for i := range deployments.Items {
		d := &deployments.Items[i]
		n := *d.Spec.Replicas
		for r := range n {
			wanted[fmt.Sprintf("%s-%d", d.Name, r)] = onNode(d.Spec.Template, nodes.Items[int(r)%len(nodes.Items)].Name)
		}
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n}
		_ = p.c.Status().Update(ctx, d)
	}
	p.makePods(ctx, pods.Items, wanted)
	var network v1alpha1.ClusterNetwork
	if p.c.Get(ctx, client.ObjectKey{Name: v1alpha1.ClusterNetworkName}, &network) == nil && len(deployments.Items) > 0 {
		network.Status.ObservedGeneration = network.Generation
		_ = p.c.Status().Update(ctx, &network)
	}
}

// onNodes are the nodes that the DaemonSet's selector takes in.
func onNodes(ds *appsv1.DaemonSet, nodes []corev1.Node) []corev1.Node {
	selector := labels.SelectorFromSet(ds.Spec.Template.Spec.NodeSelector)
	return slices.DeleteFunc(slices.Clone(nodes), func(n corev1.Node) bool { return !selector.Matches(labels.Set(n.Labels)) })
}

func onNode(t corev1.PodTemplateSpec, node string) corev1.PodTemplateSpec {
	t.Spec.NodeName = node
	return t
}

func (p puppet) makePods(ctx context.Context, have []corev1.Pod, wanted map[string]corev1.PodTemplateSpec) {
	now := int64(0)
	for i := range have {
		if _, keep := wanted[have[i].Name]; !keep {
			_ = p.c.Delete(ctx, &have[i], &client.DeleteOptions{GracePeriodSeconds: &now})
		}
	}
	for name, template := range wanted {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name, Labels: template.Labels}, Spec: template.Spec}
		pod.Spec.PriorityClassName = "" // this API server has no such classes at once
		if err := p.c.Create(ctx, pod); err != nil {
			continue
		}
		if pod.Spec.NodeName != p.stuck {
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			pod.Status.Phase = corev1.PodRunning
			_ = p.c.Status().Update(ctx, pod)
		}
	}
}

func addNode(t *testing.T, c client.Client, name, address string) *corev1.Node {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: "linux"}}}
	if err := c.Create(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	if err := c.Status().Update(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.Background(), n); client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
	return n
}

func setAvailable(t *testing.T, c client.Client, node string, status corev1.ConditionStatus, reason string) {
	t.Helper()
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"NetworkUnavailable","status":%q,"reason":%q,"message":"by the test"}]}}`, status, reason)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	if err := c.Status().Patch(context.Background(), n, client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}
