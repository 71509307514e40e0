package v1alpha1

import (
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The limits that the CRD's rules name too; a test holds the two together.
const (
	maxPodCIDRs = 16
	minMTU      = 1280
	maxMTU      = 65535
	maxVNI      = 1<<24 - 1
)

// bounds are the shortest and the longest prefix length that a field takes.
type bounds struct{ shortest, longest int }

// limits are the bounds of one address family.
type limits struct{ pod, block bounds }

func limitsOf(v4 bool) limits {
	if v4 {
		return limits{pod: bounds{8, 29}, block: bounds{20, 31}}
	}
	return limits{pod: bounds{16, 125}, block: bounds{112, 127}}
}

// Validate says everything that is wrong with a spec, field by field; nil when
// nothing is. Defaults must have been applied. It holds the rules of the CRD,
// for specs that have not been through an API server, and what a CRD cannot
// say. What needs other objects (service CIDRs, nodes) is the controller's.
func Validate(spec *ClusterNetworkSpec) error {
	root := field.NewPath("spec")
	errs := validatePodCIDRs(root.Child("podCIDRs"), spec.PodCIDRs)
	errs = append(errs, validateBesideCloud(root.Child("podCIDRs"), spec)...)
	errs = append(errs, validateAddressing(root, spec)...)
	errs = append(errs, validateTransports(root.Child("transports"), spec.Transports)...)
	errs = append(errs, validateVXLAN(root.Child("vxlan"), spec.VXLAN)...)
	errs = append(errs, validateMTU(root.Child("mtu"), spec.MTU)...)
	errs = append(errs, validateCloud(root.Child("cloud"), spec.Cloud)...)
	errs = append(errs, validateMetadataAccess(root.Child("metadataAccess"), spec.MetadataAccess)...)
	return errs.ToAggregate()
}

// ParsePodCIDR reads one entry of PodCIDRs. The error is a sentence without
// the field's name.
func ParsePodCIDR(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR such as 10.244.0.0/16 or fd00:10:244::/48", s)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s is an IPv4 range written as IPv6: write it as IPv4", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s has bits set behind its prefix: write %s", s, p.Masked())
	}
	l := limitsOf(p.Addr().Is4()).pod
	if p.Bits() < l.shortest || p.Bits() > l.longest {
		return netip.Prefix{}, fmt.Errorf("%s must be from /%d to /%d", s, l.shortest, l.longest)
	}
	return p, checkUnicast(p)
}

// checkUnicast refuses ranges that no pod can have addresses of.
func checkUnicast(p netip.Prefix) error {
	for _, special := range []struct{ cidr, what string }{
		{"0.0.0.0/8", "this network"},
		{"127.0.0.0/8", "loopback"},
		{"169.254.0.0/16", "link-local"},
		{"224.0.0.0/4", "multicast"},
		{"240.0.0.0/4", "reserved"},
		{"::1/128", "loopback"},
		{"fe80::/10", "link-local"},
		{"ff00::/8", "multicast"},
	} {
		if s := netip.MustParsePrefix(special.cidr); s.Overlaps(p) {
			return fmt.Errorf("%s overlaps %s (%s): pods cannot have such addresses", p, s, special.what)
		}
	}
	return nil
}

func validatePodCIDRs(at *field.Path, cidrs []string) field.ErrorList {
	var errs field.ErrorList
	if len(cidrs) == 0 {
		return append(errs, field.Required(at, "give the ranges that pods get their addresses from, such as 10.244.0.0/16"))
	}
	if len(cidrs) > maxPodCIDRs {
		return append(errs, field.TooMany(at, len(cidrs), maxPodCIDRs))
	}
	var seen []netip.Prefix
	for i, s := range cidrs {
		p, err := ParsePodCIDR(s)
		if err != nil {
			errs = append(errs, field.Invalid(at.Index(i), s, err.Error()))
			continue
		}
		if j := slices.IndexFunc(seen, p.Overlaps); j >= 0 {
			errs = append(errs, field.Invalid(at.Index(i), s, fmt.Sprintf("overlaps %s: give ranges that have no address in common", seen[j])))
		}
		seen = append(seen, p)
	}
	return errs
}

// alibabaServices is what Alibaba Cloud keeps for its own services in every VPC: its
// DNS, the metadata service and the health checks of load balancers are there.
const alibabaServices = "100.64.0.0/10"

// validateBesideCloud refuses ranges that are the cloud's own.
func validateBesideCloud(at *field.Path, spec *ClusterNetworkSpec) field.ErrorList {
	if spec.Cloud == nil || spec.Cloud.Provider != CloudAlibaba {
		return nil
	}
	var errs field.ErrorList
	for i, s := range spec.PodCIDRs {
		if p, err := ParsePodCIDR(s); err == nil && p.Overlaps(netip.MustParsePrefix(alibabaServices)) {
			errs = append(errs, field.Invalid(at.Index(i), s, "overlaps "+alibabaServices+", which the cloud keeps for its own services (DNS, metadata): give another range"))
		}
	}
	return errs
}

func validateAddressing(root *field.Path, spec *ClusterNetworkSpec) field.ErrorList {
	var errs field.ErrorList
	switch spec.AddressSource {
	case AddressesFromBlocks, AddressesFromNodeCIDR:
	default:
		errs = append(errs, field.NotSupported(root.Child("addressSource"), spec.AddressSource,
			[]AddressSource{AddressesFromBlocks, AddressesFromNodeCIDR}))
	}
	at := root.Child("blockSize")
	errs = append(errs, validateBlockSize(at.Child("ipv4"), spec, true)...)
	return append(errs, validateBlockSize(at.Child("ipv6"), spec, false)...)
}

func validateBlockSize(at *field.Path, spec *ClusterNetworkSpec, v4 bool) field.ErrorList {
	bits := int(spec.BlockSize.IPv6)
	if v4 {
		bits = int(spec.BlockSize.IPv4)
	}
	l := limitsOf(v4).block
	if bits < l.shortest || bits > l.longest {
		return field.ErrorList{field.Invalid(at, bits, fmt.Sprintf("must be a prefix length from %d to %d", l.shortest, l.longest))}
	}
	if spec.AddressSource != AddressesFromBlocks {
		return nil
	}
	for _, s := range spec.PodCIDRs {
		if p, err := ParsePodCIDR(s); err == nil && p.Addr().Is4() == v4 && p.Bits() > bits {
			return field.ErrorList{field.Invalid(at, bits, fmt.Sprintf("a block of /%d is larger than the pod CIDR %s: give %d or more", bits, p, p.Bits()))}
		}
	}
	return nil
}

func validateTransports(at *field.Path, transports []Transport) field.ErrorList {
	var errs field.ErrorList
	if len(transports) == 0 {
		return append(errs, field.Required(at, "allow at least one of direct, ipip, vxlan"))
	}
	known := []Transport{TransportDirect, TransportIPIP, TransportVXLAN}
	for i, t := range transports {
		if !slices.Contains(known, t) {
			errs = append(errs, field.NotSupported(at.Index(i), t, known))
		}
		if slices.Contains(transports[:i], t) {
			errs = append(errs, field.Duplicate(at.Index(i), t))
		}
	}
	return errs
}

func validateVXLAN(at *field.Path, v VXLANSpec) field.ErrorList {
	var errs field.ErrorList
	if v.Port < 1 || v.Port > 65535 {
		errs = append(errs, field.Invalid(at.Child("port"), v.Port, "must be a UDP port from 1 to 65535"))
	}
	if v.VNI < 1 || v.VNI > maxVNI {
		errs = append(errs, field.Invalid(at.Child("vni"), v.VNI, fmt.Sprintf("must be from 1 to %d", maxVNI)))
	}
	return errs
}

func validateMTU(at *field.Path, mtu *intstr.IntOrString) field.ErrorList {
	if mtu == nil {
		return nil
	}
	if mtu.Type == intstr.Int && mtu.IntVal >= minMTU && mtu.IntVal <= maxMTU {
		return nil
	}
	if mtu.Type == intstr.String && (mtu.StrVal == MTUPerRoute || mtu.StrVal == MTUSmallest) {
		return nil
	}
	return field.ErrorList{field.Invalid(at, mtu.String(),
		fmt.Sprintf("must be %s, %s, or a number of bytes from %d to %d", MTUPerRoute, MTUSmallest, minMTU, maxMTU))}
}
