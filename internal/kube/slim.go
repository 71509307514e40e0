package kube

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// What the caches keep. An agent holds every Node and NodeNetwork of the
// cluster, so what nobody asks for is dropped before it is stored: managed
// fields, labels, annotations but ours, images, volumes, heartbeats. Objects of
// the cache must therefore never be written back; writers read afresh.

// configHashAnnotation is the kubelet's name for a static pod.
const configHashAnnotation = "kubernetes.io/config.hash"

// slimMeta keeps what identifies an object.
func slimMeta(m metav1.Object, annotations ...string) {
	m.SetManagedFields(nil)
	m.SetLabels(nil)
	m.SetFinalizers(nil)
	if len(m.GetAnnotations()) == 0 {
		return
	}
	kept := map[string]string{}
	for _, key := range annotations {
		if v, ok := m.GetAnnotations()[key]; ok {
			kept[key] = v
		}
	}
	m.SetAnnotations(kept)
}

// slimOther drops the metadata that no kind needs.
func slimOther(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		slimMeta(m)
	}
	return obj, nil
}

// slimNetwork keeps a person's annotations: some of them speak to us.
func slimNetwork(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		slimMeta(m, slices.Collect(maps.Keys(m.GetAnnotations()))...)
	}
	return obj, nil
}

func slimPod(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		slimMeta(m, configHashAnnotation)
		m.SetOwnerReferences(nil)
	}
	return obj, nil
}

func slimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	slimMeta(n, WriterAnnotation)
	n.OwnerReferences = nil
	status := corev1.NodeStatus{Addresses: n.Status.Addresses}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable || c.Type == corev1.NodeReady {
			c.LastHeartbeatTime = metav1.Time{}
			status.Conditions = append(status.Conditions, c)
		}
	}
	n.Status = status
	n.Spec = corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs, ProviderID: n.Spec.ProviderID}
	return n, nil
}

// slimNodeNetwork drops what only a person reads, but for the node's own.
func slimNodeNetwork(self string) func(any) (any, error) {
	return func(obj any) (any, error) {
		n, ok := obj.(*v1alpha1.NodeNetwork)
		if !ok {
			return obj, nil
		}
		slimMeta(n)
		if n.Name != self {
			n.OwnerReferences = nil
			n.Status.Pods = 0
			n.Status.Peers = nil
			n.Status.Exceptions = nil
			for i := range n.Status.Probes {
				n.Status.Probes[i].Since = metav1.Time{}
			}
		}
		return n, nil
	}
}

// sameForUs says that an update changed nothing that the slimmed object shows,
// so that a kubelet's heartbeat wakes nobody.
func sameForUs(before, after client.Object) bool {
	if before.GetUID() != after.GetUID() || !maps.Equal(before.GetAnnotations(), after.GetAnnotations()) {
		return false
	}
	switch b := before.(type) {
	case *corev1.Node:
		a, ok := after.(*corev1.Node)
		return ok && equality.Semantic.DeepEqual(b.Spec, a.Spec) && equality.Semantic.DeepEqual(b.Status, a.Status)
	case *v1alpha1.NodeNetwork:
		a, ok := after.(*v1alpha1.NodeNetwork)
		return ok && equality.Semantic.DeepEqual(b.Status, a.Status)
	case *v1alpha1.AddressBlock:
		a, ok := after.(*v1alpha1.AddressBlock)
		return ok && b.Spec == a.Spec
	case *metav1.PartialObjectMetadata:
		return before.GetDeletionTimestamp().Equal(after.GetDeletionTimestamp())
	}
	return false
}
