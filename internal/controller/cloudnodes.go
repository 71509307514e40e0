package controller

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/nodes"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
)

// cloudSetup says which cloud a network's configuration names.
func cloudSetup(cl *v1alpha1.CloudSpec) cloud.Setup {
	return cloud.Setup{
		Provider: string(cl.Provider), Region: cl.RegionID, VPC: cl.VPCID, Endpoint: cl.Endpoint,
		Tables: slices.Clone(cl.RouteTableIDs), Secret: cl.CredentialsSecret,
	}
}

// newNodes makes what looks after the nodes' instances while this replica
// leads, where the configuration asks for it.
func (c *controller) newNodes() *nodes.Controller {
	return nodes.New(nodes.Config{
		API:  c.cfg.API,
		Make: c.makeProvider,
		Record: func(n *corev1.Node, warning bool, reason, message string) {
			c.record(kube.NodeReference(n.Name), warning, reason, message)
		},
		Changed: c.observer.Touch,
		Log:     c.log,
		Metrics: c.metrics.instances,
		Confirm: c.cfg.Confirm,
		Monitor: c.cfg.Monitor,
		Retry:   c.cfg.Monitor,
	})
}

// nodesInput is what the network in force asks for, unless another does it.
func nodesInput(spec *v1alpha1.ClusterNetworkSpec, other rival) nodes.Input {
	if spec == nil || !spec.Cloud.KeepsNodes() || other.nodes != "" {
		return nodes.Input{}
	}
	return nodes.Input{
		On: true, Setup: cloudSetup(spec.Cloud),
		Forward: slices.Contains(spec.Transports, v1alpha1.TransportDirect),
		IPv6:    slices.ContainsFunc(prefixesOf(spec), func(p netip.Prefix) bool { return p.Addr().Is6() }),
	}
}

// setNodes fills the condition that speaks of the nodes' instances. What an
// earlier leader has said stays until this one knows better.
func setNodes(cn *v1alpha1.ClusterNetwork, s *nodes.Status, other rival) {
	if spec := cn.Status.InForce; spec == nil || !spec.Cloud.KeepsNodes() {
		meta.RemoveStatusCondition(&cn.Status.Conditions, v1alpha1.ConditionNodesKnown)
		return
	}
	if other.nodes != "" {
		meta.SetStatusCondition(&cn.Status.Conditions, metav1.Condition{
			Type: v1alpha1.ConditionNodesKnown, Status: metav1.ConditionFalse, Reason: reasonWithheld, Message: other.nodes, ObservedGeneration: cn.Generation,
		})
		return
	}
	if !s.On {
		return
	}
	cond := metav1.Condition{
		Type: v1alpha1.ConditionNodesKnown, Status: metav1.ConditionTrue, Reason: "Known", Message: s.Sentence(), ObservedGeneration: cn.Generation,
	}
	if len(s.Problems) > 0 {
		cond.Status, cond.Reason = metav1.ConditionFalse, s.Problems[0].Reason
	}
	meta.SetStatusCondition(&cn.Status.Conditions, cond)
}

// reasonWithheld says that Ropeway does not do what is asked for, since another
// program does.
const reasonWithheld = "Withheld"

// nodeInstanceProblems are the problems in the words of tellCloud.
func nodeInstanceProblems(spec *v1alpha1.ClusterNetworkSpec, s *nodes.Status, other rival) []routes.Problem {
	out := make([]routes.Problem, 0, len(s.Problems))
	if spec != nil && spec.Cloud.KeepsNodes() && other.nodes != "" {
		out = append(out, routes.Problem{Reason: "NodesLeftToAnother", Message: other.nodes})
	}
	for _, p := range s.Problems {
		out = append(out, routes.Problem(p))
	}
	return out
}
