package nodes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// guarded is a client that deletes a Node only on evidence: the lifecycle
// controller deletes by name what it knows from a cache, and the name may be
// another node's by then, or its kubelet may have come back.
type guarded struct {
	kubernetes.Interface
	gone    func(types.UID) bool
	deleted func(name string)
}

// CoreV1 returns the guarded part.
func (g guarded) CoreV1() typedcorev1.CoreV1Interface { return guardedCore{g.Interface.CoreV1(), g} }

type guardedCore struct {
	typedcorev1.CoreV1Interface
	guard guarded
}

// Nodes returns the guarded part.
func (c guardedCore) Nodes() typedcorev1.NodeInterface {
	return guardedNodes{c.CoreV1Interface.Nodes(), c.guard}
}

type guardedNodes struct {
	typedcorev1.NodeInterface
	guard guarded
}

// Delete reads the Node anew and deletes it as it was read, or not at all.
func (n guardedNodes) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	node, err := n.Get(ctx, name, metav1.GetOptions{})
	switch {
	case err != nil:
		return err
	case !n.guard.gone(node.UID):
		return fmt.Errorf("node %s is not the one whose instance is gone: it was made anew", name)
	case !silent(node):
		return fmt.Errorf("node %s speaks again", name)
	}
	opts.Preconditions = &metav1.Preconditions{UID: &node.UID, ResourceVersion: &node.ResourceVersion}
	if err := n.NodeInterface.Delete(ctx, name, opts); err != nil {
		return err
	}
	n.guard.deleted(name)
	return nil
}

// gate lets requests pass until it is closed. Not all calls of the controllers
// end with their context, and no two replicas may write at once.
type gate struct {
	mu      sync.RWMutex
	closed  bool
	passing sync.WaitGroup
}

var errClosed = errors.New("this replica leads no more")

// wrap is for rest.Config.Wrap.
func (g *gate) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		if !g.enter() {
			return nil, errClosed
		}
		defer g.passing.Done()
		return next.RoundTrip(r)
	})
}

func (g *gate) enter() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if !g.closed {
		g.passing.Add(1)
	}
	return !g.closed
}

// close refuses further requests, and waits for those under way.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.passing.Wait()
}

type roundTripper func(*http.Request) (*http.Response, error)

// RoundTrip is http.RoundTripper's.
func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
