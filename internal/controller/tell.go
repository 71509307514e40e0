package controller

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/few"
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
	all := notices{}
	for _, p := range problems {
		all.add(p.Node, p.Reason, p.Message)
	}
	now := map[told]bool{}
	for about, message := range all.each {
		object, ref := part, networkReference(cn)
		if about.object != "" {
			object, ref = part+"/"+about.object, kube.NodeReference(about.object)
		}
		now[told{object, about.reason}] = true
		c.tellIn(before, ref, object, true, about.reason, message)
	}
	for key := range before {
		if (key.object == part || strings.HasPrefix(key.object, part+"/")) && !now[key] {
			delete(before, key)
		}
	}
}

// notices are what is to be told -> its messages. Several of one reason about one
// object are one event: told one after the other, each would be news in every
// pass.
type notices map[told][]string

func (n notices) add(object, reason, message string) {
	about := told{object, reason}
	n[about] = append(n[about], message)
}

// each passes on the events in order.
func (n notices) each(yield func(about told, message string) bool) {
	byObject := func(a, b told) int {
		return cmp.Or(strings.Compare(a.object, b.object), strings.Compare(a.reason, b.reason))
	}
	for _, about := range slices.SortedFunc(maps.Keys(n), byObject) {
		slices.Sort(n[about])
		if !yield(about, few.Join(slices.Compact(n[about]), "; ")) {
			return
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
	all := notices{}
	counts := map[string]int{}
	for _, p := range o.problems {
		counts[p.Reason]++
		all.add(p.Node, p.Reason, p.Message)
	}
	now := map[told]bool{}
	for about, message := range all.each {
		object := "Node/" + about.object
		now[told{object, about.reason}] = true
		if m.told[told{object, about.reason}] != message {
			c.log.Warn(message, "node", about.object, "reason", about.reason)
		}
		c.tell(m, kube.NodeReference(about.object), object, true, about.reason, message)
	}
	for key := range m.told {
		if !now[key] {
			delete(m.told, key)
		}
	}
	c.metrics.setProblems(counts)
}
