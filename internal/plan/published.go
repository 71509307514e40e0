package plan

import (
	"iter"
	"net/netip"
	"slices"
	"unique"
)

// Published is what one node has published of the nodes that it proves. Every
// agent holds that of all nodes for as long as it runs, three nodes by three
// transports of each, and most of it is alike: so what is the same anywhere is
// there once, and a probe takes 16 bytes in the place of 150.
type Published struct {
	From  string // name of the node
	found []found
}

// found is a Probe without the node that made it.
type found struct {
	to   unique.Handle[machine]
	what unique.Handle[outcome]
}

// machine is a node as it was probed.
type machine struct{ name, uid string }

// outcome is how a probe went.
type outcome struct {
	family    Family
	transport Transport
	address   netip.Addr
	reachable bool
	fault     Fault
	reason    string
	pathMTU   int
}

// Publish returns what the node says by these probes, whose From it is.
func Publish(from string, probes ...Probe) Published {
	out := Published{From: from, found: make([]found, 0, len(probes))}
	for i := range probes {
		p := &probes[i]
		out.found = append(out.found, found{unique.Make(machine{p.To, p.ToUID}),
			unique.Make(outcome{p.Family, p.Transport, p.Address, p.Reachable, p.Fault, p.Reason, p.PathMTU})})
	}
	return out
}

// PublishAll is Publish for probes of any nodes.
func PublishAll(probes []Probe) []Published {
	out := make([]Published, 0, len(probes))
	for i := range probes {
		out = append(out, Publish(probes[i].From, probes[i]))
	}
	return out
}

// Probes are the node's, in the order in which they were published.
func (p Published) Probes() iter.Seq[Probe] {
	return func(yield func(Probe) bool) {
		for _, f := range p.found {
			to, o := f.to.Value(), f.what.Value()
			if !yield(Probe{From: p.From, To: to.name, ToUID: to.uid, Family: o.family, Transport: o.transport, Address: o.address,
				Reachable: o.reachable, Fault: o.fault, Reason: o.reason, PathMTU: o.pathMTU}) {
				return
			}
		}
	}
}

// Equal reports whether two nodes' words are the same.
func (p Published) Equal(q Published) bool {
	return p.From == q.From && slices.Equal(p.found, q.found)
}

// ProbesOf are all nodes' probes.
func ProbesOf(all []Published) iter.Seq[Probe] {
	return func(yield func(Probe) bool) {
		for _, p := range all {
			for probe := range p.Probes() {
				if !yield(probe) {
					return
				}
			}
		}
	}
}
