package calico

import (
	"ropeway.dev/ropeway/api/v1alpha1"
)

// notDirect is why all three Never cannot be had.
const notDirect = "without IPIP and VXLAN pods' packets would travel bare (direct mode), which is not in this version: set one of the two to Always"

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
		r.allow(v1alpha1.TransportVXLAN)
		settle(r.vxlan4, "spec.transports: [vxlan]")
		settle(r.ipip4, "spec.transports: [vxlan], without ipip")
	case ipip && vxlan:
		refuse("Calico itself refuses IPIP and VXLAN together: set one of the two to Never", r.ipip4, r.vxlan4)
	case ipip:
		r.allow(v1alpha1.TransportIPIP, v1alpha1.TransportVXLAN)
		settle(r.ipip4, "spec.transports: [ipip, vxlan]: ipip, and vxlan where protocol 4 does not pass")
		settle(r.vxlan4, "spec.transports: [ipip, vxlan]: vxlan only where protocol 4 does not pass; give --transports ipip for ipip strictly")
	default:
		refuse(notDirect, r.ipip4, r.vxlan4)
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
		refuse(notDirect, r.vxlan4)
		return
	}
	r.allow(v1alpha1.TransportVXLAN)
	settle(r.ipip4, "spec.transports: [vxlan], without ipip")
	settle(r.vxlan4, "spec.transports: [vxlan]")
}

func (r *reader) resolveIPv6() {
	f := r.vxlan6
	direct := len(r.out.Transports) == 0 && (r.ipip4 != nil || r.vxlan4 != nil)
	switch {
	case f == nil || f.Verdict == Refused:
	case on(f, false):
		settle(f, "IPv6 goes by vxlan, whatever the transports are")
	case direct:
		refuse(notDirect, f)
	case r.cidr6:
		refuse("IPv6 pods without VXLAN would travel bare (direct mode), which is not in this version: set this to Always", f)
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

// settle says what a mode became; CrossSubnet has no counterpart.
func settle(f *Finding, note string) {
	if f == nil || f.Verdict == Refused {
		return
	}
	if f.Value == "CrossSubnet" {
		note += "; nodes of one subnet use the tunnel too, since direct mode is not in this version"
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
