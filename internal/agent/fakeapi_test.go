package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// fakeAPI is an API server with a controller, as agents see them. Tests change
// it by its methods; each change wakes every client.
type fakeAPI struct {
	mu        sync.Mutex
	down      bool          // no call succeeds, and nothing new is heard
	hang      chan struct{} // calls wait for it to be closed, if it is not nil
	network   plan.Network
	problem   string
	nodes     []plan.Node
	leases    []kube.Lease
	published map[string]kube.NodeStatus
	condition map[string]*kube.NodeCondition
	alive     bool
	clients   []*fakeClient
	pools     []*pool.Pool
	unpooled  bool // no pool has been read
	reserved  []netip.Prefix
	labels    map[string]map[string]string // node -> its labels
	// words maps pod -> what it says; pods that are not there say nothing,
	// unless unknown is set.
	words   map[string]kube.PodWords
	unknown bool
	pods    []kube.Pod // of every node
	unread  bool       // pods have not been read
	log     []string   // what was done, in order
	serial  int        // of objects
}

func newFakeAPI() *fakeAPI {
	return &fakeAPI{alive: true, published: map[string]kube.NodeStatus{}, condition: map[string]*kube.NodeCondition{},
		network: plan.Network{ClusterID: "cluster", PodCIDRs: prefixes("10.244.0.0/16"), BlockBits: map[plan.Family]int{plan.IPv4: 26, plan.IPv6: 122},
			Transports: []plan.Transport{plan.IPIP, plan.VXLAN}, VXLANPort: 4789, VXLANVNI: 4096,
			MTU: plan.MTUPolicy{Mode: plan.MTUPerRoute}, Masquerade: true}}
}

// change changes the cluster and wakes the agents.
func (a *fakeAPI) change(f func(*fakeAPI)) {
	a.mu.Lock()
	f(a)
	clients := slices.Clone(a.clients)
	a.mu.Unlock()
	for _, c := range clients {
		notify(c.changed)
	}
}

// addNode registers a node with the address 192.168.<i>.10.
func (a *fakeAPI) addNode(name string, podCIDRs ...string) {
	a.change(func(a *fakeAPI) {
		i := len(a.nodes)
		a.nodes = append(a.nodes, plan.Node{Name: name, UID: "uid-" + name, Created: int64(i),
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i), 10})}, NodeCIDRs: prefixes(podCIDRs...)})
	})
}

func (a *fakeAPI) setNode(name string, f func(*plan.Node)) {
	a.change(func(a *fakeAPI) {
		for i := range a.nodes {
			if a.nodes[i].Name == name {
				f(&a.nodes[i])
			}
		}
	})
}

// say writes the controller's condition.
func (a *fakeAPI) say(node string, unavailable bool) {
	a.change(func(a *fakeAPI) {
		a.condition[node] = &kube.NodeCondition{Status: unavailable}
		a.log = append(a.log, fmt.Sprintf("condition %s %v", node, unavailable))
	})
}

func (a *fakeAPI) status(node string) kube.NodeStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.published[node]
}

func (a *fakeAPI) leasesOf(node string) []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []netip.Prefix
	for _, l := range a.leases {
		if l.Node == node {
			out = append(out, l.Prefix)
		}
	}
	return out
}

// fakeClient is one node's view of a fakeAPI.
type fakeClient struct {
	api     *fakeAPI
	node    string
	changed chan struct{}

	mu     sync.Mutex
	last   *kube.View
	events []string
	viewed func() // called when a view was taken, before anybody has it
}

func (a *fakeAPI) client(node string) *fakeClient {
	c := &fakeClient{api: a, node: node, changed: make(chan struct{}, 1)}
	a.change(func(a *fakeAPI) { a.clients = append(a.clients, c) })
	return c
}

func (c *fakeClient) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (c *fakeClient) Changed() <-chan struct{} { return c.changed }

func (c *fakeClient) Leased() <-chan struct{} { return nil }

func (c *fakeClient) NodeEvent(_ bool, reason, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, reason+": "+message)
}

func (c *fakeClient) PodWords(namespace, name, uid string) (kube.PodWords, bool) {
	c.api.mu.Lock()
	defer c.api.mu.Unlock()
	words, known := c.api.words[namespace+"/"+name]
	if c.api.unread {
		return kube.PodWords{}, false
	}
	return words, known || !c.api.unknown
}

func (c *fakeClient) Pods() ([]kube.Pod, bool) {
	c.api.mu.Lock()
	defer c.api.mu.Unlock()
	return slices.Clone(c.api.pods), !c.api.unread
}

func (c *fakeClient) PodsRead() bool {
	c.api.mu.Lock()
	defer c.api.mu.Unlock()
	return !c.api.down && !c.api.unread
}

func (c *fakeClient) AllPodWords() (map[string]kube.PodWords, bool) {
	c.api.mu.Lock()
	defer c.api.mu.Unlock()
	return maps.Clone(c.api.words), !c.api.down && !c.api.unread
}

func (c *fakeClient) PodEvent(p kube.Pod, warning bool, reason, message string) {
	c.NodeEvent(warning, p.Namespace+"/"+p.Name+" "+reason, message)
}

func (c *fakeClient) eventsNow() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.events, "\n")
}

func (c *fakeClient) View() (kube.View, error) {
	v, err := c.look()
	c.mu.Lock()
	viewed := c.viewed
	c.mu.Unlock()
	if viewed != nil {
		viewed()
	}
	return v, err
}

func (c *fakeClient) look() (kube.View, error) {
	c.api.mu.Lock()
	defer c.api.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.api.down {
		if c.last == nil {
			return kube.View{}, fmt.Errorf("%w: waiting for nodes", kube.ErrNotSynced)
		}
		return *c.last, nil
	}
	v := c.api.view(c.node)
	c.last = &v
	return v, nil
}

func (a *fakeAPI) view(self string) kube.View {
	v := kube.View{Condition: a.condition[self], ControllerAlive: a.alive, Leases: slices.Clone(a.leases), Problem: a.problem}
	if v.PoolsKnown, v.NodeLabels = !a.unpooled, a.labels[self]; v.PoolsKnown {
		v.Pools, v.Reserved = slices.Clone(a.pools), a.reserved
	}
	v.Snapshot = plan.Snapshot{Self: self}
	if a.problem == "" {
		v.Snapshot.Network = a.network
	}
	for _, n := range a.nodes {
		if st, ok := a.published[n.Name]; ok && st.NodeUID == n.UID {
			n.Ready, n.Sources, n.VTEP, n.Refuses, n.Faults = n.Ready || st.Programmed.Status, st.Sources, st.VTEP, st.Refuses, st.Faults
			n.Holds = st.CIDRs
			for _, p := range st.Probes {
				v.Snapshot.Probes = append(v.Snapshot.Probes, plan.Publish(p.From, p.Probe))
			}
		}
		if n.Name == self {
			v.NodeUID = n.UID
		}
		v.Snapshot.Nodes = append(v.Snapshot.Nodes, n)
	}
	kube.SetLeases(&v.Snapshot, a.leases)
	return v
}

var errDown = errors.New("connection refused")

// call is the start of every call: it waits if the server hangs, and fails if it
// is down.
func (c *fakeClient) call(ctx context.Context) error {
	c.api.mu.Lock()
	hang, down := c.api.hang, c.api.down
	c.api.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if down {
		return errDown
	}
	return nil
}

func (c *fakeClient) Publish(ctx context.Context, s kube.NodeStatus) error {
	if err := c.call(ctx); err != nil {
		return err
	}
	c.api.mu.Lock()
	same := fmt.Sprintf("%+v", c.api.published[c.node]) == fmt.Sprintf("%+v", s)
	c.api.mu.Unlock()
	if !same {
		c.api.change(func(a *fakeAPI) {
			a.published[c.node] = s
			a.log = append(a.log, fmt.Sprintf("publish %s programmed=%v", c.node, s.Programmed.Status))
		})
	}
	return nil
}

func (c *fakeClient) ClaimBlock(ctx context.Context, p netip.Prefix) (kube.Lease, error) {
	if err := c.call(ctx); err != nil {
		return kube.Lease{}, err
	}
	var made kube.Lease
	var err error
	c.api.change(func(a *fakeAPI) {
		for _, l := range a.leases {
			if l.Prefix == p && l.Node != c.node {
				err = &kube.TakenError{Prefix: p, Node: l.Node}
				return
			}
		}
		made = a.stamp(kube.Lease{Prefix: p, Node: c.node, NodeUID: a.uid(c.node), Generation: 1})
		a.leases = append(a.leases, made)
		a.log = append(a.log, "claim "+c.node)
	})
	return made, err
}

func (c *fakeClient) AdoptBlock(ctx context.Context, p netip.Prefix) (kube.Lease, error) {
	if err := c.call(ctx); err != nil {
		return kube.Lease{}, err
	}
	var adopted kube.Lease
	c.api.change(func(a *fakeAPI) {
		for i := range a.leases {
			if a.leases[i].Prefix == p && a.leases[i].NodeUID != a.uid(c.node) { // as kube.NodeClient: once
				a.leases[i].NodeUID = a.uid(c.node)
				a.leases[i].Generation++
			}
			if a.leases[i].Prefix == p {
				adopted = a.leases[i]
			}
		}
	})
	return adopted, nil
}

// stamp gives a lease the identity of its object, and a new version of it.
func (a *fakeAPI) stamp(l kube.Lease) kube.Lease {
	a.serial++
	l.Version = fmt.Sprint(a.serial)
	if l.ObjectUID == "" {
		l.ObjectUID = "uid-" + l.Version
	}
	return l
}

func (c *fakeClient) LiveLeases(ctx context.Context) ([]kube.Lease, error) {
	if err := c.call(ctx); err != nil {
		return nil, err
	}
	c.api.mu.Lock()
	defer c.api.mu.Unlock()
	return slices.Clone(c.api.leases), nil
}

func (c *fakeClient) ShareBlocks(ctx context.Context, blocks []netip.Prefix) error {
	var errs []error
	for _, p := range blocks {
		l, err := c.makeLease(ctx, kube.Lease{Prefix: p, Generation: 1, Sharing: share.Declared})
		if !kube.IsTaken(err) {
			errs = append(errs, err, c.confirm(ctx, l))
		}
	}
	return errors.Join(errs...)
}

func (c *fakeClient) ConfirmShared(ctx context.Context, declared []kube.Lease) error {
	var errs []error
	for _, l := range declared {
		errs = append(errs, c.confirm(ctx, l))
	}
	return errors.Join(errs...)
}

func (c *fakeClient) confirm(ctx context.Context, l kube.Lease) error {
	c.api.mu.Lock()
	for _, n := range c.api.nodes {
		for _, p := range n.NodeCIDRs {
			if p.Overlaps(l.Prefix) {
				c.api.mu.Unlock()
				return c.Unshare(ctx, l)
			}
		}
	}
	c.api.mu.Unlock()
	next := l
	next.Sharing = share.Confirmed
	_, err := c.putLease(ctx, l, &next)
	return err
}

func (c *fakeClient) Unshare(ctx context.Context, l kube.Lease) error {
	_, err := c.putLease(ctx, l, nil)
	return err
}

func (c *fakeClient) ClaimAddresses(ctx context.Context, claims []share.Claim) (out []kube.Claimed) {
	for _, claim := range claims {
		claim.NodeUID = "uid-" + c.node
		l, err := c.makeLease(ctx, claim.Lease)
		out = append(out, kube.Claimed{Lease: l, Err: err})
	}
	return out
}

func (c *fakeClient) TakeAddress(ctx context.Context, l kube.Lease) (kube.Lease, error) {
	next := l
	next.Node, next.NodeUID, next.Generation = c.node, "uid-"+c.node, l.Generation+1
	return c.putLease(ctx, l, &next)
}

func (c *fakeClient) ReleaseAddress(ctx context.Context, l kube.Lease) error {
	if l.KeptFor == (share.Kept{}) || l.Node == "" {
		return c.Unshare(ctx, l)
	}
	next := l
	next.Node, next.NodeUID, next.Generation = "", "", l.Generation+1
	_, err := c.putLease(ctx, l, &next)
	return err
}

func (c *fakeClient) AnswerAddress(ctx context.Context, answer share.Answer) error {
	next := answer.Lease
	next.Grant, next.Reason = answer.Grant, answer.Reason
	_, err := c.putLease(ctx, answer.Lease, &next)
	return err
}

// makeLease makes a lease whose name nobody has.
func (c *fakeClient) makeLease(ctx context.Context, l kube.Lease) (made kube.Lease, err error) {
	if err := c.call(ctx); err != nil {
		return kube.Lease{}, err
	}
	c.api.change(func(a *fakeAPI) {
		if slices.ContainsFunc(a.leases, func(o kube.Lease) bool { return o.Prefix == l.Prefix }) {
			err = &kube.TakenError{Prefix: l.Prefix, Node: "another"}
			return
		}
		made = a.stamp(l)
		a.leases = append(a.leases, made)
	})
	return made, err
}

// putLease changes a lease that is as it was seen, or removes it.
func (c *fakeClient) putLease(ctx context.Context, seen kube.Lease, next *kube.Lease) (put kube.Lease, err error) {
	if err := c.call(ctx); err != nil {
		return kube.Lease{}, err
	}
	c.api.change(func(a *fakeAPI) {
		i := slices.IndexFunc(a.leases, func(o kube.Lease) bool { return o.Version == seen.Version })
		switch {
		case i < 0:
			err = &kube.TakenError{Prefix: seen.Prefix, Node: "another"}
		case next == nil:
			a.leases = slices.Delete(a.leases, i, i+1)
		default:
			put = a.stamp(*next)
			a.leases[i] = put
		}
	})
	if kube.IsTaken(err) && (next == nil || next.Node != c.node) {
		err = nil
	}
	return put, err
}

func (c *fakeClient) ReleaseBlock(ctx context.Context, p netip.Prefix) error {
	if err := c.call(ctx); err != nil {
		return err
	}
	c.api.change(func(a *fakeAPI) {
		a.leases = slices.DeleteFunc(a.leases, func(l kube.Lease) bool { return l.Prefix == p && l.Node == c.node })
	})
	return nil
}

func (a *fakeAPI) uid(node string) string {
	for _, n := range a.nodes {
		if n.Name == node {
			return n.UID
		}
	}
	return ""
}
