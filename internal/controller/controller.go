package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/internal/controller/nodes"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
)

// controller is one replica.
type controller struct {
	cfg      Config
	log      *slog.Logger
	api      client.Client // not cached
	observer *kube.Observer
	recorder record.EventRecorder
	events   record.EventBroadcaster
	metrics  *metrics
	planner  *routes.Planner   // of the cloud's routes
	nodes    *nodes.Controller // of the nodes' instances
	rights   *rights           // in the cloud
	// inspector asks the cloud what stands in the way of bare packets.
	inspector *inspector
	// services says that the API server has ServiceCIDR objects.
	services bool
	leading  atomic.Bool
	beat     atomic.Int64 // when a leader's last pass began, in ns since 1970
	now      func() time.Time
}

// Run runs a replica until the context ends, and then gives up the Lease. It
// waits for as long as the API server does not answer. It returns an error when
// it cannot work at all: wrong configuration, or its port in use.
func Run(parent context.Context, cfg Config) error {
	cfg.Defaults()
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("controller's configuration: %w", err)
	}
	c := &controller{cfg: cfg, log: cfg.Log, metrics: newMetrics(), now: time.Now}
	c.log.Info("controller starts", "version", cfg.Version, "identity", cfg.Identity, "api", cfg.API.Host)
	server, err := c.listen()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(parent)
	g.Go(func() error { return server.serve(ctx) })
	g.Go(func() error {
		if err := c.connect(ctx); err != nil {
			return err
		}
		defer c.events.Shutdown()
		g.Go(func() error { return c.observer.Run(ctx) })
		server.ready(c.observer.Synced)
		server.showRoutes(c.routesShown)
		return c.elect(ctx)
	})
	if err := g.Wait(); err != nil && (parent.Err() == nil || !errors.Is(err, parent.Err())) {
		return err
	}
	c.log.Info("controller stops")
	return nil
}

// connect makes the clients. It asks once what the API server knows, and
// retries until it answers.
func (c *controller) connect(ctx context.Context) error {
	// A private copy: machines and conditions of all nodes at once must not take
	// minutes.
	api := rest.CopyConfig(c.cfg.API)
	api.QPS, api.Burst = max(api.QPS, 200), max(api.Burst, 400)
	var err error
	if c.services, err = c.hasServiceCIDRs(ctx, api); err != nil {
		return err
	}
	if c.api, err = kube.NewClient(api); err != nil {
		return err
	}
	opts := kube.ObserverOptions{Policies: true, ServiceCIDRs: c.services}
	if c.observer, err = kube.NewObserver(api, opts, c.log); err != nil {
		return err
	}
	c.planner = c.newPlanner()
	c.inspector = &inspector{make: c.makeProvider, changed: c.observer.Touch, now: c.now, log: c.log}
	c.nodes = c.newNodes()
	c.rights = newRights(c.makeProvider, c.observer.Touch, c.log, 6*c.cfg.Resync)
	c.events, c.recorder, err = kube.NewRecorder(api, "ropeway-controller", c.cfg.Identity, c.log)
	return err
}

// hasServiceCIDRs says whether the API server has ServiceCIDR objects (those
// before Kubernetes 1.33 have not).
func (c *controller) hasServiceCIDRs(ctx context.Context, api *rest.Config) (bool, error) {
	d, err := discovery.NewDiscoveryClientForConfig(api)
	if err != nil {
		return false, fmt.Errorf("prepare to call the API server %s: %w", api.Host, err)
	}
	for wait := time.Second; ; wait = min(2*wait, 15*time.Second) {
		resources, err := d.ServerResourcesForGroupVersion("networking.k8s.io/v1")
		if err == nil {
			isServiceCIDR := func(r metav1.APIResource) bool { return r.Kind == "ServiceCIDR" }
			if slices.ContainsFunc(resources.APIResources, isServiceCIDR) {
				return true, nil
			}
			c.log.Info("the API server has no ServiceCIDR objects (before Kubernetes 1.33): pod CIDRs are not compared with the Services' range")
			return false, nil
		}
		c.log.Warn("the API server does not answer; trying again", "api", api.Host, "err", err, "wait", wait)
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(wait):
		}
	}
}
