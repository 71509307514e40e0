package nodes

import (
	"context"
	"errors"
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestOnlyTheCondemnedIsDeleted: the lifecycle controller deletes by name what
// it knew a while ago.
func TestOnlyTheCondemnedIsDeleted(t *testing.T) {
	for name, c := range map[string]struct {
		uid     types.UID
		ready   corev1.ConditionStatus
		deleted bool
	}{
		"gone and silent":         {"u1", corev1.ConditionUnknown, true},
		"made anew meanwhile":     {"u2", corev1.ConditionUnknown, false},
		"speaks again":            {"u1", corev1.ConditionTrue, false},
		"speaks, though not well": {"u1", corev1.ConditionFalse, false},
	} {
		t.Run(name, func(t *testing.T) {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", UID: c.uid, ResourceVersion: "7"}}
			node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: c.ready}}
			api := fake.NewClientset(node)
			var with *metav1.Preconditions
			api.PrependReactor("delete", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
				with = a.(clienttesting.DeleteActionImpl).DeleteOptions.Preconditions
				return true, nil, nil
			})
			told := 0
			g := guarded{Interface: api, gone: func(uid types.UID) bool { return uid == "u1" }, deleted: func(string) { told++ }}
			err := g.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{})
			if (err == nil) != c.deleted || (with != nil) != c.deleted || (told == 1) != c.deleted {
				t.Fatalf("%v, preconditions %v, told %d", err, with, told)
			}
			if c.deleted && (*with.UID != c.uid || *with.ResourceVersion == "") {
				t.Errorf("preconditions %v", with)
			}
		})
	}
}

// TestGateWaits: nothing of a term is written after it.
func TestGateWaits(t *testing.T) {
	g := &gate{}
	entered, leave, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	through := g.wrap(roundTripper(func(*http.Request) (*http.Response, error) {
		close(entered)
		<-leave
		return &http.Response{}, nil
	}))
	request, err := http.NewRequestWithContext(context.Background(), http.MethodPatch, "http://api", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if resp, err := through.RoundTrip(request); err != nil || resp == nil {
			t.Errorf("the call under way: %v", err)
		}
	}()
	<-entered
	go func() {
		g.close()
		close(done)
	}()
	for { // until the gate is closed, which is while it waits
		g.mu.RLock()
		closed := g.closed
		g.mu.RUnlock()
		if closed {
			break
		}
	}
	select {
	case <-done:
		t.Error("it did not wait for the call under way")
	default:
	}
	if _, err := through.RoundTrip(request); !errors.Is(err, errClosed) { //nolint:bodyclose // there is none
		t.Errorf("a call after the end: %v", err)
	}
	close(leave)
	<-done
}
