package kube

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/plan"
)

func network(cidrs ...string) *v1alpha1.ClusterNetwork {
	cn := &v1alpha1.ClusterNetwork{Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: cidrs}}
	cn.Name, cn.Generation = v1alpha1.ClusterNetworkName, 3
	return cn
}

func TestInForce(t *testing.T) {
	refusedNow := network("10.244.0.0/16")
	refusedNow.Status.Conditions = []metav1.Condition{{
		Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionFalse, Message: "overlaps the Services", ObservedGeneration: 3,
	}}
	refusedBefore := refusedNow.DeepCopy()
	refusedBefore.Status.Conditions[0].ObservedGeneration = 2
	older := network("10.245.0.0/16")
	older.Status.InForce = &v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}}
	refusedLater := refusedNow.DeepCopy()
	refusedLater.Status.InForce = older.Status.InForce
	for name, tc := range map[string]struct {
		cn            *v1alpha1.ClusterNetwork
		cidr, problem string
	}{
		"no object":                             {nil, "", "there is no ClusterNetwork named default: create one"},
		"not judged yet":                        {network("10.244.0.0/16"), "10.244.0.0/16", ""},
		"what was accepted, not what is asked":  {older, "10.244.0.0/16", ""},
		"refused, and nothing before":           {refusedNow, "", "was not accepted: overlaps the Services"},
		"refused, and something before":         {refusedLater, "10.244.0.0/16", ""},
		"another generation was refused":        {refusedBefore, "10.244.0.0/16", ""},
		"not judged yet and impossible":         {network("10.244.0.1/16"), "", "has bits set behind its prefix: write 10.244.0.0/16"},
		"not judged yet and special":            {network("127.0.0.0/16"), "", "loopback"},
		"not judged yet, and overlaps with own": {network("10.0.0.0/8", "10.1.0.0/16"), "", "overlaps 10.0.0.0/8"},
	} {
		spec, problem := InForce(tc.cn)
		if (spec == nil) != (tc.cidr == "") || spec != nil && spec.PodCIDRs[0] != tc.cidr {
			t.Errorf("%s: spec %+v, want %s", name, spec, tc.cidr)
		}
		if (problem == "") != (tc.problem == "") || !strings.Contains(problem, tc.problem) {
			t.Errorf("%s: problem %q, want %q", name, problem, tc.problem)
		}
	}
}

func TestInForceKeepsTheObject(t *testing.T) {
	cn := network("10.244.0.0/16")
	before := cn.DeepCopy()
	spec, _ := InForce(cn)
	spec.PodCIDRs[0] = "changed"
	if !reflect.DeepEqual(cn, before) {
		t.Errorf("the object was changed: %+v", cn)
	}
}

func TestNetworkInThePlansWords(t *testing.T) {
	no, bytes := false, intstr.FromInt32(1400)
	spec := &v1alpha1.ClusterNetworkSpec{
		PodCIDRs: []string{"10.244.0.0/16", "fd00:10:244::/48"}, AddressSource: v1alpha1.AddressesFromNodeCIDR,
		BlockSize:  v1alpha1.BlockSize{IPv4: 24, IPv6: 120},
		Transports: []v1alpha1.Transport{v1alpha1.TransportDirect, v1alpha1.TransportVXLAN},
		VXLAN:      v1alpha1.VXLANSpec{Port: 8472, VNI: 7}, MTU: &bytes, NAT: v1alpha1.NATSpec{Outgoing: &no},
		Cloud:          &v1alpha1.CloudSpec{VPCCIDRs: []string{"192.168.0.0/16"}},
		MetadataAccess: &v1alpha1.MetadataAccess{Namespaces: []string{"kube-system"}, Addresses: []string{"169.254.0.23", "fd00:ec2::254"}},
	}
	want := plan.Network{
		ClusterID: "id", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		NodeCIDR: true, BlockBits: map[plan.Family]int{plan.IPv4: 24, plan.IPv6: 120},
		Transports: []plan.Transport{plan.Direct, plan.VXLAN}, VXLANPort: 8472, VXLANVNI: 7,
		MTU:         plan.MTUPolicy{Mode: plan.MTUFixed, Bytes: 1400},
		FabricCIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
		Metadata: plan.MetadataAccess{Namespaces: []string{"kube-system"},
			Addresses: []netip.Addr{netip.MustParseAddr("169.254.0.23"), netip.MustParseAddr("fd00:ec2::254")}},
	}
	if got := Network(spec, "id"); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	spec = &v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}}
	v1alpha1.Defaults(spec)
	got := Network(spec, "")
	if got.NodeCIDR || !got.Masquerade || got.MTU != (plan.MTUPolicy{Mode: plan.MTUPerRoute}) || got.VXLANPort != 4789 || got.VXLANVNI != 4096 ||
		!reflect.DeepEqual(got.Transports, []plan.Transport{plan.IPIP, plan.VXLAN}) {
		t.Errorf("the defaults became %+v", got)
	}
	smallest := intstr.FromString("smallest")
	spec.MTU = &smallest
	if got := Network(spec, ""); got.MTU != (plan.MTUPolicy{Mode: plan.MTUSmallest}) {
		t.Errorf("smallest became %+v", got.MTU)
	}
}
