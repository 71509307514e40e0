package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"

	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
)

// Observer keeps the objects of a cluster that the plan depends on, slimmed,
// and says when one of them changed.
type Observer struct {
	log     *slog.Logger
	node    bool // it is a node's
	cache   cache.Cache
	watched []watched
	// networks has the NodeNetworks, which are kept as keptNodeNetworks: the cache
	// reads none but API objects out.
	networks toolscache.Store
	changed  chan struct{}
	leased   chan struct{}
	absent   absent
}

// watched is one kind of object that the Observer keeps.
type watched struct {
	name     string // plural, for messages
	obj      client.Object
	optional bool // HasSynced and Objects do not wait for it
	informer cache.Informer
}

// ObserverOptions say what an Observer keeps beside nodes, leases and networks.
type ObserverOptions struct {
	// Self is the node whose own Node, NodeNetwork and pods are kept; other
	// Nodes are not. Empty: all Nodes are kept, and no pods.
	Self string
	// Policies keeps the names of the cluster's NetworkPolicies.
	Policies bool
	// ServiceCIDRs keeps the ServiceCIDR objects (Kubernetes 1.33 and later).
	ServiceCIDRs bool
}

// metadataOf returns an object that stands for the metadata of a core kind.
func metadataOf(apiVersion, kind string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}}
}

// NewObserver makes an Observer; Run starts it. It makes no call yet.
func NewObserver(cfg *rest.Config, opts ObserverOptions, log *slog.Logger) (*Observer, error) {
	yes := true
	nodes, pods, namespaces := &corev1.Node{}, metadataOf("v1", "Pod"), metadataOf("v1", "Namespace")
	byObject := map[client.Object]cache.ByObject{
		nodes:                      {Transform: slimNode(opts.Self)},
		&v1alpha1.ClusterNetwork{}: {Transform: slimNetwork},
		&v1alpha1.NodeNetwork{}:    {Transform: slimNodeNetwork(opts.Self)},
		namespaces:                 {Field: fields.OneTermEqualSelector("metadata.name", SystemNamespace)},
	}
	if opts.Self != "" {
		// The other Nodes are spoken of by their NodeNetworks.
		byObject[nodes] = cache.ByObject{Field: fields.OneTermEqualSelector("metadata.name", opts.Self), Transform: slimNode(opts.Self)}
		byObject[namespaces] = cache.ByObject{Transform: slimNamespace}
		byObject[pods] = cache.ByObject{
			Field:     fields.OneTermEqualSelector("spec.nodeName", opts.Self),
			Transform: slimPod,
		}
	}
	o := &Observer{log: log, node: opts.Self != "", changed: make(chan struct{}, 1), leased: make(chan struct{}, 1)}
	c, err := cache.New(cfg, cache.Options{
		DefaultWatchErrorHandler:     o.watchFailed,
		Scheme:                       NewScheme(),
		Mapper:                       NewMapper(),
		ByObject:                     byObject,
		DefaultTransform:             slimOther,
		DefaultUnsafeDisableDeepCopy: &yes,
		ReaderFailOnMissingInformer:  true,
	})
	if err != nil {
		return nil, fmt.Errorf("prepare to watch the API server %s: %w", cfg.Host, err)
	}
	o.cache = c
	o.watched = kindsToWatch(opts)
	return o, o.subscribe(opts)
}

func kindsToWatch(opts ObserverOptions) []watched {
	kinds := []watched{
		{name: "clusternetworks", obj: &v1alpha1.ClusterNetwork{}},
		{name: "nodes", obj: &corev1.Node{}},
		{name: "nodenetworks", obj: &v1alpha1.NodeNetwork{}},
		{name: "addressblocks", obj: &v1alpha1.AddressBlock{}},
		{name: "namespaces", obj: metadataOf("v1", "Namespace")},
		{name: "addresspools", obj: &v1alpha1.AddressPool{}, optional: true},
		{name: "spiderippools", obj: &v2beta1.SpiderIPPool{}, optional: true},
		{name: "spiderreservedips", obj: &v2beta1.SpiderReservedIP{}, optional: true},
	}
	if opts.Self != "" {
		kinds = append(kinds, watched{name: "pods", obj: metadataOf("v1", "Pod"), optional: true})
	}
	if opts.Policies {
		kinds = append(kinds, watched{name: "networkpolicies", obj: metadataOf("networking.k8s.io/v1", "NetworkPolicy"), optional: true})
	}
	if opts.ServiceCIDRs {
		kinds = append(kinds, watched{name: "servicecidrs", obj: &networkingv1.ServiceCIDR{}})
	}
	return kinds
}

// subscribe makes the informers and lets each of their changes raise the
// signal.
func (o *Observer) subscribe(opts ObserverOptions) error {
	handler := toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { o.touchFor(obj) },
		DeleteFunc: func(obj any) { o.touchFor(obj) },
		UpdateFunc: func(before, after any) {
			b, ok1 := before.(client.Object)
			a, ok2 := after.(client.Object)
			// Who writes the network's status (the controller; it has no node of
			// its own) must hear of each write, to know what it may build on.
			_, network := after.(*v1alpha1.ClusterNetwork)
			if !ok1 || !ok2 || network && opts.Self == "" || !sameForUs(b, a) {
				o.Touch()
			}
		},
	}
	for i := range o.watched {
		w := &o.watched[i]
		inf, err := o.cache.GetInformer(context.Background(), w.obj, cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("prepare to watch %s: %w", w.name, err)
		}
		if _, err := inf.AddEventHandler(handler); err != nil {
			return fmt.Errorf("prepare to watch %s: %w", w.name, err)
		}
		w.informer = inf
		if _, ok := w.obj.(*v1alpha1.NodeNetwork); ok {
			shared, ok := inf.(toolscache.SharedIndexInformer)
			if !ok {
				return fmt.Errorf("prepare to watch %s: an informer of type %T has no store", w.name, inf)
			}
			o.networks = shared.GetStore()
		}
	}
	return nil
}

// Run watches until the context ends. It retries for as long as the API server
// does not answer.
func (o *Observer) Run(ctx context.Context) error {
	logCache(o.log)
	go o.announceSync(ctx)
	if err := o.cache.Start(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("watch the API server: %w", err)
	}
	return nil
}

// announceSync raises the signal when a kind has been read for the first time,
// also when there is no object of it.
func (o *Observer) announceSync(ctx context.Context) {
	for _, w := range o.watched {
		if !toolscache.WaitForCacheSync(ctx.Done(), w.informer.HasSynced) {
			return
		}
		o.Touch()
	}
}

// Changed gives a value after changes, many of them in one. There is one
// channel: it is for one reader.
func (o *Observer) Changed() <-chan struct{} { return o.changed }

// Touch raises the signal of Changed.
func (o *Observer) Touch() { raise(o.changed) }

// Leased gives a value, many of them in one, after single addresses were leased or
// given back: of those there are as many as pods that start or end. A change that
// somebody waits for is not among them; Changed tells it. It is for one reader.
func (o *Observer) Leased() <-chan struct{} { return o.leased }

// touchFor raises the signal that an object which came or went is for.
func (o *Observer) touchFor(obj any) {
	if b, ok := obj.(*v1alpha1.AddressBlock); ok && o.node && isPlainAddress(b) {
		raise(o.leased)
	} else {
		o.Touch()
	}
}

// isPlainAddress reports whether a block is an address that was asked from nobody, and
// is kept for nobody.
func isPlainAddress(b *v1alpha1.AddressBlock) bool {
	p, err := netip.ParsePrefix(b.Spec.CIDR)
	return err == nil && p.IsSingleIP() && b.Spec.Sharing == "" && b.Spec.Pool != "" && b.Spec.From == "" && b.Spec.KeptFor == nil
}

func raise(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// Synced returns nil once everything needed has been read, else ErrNotSynced
// wrapped with what is missing.
func (o *Observer) Synced() error {
	var missing []string
	for _, w := range o.watched {
		if !w.optional && !w.informer.HasSynced() {
			missing = append(missing, w.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: waiting for %s", ErrNotSynced, strings.Join(missing, ", "))
	}
	return nil
}

// Objects returns what is kept. They are the cache's own: do not change them.
func (o *Observer) Objects(ctx context.Context) (*Objects, error) {
	if err := o.Synced(); err != nil {
		return nil, err
	}
	out, err := readObjects(ctx, o.cache)
	if err != nil {
		return nil, err
	}
	for _, obj := range o.networks.List() {
		if nn, ok := obj.(*keptNodeNetwork); ok {
			out.keep(nn)
		}
	}
	if o.poolsKnown() {
		err = out.readPools(ctx, o.cache)
	}
	return out, err
}

// nodeNetwork returns the NodeNetwork of that name, nil if there is none.
func (o *Observer) nodeNetwork(name string) *v1alpha1.NodeNetwork {
	obj, _, err := o.networks.GetByKey(name)
	if nn, ok := obj.(*keptNodeNetwork); ok && err == nil {
		return &nn.NodeNetwork
	}
	return nil
}

// poolsKnown says whether every kind of pool has been read, or is unknown to
// the API server and so has no object.
func (o *Observer) poolsKnown() bool {
	for _, kind := range []string{"addresspools", "spiderippools", "spiderreservedips"} {
		if !o.syncedKind(kind) && !o.absent.has(kind) {
			return false
		}
	}
	return true
}

// Reader reads from the Observer's cache the kinds that it keeps, but for
// NodeNetworks.
func (o *Observer) Reader() client.Reader { return o.cache }

// readObjects reads a snapshot's objects but for the NodeNetworks, from a cache or
// from the API server.
func readObjects(ctx context.Context, r client.Reader) (*Objects, error) {
	var (
		out   Objects
		cns   v1alpha1.ClusterNetworkList
		nodes corev1.NodeList
		abs   v1alpha1.AddressBlockList
	)
	for _, list := range []client.ObjectList{&cns, &nodes, &abs} {
		if err := r.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list %T: %w", list, err)
		}
	}
	ns := metadataOf("v1", "Namespace")
	if err := r.Get(ctx, types.NamespacedName{Name: SystemNamespace}, ns); err != nil {
		return nil, fmt.Errorf("read the namespace %s, whose UID is the cluster's id: %w", SystemNamespace, err)
	}
	out.ClusterID = string(ns.UID)
	for i := range cns.Items {
		if cns.Items[i].Name == v1alpha1.ClusterNetworkName {
			out.Network = &cns.Items[i]
		}
	}
	out.Nodes, out.Blocks = nodes.Items, abs.Items
	return &out, nil
}

// readPools adds the pools. A kind that the API server does not know has none.
func (o *Objects) readPools(ctx context.Context, r client.Reader) error {
	var (
		pools    v1alpha1.AddressPoolList
		spider   v2beta1.SpiderIPPoolList
		reserved v2beta1.SpiderReservedIPList
	)
	for _, list := range []client.ObjectList{&pools, &spider, &reserved} {
		if err := r.List(ctx, list); err != nil && !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err) {
			return fmt.Errorf("list %T: %w", list, err)
		}
	}
	o.AddressPools, o.SpiderIPPools, o.SpiderReservedIPs = pools.Items, spider.Items, reserved.Items
	o.PoolsKnown = true
	return nil
}

// absent are the kinds that the API server does not know: their CRD is not
// there.
type absent struct {
	mu    sync.Mutex
	kinds map[string]bool
}

func (a *absent) has(kind string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.kinds[kind]
}

// add returns whether it is news.
func (a *absent) add(kind string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	news := !a.kinds[kind]
	if a.kinds == nil {
		a.kinds = map[string]bool{}
	}
	a.kinds[kind] = true
	return news
}

// watchFailed notes a kind that the API server does not know.
func (o *Observer) watchFailed(ctx context.Context, r *toolscache.Reflector, err error) {
	for _, w := range o.watched {
		if w.optional && apierrors.IsNotFound(err) && r.TypeDescription() == fmt.Sprintf("%T", w.obj) && o.absent.add(w.name) {
			o.log.Info("the API server does not know "+w.name+": no such object is looked at until it does", "err", err)
			o.Touch()
		}
	}
	toolscache.DefaultWatchErrorHandler(ctx, r, err)
}

// PoliciesSynced says whether the NetworkPolicies are kept and have been read.
func (o *Observer) PoliciesSynced() bool { return o.syncedKind("networkpolicies") }

func (o *Observer) syncedKind(name string) bool {
	for _, w := range o.watched {
		if w.name == name {
			return w.informer.HasSynced()
		}
	}
	return false
}
