package controller

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Reasons of the condition Accepted.
const (
	reasonAccepted         = "Accepted"
	reasonInvalid          = "Invalid"
	reasonOverlapsServices = "OverlapsServices"
	reasonOverlapsNodes    = "OverlapsNodes"
	reasonInUse            = "InUse"
)

// judgement is whether the ClusterNetwork's spec comes into force.
type judgement struct {
	accepted        bool
	reason, message string
	spec            *v1alpha1.ClusterNetworkSpec // with defaults; nil without a ClusterNetwork
}

// apply puts the judgement into an object's status.
func (j judgement) apply(cn *v1alpha1.ClusterNetwork) {
	status := metav1.ConditionFalse
	if j.accepted {
		status = metav1.ConditionTrue
		cn.Status.InForce = j.spec.DeepCopy()
	}
	cn.Status.ObservedGeneration = cn.Generation
	meta.SetStatusCondition(&cn.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionAccepted, Status: status, Reason: j.reason, Message: j.message, ObservedGeneration: cn.Generation,
	})
}

// judge compares the ClusterNetwork with the rest of the cluster. What it
// refuses changes nothing: the network that was in force stays.
func judge(o *observed) judgement {
	cn := o.objects.Network
	if cn == nil {
		return judgement{}
	}
	j := judgement{spec: cn.Spec.DeepCopy()}
	v1alpha1.Defaults(j.spec)
	if err := v1alpha1.Validate(j.spec); err != nil {
		j.reason, j.message = reasonInvalid, err.Error()+": correct it"
		return j
	}
	for _, check := range []func(*observed, []netip.Prefix) (string, string){overlapsServices, overlapsNodes, leavesOutWhatIsInUse, takesInWhatIsInUse} {
		if j.reason, j.message = check(o, prefixesOf(j.spec)); j.reason != "" {
			if cn.Status.InForce != nil {
				j.message += "; what was in force before stays in force"
			}
			return j
		}
	}
	j.accepted, j.reason = true, reasonAccepted
	j.message = fmt.Sprintf("pods get addresses of %s (%s); transports: %s", strings.Join(j.spec.PodCIDRs, ", "),
		j.spec.AddressSource, joined(j.spec.Transports))
	return j
}

func joined(transports []v1alpha1.Transport) string {
	var out []string
	for _, t := range transports {
		out = append(out, string(t))
	}
	return strings.Join(out, ", ")
}

// prefixesOf returns the podCIDRs of a valid spec, in their order.
func prefixesOf(spec *v1alpha1.ClusterNetworkSpec) []netip.Prefix {
	return kube.Network(spec, "").PodCIDRs
}

// overlapsServices: such a Service's address would be a pod's.
func overlapsServices(o *observed, pods []netip.Prefix) (reason, message string) {
	for i, p := range pods {
		for _, s := range o.services {
			if p.Overlaps(s.prefix) {
				return reasonOverlapsServices, fmt.Sprintf(
					"spec.podCIDRs[%d]: %s overlaps the Services' range %s (ServiceCIDR %s): give pods a range of their own", i, p, s.prefix, s.name)
			}
		}
	}
	return "", ""
}

// overlapsNodes: packets to such a node would be taken for a pod's.
func overlapsNodes(o *observed, pods []netip.Prefix) (reason, message string) {
	for i := range o.objects.Nodes {
		n := &o.objects.Nodes[i]
		for _, a := range n.Status.Addresses {
			addr, err := netip.ParseAddr(a.Address)
			if a.Type != corev1.NodeInternalIP || err != nil {
				continue
			}
			if at := slices.IndexFunc(pods, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) }); at >= 0 {
				return reasonOverlapsNodes, fmt.Sprintf(
					"spec.podCIDRs[%d]: %s contains %s, the address of node %s: give pods a range that no node is in", at, pods[at], addr, n.Name)
			}
		}
	}
	return "", ""
}

// leavesOutWhatIsInUse: pods would lose their addresses while they run.
func leavesOutWhatIsInUse(o *observed, pods []netip.Prefix) (reason, message string) {
	before := o.objects.Network.Status.InForce
	if before == nil {
		return "", ""
	}
	leftOut := func(p netip.Prefix) bool {
		return cidr.CoveredByAny(prefixesOf(before), p) && !cidr.CoveredByAny(pods, p)
	}
	for _, l := range o.objects.Leases() {
		if leftOut(l.Prefix) && l.Sharing != "" {
			return reasonInUse, fmt.Sprintf("spec.podCIDRs leaves out %s, which pools share: keep its range until no pool has an address of it", l.Prefix)
		}
		if leftOut(l.Prefix) {
			return reasonInUse, fmt.Sprintf(
				"spec.podCIDRs leaves out %s, which node %s holds: keep its range until no pod has an address of it and the block is given back", l.Prefix, l.Node)
		}
	}
	if before.AddressSource != v1alpha1.AddressesFromNodeCIDR {
		return "", ""
	}
	for i := range o.objects.Nodes {
		n := &o.objects.Nodes[i]
		for _, text := range n.Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil && leftOut(p.Masked()) {
				return reasonInUse, fmt.Sprintf("spec.podCIDRs leaves out %s, the podCIDR of node %s: keep its range while that node is there", p, n.Name)
			}
		}
	}
	return "", ""
}

// takesInWhatIsInUse: interfaces on an underlay have such addresses, and nodes would
// send them elsewhere.
func takesInWhatIsInUse(o *observed, pods []netip.Prefix) (reason, message string) {
	before := o.objects.Network.Status.InForce
	if before == nil {
		return "", ""
	}
	for _, l := range o.objects.Leases() {
		if l.IsSingle() && cidr.CoveredByAny(pods, l.Prefix) && !cidr.CoveredByAny(prefixesOf(before), l.Prefix) {
			return reasonInUse, fmt.Sprintf("spec.podCIDRs takes in %s, which is leased of %s outside the pod network as it is: give pods a range of their own, or end the pods that have addresses of that pool first",
				l.Address(), cmp.Or(l.Pool, "a pool"))
		}
	}
	return "", ""
}

// setReachable fills the counts and the condition NodesReachable.
func setReachable(cn *v1alpha1.ClusterNetwork, o *observed) {
	var proven int
	var missing []string
	for _, n := range o.snapshot.Nodes {
		if o.verdicts[n.Name].Reachable {
			proven++
		} else {
			missing = append(missing, n.Name+": "+explain(o, n.Name))
		}
	}
	total := len(o.snapshot.Nodes)
	cn.Status.Nodes, cn.Status.ReachableNodes = int32(total), int32(proven)
	cond := metav1.Condition{Type: v1alpha1.ConditionNodesReachable, Status: metav1.ConditionTrue, Reason: "AllProven", ObservedGeneration: cn.Generation}
	cond.Message = fmt.Sprintf("%d of %d nodes are proven reachable", proven, total)
	switch {
	case o.noNet != "":
		cond.Status, cond.Reason, cond.Message = metav1.ConditionFalse, "NoNetwork", "no pod network is in force: "+o.noNet
	case len(missing) > 0:
		cond.Status, cond.Reason = metav1.ConditionFalse, "NotProven"
		slices.Sort(missing)
		cond.Message += "; " + few.Join(missing, "; ")
	}
	meta.SetStatusCondition(&cn.Status.Conditions, cond)
}

// explain says why a node is not proven: what is wrong with it, or what the
// probes miss.
func explain(o *observed, node string) string {
	if wrong := o.wrong[node]; len(wrong) > 0 {
		return strings.Join(wrong, "; ")
	}
	return cmp.Or(o.noNet, o.verdicts[node].Reason)
}

// setPolicyEnforced fills the condition PolicyEnforced.
func setPolicyEnforced(cn *v1alpha1.ClusterNetwork, p policies) {
	if !p.known {
		return
	}
	cond := metav1.Condition{
		Type: v1alpha1.ConditionPolicyEnforced, Status: metav1.ConditionTrue, Reason: "NoPolicies",
		Message: "there are no NetworkPolicies to enforce", ObservedGeneration: cn.Generation,
	}
	if p.count > 0 {
		cond.Status, cond.Reason = metav1.ConditionFalse, "NotImplemented"
		cond.Message = fmt.Sprintf("this version does not enforce NetworkPolicies, and there are %d (such as %s): "+
			"traffic that they forbid passes; delete them, or do not rely on them", p.count, p.first)
	}
	meta.SetStatusCondition(&cn.Status.Conditions, cond)
}

// writeNetworkStatus makes the ClusterNetwork's status say what was decided.
func (c *controller) writeNetworkStatus(ctx context.Context, o *observed, j judgement, m *memory) error {
	before := o.objects.Network
	if before == nil || before.DeletionTimestamp != nil {
		return nil
	}
	next := before.DeepCopy()
	j.apply(next)
	setReachable(next, o)
	setPolicyEnforced(next, o.policies)
	faults := c.findFaults(ctx, o)
	setFaults(next, faults)
	c.tellFaults(before, faults, m)
	status := c.planner.Status()
	setRoutes(next, status)
	leaving := len(m.unwanted)
	next.Status.AddressRoutes = m.addressRoutes(o.snapshot.Network.Diverted, o.fixed, status, c.cfg.Grace, c.now())
	if len(m.unwanted) > leaving {
		c.planner.Look() // two listings are needed before an entry goes, and its address is at home already
	}
	setNodes(next, c.nodes.Status(), o.rival)
	setRights(next, c.rights.status.Load())
	c.tellRoutes(before, status, m)
	c.tellCloud(before, "nodes", nodeInstanceProblems(o.inForce, c.nodes.Status(), o.rival), m.cloudTold)
	c.tellCloud(before, "rights", c.rights.status.Load().problems(), m.cloudTold)
	m.untold = 0
	if equality.Semantic.DeepEqual(before.Status, next.Status) {
		return nil
	}
	if rest := c.tooSoon(m, &before.Status, &next.Status); rest > 0 {
		m.untold = rest
		return nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	err := c.api.Status().Patch(ctx, next, patch)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // the cache is behind: its next change brings the next pass
	}
	if err != nil {
		return fmt.Errorf("write the status of ClusterNetwork %s: %w", before.Name, err)
	}
	m.toldAt = c.now()
	// The condition remembers what an earlier leader has told.
	if was := meta.FindStatusCondition(before.Status.Conditions, v1alpha1.ConditionAccepted); was == nil || was.Reason != j.reason || was.Message != j.message {
		c.log.Info("ClusterNetwork judged", "accepted", j.accepted, "reason", j.reason, "message", j.message, "generation", before.Generation)
		c.record(networkReference(before), !j.accepted, j.reason, j.message)
	}
	return nil
}

// progressPerNode is how long nothing but progress is left unsaid, for each
// node: all of them hear of each write, so that a cluster of thousands that
// publishes its routes would send itself thousands of times as many messages.
const progressPerNode = 2 * time.Millisecond

// tooSoon returns how long to wait with a status that says nothing new but how
// far things are; 0 for one that is to be written now.
func (c *controller) tooSoon(m *memory, before, next *v1alpha1.ClusterNetworkStatus) time.Duration {
	if !sameButProgress(before, next) {
		return 0
	}
	return max(0, time.Duration(next.Nodes)*progressPerNode-c.now().Sub(m.toldAt))
}

// sameButProgress says that two statuses differ in counts and messages alone.
func sameButProgress(a, b *v1alpha1.ClusterNetworkStatus) bool {
	return equality.Semantic.DeepEqual(withoutProgress(a), withoutProgress(b))
}

func withoutProgress(in *v1alpha1.ClusterNetworkStatus) *v1alpha1.ClusterNetworkStatus {
	out := in.DeepCopy()
	out.Nodes, out.ReachableNodes = 0, 0
	for i := range out.Conditions {
		out.Conditions[i].Message = ""
	}
	for i := range out.Faults {
		out.Faults[i] = v1alpha1.FaultReport{Fault: out.Faults[i].Fault, Degraded: out.Faults[i].Degraded}
	}
	return out
}
