package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/internal/kube"
)

// The node condition NetworkUnavailable has one writer, the leading controller.
// It is True from the moment that a Node is seen until its CIDRs are proven
// reachable, and False from then on while anything that is allowed carries packets
// to it: what happens to one of several transports is for routes and probes to
// mend. It is True again when nothing does (no fallback is allowed, or all of them
// fail): the taint keeps new pods away and touches none that runs. That takes
// others' findings, not a lack of them, for lostFor; and where more than half of
// the nodes would be lost, none is: that is an outage, or the probes', and no
// place would be left for pods.
//
// Where somebody else writes the condition too, two writers would contradict
// each other for ever. A word of somebody else's is replaced once, when there
// is something better to say. If it comes back, its writer is alive: the Node
// gets an annotation with the other's reason, an event names it, and the
// condition is left alone until the other's word is gone, or its writer is known
// to be (rival.go): then it is ours again.

const (
	// settle is how long after a write a cache may still show the state before.
	settle = 5 * time.Second
	// messageInterval bounds how often the message alone is brought up to date.
	messageInterval = 30 * time.Second
	// lostFor is how long nothing reaches a node until it is unavailable again.
	lostFor = 30 * time.Second
	// writers bounds the writes at a time.
	writers = 8
)

// nodeMemory is what was done to one Node.
type nodeMemory struct {
	version string    // the Node's version that the last write was decided on
	acted   time.Time // when that was
	wrote   time.Time // when its condition was last written
	lost    time.Time // since when nothing reaches it; zero while something does
}

// note brings up to date since when the node is lost.
func (m *nodeMemory) note(lost bool, now time.Time) {
	switch {
	case !lost:
		m.lost = time.Time{}
	case m.lost.IsZero():
		m.lost = now
	}
}

// wanted is what to change on one Node. The zero value is nothing.
type wanted struct {
	status  corev1.ConditionStatus // of NetworkUnavailable; empty: leave it
	message string
	writer  *string // the value of the annotation; "" removes it
}

func (w wanted) nothing() bool { return w.status == "" && w.writer == nil }

// decide says what to write to a Node, given whether it is proven and what was
// done to it before; othersGone says that no route controller writes it.
func decide(node *corev1.Node, proven bool, message string, m nodeMemory, othersGone bool, now time.Time) wanted {
	cond := kube.NetworkUnavailable(node)
	writer, yielded := node.Annotations[kube.WriterAnnotation]
	var w wanted
	switch {
	case cond == nil || kube.IsOurs(cond):
		w = decideOurs(cond, proven, message, m, now)
		if yielded {
			gone := ""
			w.writer = &gone
		}
	case yielded && othersGone && writtenByRoutes(cond.Reason) && now.Sub(m.wrote) >= settle:
		if w = decideAfterOther(cond, proven, message); !w.nothing() {
			gone := ""
			w.writer = &gone
		}
	case yielded && writer == cond.Reason:
		// The other has it; that has been said.
	case yielded, !m.wrote.IsZero() && now.Sub(m.wrote) >= settle:
		w.writer = &cond.Reason
	case proven && m.wrote.IsZero():
		w.status, w.message = corev1.ConditionFalse, message
	}
	return w
}

// decideAfterOther is decide where the other writer has stopped. A node that it
// has made available stays so: that is not taken back, only said anew.
func decideAfterOther(cond *corev1.NodeCondition, proven bool, message string) wanted {
	switch {
	case proven:
		return wanted{status: corev1.ConditionFalse, message: message}
	case cond.Status != corev1.ConditionFalse:
		return wanted{status: corev1.ConditionTrue, message: message}
	}
	return wanted{}
}

// decideOurs is decide where nobody else has spoken.
func decideOurs(cond *corev1.NodeCondition, proven bool, message string, m nodeMemory, now time.Time) wanted {
	switch {
	case cond != nil && cond.Status == corev1.ConditionFalse:
		if !m.lost.IsZero() && now.Sub(m.lost) >= lostFor {
			return wanted{status: corev1.ConditionTrue, message: message}
		}
		return wanted{}
	case proven:
		return wanted{status: corev1.ConditionFalse, message: message}
	case cond == nil, cond.Message != message && now.Sub(m.wrote) >= messageInterval:
		return wanted{status: corev1.ConditionTrue, message: message}
	}
	return wanted{}
}

// writeConditions decides on all Nodes and writes what differs, several at a
// time.
func (c *controller) writeConditions(ctx context.Context, o *observed, m *memory) error {
	now := c.now()
	m.forgetNodes(o.objects.Nodes)
	var (
		g     errgroup.Group
		mu    sync.Mutex
		done  tries
		taken int
	)
	g.SetLimit(writers)
	for i := range o.objects.Nodes {
		node := &o.objects.Nodes[i]
		nm := m.node(node.UID)
		nm.note(o.lost[node.Name], now)
		w := decide(node, o.verdicts[node.Name].Reachable && o.noNet == "", conditionMessage(o, node.Name), *nm, o.rival.gone, now)
		if cond := kube.NetworkUnavailable(node); cond != nil && !kube.IsOurs(cond) {
			taken++
		}
		if w.nothing() || nm.version == node.ResourceVersion && now.Sub(nm.acted) < settle || done.over() {
			continue // the second: written already, and the cache is behind
		}
		g.Go(func() error {
			err := c.writeNode(ctx, node, w)
			if done.note(err); err != nil {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			nm.version, nm.acted = node.ResourceVersion, now
			if w.status != "" {
				nm.wrote = now
			}
			if w.writer != nil {
				m.rivalAgain = true
			}
			return nil
		})
	}
	_ = g.Wait() // the functions report to done
	c.metrics.foreignConditions.Set(float64(taken))
	return done.err()
}

// conditionMessage is the sentence of a Node's condition.
func conditionMessage(o *observed, node string) string {
	if v := o.verdicts[node]; v.Reachable && o.noNet == "" {
		return v.Reason
	}
	return explain(o, node)
}

// writeNode patches one Node. The UID in the patch is a precondition: if the
// Node was deleted and made anew, the API server refuses. A Node that is gone
// or another is success; the next pass sees it.
func (c *controller) writeNode(ctx context.Context, node *corev1.Node, w wanted) error {
	patch, err := nodePatch(node, w, metav1.NewTime(c.now()))
	if err != nil {
		return err
	}
	target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
	err = c.api.Status().Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, patch))
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err), isAnotherObject(err):
		c.log.Info("the Node was deleted or made anew; its condition waits for the next pass", "node", node.Name)
		return nil
	case err != nil:
		return fmt.Errorf("write the condition NetworkUnavailable of node %s: %w", node.Name, err)
	}
	if w.status != "" {
		c.metrics.conditionWrites.WithLabelValues(string(w.status)).Inc()
		c.log.Info("node condition NetworkUnavailable", "node", node.Name, "status", w.status, "message", w.message)
	}
	if w.writer != nil && *w.writer != "" {
		message := fmt.Sprintf("another program writes the node condition NetworkUnavailable (reason %s); Ropeway leaves it alone: stop the other "+
			"(a cloud controller manager's route controller, or another pod network)", *w.writer)
		c.log.Warn(message, "node", node.Name)
		c.recorder.Event(kube.NodeReference(node.Name), corev1.EventTypeWarning, "NetworkUnavailableWrittenTwice", message)
	}
	return nil
}

// isAnotherObject says that a patch was refused because of the UID in it. The
// API server answers so rather than with a conflict.
func isAnotherObject(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Field == "metadata.uid" })
}

func nodePatch(node *corev1.Node, w wanted, now metav1.Time) ([]byte, error) {
	metadata := map[string]any{"uid": node.UID}
	patch := map[string]any{"metadata": metadata}
	if w.writer != nil {
		var value any // null removes the annotation
		if *w.writer != "" {
			value = *w.writer
		}
		metadata["annotations"] = map[string]any{kube.WriterAnnotation: value}
	}
	if w.status != "" {
		cond := corev1.NodeCondition{
			Type: corev1.NodeNetworkUnavailable, Status: w.status, Reason: kube.ReasonNotProven, Message: w.message,
			LastHeartbeatTime: now, LastTransitionTime: now,
		}
		if w.status == corev1.ConditionFalse {
			cond.Reason = kube.ReasonProven
		}
		if old := kube.NetworkUnavailable(node); old != nil && old.Status == w.status {
			cond.LastTransitionTime = old.LastTransitionTime
		}
		patch["status"] = map[string]any{"conditions": []corev1.NodeCondition{cond}}
	}
	out, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("write down the change of node %s: %w", node.Name, err)
	}
	return out, nil
}

func (m *memory) node(uid types.UID) *nodeMemory {
	nm := m.nodes[uid]
	if nm == nil {
		nm = &nodeMemory{}
		m.nodes[uid] = nm
	}
	return nm
}

// forgetNodes drops what is remembered of Nodes that are gone.
func (m *memory) forgetNodes(nodes []corev1.Node) {
	there := make(map[types.UID]bool, len(nodes))
	for i := range nodes {
		there[nodes[i].UID] = true
	}
	maps.DeleteFunc(m.nodes, func(uid types.UID, _ *nodeMemory) bool { return !there[uid] })
}
