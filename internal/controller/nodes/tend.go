package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	toolscache "k8s.io/client-go/tools/cache"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/kube"
)

// tender does for all nodes what the controllers of k8s.io/cloud-provider do
// not do.
type tender struct {
	cfg       Config
	input     func() Input
	instances *instances
	api       kubernetes.Interface
	wake      chan struct{}

	checked map[string]time.Time // interface -> when it was last found to forward
	// Problems of the last time: what concerns all nodes, and nodes that are
	// not found.
	urgent, lost []Problem
}

// recheck is how often interfaces are asked about again.
const recheck = time.Hour

// handler wakes the tender when a node comes or becomes another's, and lets a
// kubelet that speaks put an end to every suspicion at once: the lifecycle
// controller does not ask about a node that is Ready.
func (t *tender) handler() toolscache.ResourceEventHandler {
	wake := func() {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { wake() },
		UpdateFunc: func(before, after any) {
			b, ok1 := before.(*corev1.Node)
			a, ok2 := after.(*corev1.Node)
			if ok2 && !silent(a) {
				t.instances.acquit(a.UID)
			}
			if ok1 && ok2 && (b.UID != a.UID || b.Spec.ProviderID != a.Spec.ProviderID || waits(b) != waits(a) || len(addressesOf(b)) != len(addressesOf(a))) {
				wake()
			}
		},
	}
}

// deleted is told of a Node that was deleted.
func (t *tender) deleted(name string) {
	t.cfg.Metrics.deleted.Inc()
	t.cfg.Log.Warn("a Node was deleted: its instance is gone from the cloud", "node", name)
}

// run works until the context ends: on all nodes when one has come and now and
// then, and again soon after something failed.
func (t *tender) run(ctx context.Context, publish func(*Status)) {
	var due time.Time
	retry := t.cfg.Retry
	for ctx.Err() == nil {
		if now := t.cfg.Now(); !now.Before(due) {
			if t.tend(ctx) {
				due, retry = now.Add(t.cfg.Update), t.cfg.Retry
			} else {
				due, retry = now.Add(retry), min(2*retry, t.cfg.longest())
			}
		}
		if ctx.Err() == nil {
			publish(t.status())
		}
		// Nodes that come together are tended together.
		timer := time.NewTimer(min(t.cfg.Monitor, max(time.Until(due), t.cfg.Retry/4)))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-t.wake:
			// At the latest: that more of them come does not put it off.
			if soon := t.cfg.Now().Add(t.cfg.Retry / 4); soon.Before(due) {
				due = soon
			}
		}
		timer.Stop()
	}
}

// member is a node and the instance that it is.
type member struct {
	node *corev1.Node
	in   cloud.Instance
}

// tend looks at all nodes once; false if something failed that another try may
// mend.
func (t *tender) tend(ctx context.Context) bool {
	nodes, err := t.instances.nodes()
	if err == nil {
		err = t.instances.catalog.list(ctx, fresh)
	}
	if err != nil {
		t.urgent = []Problem{problemOf(err)}
		return false
	}
	var members []member
	t.lost = nil
	for _, n := range nodes {
		in, err := t.instances.listed(ctx, n)
		if err != nil {
			t.lost = append(t.lost, Problem{Reason: ReasonNoInstance, Node: n.Name, Message: err.Error()})
			continue
		}
		members = append(members, member{n, in})
	}
	t.lost = summed(t.lost, len(nodes))
	t.urgent = append(t.patch(ctx, members), t.forward(ctx, members)...)
	return len(t.urgent)+len(t.lost) == 0
}

// summed makes one problem of many that have one cause.
func summed(lost []Problem, nodes int) []Problem {
	const most = 5
	if len(lost) <= most {
		return lost
	}
	var names []string
	for _, p := range lost {
		names = append(names, p.Node)
	}
	slices.Sort(names)
	return []Problem{{Reason: ReasonNoInstance, Message: fmt.Sprintf("the cloud does not show the instances of %s (%s): see the region, the VPC, and what the credentials may see",
		counted(len(lost), nodes), few.Join(names, ", "))}}
}

// status puts together what is known now.
func (t *tender) status() *Status {
	nodes, err := t.instances.nodes()
	if err == nil {
		t.instances.forget(nodes)
	}
	s := &Status{On: true, Problems: slices.Concat(t.urgent, t.instances.doubts(), t.lost)}
	if err != nil {
		return s
	}
	s.Total = len(nodes)
	for _, n := range nodes {
		if n.Annotations[kube.SeenAnnotation] != "" && n.Spec.ProviderID != "" {
			s.Known++
		}
	}
	t.cfg.Metrics.set(s, t.instances.all())
	return s
}

// patch writes on each Node what is missing there: that its instance was seen;
// and, where the kubelet does not wait for a cloud controller, which it is. What
// fails for a few nodes is done for the others all the same.
func (t *tender) patch(ctx context.Context, members []member) []Problem {
	var errs []error
	var node string // of the last error
	for _, m := range members {
		if len(errs) >= few.Most {
			break // it is not about single nodes; the next try has another order
		}
		change := missing(m, t.instances.cloud)
		if change == nil {
			continue
		}
		body, err := json.Marshal(change)
		if err == nil {
			_, err = t.api.CoreV1().Nodes().Patch(ctx, m.node.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{})
		}
		switch {
		case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err), apierrors.IsInvalid(err) && strings.Contains(err.Error(), "uid"):
			continue // done, or another Node by now
		case apierrors.IsForbidden(err):
			return []Problem{{Reason: ReasonRights, Message: fmt.Sprintf("the controller may not change Nodes, which spec.cloud.nodes: ropeway needs: "+
				"run ropeway install --cloud-nodes ropeway --apply, which gives it the rights (%v)", err)}}
		case ctx.Err() != nil:
			return nil
		}
		node = m.node.Name
		errs = append(errs, fmt.Errorf("write what node %s is: %w", node, err))
	}
	if len(errs) > 1 {
		node = ""
	}
	return problemsOf(errs, node)
}

// problemsOf is one problem of what failed for several nodes, or of the one that
// is named.
func problemsOf(errs []error, node string) []Problem {
	err := few.Errors(errs...)
	if err == nil {
		return nil
	}
	p := problemOf(err)
	p.Node, p.Message = node, strings.ReplaceAll(p.Message, "\n", "; ")
	return []Problem{p}
}

// missing is the change of a Node; nil for none.
func missing(m member, of cloud.Instances) map[string]any {
	metadata, patch := map[string]any{}, map[string]any{}
	if m.node.Annotations[kube.SeenAnnotation] != m.in.ID {
		metadata["annotations"] = map[string]string{kube.SeenAnnotation: m.in.ID}
	}
	if !waits(m.node) {
		if m.node.Spec.ProviderID == "" {
			patch["spec"] = map[string]string{"providerID": of.ProviderID(m.in.ID)}
		}
		labels := map[string]string{
			corev1.LabelTopologyZone: m.in.Zone, corev1.LabelTopologyRegion: m.in.Region, corev1.LabelInstanceTypeStable: m.in.Type,
		}
		maps.DeleteFunc(labels, func(key, value string) bool { _, there := m.node.Labels[key]; return there || value == "" })
		if len(labels) > 0 {
			metadata["labels"] = labels
		}
	}
	if len(metadata)+len(patch) == 0 {
		return nil
	}
	metadata["uid"] = m.node.UID // a precondition: not of a Node made anew
	patch["metadata"] = metadata
	return patch
}

// forward lets the nodes' interfaces carry pods' packets, where direct is
// allowed.
func (t *tender) forward(ctx context.Context, members []member) []Problem {
	if !t.input().Forward {
		return nil
	}
	now := t.cfg.Now()
	var errs []error
	due := slices.DeleteFunc(slices.Clone(members), func(m member) bool {
		last, checked := t.checked[m.in.Interface]
		return m.in.Interface == "" || checked && now.Sub(last) < recheck
	})
	for batch := range slices.Chunk(due, cloud.MaxDescribe) {
		var of []cloud.Instance
		for _, m := range batch {
			of = append(of, m.in)
		}
		changed, err := t.askForwarding(ctx, of)
		for _, m := range batch {
			if slices.Contains(changed, m.in.ID) {
				t.cfg.Metrics.forward.Inc()
				t.cfg.Record(m.node, false, "ForwardingAllowed", fmt.Sprintf("the check of source and destination addresses of interface %s (instance %s) is switched off: "+
					"it drops pods' packets, which the direct transport leaves as they are", m.in.Interface, m.in.ID))
			}
			if err == nil {
				t.checked[m.in.Interface] = now
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("let the interfaces of nodes carry pods' packets: %w", err))
		}
		if ctx.Err() != nil || cloud.Is(err, cloud.Lost, cloud.Throttled, cloud.Unreachable, cloud.Unauthenticated) {
			break // the next batch would meet the same
		}
	}
	return problemsOf(errs, "")
}

func (t *tender) askForwarding(ctx context.Context, of []cloud.Instance) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.CallTimeout)
	defer cancel()
	changed, err := t.instances.cloud.AllowForwarding(ctx, of)
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return changed, errors.Join(err, ctx.Err())
	}
	return changed, err
}
