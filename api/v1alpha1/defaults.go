package v1alpha1

import "k8s.io/apimachinery/pkg/util/intstr"

// What the API server fills in (the markers of ClusterNetworkSpec), in Go: for
// specs that have not been through it, such as the one that install renders.
const (
	DefaultBlockSizeIPv4 = 26
	DefaultBlockSizeIPv6 = 122
	DefaultVXLANPort     = 4789
	DefaultVXLANVNI      = 4096

	// MTUPerRoute and MTUSmallest are the words that Spec.MTU knows.
	MTUPerRoute = "perRoute"
	MTUSmallest = "smallest"
)

// Defaults fills the empty fields of a spec as the API server would. It changes
// spec, and nothing that a person has set.
func Defaults(spec *ClusterNetworkSpec) {
	if spec.AddressSource == "" {
		spec.AddressSource = AddressesFromBlocks
	}
	if spec.BlockSize.IPv4 == 0 {
		spec.BlockSize.IPv4 = DefaultBlockSizeIPv4
	}
	if spec.BlockSize.IPv6 == 0 {
		spec.BlockSize.IPv6 = DefaultBlockSizeIPv6
	}
	if len(spec.Transports) == 0 {
		spec.Transports = []Transport{TransportIPIP, TransportVXLAN}
	}
	if spec.VXLAN.Port == 0 {
		spec.VXLAN.Port = DefaultVXLANPort
	}
	if spec.VXLAN.VNI == 0 {
		spec.VXLAN.VNI = DefaultVXLANVNI
	}
	if spec.MTU == nil {
		mtu := intstr.FromString(MTUPerRoute)
		spec.MTU = &mtu
	}
	if spec.NAT.Outgoing == nil {
		yes := true
		spec.NAT.Outgoing = &yes
	}
	if spec.Cloud != nil {
		defaultDuties(spec.Cloud)
	}
}

func defaultDuties(c *CloudSpec) {
	if c.Routes == "" {
		c.Routes = DutyRopeway
	}
	for _, duty := range []*CloudDuty{&c.Nodes, &c.LoadBalancers} {
		if *duty == "" {
			*duty = DutyExternal
		}
	}
}
