package kube

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Pools returns the pools of every kind in our words, by kind and name. What is
// wrong with an object alone is in its Invalid; reserved are the addresses that
// nobody gets, whatever a pool says.
func (o *Objects) Pools() (pools []*pool.Pool, reserved []netip.Prefix) {
	for i := range o.AddressPools {
		pools = append(pools, poolOf(&o.AddressPools[i]))
	}
	for i := range o.SpiderIPPools {
		pools = append(pools, poolOfSpider(&o.SpiderIPPools[i]))
	}
	for i := range o.SpiderReservedIPs {
		for _, text := range o.SpiderReservedIPs[i].Spec.IPs {
			if first, last, err := pool.ParseRange(text); err == nil {
				reserved = append(reserved, cidr.FromRange(first, last)...)
			}
		}
	}
	return pools, cidr.Aggregate(reserved)
}

// poolOf says an AddressPool in our words.
func poolOf(p *v1alpha1.AddressPool) *pool.Pool {
	out := newPool(pool.KindAddressPool, &p.ObjectMeta)
	out.Order, out.Default, out.Disabled = int(p.Spec.Order), p.Spec.Default, p.Spec.Disable
	out.NodeNames, out.NamespaceNames = p.Spec.NodeNames, p.Spec.NamespaceNames
	out.Nodes, out.Namespaces, out.Pods = selectorOf(p.Spec.NodeSelector), selectorOf(p.Spec.NamespaceSelector), selectorOf(p.Spec.PodSelector)
	out.Subnets = parsePrefixes(p.Spec.Subnets)
	if len(out.Subnets) != len(p.Spec.Subnets) || len(out.Subnets) == 0 {
		out.Invalid = "spec.subnets: not all of them are CIDRs"
		return out
	}
	inSubnet := func(field string, list []string) []netip.Prefix {
		var all []netip.Prefix
		for i, text := range list {
			first, last, err := pool.ParseRange(text)
			at := -1
			if err == nil {
				at = slices.IndexFunc(out.Subnets, func(s netip.Prefix) bool { return s.Contains(first) && s.Contains(last) })
			}
			switch {
			case err != nil:
				invalidate(out, "%s[%d]: %v", field, i, err)
			case at < 0:
				invalidate(out, "%s[%d]: %s is not inside one of the subnets", field, i, text)
			default:
				all = append(all, cidr.FromRange(first, last)...)
			}
		}
		return all
	}
	setRanges(out, "spec.ranges", inSubnet("spec.ranges", p.Spec.Ranges), inSubnet("spec.exclude", p.Spec.Exclude))
	for _, text := range p.Spec.Gateways {
		addGateway(out, "spec.gateways", text)
	}
	validateSelectors(out, "spec.nodeSelector", "spec.namespaceSelector", "spec.podSelector")
	return out
}

// poolOfSpider says a SpiderIPPool in our words.
func poolOfSpider(p *v2beta1.SpiderIPPool) *pool.Pool {
	out := newPool(pool.KindSpiderIPPool, &p.ObjectMeta)
	s := &p.Spec
	out.Default, out.Disabled = s.Default != nil && *s.Default, s.Disable != nil && *s.Disable
	out.NodeNames, out.NamespaceNames, out.Networks = s.NodeName, s.NamespaceName, s.MultusName
	out.Nodes, out.Namespaces, out.Pods = selectorOf(s.NodeAffinity), selectorOf(s.NamespaceAffinity), selectorOf(s.PodAffinity)
	subnet, err := netip.ParsePrefix(s.Subnet)
	if err != nil || subnet != subnet.Masked() {
		out.Invalid = fmt.Sprintf("spec.subnet: %q is no CIDR without bits behind its prefix", s.Subnet)
		return out
	}
	out.Subnets = []netip.Prefix{subnet}
	if s.IPVersion != nil && (*s.IPVersion == 4) != subnet.Addr().Is4() {
		invalidate(out, "spec.ipVersion: %d is not the family of the subnet %s", *s.IPVersion, subnet)
	}
	ranges, err := pool.ParseRanges("spec.ips", subnet, s.IPs)
	if err != nil {
		invalidate(out, "%v", err)
	}
	excluded, err := pool.ParseRanges("spec.excludeIPs", subnet, s.ExcludeIPs)
	if err != nil {
		invalidate(out, "%v", err)
	}
	setRanges(out, "spec.ips", ranges, excluded)
	if s.Gateway != nil && *s.Gateway != "" {
		addGateway(out, "spec.gateway", *s.Gateway)
	}
	addRoutes(out, s.Routes)
	validateSelectors(out, "spec.nodeAffinity", "spec.namespaceAffinity", "spec.podAffinity")
	return out
}

func newPool(kind string, m *metav1.ObjectMeta) *pool.Pool {
	return &pool.Pool{Kind: kind, Name: m.Name, UID: string(m.UID), Created: m.CreationTimestamp.Unix(), Deleting: m.DeletionTimestamp != nil}
}

// invalidate says what is wrong with a pool; the first word stands.
func invalidate(p *pool.Pool, format string, args ...any) {
	if p.Invalid == "" {
		p.Invalid = fmt.Sprintf(format, args...)
	}
}

// setRanges lets a pool give ranges without excluded; ranges that overlap one
// another are a mistake.
func setRanges(p *pool.Pool, field string, ranges, excluded []netip.Prefix) {
	sorted := slices.SortedFunc(slices.Values(ranges), netip.Prefix.Compare)
	for i := 1; i < len(sorted); i++ {
		if sorted[i-1].Overlaps(sorted[i]) {
			invalidate(p, "%s: %s is stated twice", field, sorted[i])
		}
	}
	p.Ranges = cidr.Subtract(ranges, excluded)
}

// addGateway adds a router, which no pod may get.
func addGateway(p *pool.Pool, field, text string) {
	a, err := netip.ParseAddr(text)
	if err != nil {
		invalidate(p, "%s: %q is no address", field, text)
		return
	}
	if _, inside := p.Within(a); !inside {
		invalidate(p, "%s: %s is not inside the subnet", field, a)
	}
	if p.Contains(a) {
		invalidate(p, "%s: %s is among the addresses that the pool gives: exclude it", field, a)
	}
	if p.Gateway(ipam.FamilyOf(a)).IsValid() {
		invalidate(p, "%s: two gateways of one family", field)
	}
	p.Gateways = append(p.Gateways, a)
}

func addRoutes(p *pool.Pool, routes []v2beta1.Route) {
	for i, r := range routes {
		dst, err := netip.ParsePrefix(r.Dst)
		via, verr := netip.ParseAddr(r.Gw)
		switch _, inside := p.Within(via); {
		case err != nil:
			invalidate(p, "spec.routes[%d].dst: %q is no CIDR", i, r.Dst)
		case dst.Bits() == 0:
			invalidate(p, "spec.routes[%d].dst: the default route is the pool's gateway: set that", i)
		case verr != nil || !inside:
			invalidate(p, "spec.routes[%d].gw: %q is no address inside the subnet", i, r.Gw)
		case slices.ContainsFunc(p.Routes, func(o pool.Route) bool { return o.Dst == dst.Masked() }):
			invalidate(p, "spec.routes[%d].dst: %s is stated twice", i, dst)
		default:
			p.Routes = append(p.Routes, pool.Route{Dst: dst.Masked(), Via: via})
		}
	}
}

func selectorOf(s *metav1.LabelSelector) *pool.Selector {
	if s == nil {
		return nil
	}
	out := &pool.Selector{Labels: s.MatchLabels}
	for _, r := range s.MatchExpressions {
		out.Rules = append(out.Rules, pool.Requirement{Key: r.Key, Op: pool.Operator(r.Operator), Values: r.Values})
	}
	return out
}

func validateSelectors(p *pool.Pool, nodes, namespaces, pods string) {
	for field, s := range map[string]*pool.Selector{nodes: p.Nodes, namespaces: p.Namespaces, pods: p.Pods} {
		if err := s.Validate(); err != nil {
			invalidate(p, "%s.%v", field, err)
		}
	}
}

// poolMemory lets what is still the same be the same in memory too, so that
// whoever works something out from pools sees at once that nothing changed.
type poolMemory struct {
	mu   sync.Mutex
	last map[pool.ID]*pool.Pool
}

func (m *poolMemory) same(pools []*pool.Pool) []*pool.Pool {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := make(map[pool.ID]*pool.Pool, len(pools))
	for i, p := range pools {
		if former := m.last[p.ID()]; former != nil && reflect.DeepEqual(former, p) {
			pools[i] = former
		}
		next[p.ID()] = pools[i]
	}
	m.last = next
	return pools
}
