package pool

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/ipam"
)

// Node is the node that pools are looked at from.
type Node struct {
	Name   string
	Labels map[string]string
}

// Index answers, on one node, which pools serve a pod. What depends on the node
// alone is worked out once, so that a request costs the same however many pools
// there are for other nodes.
type Index struct {
	byName   map[string][]*Pool // name -> those of any kind
	sorted   []*Pool            // all, in their order
	defaults []*Pool            // those with Default that this node may use, in their order
	idle     []*Pool            // the first of those with Default that would serve this node, and serve nobody
	passed   map[ID]string      // why this node may not use it
	refused  map[ID]bool        // not accepted
	underlay map[ID]bool        // outside the pod network
}

// NewIndex makes an index of pools and what Judge said of them.
func NewIndex(pools []*Pool, verdicts map[ID]Verdict, node Node) *Index {
	x := newIndex(pools, func(p *Pool) string { return node.unfit(p, verdicts[p.ID()]) })
	for _, p := range x.sorted {
		x.refused[p.ID()], x.underlay[p.ID()] = !verdicts[p.ID()].Accepted, verdicts[p.ID()].Underlay
		if p.Default && x.passed[p.ID()] != "" && node.excluded(p) == "" && len(x.idle) < idleMost {
			x.idle = append(x.idle, p)
		}
	}
	return x
}

// idleMost bounds the default pools that a request is told of though they serve
// nobody.
const idleMost = 5

// Resume makes an index of the pools that an Index of before called Usable on this
// node, where podCIDRs were the pod network. They are usable still: what the node's
// labels are need not be known.
func Resume(usable []*Pool, podCIDRs []netip.Prefix) *Index {
	x := newIndex(usable, func(*Pool) string { return "" })
	for _, p := range usable {
		x.underlay[p.ID()] = p.underlay(podCIDRs)
	}
	return x
}

// newIndex makes an index of pools; unfit says why the node may not use one.
func newIndex(pools []*Pool, unfit func(*Pool) string) *Index {
	x := &Index{byName: map[string][]*Pool{}, passed: map[ID]string{}, refused: map[ID]bool{}, underlay: map[ID]bool{}}
	x.sorted = slices.SortedFunc(slices.Values(pools), before)
	for _, p := range x.sorted {
		x.byName[p.Name] = append(x.byName[p.Name], p)
		if why := unfit(p); why != "" {
			x.passed[p.ID()] = why
		} else if p.Default {
			x.defaults = append(x.defaults, p)
		}
	}
	return x
}

// unfit says why nobody on the node gets an address of the pool.
func (n Node) unfit(p *Pool, v Verdict) string {
	switch {
	case !v.Accepted:
		return "not accepted (" + cmp.Or(v.Message, "not judged yet") + ")"
	case p.Deleting:
		return "being deleted"
	case p.Disabled:
		return "disabled"
	}
	return n.excluded(p)
}

// excluded says why a pool is not for the node, whatever its state.
func (n Node) excluded(p *Pool) string {
	switch {
	case len(p.NodeNames) > 0 && !slices.Contains(p.NodeNames, n.Name):
		return "not for this node (" + p.field("nodeName", "nodeNames") + ")"
	case len(p.NodeNames) == 0 && !p.Nodes.Matches(n.Labels):
		return "not for this node (" + p.field("nodeAffinity", "nodeSelector") + ")"
	}
	return ""
}

// Usable returns the pools that this node may give addresses of, in their order.
func (x *Index) Usable() []*Pool {
	return slices.DeleteFunc(slices.Clone(x.sorted), func(p *Pool) bool { return x.passed[p.ID()] != "" })
}

// Find returns the pool that gives the address, whoever may use it.
func (x *Index) Find(id ID) *Pool {
	_, name, _ := strings.Cut(string(id), "/")
	for _, p := range x.byName[name] {
		if p.ID() == id {
			return p
		}
	}
	return nil
}

// Request is what a pod's interface asks for.
type Request struct {
	Namespace                                            string
	NamespaceLabels, PodLabels, Annotations, NSAnnotated map[string]string
	IfName, Network                                      string
	// OtherMain is true where another main plugin makes the interface.
	OtherMain bool
	// Families are those that the interface gets unless a rule names fewer.
	Families []ipam.Family
	// Conf maps family -> the pools that the plugin's configuration names.
	Conf map[ipam.Family][]string
}

// ruleDefault is the last rule's name.
const ruleDefault = "default: true"

// ByDefault reports whether nothing named a pool.
func (c Choice) ByDefault() bool { return c.Rule == ruleDefault }

// Choice is which pools serve a request.
type Choice struct {
	// Rule is what chose: an annotation, the configuration, or default.
	Rule string
	// Families are those that the interface gets.
	Families []ipam.Family
	// Pools maps family -> the pools to be tried, in order. A family that is
	// not there gets its address from what serves by itself.
	Pools map[ipam.Family][]*Pool
	// Passed says, pool by pool, why others were passed over.
	Passed []string
}

// RefusedError says why no pool serves a request, for a person to mend.
type RefusedError struct{ Message string }

// Error implements error.
func (e *RefusedError) Error() string { return e.Message }

// IsRefused reports whether the error is a RefusedError.
func IsRefused(err error) bool {
	var e *RefusedError
	return errors.As(err, &e)
}

func refuse(format string, args ...any) error {
	return &RefusedError{fmt.Sprintf(format, args...)}
}

// Choose returns the pools for a request. The first of these rules that says
// something decides alone: the pod's annotation ippools, then ippool, its
// namespace's annotations, the plugin's configuration, and last the pools with
// default: true. Pools that a rule names are tried in the order written; those
// of one wildcard, and the default ones, in the order of before. Where no
// default pool is for the pod, what serves by itself does.
func (x *Index) Choose(r Request) (Choice, error) {
	rule, lists, err := named(r)
	if err != nil {
		return Choice{}, err
	}
	if rule == "" {
		return x.chooseDefaults(r), nil
	}
	c := Choice{Rule: rule, Pools: map[ipam.Family][]*Pool{}}
	for _, f := range []ipam.Family{ipam.IPv4, ipam.IPv6} {
		if len(lists[f]) == 0 {
			continue
		}
		c.Families = append(c.Families, f)
		for _, name := range lists[f] {
			if err := x.add(&c, r, f, name); err != nil {
				return Choice{}, err
			}
		}
		if len(c.Pools[f]) == 0 {
			return Choice{}, refuse("%s names %s for %s, and none of them serves this pod: %s", rule, strings.Join(lists[f], ", "), f, strings.Join(c.Passed, "; "))
		}
	}
	return c, nil
}

// add adds the pools of a name, or of a wildcard, that serve the request.
func (x *Index) add(c *Choice, r Request, f ipam.Family, name string) error {
	candidates := x.byName[name]
	if strings.ContainsAny(name, "*?[") {
		candidates = nil
		for _, p := range x.sorted {
			matched, err := path.Match(name, p.Name)
			if err != nil {
				return refuse("%s names %q, which is no pattern: %v", c.Rule, name, err)
			}
			if matched && p.Has(f) {
				candidates = append(candidates, p)
			}
		}
	}
	if len(candidates) == 0 {
		c.Passed = append(c.Passed, fmt.Sprintf("there is no pool %s", name))
	}
	for _, p := range candidates {
		if why := x.passesOver(p, r, f); why != "" {
			c.Passed = append(c.Passed, fmt.Sprintf("%s is %s", p.Name, why))
		} else if !slices.Contains(c.Pools[f], p) {
			c.Pools[f] = append(c.Pools[f], p)
		}
	}
	return nil
}

// chooseDefaults is the last rule.
func (x *Index) chooseDefaults(r Request) Choice {
	c := Choice{Rule: ruleDefault, Families: r.Families, Pools: map[ipam.Family][]*Pool{}}
	for _, f := range r.Families {
		for _, p := range x.defaults {
			switch why := x.passesOver(p, r, f); {
			case why == "":
				c.Pools[f] = append(c.Pools[f], p)
			case p.Has(f):
				c.Passed = append(c.Passed, fmt.Sprintf("%s is %s", p.Name, why))
			}
		}
		for _, p := range x.idle {
			if p.Has(f) || len(p.Ranges) == 0 { // with a mistake it has none
				c.Passed = append(c.Passed, fmt.Sprintf("%s is %s", p.Name, x.passed[p.ID()]))
			}
		}
	}
	return c
}

// Serving returns the pool that has an exact address and serves the request:
// one of those chosen, or, where only the last rule chose, any. It is nil if
// there is none.
func (x *Index) Serving(r Request, c Choice, a netip.Addr) *Pool {
	f := ipam.FamilyOf(a)
	from := c.Pools[f]
	if c.Rule == ruleDefault {
		from = x.sorted
	}
	for _, p := range from {
		if p.Contains(a) && x.passesOver(p, r, f) == "" {
			return p
		}
	}
	return nil
}

// Stating returns the accepted pool that has the address, whoever it serves; nil
// if there is none.
func (x *Index) Stating(a netip.Addr) *Pool {
	for _, p := range x.sorted {
		if p.Contains(a) && !x.refused[p.ID()] {
			return p
		}
	}
	return nil
}

// Underlay reports whether the pool's addresses are outside the pod network.
func (x *Index) Underlay(p *Pool) bool { return x.underlay[p.ID()] }

// passesOver says why a pool gives a request no address of the family.
func (x *Index) passesOver(p *Pool, r Request, f ipam.Family) string {
	switch why := x.passed[p.ID()]; {
	case why != "":
		return why
	case !p.Has(f):
		return "without " + string(f) + " addresses"
	case x.underlay[p.ID()] && !r.OtherMain:
		return "outside the pod network, and so only for interfaces that another main plugin makes (macvlan, ptp)"
	case len(p.NamespaceNames) > 0 && !slices.Contains(p.NamespaceNames, r.Namespace):
		return "not for namespace " + r.Namespace + " (" + p.field("namespaceName", "namespaceNames") + ")"
	case len(p.NamespaceNames) == 0 && !p.Namespaces.Matches(r.NamespaceLabels):
		return "not for namespace " + r.Namespace + " (" + p.field("namespaceAffinity", "namespaceSelector") + ")"
	case !p.Pods.Matches(r.PodLabels):
		return "not for this pod (" + p.field("podAffinity", "podSelector") + ")"
	case len(p.Networks) > 0 && !slices.ContainsFunc(p.Networks, func(n string) bool { return isNetwork(n, r.Network) }):
		return "not for network " + r.Network + " (" + p.field("multusName", "networks") + ")"
	}
	return ""
}

// isNetwork compares a multusName, with or without its namespace, with the name
// of a CNI network, of which that is the last part.
func isNetwork(multusName, network string) bool {
	return multusName == network || path.Base(multusName) == path.Base(network)
}
