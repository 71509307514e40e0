package probe

import (
	"cmp"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/plan"
)

// Node is what a prober has to know of a node, its own included.
type Node struct {
	Name, UID string
	Outer     []netip.Addr // in the fabric, at most one per family
	Sources   []netip.Addr // in the pod network; the first of a family is what it sends from
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
	MTU        plan.MTUPolicy
	// UplinkMTUs maps a node's address in the fabric -> bytes that the uplink to
	// it takes. Sizes are looked at only where it says something.
	UplinkMTUs map[netip.Addr]int
}

// tunnels reports whether any tunnel is allowed.
func (v View) tunnels() bool {
	return slices.Contains(v.Transports, plan.IPIP) || slices.Contains(v.Transports, plan.VXLAN)
}

// Path is one way to one node: where a message is sent, and in what.
type Path struct {
	Transport          plan.Transport
	InnerSrc, InnerDst netip.Addr
	OuterSrc, OuterDst netip.Addr
	SrcMAC, DstMAC     plan.MAC // for vxlan
	Port               uint16   // for vxlan: the outer destination port
	VNI                uint32   // for vxlan
	Hops               byte     // hop limit of the inner packet; 0 for the usual one
	SrcPort            uint16   // of the inner packet; 0 for the package's Port
	// Offload leaves the inner checksum of a packet by vxlan to whatever it leaves
	// by, as the kernel does with pods' packets.
	Offload bool
	// Full is the largest inner packet in bytes that routes by this path take;
	// 0 if it is not known.
	Full int
}

// Packet returns the bytes that carry the message by the path: for direct and
// ipip a whole IP packet, for vxlan the payload of a UDP datagram to OuterDst and
// Port.
func (p Path) Packet(message []byte) []byte {
	inner := p.inner(message)
	switch p.Transport {
	case plan.Direct:
		return inner
	case plan.IPIP:
		return encapsulate(p.OuterSrc, p.OuterDst, inner)
	default:
		return vxlanFrame(p.VNI, p.SrcMAC, p.DstMAC, inner)
	}
}

// inner returns the packet as it arrives.
func (p Path) inner(message []byte) []byte {
	return udpPacket(netip.AddrPortFrom(p.InnerSrc, cmp.Or(p.SrcPort, Port)), netip.AddrPortFrom(p.InnerDst, Port), cmp.Or(p.Hops, fullHops), message)
}

// headers returns the bytes of the inner packet that are not the message.
func (p Path) headers() int {
	if p.InnerDst.Is4() {
		return ipv4Header + udpHeader
	}
	return ipv6Header + udpHeader
}

// along returns the path of a leg beside p, a path by direct.
func (p Path) along(l leg) Path {
	switch l {
	case legUnderlay:
		p.InnerSrc, p.InnerDst = p.OuterSrc, p.OuterDst
	case legSource:
		p.InnerDst = p.OuterDst
	case legDestination:
		p.InnerSrc = p.OuterSrc
	}
	return p
}

// key names what is proven: a family of a node by a transport, and by direct one
// address of it.
type key struct {
	node      string
	family    plan.Family
	transport plan.Transport
	address   netip.Addr
}

func keyOf(node string, p Path) key {
	k := key{node: node, family: plan.FamilyOf(p.InnerDst), transport: p.Transport}
	if p.Transport == plan.Direct {
		k.address = p.InnerDst // a route of its own leads to each
	}
	return k
}

// paths lists every path to a node that the plan may choose, in the order of
// families and then of preference.
func (v View) paths(to Node) []Path {
	var found []Path
	for _, family := range []plan.Family{plan.IPv4, plan.IPv6} {
		for _, transport := range v.ways(to, family) {
			p, ok := v.path(to, family, transport)
			if !ok {
				continue
			}
			found = append(found, p)
			for _, a := range to.Sources {
				if transport == plan.Direct && a != p.InnerDst && plan.FamilyOf(a) == family {
					further := p
					further.InnerDst = a
					found = append(found, further)
				}
			}
		}
	}
	return found
}

// ways lists the allowed transports that can carry a family to a node, whether
// or not one of the two refuses it. In the place of ipip that cannot, vxlan does,
// and also where nothing else can (see package plan).
func (v View) ways(to Node, family plan.Family) []plan.Transport {
	var found []plan.Transport
	for _, transport := range v.Transports {
		if !v.carries(to, family, transport) {
			if transport != plan.IPIP {
				continue
			}
			transport = plan.VXLAN
		}
		if !slices.Contains(found, transport) {
			found = append(found, transport)
		}
	}
	if len(found) == 0 {
		found = append(found, plan.VXLAN)
	}
	return found
}

func (v View) carries(to Node, family plan.Family, transport plan.Transport) bool {
	_, dst := v.underlay(to, family, transport)
	return dst.IsValid()
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
	p.OuterSrc, p.OuterDst = v.underlay(to, family, transport)
	if mtu := v.UplinkMTUs[p.OuterDst]; mtu > 0 {
		p.Full = plan.RouteMTU(v.MTU, transport, plan.FamilyOf(p.OuterDst), mtu)
	}
	ok := p.InnerSrc.IsValid() && p.InnerDst.IsValid() && p.OuterSrc.IsValid() && p.OuterDst.IsValid()
	return p, ok
}

// underlay returns the two nodes' addresses that a transport of packets of the
// family goes between, or two invalid ones.
func (v View) underlay(to Node, family plan.Family, transport plan.Transport) (src, dst netip.Addr) {
	switch {
	case transport == plan.IPIP && family != plan.IPv4:
		return netip.Addr{}, netip.Addr{}
	case transport == plan.IPIP, transport == plan.Direct:
		return v.outer(to, family)
	}
	if src, dst = v.outer(to, plan.IPv4); dst.IsValid() {
		return src, dst
	}
	return v.outer(to, plan.IPv6)
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

// nodeByAddress finds the node that an address is of, in the pod network or in
// the fabric.
func (v View) nodeByAddress(a netip.Addr) (Node, bool) {
	i := slices.IndexFunc(v.Nodes, func(n Node) bool { return slices.Contains(n.Sources, a) || slices.Contains(n.Outer, a) })
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
