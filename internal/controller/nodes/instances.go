package nodes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	cloudprovider "k8s.io/cloud-provider"
	cloudproviderapi "k8s.io/cloud-provider/api"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/kube"
)

// instances is a cloudprovider.InstancesV2.
type instances struct {
	cloud   cloud.Instances
	catalog *catalog
	nodes   func() ([]*corev1.Node, error) // all of the cluster's
	log     *slog.Logger
	now     func() time.Time
	confirm time.Duration // between the two looks
	every   time.Duration // between looks
	dual    func() bool   // whether pods have IPv6 addresses

	mu       sync.Mutex
	round    *round
	suspects map[types.UID]*suspicion // of silent nodes
	verdicts map[types.UID]verdict
}

var _ cloudprovider.InstancesV2 = (*instances)(nil)

// ready returns the status of a node's condition Ready, Unknown without one.
func ready(node *corev1.Node) corev1.ConditionStatus {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// silent says that a node's kubelet has not been heard of for so long that
// Kubernetes does not know how the node is. A node that says itself that it is
// not ready is there.
func silent(node *corev1.Node) bool { return ready(node) == corev1.ConditionUnknown }

// InstanceExists says whether a node's instance exists: false only on evidence,
// an error wherever that is not known. A node that is no instance of this cloud
// is none of its business, and exists.
func (i *instances) InstanceExists(ctx context.Context, node *corev1.Node) (bool, error) {
	if !silent(node) {
		i.acquit(node.UID)
		return true, nil
	}
	id, err := i.named(node)
	if err != nil {
		return true, nil
	}
	r, err := i.look(ctx)
	if err != nil {
		return false, fmt.Errorf("whether instance %s of node %s exists is not known: %w", id, node.Name, err)
	}
	switch v, looked := i.judge(r, node, id); {
	case !looked:
		return false, fmt.Errorf("instance %s of node %s has not been looked for yet", id, node.Name)
	case v.why != "":
		return false, fmt.Errorf("node %s is silent and instance %s is not shown, but it is not deleted: %s", node.Name, id, v.why)
	default:
		return !v.gone, nil
	}
}

// judge weighs what a round says of a silent node, once.
func (i *instances) judge(r *round, node *corev1.Node, id string) (v verdict, looked bool) {
	l, looked := r.looks[node.UID]
	if !looked {
		return v, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	s := i.suspects[node.UID]
	if s == nil || s.instance != id {
		s = &suspicion{instance: id}
		i.suspects[node.UID] = s
	}
	if !r.weighed[node.UID] {
		r.weighed[node.UID] = true
		v = s.add(l, node.Annotations[kube.SeenAnnotation] == id, i.confirm)
		v.node = node.Name
		i.verdicts[node.UID] = v
	}
	return i.verdicts[node.UID], true
}

// acquit forgets what spoke against a node.
func (i *instances) acquit(uid types.UID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.suspects, uid)
	delete(i.verdicts, uid)
}

// isGone says whether the evidence is that this Node's instance is gone.
func (i *instances) isGone(uid types.UID) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.verdicts[uid].gone
}

// all returns the verdicts on silent nodes.
func (i *instances) all() []verdict {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Values(i.verdicts))
}

// doubts are the nodes that a person must look at, by name.
func (i *instances) doubts() []Problem {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []Problem
	for _, v := range i.verdicts {
		if v.person {
			out = append(out, Problem{Reason: ReasonDoubt, Node: v.node,
				Message: fmt.Sprintf("node %s is silent, and the cloud does not show its instance; it is not deleted: %s", v.node, v.why)})
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return strings.Compare(a.Node, b.Node) })
	return out
}

// InstanceShutdown says whether a node's instance is stopped. One whose kubelet
// speaks is not.
func (i *instances) InstanceShutdown(ctx context.Context, node *corev1.Node) (bool, error) {
	if !silent(node) {
		return false, nil
	}
	id, err := i.named(node)
	if err != nil {
		return false, nil // no instance of this cloud
	}
	r, err := i.look(ctx)
	if err != nil {
		return false, err
	}
	in, found := r.described[id]
	return found && in.Stopped, nil
}

// named returns the instance that a node's providerID names.
func (i *instances) named(node *corev1.Node) (string, error) {
	if node.Spec.ProviderID == "" {
		return "", fmt.Errorf("node %s has no providerID: which instance it was is not known", node.Name)
	}
	id, ok := i.cloud.Parse(node.Spec.ProviderID)
	if !ok {
		return "", fmt.Errorf("node %s has the providerID %q, which names no instance of this cloud and region", node.Name, node.Spec.ProviderID)
	}
	return id, nil
}

// InstanceMetadata tells what a node's instance is. A node without a providerID
// is found by its address, or by a name that is one.
func (i *instances) InstanceMetadata(ctx context.Context, node *corev1.Node) (*cloudprovider.InstanceMetadata, error) {
	in, err := i.find(ctx, node)
	if err != nil {
		return nil, err
	}
	m := &cloudprovider.InstanceMetadata{
		ProviderID: node.Spec.ProviderID, InstanceType: in.Type, Zone: in.Zone, Region: in.Region,
		AdditionalLabels: i.labels(in), NodeAddresses: nodeAddresses(in, node, i.dual()),
	}
	if m.ProviderID == "" {
		m.ProviderID = i.cloud.ProviderID(in.ID)
	}
	if !waits(node) && !hasAny(node.Labels, m.AdditionalLabels) {
		// No cloud controller has made this node known: its kubelet writes the
		// addresses itself, and would undo ours.
		m.NodeAddresses = nil
	}
	return m, nil
}

// waits says whether a node waits for a cloud controller to make it known.
func waits(node *corev1.Node) bool {
	for _, t := range node.Spec.Taints {
		if t.Key == cloudproviderapi.TaintExternalCloudProvider {
			return true
		}
	}
	return false
}

func hasAny(labels, of map[string]string) bool {
	for key := range of {
		if _, there := labels[key]; there {
			return true
		}
	}
	return false
}

// labels are an instance's further labels, but for values that Kubernetes
// would refuse.
func (i *instances) labels(in cloud.Instance) map[string]string {
	out := map[string]string{}
	for key, value := range in.Labels {
		if wrong := validation.IsValidLabelValue(value); len(wrong) > 0 {
			i.log.Warn("a label of the cloud is left out", "instance", in.ID, "label", key, "why", strings.Join(wrong, "; "))
			continue
		}
		out[key] = value
	}
	return out
}

// find returns the instance that a node is, with the best reason why there is
// none.
func (i *instances) find(ctx context.Context, node *corev1.Node) (cloud.Instance, error) {
	in, err := i.listed(ctx, node)
	if !errors.Is(err, errNotListed) || node.Spec.ProviderID == "" {
		return in, err
	}
	id, _ := i.named(node)
	described, problem := i.catalog.describe(ctx, []string{id})
	if problem != nil {
		return cloud.Instance{}, problem
	}
	if in, found := described[id]; found {
		return cloud.Instance{}, fmt.Errorf("node %s is instance %s, which is in VPC %s: spec.cloud.vpcID says another", node.Name, id, in.VPC)
	}
	return cloud.Instance{}, err
}

// errNotListed says that the list of the VPC does not show an instance.
var errNotListed = errors.New("the cloud does not show it in this VPC: see the region, the VPC, and what the credentials may see")

// listed returns the instance of the VPC's list that a node is.
func (i *instances) listed(ctx context.Context, node *corev1.Node) (cloud.Instance, error) {
	if node.Spec.ProviderID == "" {
		return i.nameless(ctx, node)
	}
	id, err := i.named(node)
	if err != nil {
		return cloud.Instance{}, fmt.Errorf("%w: correct the kubelet's --provider-id and register the node anew", err)
	}
	in, found, err := i.catalog.search(ctx, func() (cloud.Instance, bool) { return i.catalog.get(id) })
	if err == nil && !found {
		err = fmt.Errorf("node %s should be instance %s, but %w", node.Name, id, errNotListed)
	}
	return in, err
}

// nameless finds a node without a providerID by its addresses, or by its name
// where that is spelled like one.
func (i *instances) nameless(ctx context.Context, node *corev1.Node) (cloud.Instance, error) {
	addresses := addressesOf(node)
	byName, isName := i.cloud.Parse(node.Name)
	in, found, err := i.catalog.search(ctx, func() (cloud.Instance, bool) {
		in, found := i.catalog.at(addresses)
		if !found && isName {
			in, found = i.catalog.get(byName)
		}
		return in, found
	})
	if err == nil && !found {
		err = fmt.Errorf("node %s has no providerID, and no instance of the VPC has its address (%v): see whether it is in this VPC, "+
			"or start its kubelet with --provider-id=%s", node.Name, addresses, i.cloud.ProviderID("INSTANCE"))
	}
	return in, err
}

// addressesOf are the addresses that a node says to have.
func addressesOf(node *corev1.Node) []netip.Addr {
	out := provided(node)
	for _, a := range node.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			out = append(out, addr)
		}
	}
	return out
}

// provided are the addresses that the kubelet was given (--node-ip).
func provided(node *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for text := range strings.SplitSeq(node.Annotations[cloudproviderapi.AnnotationAlphaProvidedIPAddr], ",") {
		if addr, err := netip.ParseAddr(strings.TrimSpace(text)); err == nil {
			out = append(out, addr)
		}
	}
	return out
}

// nodeAddresses are an instance's addresses in the order in which Kubernetes
// prefers them. Those of further interfaces, and of IPv6 where pods have none,
// count only where the kubelet was told to use them.
func nodeAddresses(in cloud.Instance, node *corev1.Node, dual bool) []corev1.NodeAddress {
	told := map[netip.Addr]bool{}
	for _, a := range provided(node) {
		told[a] = true
	}
	var out []corev1.NodeAddress
	v4 := false
	for n, a := range in.Addresses {
		own := n < in.Primary && (a.Is4() && !v4 || a.Is6() && dual)
		v4 = v4 || a.Is4()
		if own || told[a] {
			out = append(out, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
	}
	for _, a := range in.Public {
		out = append(out, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: a.String()})
	}
	return out
}
