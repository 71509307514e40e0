package kube

import (
	"cmp"
	"net"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/plan"
)

// Objects are the objects of a cluster that the plan depends on. They may be a
// cache's own: nobody changes them.
type Objects struct {
	// ClusterID is the UID of the kube-system namespace.
	ClusterID string
	// Network is the ClusterNetwork named default; nil when there is none.
	Network *v1alpha1.ClusterNetwork
	Nodes   []corev1.Node
	// Elsewhere are nodes whose objects are not among Nodes. An agent keeps its
	// own Node only.
	Elsewhere    []plan.Node
	NodeNetworks []*v1alpha1.NodeNetwork
	// published maps NodeNetwork -> its probes, where they are kept beside it.
	published map[string]plan.Published
	Blocks    []v1alpha1.AddressBlock

	// PoolsKnown is false while the pools have not been read.
	PoolsKnown        bool
	AddressPools      []v1alpha1.AddressPool
	SpiderIPPools     []v2beta1.SpiderIPPool
	SpiderReservedIPs []v2beta1.SpiderReservedIP
}

// Snapshot says the objects in the plan's words, for one node; self may be
// empty. When no network is in force, the Snapshot's Network is the zero value
// and the second result says why, as a sentence.
func (o *Objects) Snapshot(self string) (plan.Snapshot, string) {
	s := plan.Snapshot{Self: self}
	spec, problem := InForce(o.Network)
	if spec != nil {
		s.Network = Network(spec, o.ClusterID)
		s.Network.Diverted = parseAll(o.Network.Status.AddressRoutes)
	}
	said := make(map[string]*v1alpha1.NodeNetwork, len(o.NodeNetworks))
	for _, nn := range o.NodeNetworks {
		said[nn.Name] = nn
	}
	s.Nodes = make([]plan.Node, 0, len(o.Nodes)+len(o.Elsewhere))
	for i := range o.Nodes {
		s.Nodes = append(s.Nodes, planNode(&o.Nodes[i]))
	}
	s.Nodes = append(s.Nodes, o.Elsewhere...)
	slices.SortFunc(s.Nodes, func(a, b plan.Node) int { return cmp.Compare(a.Name, b.Name) })
	s.Probes = make([]plan.Published, 0, len(o.NodeNetworks))
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if nn := said[n.Name]; nn != nil && nn.Status.NodeUID == n.UID {
			addWords(n, nn)
			if !s.Network.NodeCIDR && len(n.NodeCIDRs) > 0 {
				n.Holds = parsePrefixes(nn.Status.CIDRs)
			}
			s.Probes = append(s.Probes, o.probes(nn))
		}
	}
	SetLeases(&s, o.Leases())
	return s, problem
}

// SetLeases makes a snapshot say what the leases say, and nothing else of them.
// It goes by the nodes' names and not by their UIDs: while a node that was
// registered anew has not yet adopted its leases, its pods are still there.
func SetLeases(s *plan.Snapshot, leases []Lease) {
	at := make(map[string]*plan.Node, len(s.Nodes))
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Blocks, n.Singles, n.Asked = nil, nil, nil
		at[n.Name] = n
	}
	s.Network.Shared, s.Network.Resting = nil, nil
	for _, l := range leases {
		n := at[l.Node]
		switch {
		case l.Sharing != "":
			s.Network.Shared = append(s.Network.Shared, l.Prefix)
		case n == nil && l.IsSingle():
			s.Network.Resting = append(s.Network.Resting, l.Address())
		case n == nil:
		case !l.IsSingle() && !l.Unsure:
			n.Blocks = append(n.Blocks, l.Prefix)
		case !l.IsSingle():
		case l.Usable():
			n.Singles = append(n.Singles, l.Address())
		default:
			n.Asked = append(n.Asked, l.Address())
		}
	}
}

// Leases returns the AddressBlocks in our words, by CIDR. Blocks whose CIDR
// cannot be read are left out; the CRD admits none.
func (o *Objects) Leases() []Lease {
	leases := make([]Lease, 0, len(o.Blocks))
	for i := range o.Blocks {
		if l, ok := leaseOf(&o.Blocks[i]); ok {
			leases = append(leases, l)
		}
	}
	sortLeases(leases)
	return leases
}

func leaseOf(b *v1alpha1.AddressBlock) (Lease, bool) {
	p, err := netip.ParsePrefix(b.Spec.CIDR)
	sp := &b.Spec
	l := Lease{Prefix: p, Node: sp.Node, NodeUID: sp.NodeUID, Generation: sp.Generation, ObjectUID: string(b.UID), Version: b.ResourceVersion,
		Sharing: share.Sharing(sp.Sharing), Pool: sp.Pool, From: sp.From, Grant: share.Grant(sp.Grant), Reason: sp.GrantReason}
	if k := sp.KeptFor; k != nil {
		l.KeptFor = share.Kept(*k)
	}
	return l, err == nil
}

// blockOf is the object that a lease is, or is to become: without its UID and
// version it is a new one.
func blockOf(l Lease) *v1alpha1.AddressBlock {
	b := &v1alpha1.AddressBlock{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.BlockName(l.Prefix), UID: types.UID(l.ObjectUID), ResourceVersion: l.Version},
		Spec: v1alpha1.AddressBlockSpec{CIDR: l.Prefix.String(), Node: l.Node, NodeUID: l.NodeUID, Generation: l.Generation,
			Sharing: v1alpha1.Sharing(l.Sharing), Pool: l.Pool, From: l.From, Grant: v1alpha1.Grant(l.Grant), GrantReason: l.Reason},
	}
	if k := l.KeptFor; k != (share.Kept{}) {
		kept := v1alpha1.KeptFor(k)
		b.Spec.KeptFor = &kept
	}
	return b
}

func sortLeases(leases []Lease) {
	slices.SortFunc(leases, func(a, b Lease) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
}

// addWords adds what the node's agent says.
func addWords(n *plan.Node, nn *v1alpha1.NodeNetwork) {
	st := &nn.Status
	n.Ready = st.ReadySince != nil
	n.Sources = parseAll(st.Sources)
	if mac, err := net.ParseMAC(st.VTEP); err == nil && len(mac) == len(n.VTEP) {
		n.VTEP = plan.MAC(mac)
	}
	for _, f := range st.Faults {
		if n.Faults == nil {
			n.Faults = map[plan.Fault]string{}
		}
		n.Faults[plan.Fault(f.Fault)] = f.Message
	}
	for _, t := range st.Transports {
		if t.Supported {
			continue
		}
		if n.Refuses == nil {
			n.Refuses = map[plan.Transport]string{}
		}
		n.Refuses[plan.Transport(t.Name)] = t.Reason
	}
}

func (o *Objects) probes(nn *v1alpha1.NodeNetwork) plan.Published {
	if kept, apart := o.published[nn.Name]; apart {
		return kept
	}
	return publishedBy(nn)
}

// publishedBy returns the object's probes in the plan's words.
func publishedBy(nn *v1alpha1.NodeNetwork) plan.Published {
	probes := make([]plan.Probe, 0, len(nn.Status.Probes))
	for _, p := range nn.Status.Probes {
		address, _ := netip.ParseAddr(p.Address) // none is the zero value
		probes = append(probes, plan.Probe{
			To: p.Node, ToUID: p.NodeUID,
			Family: plan.Family(p.Family), Transport: plan.Transport(p.Transport), Address: address,
			Reachable: p.Reachable, Fault: plan.Fault(p.Fault), PathMTU: int(p.PathMTU), Reason: p.Reason,
		})
	}
	return plan.Publish(nn.Name, probes...)
}

// The reasons of the node condition NetworkUnavailable that Ropeway's
// controller writes.
const (
	ReasonProven    = "RopewayProven"
	ReasonNotProven = "RopewayNotProven"
	// WriterAnnotation on a Node is the reason that another writer of the
	// condition gives. The controller sets it, once, and then leaves the
	// condition to the other.
	WriterAnnotation = "ropeway.dev/network-unavailable-written-by"
	// SeenAnnotation on a Node names the instance that the cloud has shown for
	// it. Only of an instance that was seen can it be said that it is gone.
	SeenAnnotation = "ropeway.dev/instance-seen"
)

// NetworkUnavailable returns the node's condition of that type, nil if none.
func NetworkUnavailable(node *corev1.Node) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == corev1.NodeNetworkUnavailable {
			return c
		}
	}
	return nil
}

// IsOurs says whether Ropeway's controller wrote the condition.
func IsOurs(c *corev1.NodeCondition) bool {
	return c != nil && (c.Reason == ReasonProven || c.Reason == ReasonNotProven)
}

// nodeCondition returns what the controller has said of a node. Where it has
// left the condition to another writer, the other's word stands.
func nodeCondition(node *corev1.Node) *NodeCondition {
	c := NetworkUnavailable(node)
	if c == nil || !IsOurs(c) && node.Annotations[WriterAnnotation] == "" {
		return nil
	}
	return &NodeCondition{Status: c.Status != corev1.ConditionFalse, Reason: c.Reason, Message: c.Message}
}
