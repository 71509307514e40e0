package controller

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
)

// tell records an event when its message is not the one recorded last for the
// same object and reason.
func (c *controller) tell(m *memory, ref *corev1.ObjectReference, object string, warning bool, reason, message string) {
	c.tellIn(m.told, ref, object, warning, reason, message)
}

func (c *controller) tellIn(before map[told]string, ref *corev1.ObjectReference, object string, warning bool, reason, message string) {
	key := told{object, reason}
	if before[key] == message {
		return
	}
	before[key] = message
	c.record(ref, warning, reason, message)
}

func (c *controller) record(ref *corev1.ObjectReference, warning bool, reason, message string) {
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	c.recorder.Event(ref, kind, reason, message)
}

// tellCloud records an event for each problem of the cloud's that a person must
// act on: at the node where it is about one, else at the ClusterNetwork. The
// part (routes, nodes) has its own memory of what was told.
func (c *controller) tellCloud(cn *v1alpha1.ClusterNetwork, part string, problems []routes.Problem, before map[told]string) {
	now := map[told]bool{}
	for _, p := range problems {
		object, ref := part, networkReference(cn)
		if p.Node != "" {
			object, ref = part+"/"+p.Node, kube.NodeReference(p.Node)
		}
		now[told{object, p.Reason}] = true
		c.tellIn(before, ref, object, true, p.Reason, p.Message)
	}
	for key := range before {
		if (key.object == part || strings.HasPrefix(key.object, part+"/")) && !now[key] {
			delete(before, key)
		}
	}
}

func networkReference(cn *v1alpha1.ClusterNetwork) *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "ClusterNetwork", Name: cn.Name, UID: cn.UID}
}

// tellProblems records what is wrong with nodes: a podCIDR outside the pod
// network, one that overlaps another node's. A problem that is gone and comes
// back is told again.
func (c *controller) tellProblems(o *observed, m *memory) {
	if o.noNet != "" {
		return
	}
	now := map[told]bool{}
	counts := map[string]int{}
	for _, p := range o.problems {
		object := "Node/" + p.Node
		now[told{object, p.Reason}] = true
		counts[p.Reason]++
		if m.told[told{object, p.Reason}] != p.Message {
			c.log.Warn(p.Message, "node", p.Node, "reason", p.Reason)
		}
		c.tell(m, kube.NodeReference(p.Node), object, true, p.Reason, p.Message)
	}
	for key := range m.told {
		if !now[key] {
			delete(m.told, key)
		}
	}
	c.metrics.setProblems(counts)
}
