package plan

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"unique"
)

// maxProvers bounds the nodes that prove one destination, so that probing is
// linear in the number of nodes.
const maxProvers = 3

// probed names what a probe is about.
type probed struct {
	to        string // node
	family    Family
	transport Transport
	address   netip.Addr // of direct
}

// finding is what is known of one probed thing.
type finding struct {
	self word // this node's own result
	good word // a peer that reached it; of several, the first by name
	bad  word // a peer that did not
	// live counts the peers that reached it and are heard of, misses those that
	// did not reach it, and missed those of them that are heard of.
	live, misses, missed int
	// pathMTU is the largest that any peer found to pass, 0 as soon as one of
	// them found that everything does.
	pathMTU int
	heard   bool // a peer that reached it has spoken
}

// word is what one node says of a probed thing.
type word struct {
	from      string // "": nobody says anything
	reachable bool
	reason    string
	pathMTU   int
}

func (w word) said() bool { return w.from != "" }

// hear takes the size that a peer found.
func (f *finding) hear(w word) {
	switch {
	case !f.heard:
		f.pathMTU = w.pathMTU
	case f.pathMTU != 0 && (w.pathMTU == 0 || w.pathMTU > f.pathMTU):
		f.pathMTU = w.pathMTU
	}
	f.heard = true
}

// answers reports whether peers have found the node to answer: one that is heard
// of reached it, or another did, and none that is heard of says otherwise. A peer
// that died goes on saying what it said last, and must not keep a way in use that
// the living know to be gone.
func (f *finding) answers() bool { return f.good.said() && (f.live > 0 || f.missed == 0) }

// reached reports whether peers have found a transport to work. One that reached
// the node is enough; of direct, unless more did not: each may have another route
// there.
func (f *finding) reached(t Transport) bool {
	if t == Direct {
		return f.good.said() && (f.misses == 0 || f.live >= f.misses)
	}
	return f.answers()
}

// evidence is what the probes say of nodes as they are now. It is put together
// for a node and a transport when it is asked for: of thousands of nodes, that is
// one at a time, and all of it at once would be as large as the plan itself.
type evidence struct {
	c *cluster
	// heard are the probes by the position of the node that they are of, whose
	// own begin at the node's place in begins.
	heard  []heard
	begins []int32
	// returns are the nodes that somebody has reached by direct.
	returns map[side]bool
}

// heard is a probe of a node that is known.
type heard struct {
	from int32 // position of the node that made it
	what unique.Handle[outcome]
}

// side is a node, by its position, and what is sent to it.
type side struct {
	node   int
	family Family
}

// weigh sorts the probes that speak of nodes as they are now: results about a
// node's predecessor of the same name, or by nodes that are gone, say nothing.
func weigh(c *cluster, published []Published, own []Probe) evidence {
	all := published
	if own != nil {
		all = append(slices.DeleteFunc(slices.Clone(published), func(p Published) bool { return p.From == c.self }), PublishAll(own)...)
	}
	e := evidence{c: c, begins: make([]int32, len(c.nodes)+1), returns: map[side]bool{}}
	for to := range e.each(all) {
		e.begins[to+1]++
	}
	for i := range c.nodes {
		e.begins[i+1] += e.begins[i]
	}
	e.heard = make([]heard, e.begins[len(c.nodes)])
	next := slices.Clone(e.begins)
	for to, h := range e.each(all) {
		e.heard[next[to]] = h
		next[to]++
		if o := h.what.Value(); o.transport == Direct && o.reachable {
			e.returns[side{to, o.family}] = true
		}
	}
	return e
}

// each gives the position of the probed node with each probe that counts.
func (e evidence) each(all []Published) iter.Seq2[int, heard] {
	return func(yield func(int, heard) bool) {
		for _, p := range all {
			from, known := e.c.index[p.From]
			if !known {
				continue
			}
			for _, f := range p.found {
				m := f.to.Value()
				to, known := e.c.index[m.name]
				if !known || to == from || e.c.nodes[to].UID != m.uid {
					continue
				}
				if !yield(to, heard{int32(from), f.what}) {
					return
				}
			}
		}
	}
}

// of returns what is known of one thing; the zero value if nothing is.
//
// Those do not count that did not reach a node by direct, which another has
// reached, and that nobody reaches by direct themselves: a fabric that does not
// lead to a prover drops what it sends, wherever to.
func (e evidence) of(what probed) finding {
	var f finding
	to, known := e.c.index[what.to]
	if !known {
		return f
	}
	var stray, strayHeard int // of misses and missed, those that nobody reaches by direct
	for _, h := range e.heard[e.begins[to]:e.begins[to+1]] {
		o := h.what.Value()
		if !e.about(to, &o, what) {
			continue
		}
		from := &e.c.nodes[h.from]
		w := word{from.Name, o.reachable, o.reason, o.pathMTU}
		switch {
		case from.Name == e.c.self:
			f.self = firstWord(f.self, w)
		case o.reachable:
			f.good = firstWord(f.good, w)
			f.hear(w)
			if !from.Silent {
				f.live++
			}
		default:
			f.bad = firstWord(f.bad, w)
			lost := what.transport == Direct && !e.returns[side{int(h.from), what.family}]
			f.misses++
			if lost {
				stray++
			}
			if !from.Silent {
				f.missed++
				if lost {
					strayHeard++
				}
			}
		}
	}
	if f.good.said() {
		f.misses, f.missed = f.misses-stray, f.missed-strayHeard
	}
	return f
}

// about reports whether a probe of the node is one of the thing.
func (e evidence) about(to int, o *outcome, what probed) bool {
	if o.transport != what.transport || o.family != what.family {
		return false
	}
	if o.transport != Direct {
		return true
	}
	at := o.address.Unmap()
	if !at.IsValid() {
		at = e.c.source(to, o.family)
	}
	return at == what.address
}

// firstWord returns one of the two whatever their order: a node that was
// reached once was reached.
func firstWord(a, b word) word {
	switch {
	case !a.said():
		return b
	case a.reachable != b.reachable:
		if a.reachable {
			return a
		}
		return b
	case cmp.Or(strings.Compare(a.from, b.from), strings.Compare(a.reason, b.reason), cmp.Compare(a.pathMTU, b.pathMTU)) <= 0:
		return a
	default:
		return b
	}
}

// failing reports whether a transport is found failing, and why: by this node
// itself, or by its provers where at least one says so and they have not found it
// to work all the same.
func (f *finding) failing(t Transport) (string, bool) {
	switch {
	case f.self.said():
		return words(f.self), !f.self.reachable
	case f.bad.said() && !f.reached(t):
		return words(f.bad), true
	default:
		return "", false
	}
}

// works reports whether a transport is found working: by this node itself, or
// where it has no word, by its provers.
func (f *finding) works(t Transport) bool {
	if f.self.said() {
		return f.self.reachable
	}
	return f.reached(t)
}

// largest returns the largest packet that a path carries, 0 if it is as large
// as it may be: as this node found, or where it has no word, as all of the
// node's provers did, since then it lies at the node.
func (f *finding) largest() int {
	if f.self.said() {
		return f.self.pathMTU
	}
	return f.pathMTU
}

func words(w word) string {
	return fmt.Sprintf("node %s does not reach it (%s)", w.from, cmp.Or(w.reason, "no reason given"))
}

// Verdict is whether a node is proven reachable, and by whom or why not.
type Verdict struct {
	Reachable bool
	// Lost is true where others have tried every transport that is allowed, and
	// none got through: not a lack of knowledge, but a finding.
	Lost   bool
	Reason string
}

// Reachable reports whether the node is proven: for each family that it owns
// destinations of, another node has reached it, as it is now (by UID), by a
// transport that the configuration allows. The cluster's first node (the oldest
// that is heard of), if nobody else is Ready and heard of to prove it, is proven
// by its local path; any other waits, or nodes that come up at the same moment
// would each take itself for the first. The string says by whom, or what is
// missing.
func Reachable(s Snapshot, node string) (bool, string) {
	v, known := Verdicts(s)[node]
	if !known {
		return false, fmt.Sprintf("the cluster has no node named %q", node)
	}
	return v.Reachable, v.Reason
}

// Verdicts returns what Reachable says of every node, node name -> verdict, in
// time linear in nodes and probes, by what is published: Snapshot.Self and its Own
// do not matter.
func Verdicts(s Snapshot) map[string]Verdict {
	c := check("", s.Network, s.Nodes)
	found := weigh(c, s.Probes, nil)
	witnesses := c.witnesses()
	first := max(0, slices.IndexFunc(c.nodes, func(n Node) bool { return !n.Silent }))
	out := make(map[string]Verdict, len(c.nodes))
	for i, n := range c.nodes {
		others := len(witnesses)
		if witnesses[i] {
			others--
		}
		out[n.Name] = c.verdict(i, first, others, found)
	}
	return out
}

// witnesses returns the nodes (their positions) that can prove others: those whose
// agents have spoken and whose machines are heard of. A machine that is gone for
// good proves nobody, and its Node may stay for ever. Where no machine is heard of,
// that says nothing of any, and all count.
func (c *cluster) witnesses() map[int]bool {
	heard, all := map[int]bool{}, map[int]bool{}
	for i, n := range c.nodes {
		if n.Ready {
			all[i] = true
		}
		if n.Ready && !n.Silent {
			heard[i] = true
		}
	}
	if len(heard) == 0 {
		return all
	}
	return heard
}

// verdict judges node i, where first is the cluster's first node and others
// counts those that can prove this one.
func (c *cluster) verdict(i, first, others int, found evidence) Verdict {
	n := c.nodes[i]
	families := c.families(i)
	switch {
	case !n.Ready:
		return Verdict{Reason: fmt.Sprintf("the agent on node %s has not yet said that the node is programmed", n.Name)}
	case len(families) == 0:
		return Verdict{Reason: fmt.Sprintf("node %s owns no usable range of pod addresses yet", n.Name)}
	case others == 0 && i == first:
		return Verdict{Reachable: true, Reason: "proven by its local path: it is the cluster's first node, and no other is ready"}
	case others == 0:
		return Verdict{Reason: fmt.Sprintf("no other node is ready to prove node %s: it waits for the agent on any, such as %s", n.Name, c.nodes[first].Name)}
	}
	var by []string
	for _, f := range families {
		who, v := c.proven(i, f, found)
		if !v.Reachable {
			return v
		}
		by = append(by, who)
	}
	return Verdict{Reachable: true, Reason: "proven " + strings.Join(by, ", ")}
}

// families returns those that the node owns destinations of.
func (c *cluster) families(i int) []Family {
	var out []Family
	for _, f := range []Family{IPv4, IPv6} {
		if slices.ContainsFunc(c.claims[i], func(cl claim) bool { return FamilyOf(cl.dst.Addr()) == f }) {
			out = append(out, f)
		}
	}
	return out
}

// proven says who reached node i, or in the verdict what those who tried have
// seen.
func (c *cluster) proven(i int, f Family, found evidence) (string, Verdict) {
	n := c.nodes[i]
	var seen []string
	lost := true
	for _, t := range c.ways(i, f) {
		result := found.of(probedBy(way{family: f, probed: c.source(i, f)}, n.Name, t))
		switch {
		case result.answers():
			return fmt.Sprintf("by node %s by %s (%s)", result.good.from, t, f), Verdict{Reachable: true}
		case !result.bad.said():
			seen = append(seen, fmt.Sprintf("%s: not tried yet", t))
		default:
			seen = append(seen, fmt.Sprintf("%s: %s", t, words(result.bad)))
		}
		lost = lost && result.missed > 0
	}
	return "", Verdict{Lost: lost, Reason: fmt.Sprintf("no peer has reached node %s by %s yet (%s)", n.Name, f, strings.Join(seen, "; "))}
}

// prover is a node that may prove others.
type prover struct {
	name   string
	hash   uint64
	silent bool // not heard of: it may be gone
}

// provers returns the Ready nodes, each once.
func provers(nodes []Node) []prover {
	out := make([]prover, 0, len(nodes))
	for _, n := range nodes {
		if n.Ready && n.Name != "" {
			out = append(out, prover{n.Name, hash64(n.Name), n.Silent})
		}
	}
	slices.SortFunc(out, func(a, b prover) int {
		switch {
		case a.silent == b.silent || a.name != b.name:
			return strings.Compare(a.name, b.name)
		case b.silent:
			return -1
		default:
			return 1
		}
	})
	return slices.CompactFunc(out, func(a, b prover) bool { return a.name == b.name })
}

// before reports whether p proves the target rather than q. One that is not heard
// of comes after all that are, and where none is, everything stays as it was.
func (p prover) before(q prover, target uint64) bool {
	if p.silent != q.silent {
		return q.silent
	}
	a, b := weight(target, p.hash), weight(target, q.hash)
	return a > b || a == b && p.name < q.name
}

// Provers returns the names of the nodes that prove the destination node: at
// most 3 Ready ones other than dest, by rendezvous hashing, so that a node that
// comes or goes moves few duties; those that are heard of first. Nobody proves a
// node before its own agent has said that it is Ready: there is nothing yet that
// could answer, and the first agents of a large cluster would probe all of it.
func Provers(nodes []Node, dest string) []string {
	if !slices.ContainsFunc(nodes, func(n Node) bool { return n.Name == dest && n.Ready }) {
		return nil
	}
	target := hash64(dest)
	all := slices.DeleteFunc(provers(nodes), func(p prover) bool { return p.name == dest })
	slices.SortFunc(all, func(p, q prover) int {
		if p.before(q, target) {
			return -1
		}
		return 1
	})
	var out []string
	for _, p := range all[:min(len(all), maxProvers)] {
		out = append(out, p.name)
	}
	return out
}

// ProvenBy returns the names of the nodes that self is to probe, in order:
// those that it is among the Provers of. Where asking Provers for every node
// would take quadratic time, this takes about n log n.
func ProvenBy(nodes []Node, self string) []string {
	ready := provers(nodes)
	at, isReady := slices.BinarySearchFunc(ready, self, func(p prover, name string) int { return strings.Compare(p.name, name) })
	if !isReady {
		return nil
	}
	var out []string
	for _, n := range nodes {
		if n.Ready && n.Name != "" && n.Name != self && proves(ready[at], n.Name, ready) {
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// proves reports whether fewer than maxProvers others prove dest rather than p.
func proves(p prover, dest string, ready []prover) bool {
	target := hash64(dest)
	better := 0
	for _, q := range ready {
		if q.name != dest && q.before(p, target) {
			if better++; better == maxProvers {
				return false
			}
		}
	}
	return true
}

func hash64(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s)) // never fails
	return h.Sum64()
}

// weight mixes two hashes so that every bit of both moves every bit of it (the
// finalizer of MurmurHash3): FNV alone ranks similar names alike.
func weight(dest, prover uint64) uint64 {
	x := dest*0x9e3779b97f4a7c15 + prover
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
