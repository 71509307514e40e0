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

// nodesInput is what the network in force asks for.
func nodesInput(spec *v1alpha1.ClusterNetworkSpec) nodes.Input {
	if spec == nil || !spec.Cloud.KeepsNodes() {
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
func setNodes(cn *v1alpha1.ClusterNetwork, s *nodes.Status) {
	if spec := cn.Status.InForce; spec == nil || !spec.Cloud.KeepsNodes() {
		meta.RemoveStatusCondition(&cn.Status.Conditions, v1alpha1.ConditionNodesKnown)
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

// nodeInstanceProblems are the problems in the words of tellCloud.
func nodeInstanceProblems(s *nodes.Status) []routes.Problem {
	out := make([]routes.Problem, 0, len(s.Problems))
	for _, p := range s.Problems {
		out = append(out, routes.Problem(p))
	}
	return out
}
