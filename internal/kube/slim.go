package kube

import (
	"maps"
	"slices"
	"unique"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan"
)

// What the caches keep. An agent holds every NodeNetwork of the cluster, and the
// controller every Node, so what nobody asks for is dropped before it is stored:
// managed fields, labels, annotations but ours, images, volumes, heartbeats.
// Objects of the cache must therefore never be written back; writers read afresh.

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

// slimPod keeps what pools are chosen by, and the StatefulSet that keeps its
// pods' addresses.
func slimPod(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		labels := m.GetLabels()
		slimMeta(m, append(pool.PodAnnotations(), configHashAnnotation)...)
		m.SetLabels(labels)
		var sets []metav1.OwnerReference
		for _, o := range m.GetOwnerReferences() {
			if o.Kind == "StatefulSet" {
				sets = append(sets, o)
			}
		}
		m.SetOwnerReferences(sets)
	}
	return obj, nil
}

// slimNamespace keeps what pools are chosen by.
func slimNamespace(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		labels := m.GetLabels()
		slimMeta(m, pool.NamespaceAnnotations()...)
		m.SetLabels(labels)
		m.SetOwnerReferences(nil)
	}
	return obj, nil
}

// slimNode keeps the labels of the node itself, by which it has pools.
func slimNode(self string) func(any) (any, error) {
	return func(obj any) (any, error) {
		n, ok := obj.(*corev1.Node)
		if !ok {
			return obj, nil
		}
		labels := n.Labels
		slimMeta(n, WriterAnnotation)
		if n.Name == self {
			n.Labels = labels
		}
		return slimNodeStatus(n), nil
	}
}

func slimNodeStatus(n *corev1.Node) *corev1.Node {
	n.OwnerReferences = nil
	var status corev1.NodeStatus
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			status.Addresses = append(status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.Address})
		}
	}
	for _, c := range n.Status.Conditions {
		switch c.Type {
		case corev1.NodeReady: // whether the kubelet reports at all
			status.Conditions = append(status.Conditions, corev1.NodeCondition{Type: corev1.NodeReady, Status: c.Status})
		case corev1.NodeNetworkUnavailable:
			c.LastHeartbeatTime = metav1.Time{}
			status.Conditions = append(status.Conditions, c)
		}
	}
	n.Status = status
	n.Spec = corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs, ProviderID: n.Spec.ProviderID}
	return n
}

// keptNodeNetwork is a NodeNetwork in a cache. What a node has published of others
// is most of it, so that is kept beside it in the plan's few bytes.
type keptNodeNetwork struct {
	v1alpha1.NodeNetwork
	published plan.Published
}

// keep adds one of a cache to what the plan depends on.
func (o *Objects) keep(n *keptNodeNetwork) {
	if o.published == nil {
		o.published = map[string]plan.Published{}
	}
	o.NodeNetworks = append(o.NodeNetworks, &n.NodeNetwork)
	o.published[n.Name] = n.published
}

// slimNodeNetwork keeps what the plan asks of another node, and the node's own
// whole but for the probes.
func slimNodeNetwork(self string) func(any) (any, error) {
	return func(obj any) (any, error) {
		n, ok := obj.(*v1alpha1.NodeNetwork)
		if !ok {
			return obj, nil // it is kept already
		}
		kept := &keptNodeNetwork{*n, publishedBy(n)}
		kept.Status.Probes = nil
		slimMeta(kept)
		if n.Name == self {
			return kept, nil
		}
		kept.OwnerReferences = nil
		kept.Spec.NodeUID = once(n.Spec.NodeUID)
		st := &n.Status
		kept.Status = v1alpha1.NodeNetworkStatus{NodeUID: once(st.NodeUID), ReadySince: st.ReadySince, Sources: st.Sources, VTEP: st.VTEP,
			CIDRs: st.CIDRs, Transports: slimTransports(st.Transports), Faults: st.Faults}
		if self == "" { // the controller adds up the pools, and takes routes away when nobody uses them any more
			kept.Status.Pools = st.Pools
			kept.Status.NetworkGeneration, kept.Status.Peers = st.NetworkGeneration, slimPeers(st.Peers)
		}
		return kept, nil
	}
}

// slimPeers keeps which transports a node has in use, not for how many peers.
func slimPeers(in map[string]int32) map[string]int32 {
	var out map[string]int32
	for transport := range in {
		if out == nil {
			out = map[string]int32{}
		}
		out[once(transport)] = 1
	}
	return out
}

// slimTransports keeps those that a node refuses.
func slimTransports(in []v1alpha1.TransportStatus) []v1alpha1.TransportStatus {
	var out []v1alpha1.TransportStatus
	for _, t := range in {
		if !t.Supported {
			out = append(out, t)
		}
	}
	return out
}

// once returns an equal string that all callers share.
func once(s string) string { return unique.Make(s).Value() }

// sameForUs says that an update changed nothing that the slimmed object shows,
// so that a kubelet's heartbeat wakes nobody.
func sameForUs(before, after client.Object) bool {
	if before.GetUID() != after.GetUID() || !maps.Equal(before.GetAnnotations(), after.GetAnnotations()) ||
		!maps.Equal(before.GetLabels(), after.GetLabels()) {
		return false
	}
	switch b := before.(type) {
	case *v1alpha1.ClusterNetwork:
		a, ok := after.(*v1alpha1.ClusterNetwork)
		return ok && b.Generation == a.Generation && b.DeletionTimestamp.Equal(a.DeletionTimestamp) && sameInForce(&b.Status, &a.Status)
	case *corev1.Node:
		a, ok := after.(*corev1.Node)
		return ok && equality.Semantic.DeepEqual(b.Spec, a.Spec) && equality.Semantic.DeepEqual(b.Status, a.Status)
	case *keptNodeNetwork:
		a, ok := after.(*keptNodeNetwork)
		return ok && b.published.Equal(a.published) && equality.Semantic.DeepEqual(b.Status, a.Status) && equality.Semantic.DeepEqual(b.Spec, a.Spec)
	case *v1alpha1.AddressBlock:
		a, ok := after.(*v1alpha1.AddressBlock)
		return ok && equality.Semantic.DeepEqual(b.Spec, a.Spec)
	case *v1alpha1.AddressPool, *v2beta1.SpiderIPPool:
		return before.GetGeneration() == after.GetGeneration() && before.GetDeletionTimestamp().Equal(after.GetDeletionTimestamp())
	case *v2beta1.SpiderReservedIP:
		return before.GetGeneration() == after.GetGeneration()
	case *metav1.PartialObjectMetadata:
		return before.GetDeletionTimestamp().Equal(after.GetDeletionTimestamp())
	}
	return false
}

// sameInForce says that two statuses make nodes do the same, whatever else the
// controller says in them of its progress.
func sameInForce(b, a *v1alpha1.ClusterNetworkStatus) bool {
	return equality.Semantic.DeepEqual(b.InForce, a.InForce) && equality.Semantic.DeepEqual(
		meta.FindStatusCondition(b.Conditions, v1alpha1.ConditionAccepted), meta.FindStatusCondition(a.Conditions, v1alpha1.ConditionAccepted))
}
