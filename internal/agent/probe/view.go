package probe

import (
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/plan"
)

// Node is what a prober has to know of a node, its own included.
type Node struct {
	Name, UID string
	Outer     []netip.Addr // in the fabric, at most one per family
	Sources   []netip.Addr // in the pod network, at most one per family
	VTEP      plan.MAC
	// Refuses maps transport -> why the node cannot use it; such a transport is
	// not probed.
	Refuses map[plan.Transport]string
}

// View is what the prober works by. It is replaced as a whole by Set.
type View struct {
	ClusterID  string
	Self       Node
	Nodes      []Node   // the others, all of them: who is answered
	Targets    []string // names of those that Self proves
	Transports []plan.Transport
	VXLANPort  uint16
	VXLANVNI   uint32
}

// Path is one way to one node: where a message is sent, and in what.
type Path struct {
	Transport          plan.Transport
	InnerSrc, InnerDst netip.Addr
	OuterSrc, OuterDst netip.Addr
	SrcMAC, DstMAC     plan.MAC // for vxlan
	Port               uint16   // for vxlan: the outer destination port
	VNI                uint32   // for vxlan
}

// Packet returns the bytes that carry the message by the path: for ipip a whole
// IPv4 packet, for vxlan the payload of a UDP datagram to OuterDst and Port.
func (p Path) Packet(message []byte) []byte {
	inner := udpPacket(netip.AddrPortFrom(p.InnerSrc, Port), netip.AddrPortFrom(p.InnerDst, Port), message)
	if p.Transport == plan.IPIP {
		return encapsulate(p.OuterSrc, p.OuterDst, inner)
	}
	return vxlanFrame(p.VNI, p.SrcMAC, p.DstMAC, inner)
}

// key names what is proven: a family of a node by a transport.
type key struct {
	node      string
	family    plan.Family
	transport plan.Transport
}

// paths lists every path to a node that the plan may choose, in the order of
// families and then of preference. Where no allowed transport can carry a
// family, vxlan does: ipip is IPv4 over IPv4 only (see package plan).
func (v View) paths(to Node) []Path {
	var found []Path
	for _, family := range []plan.Family{plan.IPv4, plan.IPv6} {
		before := len(found)
		for _, transport := range append(slices.Clone(v.Transports), plan.VXLAN) {
			allowed := slices.Contains(v.Transports, transport) || len(found) == before && !v.carries(to, family)
			p, ok := v.path(to, family, transport)
			if ok && allowed && !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
	}
	return found
}

// carries is true if one of the allowed transports could carry the family, were
// it not refused.
func (v View) carries(to Node, family plan.Family) bool {
	src, _ := v.outer(to, plan.IPv4)
	return slices.Contains(v.Transports, plan.VXLAN) || family == plan.IPv4 && src.IsValid()
}

// path returns the path to a node, and false if there is none: an address is
// missing, or one of the two refuses the transport.
func (v View) path(to Node, family plan.Family, transport plan.Transport) (Path, bool) {
	if v.Self.Refuses[transport] != "" || to.Refuses[transport] != "" {
		return Path{}, false
	}
	p := Path{
		Transport: transport,
		InnerSrc:  addressOf(v.Self.Sources, family), InnerDst: addressOf(to.Sources, family),
		SrcMAC: v.Self.VTEP, DstMAC: to.VTEP, Port: v.VXLANPort, VNI: v.VXLANVNI,
	}
	if transport == plan.IPIP && family == plan.IPv6 {
		return Path{}, false
	}
	p.OuterSrc, p.OuterDst = v.outer(to, plan.IPv4)
	if !p.OuterDst.IsValid() && transport == plan.VXLAN {
		p.OuterSrc, p.OuterDst = v.outer(to, plan.IPv6)
	}
	ok := p.InnerSrc.IsValid() && p.InnerDst.IsValid() && p.OuterSrc.IsValid() && p.OuterDst.IsValid()
	return p, ok
}

// outer returns both ends in the fabric, or two invalid addresses if one end
// has none of the family.
func (v View) outer(to Node, family plan.Family) (src, dst netip.Addr) {
	src, dst = addressOf(v.Self.Outer, family), addressOf(to.Outer, family)
	if !src.IsValid() || !dst.IsValid() {
		return netip.Addr{}, netip.Addr{}
	}
	return src, dst
}

// nodeBySource finds the node whose pod-network address a is.
func (v View) nodeBySource(a netip.Addr) (Node, bool) {
	i := slices.IndexFunc(v.Nodes, func(n Node) bool { return slices.Contains(n.Sources, a) })
	if i < 0 {
		return Node{}, false
	}
	return v.Nodes[i], true
}

func (v View) node(name string) (Node, bool) {
	i := slices.IndexFunc(v.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return Node{}, false
	}
	return v.Nodes[i], true
}

func addressOf(addresses []netip.Addr, family plan.Family) netip.Addr {
	for _, a := range addresses {
		if plan.FamilyOf(a) == family {
			return a
		}
	}
	return netip.Addr{}
}
