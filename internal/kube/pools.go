package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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
	return (&poolMemory{}).read(o)
}

// reserved are the addresses that nobody gets.
func (o *Objects) reserved() (reserved []netip.Prefix) {
	for i := range o.SpiderReservedIPs {
		ranges, _ := reservedBy(&o.SpiderReservedIPs[i]) // Misreserved tells what cannot be read
		reserved = append(reserved, ranges...)
	}
	return cidr.Aggregate(reserved)
}

// Misreserved is an object of which not everything is reserved that it names, since
// that cannot be read.
type Misreserved struct {
	Object *v2beta1.SpiderReservedIP
	Why    string // a sentence that begins with the field
}

// Misreserved returns what the SpiderReservedIPs say in vain.
func (o *Objects) Misreserved() []Misreserved {
	var out []Misreserved
	for i := range o.SpiderReservedIPs {
		if _, why := reservedBy(&o.SpiderReservedIPs[i]); why != "" {
			out = append(out, Misreserved{&o.SpiderReservedIPs[i], why})
		}
	}
	return out
}

// reservedBy reads what an object reserves, and says what of it cannot be read. Which
// of a range's ends is written first says nothing of what nobody is to get.
func reservedBy(r *v2beta1.SpiderReservedIP) (ranges []netip.Prefix, why string) {
	for i, text := range r.Spec.IPs {
		first, last, err := pool.ParseRange(text)
		if from, to, isRange := strings.Cut(text, "-"); err != nil && isRange {
			if low, high, reversed := pool.ParseRange(to + "-" + from); reversed == nil {
				first, last, err = low, high, nil
			}
		}
		if err == nil {
			ranges = append(ranges, cidr.FromRange(first, last)...)
		} else if why == "" {
			why = fmt.Sprintf("spec.ips[%d]: %v", i, err)
		}
	}
	return ranges, why
}

// poolOf says an AddressPool in our words.
func poolOf(p *v1alpha1.AddressPool) *pool.Pool {
	out := newPool(pool.KindAddressPool, &p.ObjectMeta)
	out.Order, out.Default, out.Disabled = int(p.Spec.Order), p.Spec.Default, p.Spec.Disable
	out.NodeNames, out.NamespaceNames, out.Networks = p.Spec.NodeNames, p.Spec.NamespaceNames, p.Spec.Networks
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
	for i, r := range p.Spec.Routes {
		addRoute(out, i, r.Dst, r.Gw)
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
	for i, r := range s.Routes {
		addRoute(out, i, r.Dst, r.Gw)
	}
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

// addRoute adds a route of the pods' interfaces, the i-th of those that the pool
// states.
func addRoute(p *pool.Pool, i int, to, by string) {
	dst, err := netip.ParsePrefix(to)
	via, verr := netip.ParseAddr(by)
	switch _, inside := p.Within(via); {
	case err != nil:
		invalidate(p, "spec.routes[%d].dst: %q is no CIDR", i, to)
	case dst.Bits() == 0:
		invalidate(p, "spec.routes[%d].dst: the default route is the pool's gateway: set that", i)
	case verr != nil || !inside:
		invalidate(p, "spec.routes[%d].gw: %q is no address inside the subnet", i, by)
	case dst.Addr().Is4() != via.Is4():
		invalidate(p, "spec.routes[%d].gw: %s is of another family than %s", i, via, dst)
	case slices.ContainsFunc(p.Routes, func(o pool.Route) bool { return o.Dst == dst.Masked() }):
		invalidate(p, "spec.routes[%d].dst: %s is stated twice", i, dst)
	default:
		p.Routes = append(p.Routes, pool.Route{Dst: dst.Masked(), Via: via})
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
	// Of several that are wrong, always the same is named: the first.
	fields, selectors := []string{nodes, namespaces, pods}, []*pool.Selector{p.Nodes, p.Namespaces, p.Pods}
	for i, s := range selectors {
		if err := s.Validate(); err != nil {
			invalidate(p, "%s.%v", fields[i], err)
		}
	}
}

// poolMemory reads each state of a pool once: an agent looks at all pools whenever
// anything changes. What is still the same is so the same in memory too, and whoever
// works something out from pools sees at once that nothing changed.
type poolMemory struct {
	mu   sync.Mutex
	last map[poolState]*pool.Pool
}

// poolState names a state of an object that states a pool.
type poolState struct {
	id         pool.ID
	uid        types.UID
	generation int64 // of its spec
	deleting   bool
}

// read is Objects.Pools.
func (m *poolMemory) read(o *Objects) ([]*pool.Pool, []netip.Prefix) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pools := make([]*pool.Pool, 0, len(o.AddressPools)+len(o.SpiderIPPools))
	next := make(map[poolState]*pool.Pool, cap(pools))
	add := func(kind string, meta *metav1.ObjectMeta, read func() *pool.Pool) {
		state := poolState{pool.ID(kind + "/" + meta.Name), meta.UID, meta.Generation, meta.DeletionTimestamp != nil}
		p := m.last[state]
		if p == nil {
			p = read()
		}
		next[state] = p
		pools = append(pools, p)
	}
	for i := range o.AddressPools {
		p := &o.AddressPools[i]
		add(pool.KindAddressPool, &p.ObjectMeta, func() *pool.Pool { return poolOf(p) })
	}
	for i := range o.SpiderIPPools {
		p := &o.SpiderIPPools[i]
		add(pool.KindSpiderIPPool, &p.ObjectMeta, func() *pool.Pool { return poolOfSpider(p) })
	}
	m.last = next
	return pools, o.reserved()
}
