package probe

import (
	"fmt"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/plan"
)

// finding is whether packets of a kind arrive.
type finding int

const (
	unknown finding = iota
	arrives
	lost
)

// observation is all that tells one path's faults apart. It is plain data: what
// follows from it is computed without a prober.
type observation struct {
	to   string // name of the node
	path Path

	known, reachable bool
	// came is true if the node said, by another way, that it got a request by
	// this path whose answer by this path did not come.
	came bool
	// others are the transports that the node does answer by.
	others []plan.Transport
	// legs are what the legs found, settled is true once they were all tried.
	legs    [legsEnd]finding
	settled bool
	// stray says who got a packet by direct that was for the node; "" if nobody
	// said so.
	stray string
	// detour is how many hops more a bare packet to the pod-network address
	// takes than one to the node's own.
	detour int
	// pathMTU is the largest packet in bytes that passes, 0 if all do.
	pathMTU int
	// badChecksum is true where packets do not arrive whose inner checksum is
	// left to the interface, and others do.
	badChecksum bool
}

// diagnose names what is wrong with a path, and says what was seen. Without a
// fault, the sentence is empty for a path that is sound, and for one that fails
// says where to look as long as no more is known.
func (o observation) diagnose() (plan.Fault, string) {
	switch {
	case !o.known:
		return "", ""
	case o.reachable:
		return o.flaw()
	case o.path.Transport == plan.Direct:
		return o.notDirect()
	default:
		return o.noTunnel()
	}
}

// flaw is what may be wrong with a path that answers.
func (o observation) flaw() (plan.Fault, string) {
	switch {
	case o.detour > 0:
		return plan.WrongNextHop, fmt.Sprintf("bare packets to %s take more hops (by %d) than those to the node's own address %s: another node gets them first, and forwards them",
			o.path.InnerDst, o.detour, o.path.OuterDst)
	case o.badChecksum:
		return plan.ChecksumOffload, fmt.Sprintf("packets by vxlan from %s to %s whose inner checksum is left to the interface do not arrive, others do",
			o.path.OuterSrc, o.path.OuterDst)
	case o.pathMTU > 0:
		return plan.MTUBlackHole, fmt.Sprintf("packets of more than %d bytes by %s from %s to %s get lost, where %d may be sent",
			o.pathMTU, o.path.Transport, o.path.OuterSrc, o.path.OuterDst, o.path.Full)
	default:
		return "", ""
	}
}

// noTunnel is why a tunnel fails.
func (o observation) noTunnel() (plan.Fault, string) {
	fault, carrier := plan.VXLANBlocked, fmt.Sprintf("UDP %d", o.path.Port)
	if o.path.Transport == plan.IPIP {
		fault, carrier = plan.Protocol4Blocked, "protocol 4"
	}
	src, dst := o.path.OuterSrc, o.path.OuterDst
	switch {
	case o.came:
		return fault, fmt.Sprintf("what %s sends inside %s arrives at %s, and its answers inside %s do not come back: look at what lets packets in at %s", src, carrier, dst, carrier, src)
	case len(o.others) > 0:
		return fault, fmt.Sprintf("what %s sends inside %s does not arrive at %s, while %s does: look at what lets packets in at %s", src, carrier, dst, words(o.others), dst)
	case o.legs[legUnderlay] == arrives:
		return fault, fmt.Sprintf("what %s sends inside %s does not arrive at %s, while plain UDP does: look at what lets packets in at %s", src, carrier, dst, dst)
	case !o.settled:
		return "", silence(o.path)
	default:
		return plan.NodeSilent, fmt.Sprintf("%s gets no answer from %s, neither inside %s nor by plain UDP", src, dst, carrier)
	}
}

// notDirect is why direct fails. What arrives at the node itself from a
// pod-network address, and at the pod-network address from the node, says at
// which end it is.
func (o observation) notDirect() (plan.Fault, string) {
	p := o.path
	source, destination := o.legs[legSource], o.legs[legDestination]
	switch {
	case o.stray != "":
		return plan.WrongNextHop, fmt.Sprintf("bare packets for %s, an address of node %s (%s), arrive at %s", p.InnerDst, o.to, p.OuterDst, o.stray)
	case !o.settled:
		return "", silence(p)
	case source == arrives && destination == arrives:
		return plan.DirectBlocked, fmt.Sprintf("bare packets from %s to %s do not arrive, while those from %s to %s and from %s to %s do: something on the way drops what is between pods",
			p.InnerSrc, p.InnerDst, p.InnerSrc, p.OuterDst, p.OuterSrc, p.InnerDst)
	case source == arrives:
		return plan.RouteMissing, fmt.Sprintf("bare packets to %s do not arrive at node %s (%s), from whatever source, while those from %s to the node's own address do: "+
			"the fabric has no route for it to that node, or the node's interface takes in its own addresses only", p.InnerDst, o.to, p.OuterDst, p.InnerSrc)
	case destination == arrives:
		return plan.PodCIDRNotAllowed, fmt.Sprintf("bare packets from %s do not arrive at node %s (%s), not even those to its own address, while those from %s to %s do: "+
			"the security group or a firewall does not let the pod network in there, or the fabric takes %s from %s for a forgery (it has no route for it there, or the interface sends from its own addresses only)",
			p.InnerSrc, o.to, p.OuterDst, p.OuterSrc, p.InnerDst, p.InnerSrc, p.OuterSrc)
	case o.legs[legUnderlay] != arrives && len(o.others) == 0:
		return plan.NodeSilent, fmt.Sprintf("%s gets no answer from node %s (%s) by any way", p.OuterSrc, o.to, p.OuterDst)
	default:
		return plan.DirectBlocked, fmt.Sprintf("bare packets arrive at node %s (%s) neither from %s nor at %s: the fabric has no route for pods' ranges, "+
			"interfaces take in and send their own addresses only, or the security group does not let the pod network in", o.to, p.OuterDst, p.InnerSrc, p.InnerDst)
	}
}

// words lists transports for a sentence.
func words(transports []plan.Transport) string {
	var out []string
	for _, t := range slices.Sorted(slices.Values(transports)) {
		out = append(out, "what goes by "+string(t))
	}
	return strings.Join(out, " and ")
}

// silence says what was seen, and where to look, while no more is known.
func silence(p Path) string {
	carrier := fmt.Sprintf("UDP %d", p.Port)
	switch p.Transport {
	case plan.Direct:
		return fmt.Sprintf("%d bare probes from %s to %s were not answered: does the fabric have a route for %s to %s, and do security group and firewall let pods' addresses in?",
			missesToFail, p.InnerSrc, p.InnerDst, p.InnerDst, p.OuterDst)
	case plan.IPIP:
		carrier = "protocol 4"
	}
	return fmt.Sprintf("%d probes from %s to %s inside %s were not answered: does the fabric (security group, firewall) pass it?",
		missesToFail, p.OuterSrc, p.OuterDst, carrier)
}
