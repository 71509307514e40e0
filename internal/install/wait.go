package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
)

// Readiness is how far an installation has come.
type Readiness struct {
	Ready bool
	// Line is the state in one line.
	Line string
	// Missing says of each thing that is not there yet what it waits for.
	Missing []string
	// Fatal is why waiting is of no use; nil while it is.
	Fatal error
}

// WaitReady waits until every agent and controller is Ready and every node is
// proven reachable, with a line of progress on each change and every ten
// seconds. The context bounds it; the error then says what is missing.
func WaitReady(ctx context.Context, c *Cluster, say Progress) error {
	var state Readiness
	var failed error // the last look, if it failed
	var said string
	var when time.Time
	for {
		survey := &Survey{OwnCRDs: map[string]bool{}}
		err := errors.Join(survey.lookAtWorkloads(ctx, c), survey.lookAtOwn(ctx, c))
		if ctx.Err() == nil {
			failed = err
		}
		if err == nil {
			state = readiness(survey)
			if state.Line != said || time.Since(when) > repeat {
				say("%s", state.Line)
				said, when = state.Line, time.Now()
			}
			if state.Fatal != nil || state.Ready {
				return state.Fatal
			}
		}
		if pause(ctx, poll) != nil {
			return notReady(ctx, state, failed)
		}
	}
}

func notReady(ctx context.Context, state Readiness, failed error) error {
	why := "stopped waiting"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		why = "not ready in the time given (--timeout)"
	}
	if failed != nil {
		return fmt.Errorf("%s: the cluster could not be looked at: %w", why, failed)
	}
	return fmt.Errorf("%s; everything is applied, and this is missing:\n  %s\nropeway doctor says more, also later", why, strings.Join(state.Missing, "\n  "))
}

// readiness judges an installation. It decides; it does not look.
func readiness(s *Survey) Readiness {
	agents, agentsWanted, agentsSettled := agentCount(s)
	controllers, controllersWanted, controllersSettled := controllerCount(s)
	var r Readiness
	if !agentsSettled || !controllersSettled {
		r.Missing = append(r.Missing, missingPods(s)...)
	}
	reachable, wanted := 0, 0
	for _, n := range s.Nodes {
		if n.Labels[corev1.LabelOSStable] == "windows" {
			continue
		}
		wanted++
		if why := notProven(n); why == "" {
			reachable++
		} else {
			r.Missing = append(r.Missing, "node "+n.Name+": "+why)
		}
	}
	r.Line = fmt.Sprintf("agents ready %d/%d, controllers ready %d/%d, nodes reachable %d/%d",
		agents, agentsWanted, controllers, controllersWanted, reachable, wanted)
	r.Fatal = refusal(s.Network)
	if !judged(s.Network) {
		r.Missing = append(r.Missing, "the controller has not judged the ClusterNetwork as it is now")
	}
	r.Ready = agentsSettled && controllersSettled && reachable == wanted && judged(s.Network) && r.Fatal == nil
	if !r.Ready && len(r.Missing) == 0 {
		r.Missing = []string{r.Line}
	}
	return r
}

func agentCount(s *Survey) (ready, wanted int, settled bool) {
	i := slices.IndexFunc(s.DaemonSets, func(d appsv1.DaemonSet) bool { return d.Namespace == Namespace && d.Name == AgentName })
	if i < 0 {
		return 0, len(s.Nodes), false
	}
	d := s.DaemonSets[i]
	st := d.Status
	settled = st.ObservedGeneration >= d.Generation && st.NumberReady == st.DesiredNumberScheduled &&
		st.UpdatedNumberScheduled == st.DesiredNumberScheduled && (st.DesiredNumberScheduled > 0 || len(s.Nodes) == 0)
	return int(st.NumberReady), int(st.DesiredNumberScheduled), settled
}

func controllerCount(s *Survey) (ready, wanted int, settled bool) {
	i := slices.IndexFunc(s.Deployments, func(d appsv1.Deployment) bool { return d.Namespace == Namespace && d.Name == ControllerName })
	if i < 0 {
		return 0, 1, false
	}
	d := s.Deployments[i]
	wanted = 1
	if d.Spec.Replicas != nil {
		wanted = int(*d.Spec.Replicas)
	}
	st := d.Status
	settled = st.ObservedGeneration >= d.Generation && int(st.UpdatedReplicas) == wanted && int(st.ReadyReplicas) == wanted
	return int(st.ReadyReplicas), wanted, settled
}

// notProven says why a node is not available to pods; empty when it is.
func notProven(n corev1.Node) string {
	c := kube.NetworkUnavailable(&n)
	switch {
	case c == nil:
		return "the controller has not said anything of it yet"
	case c.Status == corev1.ConditionFalse:
		return ""
	case c.Message == "":
		return c.Reason
	}
	return c.Message
}

// judged says whether the controller has seen the ClusterNetwork in its present
// form: what it said of an earlier one is no word on this.
func judged(network *v1alpha1.ClusterNetwork) bool {
	return network != nil && network.Status.ObservedGeneration >= network.Generation
}

// refusal is the controller's word that the pod network cannot be as it was
// asked for.
func refusal(network *v1alpha1.ClusterNetwork) error {
	if network == nil {
		return nil
	}
	c := meta.FindStatusCondition(network.Status.Conditions, v1alpha1.ConditionAccepted)
	if c == nil || c.Status != metav1.ConditionFalse || c.ObservedGeneration != 0 && c.ObservedGeneration < network.Generation {
		return nil
	}
	return fmt.Errorf("the controller refuses ClusterNetwork %s: %s", network.Name, c.Message)
}

// missingPods says of each pod of ours that is not ready what keeps it.
func missingPods(s *Survey) []string {
	var out []string
	for _, p := range s.Pods {
		if why := PodProblem(p); why != "" {
			out = append(out, fmt.Sprintf("pod %s on %s: %s", p.Name, orElse(p.Spec.NodeName, "no node"), why))
		}
	}
	if len(out) == 0 {
		out = append(out, "not all pods of Ropeway have been made yet")
	}
	return out
}

// PodProblem says what keeps a pod from being Ready; empty when it is.
func PodProblem(p corev1.Pod) string {
	ready := false
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			ready = c.Status == corev1.ConditionTrue
		}
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "not scheduled: " + c.Message
		}
	}
	if ready {
		return ""
	}
	if p.DeletionTimestamp != nil {
		return "being deleted"
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if why := containerProblem(c); why != "" {
			return why
		}
	}
	return "not ready yet (" + strings.ToLower(string(p.Status.Phase)) + ")"
}

func containerProblem(c corev1.ContainerStatus) string {
	w, t := c.State.Waiting, c.LastTerminationState.Terminated
	switch {
	case c.State.Terminated != nil && c.State.Terminated.ExitCode != 0:
		return fmt.Sprintf("container %s ended with code %d: %s", c.Name, c.State.Terminated.ExitCode, lastLine(c.State.Terminated.Message))
	case w == nil || w.Reason == "PodInitializing" || w.Reason == "ContainerCreating":
		return ""
	case t != nil:
		return fmt.Sprintf("container %s ends again and again with code %d: %s (kubectl -n %s logs shows more)", c.Name, t.ExitCode, orElse(lastLine(t.Message), t.Reason), Namespace)
	case strings.HasPrefix(w.Reason, "ErrImage") || strings.HasPrefix(w.Reason, "ImagePull") || w.Reason == "InvalidImageName":
		return fmt.Sprintf("the image %s cannot be had: %s; import it on the node (ctr -n k8s.io images import), or give --registry or --image", c.Image, orElse(w.Message, w.Reason))
	}
	return w.Reason + ": " + w.Message
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
