package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// NodeClient is what one node's agent knows of the cluster and says to it. Run
// must be running for it to know anything; it is safe for concurrent use.
type NodeClient struct {
	node     string
	log      *slog.Logger
	observer *Observer
	api      client.Client // not cached
	claims   claims
	alive    *liveness
	recorder record.EventRecorder
	events   record.EventBroadcaster
	sent     published
	pools    poolMemory
	others   *elsewhere
}

// NewClient returns a client that reads and writes the API server directly, for
// the objects of NewScheme, without a call for discovery.
func NewClient(cfg *rest.Config) (client.Client, error) {
	c, err := client.New(cfg, client.Options{Scheme: NewScheme(), Mapper: NewMapper()})
	if err != nil {
		return nil, fmt.Errorf("prepare to call the API server %s: %w", cfg.Host, err)
	}
	return c, nil
}

// NewNodeClient makes the client for the named node. It makes no call yet: the
// API server may be down.
func NewNodeClient(cfg *rest.Config, node string, log *slog.Logger) (*NodeClient, error) {
	if node == "" {
		return nil, errors.New("the name of the node is not known: give it (NODE_NAME in the DaemonSet)")
	}
	api, err := NewClient(leasing(cfg))
	if err != nil {
		return nil, err
	}
	observer, err := NewObserver(cfg, ObserverOptions{Self: node}, log)
	if err != nil {
		return nil, err
	}
	events, recorder, err := NewRecorder(cfg, "ropeway-agent", node, log)
	if err != nil {
		return nil, err
	}
	return &NodeClient{
		node: node, log: log, observer: observer, api: api,
		alive: newLiveness(api, time.Now), events: events, recorder: recorder,
		others: newElsewhere(api, log, observer.Touch),
	}, nil
}

// leasing returns a configuration for a client that leases addresses by the
// hundred: all pods of a shared pool that start on a node at once. Without a word
// client-go lets five calls a second pass, which would be five pods a second. How
// many calls of all nodes the API server serves at once is its own to say
// (priority and fairness).
func leasing(cfg *rest.Config) *rest.Config {
	out := rest.CopyConfig(cfg)
	out.QPS, out.Burst = max(out.QPS, 200), max(out.Burst, 400)
	return out
}

// Run watches the API server until the context ends, retrying for as long as it
// does not answer.
func (c *NodeClient) Run(ctx context.Context) error {
	defer c.events.Shutdown()
	go c.watchController(ctx)
	go c.others.run(ctx)
	return c.observer.Run(ctx)
}

// Changed gives a value when View may have changed, many changes in one. It is
// for one reader.
func (c *NodeClient) Changed() <-chan struct{} { return c.observer.Changed() }

// Leased is as Changed, after single addresses were leased or given back that nobody
// is known to wait for (Observer.Leased).
func (c *NodeClient) Leased() <-chan struct{} { return c.observer.Leased() }

// View computes what the cluster looks like from this node. It makes no call.
// The error is ErrNotSynced, wrapped, until the API server has been read once;
// afterwards a View is the last that was heard of, also while the API server is
// down.
func (c *NodeClient) View() (View, error) {
	objects, err := c.observer.Objects(context.Background())
	if err != nil {
		return View{}, err
	}
	if objects.Elsewhere, err = c.others.nodes(c.node, objects.NodeNetworks); err != nil {
		return View{}, err
	}
	c.claims.apply(objects)
	v := View{Leases: objects.Leases(), ControllerAlive: c.alive.alive(), NetworkGeneration: generationOf(objects.Network)}
	v.Snapshot, v.Problem = objects.Snapshot(c.node)
	v.Pools, v.Reserved = c.pools.read(objects)
	v.PoolsKnown = objects.PoolsKnown
	for i := range objects.Nodes {
		if n := &objects.Nodes[i]; n.Name == c.node {
			v.NodeUID, v.NodeLabels = string(n.UID), n.Labels
			v.Condition = nodeCondition(n)
		}
	}
	return v, nil
}

// Pods returns the node's pods, and whether they have been read since the start;
// only then does a pod's absence mean anything.
func (c *NodeClient) Pods() ([]Pod, bool) {
	if !c.observer.syncedKind("pods") {
		return nil, false
	}
	list := &metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	if err := c.observer.cache.List(context.Background(), list); err != nil {
		return nil, false
	}
	pods := make([]Pod, 0, len(list.Items))
	for i := range list.Items {
		p := &list.Items[i]
		pods = append(pods, Pod{
			Namespace: p.Namespace, Name: p.Name, UID: string(p.UID),
			ConfigHash: p.Annotations[configHashAnnotation], Deleting: p.DeletionTimestamp != nil,
		})
	}
	return pods, true
}

// PodsRead reports whether the node's pods and the namespaces have been read since
// the start.
func (c *NodeClient) PodsRead() bool {
	return c.observer.syncedKind("pods") && c.observer.syncedKind("namespaces")
}

// PodWords returns what a pod of this node and its namespace say, and whether
// both have been read. A pod of another UID than the given one is another pod of
// that name; a static pod's UID is, to the runtime, its configuration's hash.
func (c *NodeClient) PodWords(namespace, name, uid string) (PodWords, bool) {
	if !c.PodsRead() {
		return PodWords{}, false
	}
	pod, ns := metadataOf("v1", "Pod"), metadataOf("v1", "Namespace")
	ctx := context.Background()
	if c.observer.cache.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, pod) != nil ||
		c.observer.cache.Get(ctx, client.ObjectKey{Name: namespace}, ns) != nil {
		return PodWords{}, false
	}
	if uid != "" && uid != string(pod.UID) && uid != pod.Annotations[configHashAnnotation] {
		return PodWords{}, false
	}
	return wordsOf(pod, ns), true
}

func wordsOf(pod, ns *metav1.PartialObjectMetadata) PodWords {
	words := PodWords{UID: string(pod.UID), ConfigHash: pod.Annotations[configHashAnnotation], Labels: pod.Labels, Annotations: pod.Annotations,
		NamespaceLabels: ns.Labels, NSAnnotated: ns.Annotations}
	if owner := metav1.GetControllerOf(pod); owner != nil && owner.Kind == "StatefulSet" {
		words.StatefulSet, words.StatefulSetUID = owner.Name, string(owner.UID)
	}
	return words
}

// AllPodWords maps namespace/name of this node's pods -> what PodWords says of
// them; false while they have not been read.
func (c *NodeClient) AllPodWords() (map[string]PodWords, bool) {
	if !c.PodsRead() {
		return nil, false
	}
	pods := &metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	if err := c.observer.cache.List(context.Background(), pods); err != nil {
		return nil, false
	}
	out := make(map[string]PodWords, len(pods.Items))
	for i := range pods.Items {
		p, ns := &pods.Items[i], metadataOf("v1", "Namespace")
		if c.observer.cache.Get(context.Background(), client.ObjectKey{Name: p.Namespace}, ns) == nil {
			out[p.Namespace+"/"+p.Name] = wordsOf(p, ns)
		}
	}
	return out, true
}

// nodeUID returns the UID of this node's Node object, or an error that says
// that there is none.
func (c *NodeClient) nodeUID() (string, error) {
	if err := c.observer.Synced(); err != nil {
		return "", err
	}
	var node corev1.Node
	if err := c.observer.cache.Get(context.Background(), client.ObjectKey{Name: c.node}, &node); err != nil {
		return "", fmt.Errorf("the Node %s is not registered (is the name the kubelet's?): %w", c.node, err)
	}
	return string(node.UID), nil
}

// watchController keeps an eye on the controller's Lease while this node waits
// for the controller's word. Afterwards nobody asks, and nothing is called: a
// Lease that every node watched would cost a write's fan-out to the whole
// cluster every few seconds.
func (c *NodeClient) watchController(ctx context.Context) {
	tick := time.NewTicker(livenessInterval)
	defer tick.Stop()
	for {
		if c.waitsForController() && c.alive.check(ctx) {
			c.observer.Touch()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// waitsForController says that the controller has not said yet that this node is
// reachable.
func (c *NodeClient) waitsForController() bool {
	var node corev1.Node
	if c.observer.Synced() != nil || c.observer.cache.Get(context.Background(), client.ObjectKey{Name: c.node}, &node) != nil {
		return false
	}
	said := nodeCondition(&node)
	return said == nil || said.Status
}
