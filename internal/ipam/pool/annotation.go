package pool

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/ipam"
)

// The annotations that choose pools or addresses.
const (
	AnnotationPools       = "ipam.spidernet.io/ippools"
	AnnotationPool        = "ipam.spidernet.io/ippool"
	AnnotationDefaultIPv4 = "ipam.spidernet.io/default-ipv4-ippool"
	AnnotationDefaultIPv6 = "ipam.spidernet.io/default-ipv6-ippool"
	// AnnotationSubnet and AnnotationSubnets need SpiderSubnet, which is not
	// served: they are refused.
	AnnotationSubnet  = "ipam.spidernet.io/subnet"
	AnnotationSubnets = "ipam.spidernet.io/subnets"
	// AnnotationRoutes gives an interface routes of its own; refused too.
	AnnotationRoutes = "ipam.spidernet.io/routes"
	// AnnotationIPs asks for exact addresses, as a JSON list; AnnotationIPAddrs
	// is Calico's name for it.
	AnnotationIPs     = "ropeway.dev/ips"
	AnnotationIPAddrs = "cni.projectcalico.org/ipAddrs"
)

// PodAnnotations and NamespaceAnnotations are those that are read.
func PodAnnotations() []string {
	return []string{AnnotationPools, AnnotationPool, AnnotationSubnet, AnnotationSubnets, AnnotationRoutes, AnnotationIPs, AnnotationIPAddrs}
}

// NamespaceAnnotations are those of namespaces that are read.
func NamespaceAnnotations() []string { return []string{AnnotationDefaultIPv4, AnnotationDefaultIPv6} }

// poolsFor is what one interface asks for.
type poolsFor struct {
	Interface    string   `json:"interface"`
	IPv4         []string `json:"ipv4"`
	IPv6         []string `json:"ipv6"`
	CleanGateway bool     `json:"cleangateway"`
}

func (p poolsFor) lists() map[ipam.Family][]string {
	return map[ipam.Family][]string{ipam.IPv4: p.IPv4, ipam.IPv6: p.IPv6}
}

// named returns the first rule that names pools, and the names for each family.
func named(r Request) (rule string, lists map[ipam.Family][]string, err error) {
	for _, a := range []string{AnnotationSubnets, AnnotationSubnet} {
		if r.Annotations[a] != "" {
			return "", nil, refuse("the pod's annotation %s asks for a SpiderSubnet, which is not served: name pools in %s", a, AnnotationPools)
		}
	}
	if r.Annotations[AnnotationRoutes] != "" {
		return "", nil, refuse("the pod's annotation %s is not served: a pod's packets all leave by its node, whose routes they follow; remove it", AnnotationRoutes)
	}
	if text := r.Annotations[AnnotationPools]; text != "" {
		p, err := poolsOf(text, r.IfName)
		return "the pod's annotation " + AnnotationPools, p.lists(), err
	}
	if text := r.Annotations[AnnotationPool]; text != "" {
		var p poolsFor
		if err := strictly(text, &p); err != nil {
			return "", nil, refuse("the pod's annotation %s is not understood (%v): write {\"ipv4\": [\"pool\"]}", AnnotationPool, err)
		}
		if len(p.IPv4)+len(p.IPv6) == 0 {
			return "", nil, refuse("the pod's annotation %s names no pool: write {\"ipv4\": [\"pool\"]}", AnnotationPool)
		}
		return "the pod's annotation " + AnnotationPool, p.lists(), nil
	}
	lists = map[ipam.Family][]string{}
	for f, a := range map[ipam.Family]string{ipam.IPv4: AnnotationDefaultIPv4, ipam.IPv6: AnnotationDefaultIPv6} {
		if text := r.NSAnnotated[a]; text != "" {
			var names []string
			if err := strictly(text, &names); err != nil {
				return "", nil, refuse("the annotation %s of namespace %s is not understood (%v): write [\"pool\"]", a, r.Namespace, err)
			}
			lists[f] = names
		}
	}
	if len(lists[ipam.IPv4])+len(lists[ipam.IPv6]) > 0 {
		return "the annotations of namespace " + r.Namespace, lists, nil
	}
	if len(r.Conf[ipam.IPv4])+len(r.Conf[ipam.IPv6]) > 0 {
		return "the plugin's configuration", r.Conf, nil
	}
	return "", nil, nil
}

// poolsOf reads AnnotationPools: all entries name their interface, or one entry
// stands for the only one.
func poolsOf(text, ifName string) (poolsFor, error) {
	var all []poolsFor
	if err := strictly(text, &all); err != nil {
		return poolsFor{}, refuse("the pod's annotation %s is not understood (%v): write [{\"interface\": \"eth0\", \"ipv4\": [\"pool\"]}]", AnnotationPools, err)
	}
	var seen []string
	var found poolsFor
	for i, p := range all {
		switch {
		case p.Interface == "" && len(all) > 1:
			return poolsFor{}, refuse("the pod's annotation %s has several entries, and entry %d names no interface", AnnotationPools, i+1)
		case p.CleanGateway:
			return poolsFor{}, refuse("the pod's annotation %s sets cleangateway, which is not served: remove it", AnnotationPools)
		case slices.Contains(seen, p.Interface):
			return poolsFor{}, refuse("the pod's annotation %s names the interface %s twice", AnnotationPools, p.Interface)
		}
		seen = append(seen, p.Interface)
		if p.Interface == ifName || p.Interface == "" {
			found = p
		}
	}
	if len(found.IPv4)+len(found.IPv6) == 0 {
		return poolsFor{}, refuse("the pod's annotation %s names no pool for the interface %s", AnnotationPools, ifName)
	}
	return found, nil
}

// Addresses reads the annotations that ask for exact addresses: at most one of
// each family.
func Addresses(annotations map[string]string) ([]netip.Addr, error) {
	for _, a := range []string{AnnotationIPs, AnnotationIPAddrs} {
		text := annotations[a]
		if text == "" {
			continue
		}
		var list []string
		if err := strictly(text, &list); err != nil {
			return nil, refuse("the pod's annotation %s is not understood (%v): write [\"10.244.0.10\"]", a, err)
		}
		return ParseAddresses("the pod's annotation "+a, list)
	}
	return nil, nil
}

// ParseAddresses reads exact addresses, at most one of each family; where says
// who asks.
func ParseAddresses(where string, list []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, one := range list {
		addr, err := parseAddress(one)
		if prefix, perr := netip.ParsePrefix(one); perr == nil {
			addr, err = prefix.Addr(), nil // runtimes write addresses with a length
		}
		switch {
		case err != nil:
			return nil, refuse("%s has %q, which is no address", where, one)
		case slices.ContainsFunc(out, func(o netip.Addr) bool { return ipam.FamilyOf(o) == ipam.FamilyOf(addr) }):
			return nil, refuse("%s asks for two %s addresses: an interface gets one", where, ipam.FamilyOf(addr))
		}
		out = append(out, addr)
	}
	if len(out) == 0 {
		return nil, refuse("%s names no address", where)
	}
	return out, nil
}

// strictly reads JSON that must be all of the text, with no unknown field.
func strictly(text string, into any) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errTrailing
	}
	return nil
}

type trailing struct{}

func (trailing) Error() string { return "something follows the JSON" }

var errTrailing = trailing{}
