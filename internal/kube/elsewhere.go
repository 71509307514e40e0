package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

// An agent learns of the other nodes from their NodeNetworks, whose spec the
// controller writes. A node joins without a controller all the same: where an
// agent speaks and the controller has not said yet of which machine, the API
// server is asked for that Node. Everybody asks at once then, so all wait a
// little first, the longer the more there is to ask for, each another time: a
// controller that is there is faster.
const (
	askAfter   = 300 * time.Millisecond
	askSpread  = 300 * time.Millisecond
	askPerNode = 10 * time.Millisecond
	// What was answered is asked for again as long as the controller is silent.
	askAgainMin, askAgainMax = 2 * time.Second, 5 * time.Minute
	// askOneByOne is how many Nodes are asked for one by one; more are read as
	// a list, in pages.
	askOneByOne = 16
	askPage     = 500
	askTimeout  = 30 * time.Second
)

// elsewhere knows the nodes that are not the agent's own.
type elsewhere struct {
	api     client.Reader
	log     *slog.Logger
	changed func()
	kick    chan struct{}

	mu    sync.Mutex
	asked map[string]*question                 // node -> what is asked about it, while it is
	told  map[string]*v1alpha1.NodeNetworkSpec // node -> what the controller said of it last
	begun bool                                 // all was known once
}

// question is about a node whose agent speaks for a Node of that UID.
type question struct {
	uid      string
	due      time.Time
	pause    time.Duration
	answered bool
	node     *plan.Node // nil: the API server has no such Node
}

func newElsewhere(api client.Reader, log *slog.Logger, changed func()) *elsewhere {
	return &elsewhere{api: api, log: log, changed: changed, kick: make(chan struct{}, 1), asked: map[string]*question{}, told: map[string]*v1alpha1.NodeNetworkSpec{}}
}

// nodes returns the nodes but self, as their NodeNetworks or the API server tell
// of them. The error is ErrNotSynced until all of them were known once: a node
// that starts, after an upgrade too, takes no peer for gone that it has only not
// been told of.
func (e *elsewhere) nodes(self string, objects []*v1alpha1.NodeNetwork) ([]plan.Node, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]plan.Node, 0, len(objects))
	open := map[string]string{} // node -> UID
	there := map[string]bool{}
	for _, nn := range objects {
		there[nn.Name] = true
		if nn.Name == self {
			continue
		}
		if spoken := nn.Status.NodeUID; spoken != "" && spoken != nn.Spec.NodeUID {
			open[nn.Name] = spoken
		}
		if n, known := e.node(nn); known {
			out = append(out, n)
		}
	}
	maps.DeleteFunc(e.told, func(name string, _ *v1alpha1.NodeNetworkSpec) bool { return !there[name] })
	unknown := e.ask(open)
	if e.begun = e.begun || unknown == ""; !e.begun {
		return nil, fmt.Errorf("%w: what machine node %s is (the controller will say, or the API server when asked)", ErrNotSynced, unknown)
	}
	return out, nil
}

// node returns what is known of a NodeNetwork's machine.
func (e *elsewhere) node(nn *v1alpha1.NodeNetwork) (plan.Node, bool) {
	if q := e.asked[nn.Name]; q != nil && q.answered && q.uid == nn.Status.NodeUID && q.uid != nn.Spec.NodeUID {
		if q.node == nil {
			return plan.Node{}, false
		}
		return *q.node, true
	}
	if nn.Spec.NodeUID != "" {
		e.told[nn.Name] = &nn.Spec
	}
	// The controller's word can go without the node: the CRD of a version before it
	// does not know it, and a downgrade begins with the CRDs. Until the API server
	// has answered, what was said holds.
	told := e.told[nn.Name]
	if told == nil || nn.Spec.NodeUID == "" && nn.Status.NodeUID == "" {
		return plan.Node{}, false
	}
	return planMachine(nn.Name, *told), true
}

// ask makes open what is asked for, and returns a node of which nothing has been
// answered yet, "" if there is none.
func (e *elsewhere) ask(open map[string]string) (unknown string) {
	maps.DeleteFunc(e.asked, func(name string, q *question) bool { return open[name] != q.uid })
	patience := askAfter + rand.N(askSpread+time.Duration(len(open))*askPerNode)
	due, news := time.Now().Add(patience), false
	for name, uid := range open {
		q := e.asked[name]
		if q == nil {
			q, news = &question{uid: uid, due: due}, true
			e.asked[name] = q
		}
		if !q.answered && (unknown == "" || name < unknown) {
			unknown = name
		}
	}
	if news {
		select {
		case e.kick <- struct{}{}:
		default:
		}
	}
	return unknown
}

// run asks until the context ends.
func (e *elsewhere) run(ctx context.Context) {
	for {
		timer := time.NewTimer(e.next())
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-e.kick:
		case <-timer.C:
			e.answer(ctx, e.dueNow())
		}
		timer.Stop()
	}
}

// next is how long nothing is to be asked.
func (e *elsewhere) next() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	wait := time.Hour
	for _, q := range e.asked {
		wait = min(wait, time.Until(q.due))
	}
	return max(wait, 0)
}

func (e *elsewhere) dueNow() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for name, q := range e.asked {
		if !time.Now().Before(q.due) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// answer asks about nodes and keeps what it hears. What fails is asked again.
func (e *elsewhere) answer(ctx context.Context, names []string) {
	if len(names) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	found, err := e.read(ctx, names)
	if err != nil {
		e.log.Warn("asking the API server which machines other nodes are; asking again", "nodes", len(names), "err", err)
	}
	if e.keep(names, found, err != nil) {
		e.changed()
	}
}

// keep returns whether something is known that was not.
func (e *elsewhere) keep(names []string, found map[string]*plan.Node, failed bool) (news bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, share := time.Now(), 0.5+rand.Float64() // what was asked together is asked again together
	for _, name := range names {
		q := e.asked[name]
		if q == nil {
			continue // the controller has spoken meanwhile
		}
		q.pause = min(max(2*q.pause, askAgainMin), askAgainMax)
		q.due = now.Add(time.Duration(share * float64(q.pause)))
		node, heard := found[name]
		if !heard && failed {
			continue
		}
		news = news || !q.answered || !sameMachine(q.node, node)
		q.answered, q.node = true, node
	}
	return news
}

func sameMachine(a, b *plan.Node) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.UID == b.UID && a.Silent == b.Silent && slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.NodeCIDRs, b.NodeCIDRs)
}

// read returns node -> its machine; nodes that do not exist map to nil, or are
// missing.
func (e *elsewhere) read(ctx context.Context, names []string) (map[string]*plan.Node, error) {
	if len(names) > askOneByOne {
		return e.list(ctx)
	}
	out := map[string]*plan.Node{}
	for _, name := range names {
		var node corev1.Node
		err := e.api.Get(ctx, client.ObjectKey{Name: name}, &node)
		switch {
		case apierrors.IsNotFound(err):
			out[name] = nil
		case err != nil:
			return out, fmt.Errorf("read node %s: %w", name, err)
		default:
			n := planNode(&node)
			out[name] = &n
		}
	}
	return out, nil
}

func (e *elsewhere) list(ctx context.Context) (map[string]*plan.Node, error) {
	out := map[string]*plan.Node{}
	for next := ""; ; {
		var page corev1.NodeList
		if err := e.api.List(ctx, &page, client.Limit(askPage), client.Continue(next)); err != nil {
			return nil, fmt.Errorf("read the nodes: %w", err)
		}
		for i := range page.Items {
			n := planNode(&page.Items[i])
			out[n.Name] = &n
		}
		if next = page.Continue; next == "" {
			return out, nil
		}
	}
}
