package kube

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
)

// NewRecorder returns a recorder of events that holds back repeats and floods,
// and its broadcaster, which the caller shuts down in the end.
func NewRecorder(cfg *rest.Config, component, host string, log *slog.Logger) (record.EventBroadcaster, record.EventRecorder, error) {
	core, err := typedcorev1.NewForConfig(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("prepare to write events: %w", err)
	}
	b := record.NewBroadcaster(record.WithContext(WithLog(context.Background(), log)))
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: core.Events("")})
	return b, b.NewRecorder(NewScheme(), corev1.EventSource{Component: component, Host: host}), nil
}

// NodeEvent records an event on this node. The reason is one CamelCase word,
// the message a sentence. It never blocks and never fails; events that cannot
// be written are lost.
func (c *NodeClient) NodeEvent(warning bool, reason, message string) {
	c.recorder.Event(NodeReference(c.node), eventType(warning), reason, message)
}

// PodEvent records an event on a pod of this node, like NodeEvent.
func (c *NodeClient) PodEvent(p Pod, warning bool, reason, message string) {
	ref := &corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}
	c.recorder.Event(ref, eventType(warning), reason, message)
}

func eventType(warning bool) string {
	if warning {
		return corev1.EventTypeWarning
	}
	return corev1.EventTypeNormal
}

// NodeReference names a Node for an event. As the kubelet does, it gives the
// node's name in place of the UID: that is how kubectl describe finds events.
func NodeReference(name string) *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: name, UID: types.UID(name)}
}
