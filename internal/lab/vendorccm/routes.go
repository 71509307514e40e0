package vendorccm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Config says how a stand-in works. Defaults fills what is zero.
type Config struct {
	Cloud Cloud
	// ClusterCIDR is --cluster-cidr: entries inside it are taken for its own.
	ClusterCIDR netip.Prefix
	// Routes is --configure-cloud-routes.
	Routes bool
	// Gather is --node-event-aggregation-wait-seconds, Period
	// --route-reconciliation-period.
	Gather, Period time.Duration
	// Batch is --route-reconcile-batch-size.
	Batch int
	// Retry is the first wait after a failure, Step the first between the three
	// tries of a single creation.
	Retry, Step time.Duration
	Identity    string // in its Lease
	Log         *slog.Logger
}

// Defaults fills the zero fields with the vendor's values.
func (c *Config) Defaults() {
	for field, value := range map[*time.Duration]time.Duration{
		&c.Gather: time.Second, &c.Period: 5 * time.Minute, &c.Retry: 5 * time.Second, &c.Step: 5 * time.Second,
	} {
		if *field == 0 {
			*field = value
		}
	}
	if c.Batch == 0 {
		c.Batch = 50
	}
	if c.Identity == "" {
		c.Identity = "ccm-stand-in"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Conditions writes the node condition NetworkUnavailable: False/RouteCreated,
// or True/NoRouteCreated.
type Conditions func(ctx context.Context, node string, created bool) error

// Routes is the route controller without an API server: a caller hands it the
// nodes. It is for one goroutine.
type Routes struct {
	cfg        Config
	conditions Conditions
	cache      map[string]entry // node -> the entry made for it; empty after a restart
}

// NewRoutes makes a route controller.
func NewRoutes(cfg Config, conditions Conditions) *Routes {
	cfg.Defaults()
	return &Routes{cfg: cfg, conditions: conditions, cache: map[string]entry{}}
}

// routeName is how routes are compared: as text, with the providerID as it is
// spelt on the node, while listed routes have the short spelling.
func routeName(providerID, cidr string) string { return providerID + "-" + cidr }

func (r *Routes) listedName(e entry) string {
	return routeName(r.cfg.Cloud.Region+"."+e.instance, e.dst)
}

// instanceOf takes both spellings apart.
func instanceOf(providerID string) (string, error) {
	_, id, found := strings.Cut(strings.TrimPrefix(providerID, "alicloud://"), ".")
	if !found || strings.Contains(id, ".") {
		return "", fmt.Errorf("alicloud: unable to split instanceid and region from providerID, error unexpected providerID=%s", providerID)
	}
	return id, nil
}

// cidrOf returns the first IPv4 podCIDR; without one whatever comes first,
// which an IPv6-only node's is sent as.
func cidrOf(n *corev1.Node) string {
	all := n.Spec.PodCIDRs
	if len(all) == 0 && n.Spec.PodCIDR != "" {
		all = []string{n.Spec.PodCIDR}
	}
	for _, text := range all {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() {
			return text
		}
	}
	if len(all) > 0 {
		return all[0]
	}
	return ""
}

// skipped are nodes that get no route.
func skipped(n *corev1.Node) bool {
	_, excluded := n.Labels["service.alibabacloud.com/exclude-node"]
	_, before := n.Labels["service.beta.kubernetes.io/exclude-node"]
	unknown := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
	return excluded || before || unknown || n.DeletionTimestamp != nil || n.Spec.ProviderID == "" || strings.HasPrefix(n.Spec.ProviderID, "ack-hybrid://")
}

// Event is one drain of gathered node events: at most one creation for each
// table. It returns the nodes to try again.
func (r *Routes) Event(ctx context.Context, nodes []*corev1.Node) (again []string, err error) {
	tables, err := r.cfg.Cloud.tables(ctx)
	if err != nil {
		return names(nodes), err
	}
	for _, table := range tables {
		listed, err := r.cfg.Cloud.entries(ctx, table)
		if err != nil {
			return names(nodes), err
		}
		failed, err := r.createMissing(ctx, table, listed, nodes)
		again = append(again, failed...)
		if err != nil {
			return again, err
		}
	}
	return again, nil
}

func names(nodes []*corev1.Node) []string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.Name)
	}
	return out
}

func (r *Routes) createMissing(ctx context.Context, table string, listed []entry, nodes []*corev1.Node) (again []string, err error) {
	there := map[string]bool{}
	for _, e := range listed {
		there[r.listedName(e)] = true
	}
	var batch []entry
	var owners []string
	for _, n := range nodes {
		cidr := cidrOf(n)
		id, err := instanceOf(n.Spec.ProviderID)
		switch {
		case skipped(n):
		case err != nil, cidr == "":
			again = append(again, n.Name)
		case there[routeName(n.Spec.ProviderID, cidr)]:
			// Neither the condition nor the cache hears of it.
		default:
			batch, owners = append(batch, entry{table, cidr, id}), append(owners, n.Name)
		}
	}
	if len(batch) == 0 {
		return again, nil
	}
	failed, err := r.cfg.Cloud.batch(ctx, "CreateRouteEntries", batch)
	if err != nil {
		return append(again, owners...), errors.Join(err, r.mark(ctx, owners, false))
	}
	var errs []error
	for i, e := range batch {
		code := failed[e.instance]
		done := code == "" || code == "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE" || code == "VPC_ROUTE_ENTRY_STATUS_ERROR"
		if done {
			r.cache[owners[i]] = e
		} else {
			again = append(again, owners[i])
		}
		errs = append(errs, r.conditions(ctx, owners[i], done))
	}
	return again, errors.Join(errs...)
}

func (r *Routes) mark(ctx context.Context, nodes []string, created bool) error {
	var errs []error
	for _, n := range nodes {
		errs = append(errs, r.conditions(ctx, n, created))
	}
	return errors.Join(errs...)
}

// Deleted takes away the route of a node that was deleted, if the cache knows
// one: after a restart it does not.
func (r *Routes) Deleted(ctx context.Context, node string) error {
	e, known := r.cache[node]
	if !known {
		return nil
	}
	if _, err := r.cfg.Cloud.batch(ctx, "DeleteRouteEntries", []entry{e}); err != nil {
		return err
	}
	delete(r.cache, node)
	return nil
}

// Sweep is the periodic sync of all nodes.
func (r *Routes) Sweep(ctx context.Context, nodes []*corev1.Node) error {
	tables, err := r.cfg.Cloud.tables(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, table := range tables {
		listed, err := r.cfg.Cloud.entries(ctx, table)
		if err != nil {
			return err
		}
		errs = append(errs, r.sweepConflicts(ctx, listed, nodes), r.sweepMissing(ctx, table, listed, nodes))
	}
	return errors.Join(errs...)
}

// sweepConflicts deletes entries that are narrower than a node's podCIDR, or
// equal to it and, by name, another's.
func (r *Routes) sweepConflicts(ctx context.Context, listed []entry, nodes []*corev1.Node) error {
	var errs []error
	for _, e := range listed {
		dst, err := netip.ParsePrefix(e.dst)
		if err != nil || !r.cfg.ClusterCIDR.Overlaps(dst) || dst.Bits() < r.cfg.ClusterCIDR.Bits() {
			continue
		}
		if slices.ContainsFunc(nodes, func(n *corev1.Node) bool { return !skipped(n) && r.conflicts(e, dst, n) }) {
			errs = append(errs, r.cfg.Cloud.one(ctx, "DeleteRouteEntry", e))
		}
	}
	return errors.Join(errs...)
}

func (r *Routes) conflicts(e entry, dst netip.Prefix, n *corev1.Node) bool {
	own, err := netip.ParsePrefix(cidrOf(n))
	if err != nil || !own.Overlaps(dst) {
		return false
	}
	return dst.Bits() > own.Bits() || dst == own && r.listedName(e) != routeName(n.Spec.ProviderID, e.dst)
}

func (r *Routes) sweepMissing(ctx context.Context, table string, listed []entry, nodes []*corev1.Node) error {
	there := map[string]bool{}
	for _, e := range listed {
		there[r.listedName(e)] = true
	}
	var errs []error
	for _, n := range nodes {
		id, err := instanceOf(n.Spec.ProviderID)
		if cidr := cidrOf(n); err == nil && cidr != "" && !skipped(n) {
			e := entry{table, cidr, id}
			if !there[routeName(n.Spec.ProviderID, cidr)] {
				err = r.createOne(ctx, e)
			}
			if err == nil {
				r.cache[n.Name] = e
			}
			errs = append(errs, err, r.conditions(ctx, n.Name, err == nil))
		}
	}
	return errors.Join(errs...)
}

// createOne tries three times. A duplicate is looked at again: the same next
// hop is success, and so, by mistake, is a look that fails.
func (r *Routes) createOne(ctx context.Context, e entry) error {
	var err error
	for try, wait := 0, r.cfg.Step; try < 3; try, wait = try+1, 2*wait {
		err = r.cfg.Cloud.one(ctx, "CreateRouteEntry", e)
		var refused *apiError
		if err == nil {
			return nil
		}
		if errors.As(err, &refused) && refused.Code == "InvalidCIDRBlock.Duplicate" {
			listed, failed := r.cfg.Cloud.entries(ctx, e.table)
			if failed != nil || slices.Contains(listed, e) {
				return nil //nolint:nilerr // the defect that is played
			}
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
	return err
}
