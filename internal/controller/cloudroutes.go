package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// reasonNotWritten is of the event that says why no routes are written.
const reasonNotWritten = "RoutesNotWritten"

// newPlanner makes the planner of the cloud's routes, which works while this
// replica leads.
func (c *controller) newPlanner() *routes.Planner {
	return routes.New(routes.Config{
		Make:    c.makeProvider,
		Confirm: c.liveRoutes,
		Changed: c.observer.Touch,
		Log:     c.log,
		Metrics: c.metrics.routes,
		// What is left of a node is taken back together.
		StaleAfter: c.cfg.Grace,
	})
}

// makeProvider makes the provider of a setup, with the credentials of its
// Secret, or those of the environment where it names none.
func (c *controller) makeProvider(ctx context.Context, s cloud.Setup) (cloud.Provider, error) {
	make, known := c.cfg.Providers[s.Provider]
	if !known {
		return nil, &cloud.Error{Class: cloud.Permanent, Message: fmt.Sprintf("this version knows no provider %q", s.Provider),
			Err: errors.New("spec.cloud.provider of the ClusterNetwork")}
	}
	settings := cloud.Settings{Region: s.Region, VPC: s.VPC, Tables: s.Tables, Endpoint: s.Endpoint, Called: c.metrics.routes.Called, Log: c.log}
	if s.Secret == "" {
		settings.Secret = c.cfg.CloudKeys
		return make(ctx, settings)
	}
	settings.ReadSecret = func(ctx context.Context) (map[string][]byte, error) { return c.readSecret(ctx, s.Secret) }
	return make(ctx, settings)
}

func (c *controller) readSecret(ctx context.Context, name string) (map[string][]byte, error) {
	var secret corev1.Secret
	if err := c.api.Get(ctx, client.ObjectKey{Namespace: c.cfg.Namespace, Name: name}, &secret); err != nil {
		return nil, fmt.Errorf("the Secret %s/%s with the credentials cannot be read: %w", c.cfg.Namespace, name, err)
	}
	return secret.Data, nil
}

// liveRoutes is what the planner is given, read from the API server itself.
func (c *controller) liveRoutes(ctx context.Context) (routes.Input, error) {
	view, err := kube.ClusterView(ctx, c.cfg.API)
	if err != nil {
		return routes.Input{}, err
	}
	snapshot, problem := view.Snapshot("")
	if problem != "" {
		return routes.Input{}, fmt.Errorf("no pod network is in force: %s", problem)
	}
	spec, _ := kube.InForce(view.Network)
	return routesInput(&view.Objects, snapshot, spec, fixedAddresses(&view.Objects, snapshot, spec)), nil
}

// routesInput says what the cloud's tables should hold.
func routesInput(o *kube.Objects, s plan.Snapshot, spec *v1alpha1.ClusterNetworkSpec, fixed []fixedAddress) routes.Input {
	in := routes.Input{Cluster: o.ClusterID, Nodes: len(o.Nodes), Mode: routes.Off}
	if spec == nil || spec.Cloud == nil || spec.Cloud.Provider == "" {
		return in
	}
	cl := spec.Cloud
	in.Setup = cloudSetup(cl)
	in.PodCIDRs, in.Blocks, in.Diverted = slices.Clone(s.Network.PodCIDRs), !s.Network.NodeCIDR, s.Network.Diverted
	if o.Network != nil {
		a := o.Network.Annotations
		in.Confirmed = a[routes.ConfirmAnnotation]
		if w := meta.FindStatusCondition(o.Network.Status.Conditions, routes.ConditionWithheld); w != nil && w.Status == metav1.ConditionTrue {
			in.WithheldSince = w.LastTransitionTime.UTC()
		}
		in.Adopt, in.Release = routes.ParseSelection(a[routes.AdoptAnnotation]), routes.ParseSelection(a[routes.ReleaseAnnotation])
	}
	direct := slices.Contains(spec.Transports, v1alpha1.TransportDirect)
	if !direct || cl.Routes == v1alpha1.DutyOff {
		return withoutRoutes(in, o, direct)
	}
	in.Mode = routes.Write
	if cl.Routes == v1alpha1.DutyExternal {
		in.Mode = routes.External
	}
	in.Wants = append(wants(o, s), addressWants(o, s, fixed)...)
	return in
}

// withoutRoutes is what becomes of entries that the configuration does not ask
// for any more: they stay, and the Status says so, until a person asks for
// their withdrawal and no node needs them.
func withoutRoutes(in routes.Input, o *kube.Objects, direct bool) routes.Input {
	switch asked := o.Network != nil && o.Network.Annotations[routes.WithdrawAnnotation] != ""; {
	case !asked && direct:
		in.Why = "spec.cloud.routes is off: the route tables are neither read nor changed; entries of this cluster that are there stay, and pods may go on using them " +
			"(ropeway routes withdraw removes them, once spec.transports has no direct)"
	case !asked:
		in.Why = "spec.transports does not allow direct, so no routes are needed: the route tables are neither read nor changed, and entries of this cluster " +
			"that are there stay until ropeway routes withdraw removes them"
	case direct:
		in.Why = "routes are to be withdrawn, but spec.transports allows direct, by which pods use them: nothing is done until direct is taken out of it"
	default:
		if node := usesDirect(o); node != "" {
			in.Why = fmt.Sprintf("routes are to be withdrawn, but node %s still reaches others by direct: nothing is done until no node does", node)
		} else {
			in.Mode = routes.Withdraw
		}
	}
	return in
}

// usesDirect returns a node that says that it reaches others by direct, or that
// has not said yet that its kernel is set by the ClusterNetwork as it is now: until
// then it may go direct again. Agents of before say no generation.
func usesDirect(o *kube.Objects) string {
	there := make(map[string]bool, len(o.Nodes))
	for i := range o.Nodes {
		there[o.Nodes[i].Name] = true
	}
	for _, nn := range o.NodeNetworks {
		behind := nn.Status.NetworkGeneration != 0 && o.Network != nil && nn.Status.NetworkGeneration < o.Network.Generation
		if there[nn.Name] && (behind || nn.Status.Peers[string(v1alpha1.TransportDirect)] > 0) {
			return nn.Name
		}
	}
	return ""
}

// wants returns every node's destinations, by node and destination.
func wants(o *kube.Objects, s plan.Snapshot) []routes.Want {
	owned := plan.DestinationsByNode(s.Network, s.Nodes)
	provider := providerIDs(o)
	var out []routes.Want
	for _, n := range s.Nodes {
		for _, dst := range owned[n.Name] {
			out = append(out, wantOf(n, dst, provider))
		}
	}
	return out
}

func wantOf(n plan.Node, dst netip.Prefix, provider map[string]string) routes.Want {
	return routes.Want{Dst: dst, Node: n.Name, UID: n.UID, Created: n.Created, ProviderID: provider[n.Name], Addresses: n.Addresses}
}

// providerIDs maps node -> what its object says of its instance.
func providerIDs(o *kube.Objects) map[string]string {
	out := make(map[string]string, len(o.Nodes))
	for i := range o.Nodes {
		out[o.Nodes[i].Name] = o.Nodes[i].Spec.ProviderID
	}
	return out
}

// planRoutes tells those who work in the cloud what this pass has found.
func (c *controller) planRoutes(o *observed, m *memory) {
	status := c.planner.Status()
	if m.newlyFailing(o.snapshot.Probes, carried(o.snapshot.Nodes, status)) {
		c.planner.Look()
	}
	in := routesInput(o.objects, o.snapshot, o.inForce, o.fixed)
	if in.Mode == routes.Write && o.rival.why != "" {
		in.Mode, in.Why = routes.External, o.rival.why
		in.Wants = slices.DeleteFunc(in.Wants, func(w routes.Want) bool { return w.Single }) // others make none of these
	}
	rights := c.rights.status.Load()
	in.Allowed = rights != nil && rights.reason == reasonAllowed
	c.planner.Set(in)
	c.nodes.Set(nodesInput(o.inForce, o.rival))
	c.rights.set(rightsNeeded(o.inForce, in), rightsHints{
		refused: refusedIn(status, c.nodes.Status()), busy: publishing(in, status), known: rightsKnown(o.objects.Network),
	})
}

// carried are the UIDs of the nodes that every entry of theirs leads to, as far
// as was seen last. That nothing reaches others by direct is no news.
func carried(nodes []plan.Node, s *routes.Status) map[string]bool {
	names := map[string]bool{}
	for i := range s.Rows {
		if r := &s.Rows[i]; r.Node != "" && !r.Single {
			all, seen := names[r.Node]
			names[r.Node] = (all || !seen) && r.State.Good()
		}
	}
	out := make(map[string]bool, len(names))
	for _, n := range nodes {
		out[n.UID] = names[n.Name]
	}
	return out
}

// newlyFailing brings m.failing up to date, and says whether a probe finds that
// the fabric does not lead any more to a node that it is known to have led to:
// somebody may have removed its route by hand.
func (m *memory) newlyFailing(probes []plan.Published, carried map[string]bool) bool {
	now := map[string]bool{}
	fresh := false
	for p := range plan.ProbesOf(probes) {
		if p.Transport == plan.Direct && !p.Reachable {
			now[p.ToUID] = true
			fresh = fresh || !m.failing[p.ToUID] && carried[p.ToUID]
		}
	}
	m.failing = now
	return fresh
}

// setRoutes fills the conditions that speak of the cloud's routes. What an
// earlier leader has said stays until this one knows better: a restart with
// nothing to do writes nothing.
func setRoutes(cn *v1alpha1.ClusterNetwork, s *routes.Status) {
	if s.Mode == "" {
		return
	}
	if s.Mode == routes.Off {
		meta.RemoveStatusCondition(&cn.Status.Conditions, routes.ConditionPublished)
		meta.RemoveStatusCondition(&cn.Status.Conditions, routes.ConditionWithheld)
		return
	}
	wanted, good := s.Wanted()
	cond := metav1.Condition{
		Type: routes.ConditionPublished, Status: metav1.ConditionFalse, Reason: routes.ReasonPublishing, Message: s.Sentence(), ObservedGeneration: cn.Generation,
	}
	switch {
	case len(s.Problems) > 0:
		cond.Reason = s.Problems[0].Reason
	case s.Mode == routes.Withdraw && !s.Listed.IsZero():
		cond.Reason, cond.Message = withdrawal(s)
	case s.Why != "":
		cond.Reason, cond.Message = reasonWithheld, s.Why+"; "+cond.Message
	case s.Listed.IsZero():
		cond.Message = "the cloud's route tables have not been read yet"
	case good == wanted:
		cond.Status, cond.Reason = metav1.ConditionTrue, "Published"
	}
	meta.SetStatusCondition(&cn.Status.Conditions, cond)
	i := slices.IndexFunc(s.Problems, func(p routes.Problem) bool { return p.Reason == routes.ReasonWithheld })
	if i < 0 {
		meta.RemoveStatusCondition(&cn.Status.Conditions, routes.ConditionWithheld)
		return
	}
	since := metav1.NewTime(s.WithheldSince)
	if was := meta.FindStatusCondition(cn.Status.Conditions, routes.ConditionWithheld); was != nil && !since.IsZero() && !was.LastTransitionTime.Equal(&since) {
		meta.RemoveStatusCondition(&cn.Status.Conditions, routes.ConditionWithheld) // of another wait, which has another token
	}
	meta.SetStatusCondition(&cn.Status.Conditions, metav1.Condition{
		Type: routes.ConditionWithheld, Status: metav1.ConditionTrue, Reason: "TooManyAtOnce", Message: s.Problems[i].Message, ObservedGeneration: cn.Generation,
		LastTransitionTime: since,
	})
}

// withdrawal says how far a withdrawal has come.
func withdrawal(s *routes.Status) (reason, message string) {
	if left := s.Ours(); left > 0 {
		return routes.ReasonWithdrawing, fmt.Sprintf("%d entries of this cluster are still in the route tables; they are being withdrawn, or only released where ropeway routes release says so", left)
	}
	return routes.ReasonWithdrawn, "no entry of this cluster is left in the route tables"
}

// tellRoutes records events of what is wrong with routes, and why none are
// written.
func (c *controller) tellRoutes(cn *v1alpha1.ClusterNetwork, s *routes.Status, m *memory) {
	const why = "why"
	if s.Why == "" {
		delete(m.cloudTold, told{why, reasonNotWritten})
	} else {
		c.tellIn(m.cloudTold, networkReference(cn), why, s.Mode == routes.External, reasonNotWritten, s.Why)
	}
	c.tellCloud(cn, "routes", s.Problems, m.cloudTold)
}
