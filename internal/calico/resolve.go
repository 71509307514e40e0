package calico

import (
	"slices"
	"strings"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// strictly is what all Never mean.
const strictly = "spec.transports: [direct], strictly: pods' packets travel bare, by the routes of the VPC or of a common layer-2 network; --transports direct,ipip,vxlan takes a tunnel where there is no such route"

// resolve settles what several keys decide together, once all are known.
func (r *reader) resolve() {
	if !checkModes(r.ipip4, r.vxlan4, r.vxlan6) {
		r.resolveAddressSource()
		return
	}
	switch {
	case r.backend != nil:
		r.resolveVXLANBackend()
	case r.ipip4 != nil || r.vxlan4 != nil:
		r.resolveIPv4()
	}
	r.resolveIPv6()
	r.resolveAddressSource()
}

// checkModes refuses what is not a mode of a pool, and then says nothing of
// the others but that.
func checkModes(findings ...*Finding) bool {
	ok := true
	for _, f := range findings {
		if f == nil {
			continue
		}
		switch f.Value {
		case "Always", "CrossSubnet", "Never", "Off":
		default:
			f.say(Refused, "want Always, CrossSubnet or Never")
			ok = false
		}
	}
	for _, f := range findings {
		if f != nil && !ok && f.Verdict == "" {
			f.say(Translated, "to what, the other modes decide too: correct them first")
		}
	}
	return ok
}

// on says whether a pool's encapsulation is used; absent is Calico's own
// default for an absent variable.
func on(f *Finding, absent bool) bool {
	if f == nil {
		return absent
	}
	return f.Value == "Always" || f.Value == "CrossSubnet"
}

// resolveIPv4 chooses the transports: IPIP's default is Always, VXLAN's Never,
// where one of the two is given.
func (r *reader) resolveIPv4() {
	ipip, vxlan := on(r.ipip4, true), on(r.vxlan4, false)
	switch {
	case ipip && vxlan && r.ipip4 == nil:
		ipip = false // only CALICO_IPV4POOL_VXLAN was spoken of, and it is on
		fallthrough
	case vxlan && !ipip:
		r.allow(crossSubnet(r.vxlan4, v1alpha1.TransportVXLAN)...)
		settle(r.vxlan4, "spec.transports: "+r.transports())
		settle(r.ipip4, "spec.transports: "+r.transports()+", without ipip")
	case ipip && vxlan:
		refuse("Calico itself refuses IPIP and VXLAN together: set one of the two to Never", r.ipip4, r.vxlan4)
	case ipip:
		r.allow(crossSubnet(r.ipip4, v1alpha1.TransportIPIP, v1alpha1.TransportVXLAN)...)
		settle(r.ipip4, "spec.transports: "+r.transports()+": ipip, and vxlan where protocol 4 does not pass")
		settle(r.vxlan4, "spec.transports: "+r.transports()+": vxlan only where protocol 4 does not pass; give --transports ipip for ipip strictly")
	default:
		r.resolveDirect()
	}
}

// resolveVXLANBackend: calico_backend vxlan runs no BIRD, so that only VXLAN
// pools are routed.
func (r *reader) resolveVXLANBackend() {
	r.backend.say(Translated, "spec.transports: [vxlan]")
	if r.ipip4 != nil && on(r.ipip4, false) {
		refuse("contradicts the backend vxlan, which routes no IPIP: set this to Never, or the backend to bird", r.ipip4)
		return
	}
	if r.vxlan4 != nil && !on(r.vxlan4, true) {
		refuse("contradicts the backend vxlan, which routes nothing else: set this to Always, or the backend to bird", r.vxlan4)
		return
	}
	r.allow(crossSubnet(r.vxlan4, v1alpha1.TransportVXLAN)...)
	settle(r.ipip4, "spec.transports: "+r.transports()+", without ipip")
	settle(r.vxlan4, "spec.transports: "+r.transports())
}

// resolveDirect: neither IPIP nor VXLAN, so that nothing wraps pods' packets.
func (r *reader) resolveDirect() {
	r.allow(v1alpha1.TransportDirect)
	settle(r.ipip4, strictly)
	settle(r.vxlan4, strictly)
}

// crossSubnet puts direct in front of the tunnels where the mode asks for a
// tunnel between subnets only: what the fabric carries bare is found out.
func crossSubnet(mode *Finding, tunnels ...v1alpha1.Transport) []v1alpha1.Transport {
	if mode != nil && mode.Value == "CrossSubnet" {
		return append([]v1alpha1.Transport{v1alpha1.TransportDirect}, tunnels...)
	}
	return tunnels
}

// transports writes what is allowed as YAML does.
func (r *reader) transports() string {
	var names []string
	for _, t := range r.out.Transports {
		names = append(names, string(t))
	}
	return "[" + strings.Join(names, ", ") + "]"
}

func (r *reader) resolveIPv6() {
	f := r.vxlan6
	bare := slices.Equal(r.out.Transports, []v1alpha1.Transport{v1alpha1.TransportDirect})
	switch {
	case f == nil || f.Verdict == Refused:
	case !on(f, false) && bare:
		f.say(Translated, strictly)
	case on(f, false) && bare && r.cidr6:
		refuse("one family bare and the other by VXLAN cannot be had: set this to Never too, or give --transports direct,vxlan", f)
	case on(f, false):
		settle(f, "IPv6 goes by vxlan, where direct is not allowed or not proven")
	case r.cidr6:
		refuse("IPv6 pods without VXLAN would travel bare while IPv4 pods do not: set this to Always, or IPIP and VXLAN of IPv4 to Never", f)
	default:
		f.say(Harmless, "no IPv6 range is given")
	}
}

// resolveAddressSource: host-local with usePodCidr and USE_POD_CIDR say the same.
func (r *reader) resolveAddressSource() {
	if r.hostLocal {
		r.out.AddressSource = v1alpha1.AddressesFromNodeCIDR
	}
	f := r.usePodCIDR
	switch {
	case f == nil:
	case isTrue(f.Value):
		r.out.AddressSource = v1alpha1.AddressesFromNodeCIDR
		f.say(Translated, "spec.addressSource: NodeCIDR")
	case r.hostLocal:
		f.say(Translated, "spec.addressSource: NodeCIDR all the same, since the conflist says usePodCidr: each node's podCIDRs are one route, not one per pod")
	default:
		f.say(Harmless, "")
	}
}

// settle says what a mode became.
func settle(f *Finding, note string) {
	if f == nil || f.Verdict == Refused {
		return
	}
	if f.Value == "CrossSubnet" {
		note += "; direct is used wherever it is proven, within a subnet or not"
	}
	f.say(Translated, "%s", note)
}

func refuse(why string, findings ...*Finding) {
	for _, f := range findings {
		if f != nil {
			f.say(Refused, "%s", why)
		}
	}
}
