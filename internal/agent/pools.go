package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// podAPI is what the server asks about pods (kube.NodeClient).
type podAPI interface {
	// PodWords is what a pod and its namespace say, and whether both are known.
	PodWords(namespace, name, uid string) (kube.PodWords, bool)
	// PodsRead reports whether the node's pods and the namespaces have been read.
	PodsRead() bool
	// Pods returns the node's pods, and whether they have been read.
	Pods() ([]kube.Pod, bool)
	// AllPodWords is PodWords for all pods of the node, by namespace/name; false
	// while they have not been read.
	AllPodWords() (map[string]kube.PodWords, bool)
	// PodEvent records an event on a pod; it never blocks.
	PodEvent(p kube.Pod, warning bool, reason, message string)
}

// pools is what a node knows of pools.
type pools struct {
	seen     []*pool.Pool // what the rest was made from
	podCIDRs []netip.Prefix
	labels   map[string]string
	reserved []netip.Prefix

	index *pool.Index // nil while the pools have not been read
	// usable are those that this node gives addresses of, stated what all that
	// are accepted state of the pod network: nothing else gives that.
	usable []*pool.Pool
	stated []netip.Prefix
	// underlay are those outside the pod network that are accepted.
	underlay []*pool.Pool
}

// update looks at the pools again, if anything about them changed.
func (p *pools) update(v kube.View) {
	podCIDRs := v.Snapshot.Network.PodCIDRs
	if !v.PoolsKnown {
		return
	}
	same := p.index != nil && slices.Equal(p.seen, v.Pools) && slices.Equal(p.podCIDRs, podCIDRs) && equalMaps(p.labels, v.NodeLabels)
	if p.reserved = v.Reserved; same {
		return
	}
	verdicts := pool.Judge(v.Pools, podCIDRs)
	index := pool.NewIndex(v.Pools, verdicts, pool.Node{Name: v.Snapshot.Self, Labels: v.NodeLabels})
	*p = pools{seen: v.Pools, podCIDRs: podCIDRs, labels: v.NodeLabels, reserved: v.Reserved, index: index, usable: index.Usable()}
	for _, one := range v.Pools {
		switch verdict := verdicts[one.ID()]; {
		case verdict.Underlay:
			p.underlay = append(p.underlay, one)
		case verdict.Accepted:
			p.stated = append(p.stated, one.Ranges...)
		}
	}
}

// givable returns, of each pool that the node gives of, what pods may get of the pod
// network.
func (p *pools) givable(sources []netip.Addr) [][]netip.Prefix {
	if len(p.usable) == 0 {
		return nil
	}
	barred := slices.Clone(p.reserved)
	for _, a := range sources {
		barred = append(barred, netip.PrefixFrom(a, a.BitLen()))
	}
	out := make([][]netip.Prefix, 0, len(p.usable))
	for _, one := range p.usable {
		if !p.index.Underlay(one) {
			out = append(out, cidr.Subtract(one.Ranges, barred))
		}
	}
	return out
}

// resume goes on with what the node's last agent knew.
func (p *pools) resume(usable []*pool.Pool, podCIDRs []netip.Prefix) {
	p.index = pool.Resume(usable, podCIDRs)
}

func equalMaps(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// divide takes out of the node's own ranges what pools state, and adds the parts
// of pools that lie inside them and that this node gives. What no pod gets of a
// range, no pool gives either.
func (p *pools) divide(own []ipam.Range) []ipam.Range {
	var out []ipam.Range
	for _, r := range own {
		r.Reserved = append(slices.Clone(r.Reserved), p.reserved...)
		for _, one := range p.usable {
			for _, part := range one.Ranges {
				if in, ok := intersection(part, r.Prefix); ok {
					out = append(out, ipam.Range{Prefix: in, Pool: string(one.ID()), Reserved: r.Reserved})
				}
			}
		}
		for _, part := range p.stated {
			if in, ok := intersection(part, r.Prefix); ok {
				r.Reserved = append(slices.Clone(r.Reserved), in)
			}
		}
		out = append(out, r)
	}
	return out
}

// intersection returns what two prefixes have in common: one of the two.
func intersection(a, b netip.Prefix) (netip.Prefix, bool) {
	if !a.Overlaps(b) {
		return netip.Prefix{}, false
	}
	if a.Bits() > b.Bits() {
		return a, true
	}
	return b, true
}

// boundPools returns the pools that have addresses in the node's own ranges.
func boundPools(ranges []ipam.Range) map[string]bool {
	out := map[string]bool{}
	for _, r := range ranges {
		if r.Pool != "" && !r.Single {
			out[r.Pool] = true
		}
	}
	return out
}

// wanted is what an attachment is to get.
type wanted struct {
	choice pool.Choice
	wants  []ipam.Want
	// needs are what is leased if a want cannot be had, one for each want.
	needs []share.Need
	pools []*pool.Pool // that wants name
}

// pool returns the pool that an address was given from, nil for what serves by
// itself.
func (w wanted) pool(a netip.Addr) *pool.Pool {
	i := slices.IndexFunc(w.pools, func(p *pool.Pool) bool { return p.Contains(a) })
	if i < 0 {
		return nil
	}
	return w.pools[i]
}

// givenFrom is what addresses that are held were given from: the pools that have them,
// whose network, gateway and routes are told again.
func givenFrom(now service, held []netip.Addr) (w wanted, err error) {
	if now.pools == nil {
		return w, poolsUnread()
	}
	for _, a := range held {
		if p := now.pools.Stating(a); p != nil {
			w.pools = append(w.pools, p)
		}
	}
	return w, nil
}

// poolsUnread is why nobody is served who is to be told of pools.
func poolsUnread() error {
	return &later{why: "the address pools have not been read from the API server yet"}
}

// common names what is wanted, if it would do for others as well.
func (w wanted) common() string {
	var b strings.Builder
	for i, want := range w.wants {
		if want.Exact.IsValid() || w.needs[i].KeptFor != (share.Kept{}) {
			return ""
		}
		fmt.Fprintf(&b, "%s %q ", want.Family, want.Pools)
	}
	return b.String()
}

// firstInterface is what container runtimes call a pod's first interface.
const firstInterface = "eth0"

// wantsOf says which addresses will do for a request. A pod that is not known
// yet waits: what it says of its addresses is never guessed.
func (s *server) wantsOf(now service, req cniwire.Request) (wanted, error) {
	if now.pools == nil {
		return wanted{}, poolsUnread()
	}
	var kept share.Kept
	r := pool.Request{Namespace: req.Pod.Namespace, IfName: req.Attachment.IfName, Network: req.Attachment.Network, OtherMain: req.OtherMain}
	if req.Pod.Name != "" {
		words, known := s.pods.PodWords(req.Pod.Namespace, req.Pod.Name, req.Pod.UID)
		if !known {
			return wanted{}, &later{why: fmt.Sprintf("pod %s/%s (UID %s) is not known yet, so neither is what it asks for: is the API server reachable from this node?", req.Pod.Namespace, req.Pod.Name, req.Pod.UID), soon: true}
		}
		r.PodLabels, r.Annotations = words.Labels, words.Annotations
		r.NamespaceLabels, r.NSAnnotated = words.NamespaceLabels, words.NSAnnotated
		if words.StatefulSet != "" {
			kept = share.Kept{Namespace: req.Pod.Namespace, Pod: req.Pod.Name, StatefulSet: words.StatefulSet, UID: words.StatefulSetUID}
			if r.IfName != firstInterface {
				kept.Interface = r.IfName
			}
		}
	}
	families, err := familiesOf(now, req)
	if err != nil {
		return wanted{}, err
	}
	for _, f := range families {
		r.Families = append(r.Families, ipam.Family(f))
	}
	r.Conf = map[ipam.Family][]string{ipam.IPv4: req.IPv4Pools, ipam.IPv6: req.IPv6Pools}
	w := wanted{}
	if w.choice, err = now.pools.Choose(r); err != nil {
		return wanted{}, err
	}
	exact, err := s.exactFor(req, r.Annotations)
	if err != nil || len(exact) > 0 {
		return w.exactly(now, r, exact, req), err
	}
	for _, f := range w.choice.Families {
		want := ipam.Want{Family: f}
		for _, p := range w.choice.Pools[f] {
			want.Pools = append(want.Pools, string(p.ID()))
			w.pools = append(w.pools, p)
		}
		w.add(now, want, share.Need{ID: needID(req, f), Family: f, Pools: want.Pools, KeptFor: kept})
	}
	return w, nil
}

// add adds what is wanted, and what is leased where it cannot be had. Pods of a
// StatefulSet keep their address where the pools are no node's: there it can be
// theirs wherever they run.
func (w *wanted) add(now service, want ipam.Want, need share.Need) {
	bound := len(want.Pools) == 0 || slices.ContainsFunc(want.Pools, func(p string) bool { return now.bound[p] })
	if need.KeptFor != (share.Kept{}) && !bound && !want.Exact.IsValid() {
		want.Exact = now.kept[keptPod{need.KeptFor, want.Family}]
		want.Pools = []string{share.Apart(want.Exact)}
	} else {
		need.KeptFor = share.Kept{}
	}
	w.wants, w.needs = append(w.wants, want), append(w.needs, need)
}

// exactFor returns the exact addresses that an interface is to have. The pod's
// annotation is for the first that asks: another of the same sandbox that asks after
// it gets an address as any pod does.
func (s *server) exactFor(req cniwire.Request, annotations map[string]string) ([]netip.Addr, error) {
	if len(req.Wanted) > 0 {
		return req.Wanted, nil
	}
	exact, err := pool.Addresses(annotations)
	key := keyOf(req.Attachment)
	for _, a := range exact {
		if has, held := s.book.Lookup(a); held && has.Key.ContainerID == key.ContainerID && has.Key != key {
			return nil, nil
		}
	}
	return exact, err
}

// needID names what an attachment waits for.
func needID(req cniwire.Request, f ipam.Family) string {
	return keyOf(req.Attachment).String() + " " + string(f)
}

// exactly asks for these addresses, of whichever pool has them and serves the
// pod, or of what serves by itself.
// An address that the node holds by itself for the pod is a pool of its own.
func (w wanted) exactly(now service, r pool.Request, addrs []netip.Addr, req cniwire.Request) wanted {
	for _, a := range addrs {
		want := ipam.Want{Family: ipam.FamilyOf(a), Exact: a, Pools: []string{""}}
		if p := now.pools.Serving(r, w.choice, a); p != nil {
			want.Pools = []string{string(p.ID())}
			w.pools = append(w.pools, p)
		} else if now.pools.Stating(a) != nil {
			want.Pools = nil // a pool keeps it for others
		}
		if want.Pools != nil {
			want.Pools = append(want.Pools, share.Apart(a))
		}
		w.add(now, want, share.Need{ID: needID(req, want.Family), Family: want.Family, Exact: a})
	}
	return w
}

// explain says why what was wanted is not to be had.
func (s *server) explain(now service, w wanted, err error) error {
	for _, want := range w.wants {
		a := want.Exact
		_, own := now.owns(a)
		leasable := w.pool(a) != nil || slices.ContainsFunc(now.podCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
		elsewhere := (!own || slices.Contains(now.ceded, a)) && want.Pools != nil && leasable
		if a.IsValid() && !s.book.Gives(a) && !elsewhere {
			return &cniwire.Error{Code: cniwire.CodeNoAddress, Msg: fmt.Sprintf(
				"the address %s is asked for, and this node cannot give it: its CIDRs are %v, without its own addresses and what pools keep for others; ask for another, or let the pod run on the node that has it", a, now.cidrs)}
		}
	}
	for i, want := range w.wants {
		switch {
		case w.needs[i].KeptFor != (share.Kept{}):
			err = fmt.Errorf("no address of %s is kept for the pod on this node yet", strings.Join(w.needs[i].Pools, ", "))
		case want.Exact.IsValid():
			err = fmt.Errorf("the address %s is asked for, and this node has not got it yet", want.Exact)
		}
	}
	var why []string
	for _, need := range w.needs {
		if waits := s.sharer.why(need.ID); waits != "" {
			why = append(why, waits)
		}
	}
	if !w.choice.ByDefault() || len(w.choice.Pools) > 0 {
		why = append(why, "chosen by "+w.choice.Rule)
	}
	why = append(why, w.choice.Passed...)
	if len(why) > 0 {
		err = fmt.Errorf("%w (%s)", err, strings.Join(why, "; "))
	}
	return err
}

// answerFor says of an address its network and gateway, for other main plugins. One of
// an underlay's pool without a gateway has none.
func (w wanted) answerFor(now service, a netip.Addr) (netip.Prefix, netip.Addr) {
	if p := w.pool(a); p != nil {
		subnet, ok := p.Within(a)
		if gateway := p.Gateway(ipam.FamilyOf(a)); ok && (gateway.IsValid() || now.pools.Underlay(p)) {
			return subnet, gateway
		}
	}
	return now.network(a), plan.OfFamily(now.sources, plan.FamilyOf(a))
}

// poolUse counts the addresses in use of each pool. One that is for one pod only
// counts for the pool that has it.
func (n *node) poolUse() map[string]int32 {
	out := map[string]int32{}
	for group, count := range n.book.CountByPool() {
		if a, apart := share.IsApart(group); !apart {
			out[group] += count
		} else if n.pools.index == nil {
			continue
		} else if p := n.pools.index.Stating(a); p != nil {
			out[string(p.ID())] += count
		}
	}
	return out
}
