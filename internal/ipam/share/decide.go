package share

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Decide compares what the node holds with what its pods wait for.
func Decide(in Input) Decision {
	d := &decider{Input: in, singles: map[netip.Addr]Lease{}, kept: map[Kept][]Lease{}, matched: map[netip.Addr]bool{}, searches: map[string]*search{}, coming: map[netip.Prefix]uint64{}, expected: map[netip.Addr]bool{}}
	d.Wait = map[string]string{}
	if !d.concerned() {
		return d.Decision
	}
	d.sort()
	d.answer()
	d.unshare()
	d.keepFound()
	for _, n := range in.Needs {
		if why := d.serve(n); why != "" {
			d.Wait[n.ID] = why
		}
	}
	d.giveBack()
	return d.Decision
}

type decider struct {
	Input
	Decision
	singles   map[netip.Addr]Lease
	kept      map[Kept][]Lease
	free      []Lease        // own ones for anyone, that nobody has
	shared    []netip.Prefix // confirmed blocks
	confirmed []netip.Prefix // the same, aggregated
	declared  []Lease        // blocks that are not confirmed yet
	// taken is what single addresses cannot be made shared of: blocks, podCIDRs.
	taken   []netip.Prefix
	matched map[netip.Addr]bool // own addresses that a need will have
	// coming maps a block that is being shared -> how many needs count on it, expected
	// are the addresses that they wait for.
	coming   map[netip.Prefix]uint64
	expected map[netip.Addr]bool
	part     int // which part of a pool this node begins in, of parts; see place
	parts    int // 0 while that is not known
	// searches are how far it has looked: pool and family -> that.
	searches map[string]*search
}

// concerned reports whether there is anything to decide. On most nodes, most of the
// time, there is not, and each ADD and DEL asks.
func (d *decider) concerned() bool {
	if len(d.Needs)+len(d.Found) > 0 {
		return true
	}
	for i := range d.Leases {
		l := &d.Leases[i]
		if l.Sharing == Declared || l.IsSingle() && (l.Node == d.Node || l.From == d.Node) {
			return true
		}
	}
	return false
}

// sort brings the leases into order.
func (d *decider) sort() {
	for _, l := range d.Leases {
		switch {
		case l.IsSingle():
			d.singles[l.Address()] = l
			if l.KeptFor != (Kept{}) {
				d.kept[l.KeptFor] = append(d.kept[l.KeptFor], l)
			}
			if idle, unused := d.Idle[l.Address()]; unused && !idle.Leaving && l.Node == d.Node && l.Usable() && l.ForAnyone() {
				d.free = append(d.free, l)
			}
			continue
		case l.Sharing == Confirmed:
			d.shared = append(d.shared, l.Prefix)
		case l.Sharing == Declared && !d.Unshared[l.Prefix].After(d.Now):
			d.declared = append(d.declared, l)
		}
		d.taken = append(d.taken, l.Prefix)
	}
	for block, until := range d.Unshared {
		if until.After(d.Now) {
			d.taken = append(d.taken, block)
			if len(d.Needs) > 0 {
				d.again(until)
			}
		}
	}
	for _, r := range d.Ranges {
		d.taken = append(d.taken, r.Prefix)
	}
	d.confirmed, d.taken = cidr.Aggregate(d.shared), cidr.Aggregate(d.taken)
}

// answer says to other nodes whether they may have an address of this one's.
func (d *decider) answer() {
	for _, l := range d.Leases {
		if !l.IsSingle() || l.From != d.Node || l.Node == d.Node || l.Grant != "" {
			continue
		}
		if who := d.Holder(l.Address()); who != "" {
			d.Answer = append(d.Answer, Answer{l, Refused, fmt.Sprintf("%s has the address %s on node %s", who, l.Address(), d.Node)})
		} else {
			d.Answer = append(d.Answer, Answer{Lease: l, Grant: Granted})
		}
	}
}

// unshare takes back declarations that this node's podCIDR contradicts: whoever
// declared them looked before the node had it, and may have died since.
func (d *decider) unshare() {
	for _, l := range d.Leases {
		contradicts := func(r Range) bool { return r.Node == d.Node && r.NodeCIDR && r.Prefix.Overlaps(l.Prefix) }
		if l.Sharing == Declared && slices.ContainsFunc(d.Ranges, contradicts) {
			d.Unshare = append(d.Unshare, l)
		}
	}
}

// keepFound leases what pods of this node have already, so that no other node gives
// it. What is another's by now stays so: ropeway ipam check names the two holders.
func (d *decider) keepFound() {
	for _, a := range slices.SortedFunc(maps.Keys(d.Found), netip.Addr.Compare) {
		_, leased := d.singles[a]
		_, lost := d.lost(a)
		if !leased && !lost {
			d.claim(Need{}, a, d.Found[a], "")
		}
	}
}

// serve finds an address for a need, and says why if there is none.
func (d *decider) serve(n Need) string {
	if n.KeptFor != (Kept{}) {
		if l, ok := d.keptFor(n); ok {
			return d.comeBack(l)
		}
		return d.pick(n)
	}
	if n.Exact.IsValid() {
		return d.exactly(n)
	}
	for _, p := range n.Pools {
		for _, l := range d.free {
			if a := l.Address(); l.Pool == p && ipam.FamilyOf(a) == n.Family && !d.matched[a] {
				d.await(l)
				return ""
			}
		}
	}
	return d.pick(n)
}

// keptFor returns the address that is kept for the pod's interface, if its pools still
// have it. One that they have not is dropped, and so is a second one: a version that
// knows nothing of interfaces may have written what was another's.
func (d *decider) keptFor(n Need) (found Lease, ok bool) {
	for _, l := range d.kept[n.KeptFor] {
		switch {
		case ipam.FamilyOf(l.Address()) != n.Family:
		case d.inPools(n, l) && (!ok || found.Node == "" && l.Node != ""):
			if ok {
				d.Drop = append(d.Drop, found)
			}
			found, ok = l, true
		case l.Node == "":
			d.Drop = append(d.Drop, l)
		}
	}
	if ok || n.KeptFor.Interface == "" {
		return found, ok
	}
	return d.keptBefore(n)
}

func (d *decider) inPools(n Need, l Lease) bool {
	return slices.ContainsFunc(n.Pools, func(p string) bool { return containsAddr(d.Pools[p], l.Address()) })
}

// keptBefore returns the address that was kept for a further interface of the pod before
// interfaces had their own: no lease of the pod names one, and its first interface has
// not taken the address.
func (d *decider) keptBefore(n Need) (Lease, bool) {
	first := n.KeptFor
	first.Interface = ""
	for kept := range d.kept {
		its := first
		its.Interface = kept.Interface
		if kept == its && kept != first {
			return Lease{}, false
		}
	}
	for _, l := range d.kept[first] {
		if l.Node == "" && ipam.FamilyOf(l.Address()) == n.Family && d.inPools(n, l) {
			l.KeptFor = n.KeptFor
			return l, true
		}
	}
	return Lease{}, false
}

// comeBack is the way back to an address that is kept.
func (d *decider) comeBack(l Lease) string {
	why, lost := d.lost(l.Address())
	switch {
	case l.Node == d.Node && l.Unsure:
		return unsure(l)
	case l.Node == d.Node:
		d.await(l)
		return ""
	case l.Node == "" && lost:
		return why
	case l.Node == "":
		d.Take = append(d.Take, l)
		return ""
	default:
		return fmt.Sprintf("the address %s is kept for the pod, and node %s has not let go of it yet: its former sandbox there must end, or the Node be deleted", l.Address(), l.Node)
	}
}

// exactly leases one address, wherever it lies.
func (d *decider) exactly(n Need) string {
	a := n.Exact
	if l, leased := d.singles[a]; leased {
		return d.exactLease(n, l)
	}
	owner := d.owner(a)
	why, lost := d.lost(a)
	switch {
	case lost:
		return why
	case !containsAddr(d.PodCIDRs, a) && !d.stated(a):
		return fmt.Sprintf("the address %s is outside the pod network %v", a, d.PodCIDRs)
	case containsAddr(d.Reserved, a):
		return fmt.Sprintf("the address %s is reserved (SpiderReservedIP), or a node's own", a)
	case containsAddr(d.confirmed, a), !containsAddr(d.PodCIDRs, a):
		d.claim(n, a, "", "")
	case owner == d.Node:
		return "" // given, or not, by what the node gives from
	case owner != "":
		d.claim(n, a, "", owner)
	default:
		return d.share(a)
	}
	return ""
}

// stated reports whether some pool that the node may use has the address.
func (d *decider) stated(a netip.Addr) bool {
	for _, ranges := range d.Pools {
		if containsAddr(ranges, a) {
			return true
		}
	}
	return false
}

// lost reports whether an address is not tried now, and why. Nobody tells when that
// has changed, so it is looked at again.
func (d *decider) lost(a netip.Addr) (why string, is bool) {
	why, until := d.Lost(a)
	if until.IsZero() {
		return "", false
	}
	d.again(until)
	return why, true
}

// owner returns the node whose range an address lies in: of a block rather than
// of a podCIDR, which need not be in use.
func (d *decider) owner(a netip.Addr) string {
	out := ""
	for _, r := range d.Ranges {
		if r.Prefix.Contains(a) && (out == "" || !r.NodeCIDR) {
			out = r.Node
		}
	}
	return out
}

// exactLease is what becomes of a need whose address is leased.
func (d *decider) exactLease(n Need, l Lease) string {
	a := l.Address()
	switch {
	case l.KeptFor != (Kept{}):
		return fmt.Sprintf("the address %s is kept for pod %s/%s", a, l.KeptFor.Namespace, l.KeptFor.Pod)
	case l.Node != d.Node:
		return fmt.Sprintf("the address %s is in use on node %s", a, l.Node)
	case l.Grant == Refused:
		return l.Reason
	case l.Unsure:
		return unsure(l)
	case l.Grant == "" && l.From != "":
		d.await(l)
		return fmt.Sprintf("node %s, in whose range the address %s lies, has not let go of it yet", l.From, a)
	case l.Pool != "":
		return "" // leased for whoever comes first: it is given back, and leased again for this pod
	default:
		d.await(l)
		return ""
	}
}

// unsure is what is said of a lease that is this node's without this node knowing that
// it is: the answer to the call that made it was lost, for one.
func unsure(l Lease) string {
	return fmt.Sprintf("node %s does not know whether the lease of the address %s is its own, gives it back, and leases it again", l.Node, l.Address())
}

// await notes that a need will have an address of this node's.
func (d *decider) await(l Lease) {
	d.matched[l.Address()] = true
	d.Awaited = append(d.Awaited, l.Address())
}

// claim leases an address; from then on it is taken.
func (d *decider) claim(n Need, a netip.Addr, p, from string) {
	l := Lease{Prefix: netip.PrefixFrom(a, a.BitLen()), Node: d.Node, Generation: 1, Pool: p, From: from, KeptFor: n.KeptFor}
	c := Claim{Lease: l}
	if i := slices.IndexFunc(d.shared, func(p netip.Prefix) bool { return p.Contains(a) }); from == "" && i >= 0 {
		c.Within = d.shared[i]
	}
	d.Claim = append(d.Claim, c)
	d.singles[a] = l
	d.matched[a] = true
}

// place is where this node begins to look in ranges that all nodes share. Each
// node has a part of its own, so that nodes whose pods start at the same time
// neither share the same blocks nor lease the same addresses; who needs more goes
// on into the next part. Nodes that know of different nodes get in each other's
// way, and no more than that.
func (d *decider) place(ranges []netip.Prefix) netip.Addr {
	if d.parts == 0 {
		nodes := map[string]bool{d.Node: true}
		for _, r := range d.Ranges {
			nodes[r.Node] = true
		}
		for node := range nodes {
			if d.parts++; node < d.Node {
				d.part++
			}
		}
	}
	return pool.Place(ranges, d.part, d.parts)
}

// giveBack lets go of what no pod of this node has or waits for. Pods that end together
// leave addresses that have rested within moments of each other: these are given back
// together, since the next are given back only once it is seen what came of the first.
func (d *decider) giveBack() {
	var rested []Lease
	var first, next time.Time // when the first of them had rested, and when another one will have
	for _, l := range d.Leases {
		a := l.Address()
		idle, unused := d.Idle[a]
		if !l.IsSingle() || l.Node != d.Node || !unused || d.matched[a] && !idle.Leaving {
			continue
		}
		at := idle.Since.Add(Rest)
		if !idle.Used && !d.usedUp(l) {
			at = idle.Since.Add(Spare)
		}
		switch {
		case idle.Leaving || l.Unsure || l.Grant == Refused || d.unowned(l):
			d.LetGo = append(d.LetGo, l)
		case at.After(d.Now):
			d.again(at)
			next = earlier(next, at)
		default:
			rested, first = append(rested, l), earlier(first, at)
		}
	}
	if latest := first.Add(Together); next.IsZero() || next.After(latest) || !latest.After(d.Now) || len(d.LetGo) > 0 {
		d.LetGo = append(d.LetGo, rested...)
	}
}

// earlier returns the earlier of two times, of which the zero time is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// unowned reports whether an address was asked from a node that does not own it
// any more, and so will never answer.
func (d *decider) unowned(l Lease) bool {
	return l.From != "" && l.Grant == "" && !slices.ContainsFunc(d.Ranges, func(r Range) bool { return r.Node == l.From && r.Prefix.Contains(l.Address()) })
}

func (d *decider) again(at time.Time) {
	d.Again = earlier(d.Again, at)
}

func ofFamily(in []netip.Prefix, f ipam.Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(in), func(p netip.Prefix) bool { return ipam.FamilyOf(p.Addr()) != f })
}

func containsAddr(in []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(in, func(p netip.Prefix) bool { return p.Contains(a) })
}
