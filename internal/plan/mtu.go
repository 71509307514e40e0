package plan

// Bytes that each transport puts in front of a packet.
const (
	ipv4Header  = 20
	ipv6Header  = 40
	vxlanHeader = 8 + 8 + 14 // UDP, VXLAN (RFC 7348), the inner Ethernet header
)

// leastMTU is the smallest MTU that any route gets (RFC 791: every host
// forwards 68 bytes).
const leastMTU = 68

// Overhead returns the bytes that a transport adds to a packet that it carries
// over an underlay of this family. An unknown transport counts as the largest.
func Overhead(t Transport, underlay Family) int {
	outer := ipv4Header
	if underlay == IPv6 {
		outer = ipv6Header
	}
	switch t {
	case Local, Direct:
		return 0
	case IPIP:
		return outer
	default:
		return outer + vxlanHeader
	}
}

// RouteMTU returns the MTU in bytes of a route whose packets leave by an uplink
// of uplinkMTU bytes. It is 0, leaving the choice to the kernel, if uplinkMTU is
// not known (0 or less).
func RouteMTU(policy MTUPolicy, t Transport, underlay Family, uplinkMTU int) int {
	if uplinkMTU <= 0 {
		return 0
	}
	mtu := uplinkMTU - Overhead(t, underlay)
	if policy.Mode == MTUFixed && policy.Bytes > 0 {
		// A packet larger than the pods' interfaces would die at the last one.
		mtu = min(mtu, policy.Bytes)
	}
	return max(mtu, leastMTU)
}

// PodMTU returns the MTU in bytes of new pods' interfaces: the uplink's, the
// smallest allowed transport's, or the number that was asked for. It is 0 if it
// would follow from uplinkMTU and that is not known (0 or less).
func PodMTU(policy MTUPolicy, allowed []Transport, underlay Family, uplinkMTU int) int {
	switch {
	case policy.Mode == MTUFixed && policy.Bytes > 0:
		return policy.Bytes
	case uplinkMTU <= 0:
		return 0
	case policy.Mode == MTUSmallest:
		return ClampMTU(allowed, underlay, uplinkMTU)
	default:
		return uplinkMTU
	}
}

// ClampMTU returns the MTU in bytes of the smallest allowed transport: what TCP
// segments between pods are clamped to, so that a flow survives every change of
// transport that the configuration allows. It is 0 if uplinkMTU is not known.
func ClampMTU(allowed []Transport, underlay Family, uplinkMTU int) int {
	if uplinkMTU <= 0 {
		return 0
	}
	most := 0
	for _, t := range allowed {
		most = max(most, Overhead(t, underlay))
	}
	return max(uplinkMTU-most, leastMTU)
}
