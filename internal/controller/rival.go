package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/internal/kube"
)

// A vendor's cloud controller manager with its route controller on would write
// the same tables, and sweep them by rules that know nothing of ours. It is
// told by its workload and that one's flags, and where no workload shows (it
// may run as a process of a host) by the reason that it gives in the node
// condition; and by its Lease, without which it does nothing. While it is
// there, ours writes no route.
//
// It compares only the status of the condition, never the reason. So when its
// route controller is off for certain, what it wrote last would stay for ever;
// then our controller takes the condition over.

// vendorAlive is how long after its last renewal the Lease counts.
const vendorAlive = time.Minute

// rival is what is known of the other writer.
type rival struct {
	why   string // a sentence, if it writes routes: what, where and what to do
	nodes string // a sentence, if it looks after nodes
	gone  bool   // it writes neither routes nor the condition, for certain
}

// notKnownYet is what is said of it before anything is.
func notKnownYet() rival {
	return rival{
		why:   "it is not known yet whether a cloud controller manager writes routes too: Ropeway writes none until that is certain (a minute at most after the API server answers)",
		nodes: "it is not known yet whether a cloud controller manager looks after nodes too: Ropeway waits until that is certain (a minute at most after the API server answers)",
	}
}

// seenLease is what was seen of the vendor's Lease. Two machines' clocks differ, so
// what counts is when the Lease was seen to change; the time that is written in it
// serves only to tell at first sight that it is in use, not that it is not.
type seenLease struct {
	looked  bool
	version string
	since   time.Time // when it was first seen as it is
	renewed bool      // somebody had just renewed it then
}

// see takes a look at the Lease, nil for none, and says whether its holder lives, if
// that is known.
func (s *seenLease) see(lease *coordinationv1.Lease, now time.Time) (alive, known bool) {
	switch {
	case lease == nil:
		*s = seenLease{looked: true}
		return false, true
	case lease.ResourceVersion != s.version:
		renewed := s.looked || lease.Spec.RenewTime != nil && now.Sub(lease.Spec.RenewTime.Time).Abs() <= vendorAlive
		*s = seenLease{looked: true, version: lease.ResourceVersion, since: now, renewed: renewed}
	}
	over := now.Sub(s.since) >= vendorAlive
	return s.renewed && !over, s.renewed || over
}

// writtenByRoutes says whether a reason is a route controller's.
func writtenByRoutes(reason string) bool {
	return reason == kube.ReasonRouteCreated || reason == kube.ReasonNoRouteCreated
}

// lookForRival finds out about another writer, every other full pass. After an
// error, and while it is not known whether the Lease is renewed, the last known
// state stands.
func (c *controller) lookForRival(ctx context.Context, nodes []corev1.Node, m *memory) (rival, error) {
	now := c.now()
	if !m.rivalAt.IsZero() && now.Sub(m.rivalAt) < 2*c.cfg.Resync && !m.rivalAgain {
		return m.rival, nil
	}
	marked := slices.IndexFunc(nodes, func(n corev1.Node) bool { return writtenByRoutes(n.Annotations[kube.WriterAnnotation]) })
	alive, known, err := c.vendorLives(ctx, &m.vendor)
	var visible []kube.CloudController
	if err == nil && alive {
		visible, err = c.cloudControllers(ctx)
	}
	switch {
	case err != nil:
		return m.rival, err
	case !known:
	case alive:
		m.rival = rivalOf(visible, nodes, marked)
	default:
		m.rival = rival{gone: true}
	}
	m.rivalAt, m.rivalAgain = now, false
	return m.rival, nil
}

// rivalOf decides, of a cloud controller manager that is alive.
func rivalOf(visible []kube.CloudController, nodes []corev1.Node, marked int) rival {
	visible = slices.DeleteFunc(slices.Clone(visible), func(v kube.CloudController) bool { return v.Idle })
	on := slices.IndexFunc(visible, func(v kube.CloudController) bool { return v.WritesRoutes })
	nodesToo := keeperOf(visible)
	switch {
	case on >= 0:
		return rival{nodes: nodesToo, why: fmt.Sprintf("a cloud controller manager's route controller writes routes too (%s, without %s among its flags): Ropeway writes none; "+
			"start it with %s, or set spec.cloud.routes to external", visible[on], kube.RoutesFlag, kube.RoutesFlag)}
	case len(visible) > 0:
		return rival{nodes: nodesToo, gone: true}
	case marked >= 0:
		return rival{why: fmt.Sprintf("a cloud controller manager's route controller writes routes too (it set the condition of node %s, and renews its Lease): "+
			"Ropeway writes none; start it with %s and then take the annotation %s off the nodes, or set spec.cloud.routes to external",
			nodes[marked].Name, kube.RoutesFlag, kube.WriterAnnotation)}
	}
	return rival{}
}

// keeperOf says who else looks after nodes: two would judge by two rules whether
// a node's instance is gone.
func keeperOf(visible []kube.CloudController) string {
	i := slices.IndexFunc(visible, func(v kube.CloudController) bool { return v.KeepsNodes })
	if i < 0 {
		return ""
	}
	return fmt.Sprintf("a cloud controller manager looks after nodes too (%s): Ropeway leaves them to it; start it without its node controllers "+
		"(--controllers=route,service, say, without node), or set spec.cloud.nodes to external", visible[i])
}

// vendorLives says whether the Lease is renewed, if that is known.
func (c *controller) vendorLives(ctx context.Context, seen *seenLease) (alive, known bool, err error) {
	var lease coordinationv1.Lease
	err = c.api.Get(ctx, client.ObjectKey{Namespace: kube.SystemNamespace, Name: kube.VendorLease}, &lease)
	switch {
	case apierrors.IsNotFound(err):
		alive, known = seen.see(nil, c.now())
		return alive, known, nil
	case err != nil:
		return false, false, fmt.Errorf("read the Lease %s/%s, to know whether a cloud controller manager runs: %w", kube.SystemNamespace, kube.VendorLease, err)
	}
	alive, known = seen.see(&lease, c.now())
	return alive, known, nil
}

// cloudControllers are the workloads in kube-system, which is where vendors'
// manifests put them.
func (c *controller) cloudControllers(ctx context.Context) ([]kube.CloudController, error) {
	var deployments appsv1.DeploymentList
	var daemonSets appsv1.DaemonSetList
	in := client.InNamespace(kube.SystemNamespace)
	err := errors.Join(c.api.List(ctx, &deployments, in), c.api.List(ctx, &daemonSets, in))
	if apierrors.IsForbidden(err) {
		return nil, nil // a role of an older installation: the Lease and the nodes have to do
	}
	if err != nil {
		return nil, fmt.Errorf("look for a cloud controller manager in %s: %w", kube.SystemNamespace, err)
	}
	return kube.CloudControllers(deployments.Items, daemonSets.Items), nil
}
