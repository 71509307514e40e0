package kube

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

// MachineOf is what a NodeNetwork says of a node's machine.
func MachineOf(node *corev1.Node) v1alpha1.NodeNetworkSpec {
	spec := v1alpha1.NodeNetworkSpec{NodeUID: string(node.UID)}
	if !node.CreationTimestamp.IsZero() {
		spec.NodeCreated = node.CreationTimestamp.DeepCopy()
	}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			spec.Addresses = append(spec.Addresses, a.Address)
		}
	}
	for _, c := range node.Status.Conditions {
		// The node lifecycle controller writes Unknown when the kubelet has
		// stopped to report.
		spec.Silent = spec.Silent || c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	}
	spec.PodCIDRs = slices.Clone(node.Spec.PodCIDRs)
	if len(spec.PodCIDRs) == 0 && node.Spec.PodCIDR != "" {
		spec.PodCIDRs = []string{node.Spec.PodCIDR}
	}
	return spec
}

// planNode says what the Node object itself knows.
func planNode(node *corev1.Node) plan.Node { return planMachine(node.Name, MachineOf(node)) }

func planMachine(name string, spec v1alpha1.NodeNetworkSpec) plan.Node {
	n := plan.Node{Name: name, UID: spec.NodeUID, Silent: spec.Silent, Addresses: parseAddresses(spec.Addresses)}
	if spec.NodeCreated != nil {
		n.Created = spec.NodeCreated.Unix()
	}
	for _, p := range parsePrefixes(spec.PodCIDRs) {
		n.NodeCIDRs = append(n.NodeCIDRs, p.Masked())
	}
	return n
}
