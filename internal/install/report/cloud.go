package report

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
)

// cloudConditions are what the controller says of the cloud, but for its routes:
// condition -> check, and what to do.
func cloudConditions() []struct{ condition, check, remedy string } {
	return []struct{ condition, check, remedy string }{
		{v1alpha1.ConditionCloudRights, "cloud-rights", "ropeway cloud policy prints what the controller's RAM role or user needs; it is asked again every minute"},
		{v1alpha1.ConditionNodesKnown, "cloud-nodes", "kubectl describe node shows an event for each node that it is about"},
	}
}

// cloud: what the controller may do in the cloud, and knows of the nodes there.
func (d *Diagnosis) cloud(c *kube.Objects) {
	if c.Network == nil {
		return
	}
	for _, k := range cloudConditions() {
		cond := meta.FindStatusCondition(c.Network.Status.Conditions, k.condition)
		if cond == nil {
			continue // nothing of the kind is asked for
		}
		outcome := map[metav1.ConditionStatus]Outcome{metav1.ConditionTrue: OK, metav1.ConditionFalse: Fail, metav1.ConditionUnknown: Warn}[cond.Status]
		remedy := k.remedy
		if outcome == OK {
			remedy = ""
		}
		d.add(k.check, outcome, remedy, "%s", cond.Message)
	}
}

// cloudProblems are the sentences of those conditions that are not True, and
// of the routes' where a person must act.
func cloudProblems(n *v1alpha1.ClusterNetwork) []string {
	if n == nil {
		return nil
	}
	var out []string
	for _, k := range cloudConditions() {
		if cond := meta.FindStatusCondition(n.Status.Conditions, k.condition); cond != nil && cond.Status != metav1.ConditionTrue {
			out = append(out, cond.Message)
		}
	}
	return append(out, routeProblem(n)...)
}

// routeProblem is why destinations have no route, unless that only takes time.
func routeProblem(n *v1alpha1.ClusterNetwork) []string {
	cond := meta.FindStatusCondition(n.Status.Conditions, routes.ConditionPublished)
	if cond == nil || cond.Status == metav1.ConditionTrue ||
		slices.Contains([]string{routes.ReasonPublishing, routes.ReasonWithdrawing, routes.ReasonWithdrawn}, cond.Reason) {
		return nil
	}
	return []string{cond.Message}
}
