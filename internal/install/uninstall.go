package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent/hostinstall"
	"ropeway.dev/ropeway/internal/kube"
)

// Removal is what Uninstall is to do, found by PlanRemoval.
type Removal struct {
	Settings Settings // of what is installed, as far as it can be seen
	// Found are the objects of ours that are there.
	Found []string
	// Pools are address pools, as Kind/name, which go with their CRDs: persons wrote
	// them.
	Pools []string
	// Pods counts the pods that run on the pod network and would lose it.
	Pods int
	// Nodes are those that have to be cleaned, Lost those whose kubelet does
	// not answer: nothing can be run there.
	Nodes, Lost []string

	objects []*unstructured.Unstructured // in the order of installation
}

// PlanRemoval looks at what there is to remove. image is what cleans the nodes
// if nothing that is installed says which image that is.
func PlanRemoval(ctx context.Context, c *Cluster, image string) (*Removal, error) {
	r := &Removal{Settings: Settings{
		Namespace: Namespace, Image: image, CNIBinDir: defaultBinDir, CNIConfDir: defaultConfDir,
		Conflist: hostinstall.DefaultTemplate, LogLevel: defaultLogLevel, VethMTU: defaultVethMTU, ControllerReplicas: 1, AgentPort: AgentPort, ControllerPort: ControllerPort,
	}}
	in, err := lookAtInstalled(ctx, c)
	if err != nil {
		return nil, err
	}
	overrideIfSet(&r.Settings.Image, in.Image)
	overrideIfSet(&r.Settings.CNIBinDir, in.CNIBinDir)
	overrideIfSet(&r.Settings.CNIConfDir, in.CNIConfDir)
	m, err := Render(r.Settings)
	if err != nil {
		return nil, err
	}
	cleaner, err := Cleaner(r.Settings)
	if err != nil {
		return nil, err
	}
	r.objects = slices.Concat(m.CRDs, m.Objects, []*unstructured.Unstructured{cleaner})
	if err := r.find(ctx, c); err != nil {
		return nil, err
	}
	if err := r.findPools(ctx, c); err != nil {
		return nil, err
	}
	if err := r.findNodes(ctx, c); err != nil {
		return nil, err
	}
	return r, r.countPods(ctx, c)
}

// findPools sees which pools go with CRDs that are found.
func (r *Removal) findPools(ctx context.Context, c client.Client) error {
	for _, kind := range []schema.GroupVersionKind{
		v1alpha1.GroupVersion.WithKind("AddressPool"), v2beta1.GroupVersion.WithKind("SpiderIPPool"), v2beta1.GroupVersion.WithKind("SpiderReservedIP"),
	} {
		crd := "CustomResourceDefinition " + strings.ToLower(kind.Kind) + "s." + kind.Group
		if !slices.Contains(r.Found, crd) {
			continue
		}
		var list unstructured.UnstructuredList
		list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		if err := c.List(ctx, &list); err != nil {
			return fmt.Errorf("list %ss: %w", kind.Kind, err)
		}
		for i := range list.Items {
			r.Pools = append(r.Pools, kind.Kind+"/"+list.Items[i].GetName())
		}
	}
	return nil
}

// find sees which objects are there.
func (r *Removal) find(ctx context.Context, c client.Client) error {
	for _, want := range r.objects {
		have := &unstructured.Unstructured{}
		have.SetGroupVersionKind(want.GroupVersionKind())
		err := c.Get(ctx, client.ObjectKeyFromObject(want), have)
		if absent(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at %s: %w", describe(want), err)
		}
		if ours(have) {
			r.Found = append(r.Found, describe(want))
		}
	}
	return nil
}

// ours says whether an object may be deleted: it bears our label, or is the
// one kind of object that a person may have written in our stead.
func ours(obj client.Object) bool {
	return obj.GetLabels()[LabelName] == ProductName || obj.GetObjectKind().GroupVersionKind().Kind == "ClusterNetwork"
}

func (r *Removal) findNodes(ctx context.Context, c client.Client) error {
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	for _, n := range nodes.Items {
		switch {
		case n.Labels[corev1.LabelOSStable] == "windows":
		case silent(n):
			r.Lost = append(r.Lost, n.Name)
		default:
			r.Nodes = append(r.Nodes, n.Name)
		}
	}
	return nil
}

// silent says that a node's kubelet has not been heard of for a while.
func silent(n corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionUnknown
		}
	}
	return false
}

func (r *Removal) countPods(ctx context.Context, c client.Client) error {
	var pods corev1.PodList
	if err := c.List(ctx, &pods); err != nil {
		return fmt.Errorf("list the pods: %w", err)
	}
	for _, p := range pods.Items {
		if !p.Spec.HostNetwork && p.Status.Phase == corev1.PodRunning {
			r.Pods++
		}
	}
	return nil
}

// Uninstall removes everything: workloads, what is on the nodes, what is on the
// Node objects, and the objects, CRDs last. What is gone already is success, so
// it can be run again after a failure. With abandon, nodes whose kubelet does
// not answer are left uncleaned. The context bounds it.
func Uninstall(ctx context.Context, c *Cluster, r *Removal, abandon bool, say Progress) error {
	if len(r.Lost) > 0 && !abandon {
		return fmt.Errorf("the kubelet of %s does not answer, so nothing can be cleaned there: bring these nodes back, delete their Node objects if they are gone for good, or leave them as they are with --abandon-lost-nodes", strings.Join(r.Lost, ", "))
	}
	for _, step := range r.steps() {
		if err := step(ctx, c, say); err != nil {
			return err
		}
	}
	return nil
}

func (r *Removal) steps() []func(context.Context, *Cluster, Progress) error {
	return []func(context.Context, *Cluster, Progress) error{
		r.parkCleaner, r.stopWorkloads, r.cleanNodes, r.clearNodeObjects, r.deleteObjects, r.deleteCleaner,
	}
}

// parkCleaner makes the cleaner, on no node: it keeps the image and the nodes'
// directories for an uninstall that is run again, which finds no agents to read
// them from. It is there from before the agents end until everything is gone.
func (r *Removal) parkCleaner(ctx context.Context, c *Cluster, say Progress) error {
	cleaner, err := Cleaner(r.Settings)
	if err != nil {
		return err
	}
	if err := unstructured.SetNestedField(cleaner.Object, "true", "spec", "template", "spec", "nodeSelector", "ropeway.dev/on-no-node"); err != nil {
		return fmt.Errorf("render what cleans the nodes: %w", err)
	}
	return applyOne(ctx, c, cleaner, say)
}

// stopWorkloads ends controllers and agents, and waits for them: nobody may
// write what is being removed.
func (r *Removal) stopWorkloads(ctx context.Context, c *Cluster, say Progress) error {
	for _, obj := range r.objects {
		if kind := obj.GetKind(); (kind == "Deployment" || kind == "DaemonSet") && obj.GetName() != CleanerName {
			if err := deleteOne(ctx, c, obj, say); err != nil {
				return err
			}
		}
	}
	return r.podsGone(ctx, c, "agents and controllers", func(p corev1.Pod) bool {
		return !isCleaner(p)
	})
}

// podsGone waits until no pod of ours that matches is left on a node that
// answers.
func (r *Removal) podsGone(ctx context.Context, c client.Client, what string, match func(corev1.Pod) bool) error {
	left, err := waitPodsGone(ctx, c, func(p corev1.Pod) bool {
		return match(p) && !slices.Contains(r.Lost, p.Spec.NodeName)
	})
	if err != nil {
		return fmt.Errorf("the %s did not end in the time given (--timeout): %s: %w", what, strings.Join(left, ", "), err)
	}
	return nil
}

// cleanNodes runs the cleaner on every node and waits for it.
func (r *Removal) cleanNodes(ctx context.Context, c *Cluster, say Progress) error {
	cleaner, err := Cleaner(r.Settings)
	if err != nil {
		return err
	}
	if err := applyOne(ctx, c, cleaner, say); err != nil {
		return err
	}
	if err := r.waitClean(ctx, c, say); err != nil {
		return err
	}
	if err := r.parkCleaner(ctx, c, say); err != nil {
		return err
	}
	return r.podsGone(ctx, c, "cleaners", func(corev1.Pod) bool { return true })
}

func (r *Removal) waitClean(ctx context.Context, c client.Client, say Progress) error {
	var said string
	var when time.Time
	for {
		var pods corev1.PodList
		err := c.List(ctx, &pods, client.InNamespace(Namespace), client.MatchingLabels{LabelName: ProductName, LabelComponent: cleanerComponent})
		missing := r.notClean(pods.Items)
		line := fmt.Sprintf("nodes cleaned %d/%d", len(r.Nodes)-len(missing), len(r.Nodes))
		if err == nil && (line != said || time.Since(when) > repeat) {
			say("%s", line)
			said, when = line, time.Now()
		}
		if err == nil && len(missing) == 0 {
			return nil
		}
		if pause(ctx, poll) != nil {
			return errors.Join(fmt.Errorf("not every node was cleaned in the time given (--timeout); uninstall can be run again:\n  %s", strings.Join(missing, "\n  ")), err)
		}
	}
}

// notClean says of each node that is not clean yet what it waits for.
func (r *Removal) notClean(pods []corev1.Pod) []string {
	var out []string
	for _, node := range r.Nodes {
		why := "the cleaner has not started there"
		for _, p := range pods {
			if p.Spec.NodeName == node {
				why = PodProblem(p)
			}
		}
		if why != "" {
			out = append(out, "node "+node+": "+why)
		}
	}
	return out
}

// clearNodeObjects takes our condition and annotations off the Nodes. Another
// writer's condition is left alone.
func (r *Removal) clearNodeObjects(ctx context.Context, c *Cluster, say Progress) error {
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if kube.IsOurs(kube.NetworkUnavailable(n)) {
			patch := client.RawPatch(types.StrategicMergePatchType,
				[]byte(`{"status":{"conditions":[{"$patch":"delete","type":"NetworkUnavailable"}]}}`))
			if err := c.Status().Patch(ctx, n, patch); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("take the condition NetworkUnavailable off node %s: %w", n.Name, err)
			}
			say("removed the condition NetworkUnavailable of node %s", n.Name)
		}
		for _, annotation := range []string{kube.WriterAnnotation, kube.SeenAnnotation} {
			if _, marked := n.Annotations[annotation]; !marked {
				continue
			}
			patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"`+annotation+`":null}}}`))
			if err := c.Patch(ctx, n, patch); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("take the annotation %s off node %s: %w", annotation, n.Name, err)
			}
		}
	}
	return nil
}

// deleteObjects removes the rest, the last applied first; with the CRDs go
// their objects.
func (r *Removal) deleteObjects(ctx context.Context, c *Cluster, say Progress) error {
	lease := &unstructured.Unstructured{}
	lease.SetGroupVersionKind(coordinationv1.SchemeGroupVersion.WithKind("Lease"))
	lease.SetNamespace(Namespace)
	lease.SetName(kube.ControllerLease)
	if err := deleteAnyway(ctx, c, lease, say); err != nil {
		return err
	}
	for _, obj := range slices.Backward(r.objects) {
		if obj.GetName() == CleanerName {
			continue
		}
		if err := deleteOne(ctx, c, obj, say); err != nil {
			return err
		}
	}
	for _, obj := range r.objects {
		if obj.GetKind() != "CustomResourceDefinition" {
			continue
		}
		if err := crdGone(ctx, c, obj.GetName()); err != nil {
			return err
		}
	}
	return nil
}

// deleteCleaner ends what another run would need.
func (r *Removal) deleteCleaner(ctx context.Context, c *Cluster, say Progress) error {
	for _, obj := range r.objects {
		if obj.GetName() == CleanerName {
			return deleteOne(ctx, c, obj, say)
		}
	}
	return nil
}

// crdGone waits until a CRD of ours and all of its objects are gone.
func crdGone(ctx context.Context, c client.Client, name string) error {
	for {
		var crd apiextensionsv1.CustomResourceDefinition
		err := c.Get(ctx, client.ObjectKey{Name: name}, &crd)
		if absent(err) || err == nil && !ours(&crd) {
			return nil
		}
		if pause(ctx, poll) != nil {
			return fmt.Errorf("the CustomResourceDefinition %s is not gone in the time given (--timeout): its objects may have finalizers of somebody's", name)
		}
	}
}

// deleteOne deletes an object if it is there and ours.
func deleteOne(ctx context.Context, c client.Client, obj *unstructured.Unstructured, say Progress) error {
	have := &unstructured.Unstructured{}
	have.SetGroupVersionKind(obj.GroupVersionKind())
	err := c.Get(ctx, client.ObjectKeyFromObject(obj), have)
	switch {
	case absent(err):
		return nil
	case err != nil:
		return fmt.Errorf("look at %s: %w", describe(obj), err)
	case !ours(have):
		say("left %s: it is not ours", describe(obj))
		return nil
	}
	return deleteAnyway(ctx, c, have, say)
}

func deleteAnyway(ctx context.Context, c client.Client, obj *unstructured.Unstructured, say Progress) error {
	err := c.Delete(ctx, obj, client.PropagationPolicy(metav1.DeletePropagationBackground))
	if absent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", describe(obj), err)
	}
	say("deleted %s", describe(obj))
	return nil
}
