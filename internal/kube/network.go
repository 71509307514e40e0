package kube

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

// InForce returns the spec that nodes act on: the last that the controller
// accepted, or, where no controller has looked yet, the object's own if nothing
// is wrong with it. Otherwise it returns nil and a sentence that says why.
func InForce(cn *v1alpha1.ClusterNetwork) (*v1alpha1.ClusterNetworkSpec, string) {
	if cn == nil {
		return nil, "there is no ClusterNetwork named " + v1alpha1.ClusterNetworkName +
			": create one (ropeway install does), with spec.podCIDRs"
	}
	spec := cn.Status.InForce
	if spec == nil {
		refused := meta.FindStatusCondition(cn.Status.Conditions, v1alpha1.ConditionAccepted)
		if refused != nil && refused.Status == metav1.ConditionFalse && refused.ObservedGeneration == cn.Generation {
			return nil, fmt.Sprintf("ClusterNetwork %s was not accepted: %s", cn.Name, refused.Message)
		}
		spec = &cn.Spec
	}
	spec = spec.DeepCopy()
	v1alpha1.Defaults(spec)
	if err := v1alpha1.Validate(spec); err != nil {
		return nil, fmt.Sprintf("ClusterNetwork %s cannot be used: %v; correct it", cn.Name, err)
	}
	return spec, ""
}

// generationOf returns the generation of the spec that nodes act on, or a later
// one that was refused.
func generationOf(cn *v1alpha1.ClusterNetwork) int64 {
	switch {
	case cn == nil:
		return 0
	case cn.Status.InForce == nil:
		return cn.Generation
	default:
		return cn.Status.ObservedGeneration
	}
}

// Network says a spec in the plan's words. The spec must have its defaults and
// be valid; entries that are not are left out.
func Network(spec *v1alpha1.ClusterNetworkSpec, clusterID string) plan.Network {
	n := plan.Network{
		ClusterID: clusterID,
		NodeCIDR:  spec.AddressSource == v1alpha1.AddressesFromNodeCIDR,
		BlockBits: map[plan.Family]int{
			plan.IPv4: int(spec.BlockSize.IPv4),
			plan.IPv6: int(spec.BlockSize.IPv6),
		},
		VXLANPort:  uint16(spec.VXLAN.Port),
		VXLANVNI:   uint32(spec.VXLAN.VNI),
		MTU:        mtuPolicy(spec.MTU),
		Masquerade: spec.NAT.Outgoing == nil || *spec.NAT.Outgoing,
	}
	for _, s := range spec.PodCIDRs {
		if p, err := v1alpha1.ParsePodCIDR(s); err == nil {
			n.PodCIDRs = append(n.PodCIDRs, p)
		}
	}
	if spec.Cloud != nil {
		n.FabricCIDRs = parsePrefixes(spec.Cloud.VPCCIDRs)
	}
	if m := spec.MetadataAccess; m != nil {
		n.Metadata.Namespaces = m.Namespaces
		for _, s := range m.Addresses {
			if a, err := netip.ParseAddr(s); err == nil {
				n.Metadata.Addresses = append(n.Metadata.Addresses, a.Unmap())
			}
		}
	}
	for _, t := range spec.Transports {
		n.Transports = append(n.Transports, plan.Transport(t))
	}
	return n
}

func mtuPolicy(mtu *intstr.IntOrString) plan.MTUPolicy {
	switch {
	case mtu == nil:
		return plan.MTUPolicy{Mode: plan.MTUPerRoute}
	case mtu.Type == intstr.Int:
		return plan.MTUPolicy{Mode: plan.MTUFixed, Bytes: int(mtu.IntVal)}
	case mtu.StrVal == v1alpha1.MTUSmallest:
		return plan.MTUPolicy{Mode: plan.MTUSmallest}
	}
	return plan.MTUPolicy{Mode: plan.MTUPerRoute}
}

// parsePrefixes reads CIDRs and leaves out what is none.
func parsePrefixes(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// parseAll reads addresses and leaves out what is none.
func parseAll(in []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// parseAddresses reads addresses and keeps the first of each family.
func parseAddresses(in []string) []netip.Addr {
	var out []netip.Addr
	var have4, have6 bool
	for _, s := range in {
		a, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		a = a.Unmap()
		seen := &have6
		if a.Is4() {
			seen = &have4
		}
		if !*seen {
			*seen = true
			out = append(out, a)
		}
	}
	return out
}
