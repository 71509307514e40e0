package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// What a Network means where it says nothing.
const (
	DefaultVXLANPort = 4789
	DefaultVXLANVNI  = 4096
)

// maxVNI is the largest VXLAN network identifier (RFC 7348, section 5: 24 bits).
const maxVNI = 1<<24 - 1

// Bounds in bytes of a fixed MTU for pods. IPv6 needs the lower one (RFC 8200,
// section 5).
const (
	minFixedMTU = 1280
	maxFixedMTU = 65535
)

// Reasons of Problems.
const (
	ReasonNoPodCIDRs          = "NoPodCIDRs"
	ReasonInvalidPodCIDR      = "InvalidPodCIDR"
	ReasonInvalidFabricCIDR   = "InvalidFabricCIDR"
	ReasonInvalidMetadata     = "InvalidMetadata"
	ReasonUnknownTransport    = "UnknownTransport"
	ReasonInvalidVXLAN        = "InvalidVXLAN"
	ReasonInvalidMTU          = "InvalidMTU"
	ReasonUnknownNode         = "UnknownNode"
	ReasonDuplicateName       = "DuplicateName"
	ReasonNoAddress           = "NoAddress"
	ReasonInvalidAddress      = "InvalidAddress"
	ReasonAddressInPodNetwork = "AddressInPodNetwork"
	ReasonDuplicateAddress    = "DuplicateAddress"
	ReasonNoNodeCIDR          = "NoNodeCIDR"
	ReasonInvalidCIDR         = "InvalidCIDR"
	ReasonOutsidePodNetwork   = "OutsidePodNetwork"
	ReasonOverlap             = "Overlap"
	ReasonNoTransport         = "NoTransport"
	ReasonAllTransportsFail   = "AllTransportsFail"
	ReasonTransportHeld       = "TransportHeld"
)

// cluster is a Snapshot that was checked: what does not make sense is left out
// and named in problems.
type cluster struct {
	self  string
	net   Network
	nodes []Node         // the older first; names are unique
	index map[string]int // name -> position in nodes
	// claims are the ranges that the nodes own, by position in nodes; where
	// two nodes claim the same address, the longer prefix owns it.
	claims [][]claim
	// contested are the claims that overlap another node's.
	contested []claim
	held      map[PeerWay]string // Snapshot.HeldBack
	// astray maps family -> why the fabric may drop what the node itself sends
	// bare; missing where it does not.
	astray map[Family]string
	// singles are the addresses that nodes hold by themselves, asked those that
	// they wait for; both in order.
	singles, asked []single
	// apart maps node -> its singles that lie in none of its ranges: the others
	// are reached as these are.
	apart map[int][]netip.Prefix
	// diverted maps node -> the addresses in its ranges that the fabric may lead
	// elsewhere (Network.Diverted).
	diverted map[int][]netip.Prefix
	problems []Problem
}

// check takes a snapshot apart without keeping any part of it.
func check(self string, network Network, nodes []Node) *cluster {
	c := &cluster{self: self}
	c.checkNetwork(network)
	c.checkNodes(nodes)
	c.checkAddresses()
	c.collectClaims()
	c.collectSingles()
	c.collectDiverted()
	return c
}

func (c *cluster) problem(node, reason, format string, args ...any) {
	c.problems = append(c.problems, Problem{Node: node, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (c *cluster) checkNetwork(in Network) {
	c.net = in
	c.net.PodCIDRs = nil
	for _, p := range in.PodCIDRs {
		if q := cidr.Plain(p); q.IsValid() {
			c.net.PodCIDRs = append(c.net.PodCIDRs, q)
		} else {
			c.problem("", ReasonInvalidPodCIDR, "the pod network has the range %s, which is no CIDR, and is used without it: write it as 10.244.0.0/16 in ClusterNetwork's podCIDRs", p)
		}
	}
	c.net.PodCIDRs = cidr.Aggregate(c.net.PodCIDRs)
	if len(c.net.PodCIDRs) == 0 {
		c.problem("", ReasonNoPodCIDRs, "the pod network has no ranges, so no node's pods can be reached: give ClusterNetwork's podCIDRs at least one CIDR")
	}
	c.net.Transports = c.checkTransports(in.Transports)
	c.net.FabricCIDRs = nil
	for _, p := range in.FabricCIDRs {
		if q := cidr.Plain(p); q.IsValid() {
			c.net.FabricCIDRs = append(c.net.FabricCIDRs, q)
		} else {
			c.problem("", ReasonInvalidFabricCIDR, "the fabric has the range %s, which is no CIDR; pods' packets to it are translated: write it as 192.168.0.0/16 in ClusterNetwork's cloud.vpcCIDRs", p)
		}
	}
	c.net.FabricCIDRs = cidr.Aggregate(c.net.FabricCIDRs)
	if c.net.VXLANPort == 0 {
		c.net.VXLANPort = DefaultVXLANPort
	}
	if c.net.VXLANVNI > maxVNI {
		c.problem("", ReasonInvalidVXLAN, "the vxlan VNI %d is larger than %d; %d is used instead: correct ClusterNetwork's vxlan.vni", c.net.VXLANVNI, maxVNI, DefaultVXLANVNI)
		c.net.VXLANVNI = 0
	}
	if c.net.VXLANVNI == 0 {
		c.net.VXLANVNI = DefaultVXLANVNI
	}
	c.net.MTU = c.checkMTU(in.MTU)
	c.net.Metadata = c.checkMetadata(in.Metadata)
}

// checkTransports returns the known ones, each once, in the order of
// preference; where none is left, what an empty configuration means.
func (c *cluster) checkTransports(in []Transport) []Transport {
	var out []Transport
	for _, t := range in {
		switch {
		case t != Direct && t != IPIP && t != VXLAN:
			c.problem("", ReasonUnknownTransport, "the transport %q is not known and is not used: ClusterNetwork's transports may be %s, %s and %s", t, Direct, IPIP, VXLAN)
		case !slices.Contains(out, t):
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		return []Transport{IPIP, VXLAN}
	}
	return out
}

func (c *cluster) checkMTU(in MTUPolicy) MTUPolicy {
	switch in.Mode {
	case MTUPerRoute, MTUSmallest:
		return MTUPolicy{Mode: in.Mode}
	case "":
		return MTUPolicy{Mode: MTUPerRoute}
	case MTUFixed:
		if in.Bytes >= minFixedMTU && in.Bytes <= maxFixedMTU {
			return in
		}
		c.problem("", ReasonInvalidMTU, "an MTU of %d bytes for pods cannot be; %s is used instead: give ClusterNetwork's mtu a number from %d to %d", in.Bytes, MTUPerRoute, minFixedMTU, maxFixedMTU)
	default:
		c.problem("", ReasonInvalidMTU, "the MTU policy %q is not known; %s is used instead: ClusterNetwork's mtu may be %s, %s or a number of bytes", in.Mode, MTUPerRoute, MTUPerRoute, MTUSmallest)
	}
	return MTUPolicy{Mode: MTUPerRoute}
}

// byAge orders nodes: the older first, and one order for those of one second.
func byAge(a, b Node) int {
	return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.UID, b.UID), strings.Compare(a.Name, b.Name))
}

// checkNodes keeps one node for each name.
func (c *cluster) checkNodes(in []Node) {
	sorted := slices.Clone(in)
	slices.SortStableFunc(sorted, byAge)
	c.index = make(map[string]int, len(sorted))
	c.nodes = sorted[:0] // what is kept moves to the front: thousands of nodes are copied once
	for _, n := range sorted {
		if n.Name == "" {
			c.problem("", ReasonUnknownNode, "a node (UID %q) has no name and is left out", n.UID)
			continue
		}
		if _, twice := c.index[n.Name]; twice {
			c.problem(n.Name, ReasonDuplicateName, "two nodes are named %s; the older one is used: delete one of the Node objects", n.Name)
			continue
		}
		c.index[n.Name] = len(c.nodes)
		c.nodes = append(c.nodes, n)
	}
	if _, known := c.index[c.self]; c.self != "" && !known {
		c.problem(c.self, ReasonUnknownNode, "the cluster has no node named %s, which this agent was told to be: correct its node name, or register the node again", c.self)
	}
}

// checkAddresses leaves each node at most one address per family in the
// fabric, none of them a pod's or another node's.
func (c *cluster) checkAddresses() {
	holders := map[netip.Addr]int{}
	for i := range c.nodes {
		n := &c.nodes[i]
		n.Addresses = c.usableAddresses(n)
		for _, a := range n.Addresses {
			other, taken := holders[a]
			if !taken {
				holders[a] = i
				continue
			}
			// The younger Node object tells of the machine that has the address
			// now; the older one is what its predecessor left. A node's own
			// word about itself stands above both.
			loser, winner := other, i
			if c.nodes[other].Name == c.self {
				loser, winner = i, other
			}
			holders[a] = winner
			c.dropAddress(loser, winner, a)
		}
	}
	for _, n := range c.nodes {
		if len(n.Addresses) == 0 {
			c.problem(n.Name, ReasonNoAddress, "node %s has no usable address, so its pods cannot be reached: set the kubelet's --node-ip, or see why the Node's status.addresses has no InternalIP", n.Name)
		}
	}
}

func (c *cluster) dropAddress(loser, winner int, a netip.Addr) {
	c.problem(c.nodes[loser].Name, ReasonDuplicateAddress, "nodes %s and %s both have the address %s; it is taken to be %s's: delete the Node object that is out of date, or correct the kubelet's --node-ip",
		c.nodes[loser].Name, c.nodes[winner].Name, a, c.nodes[winner].Name)
	c.nodes[loser].Addresses = slices.DeleteFunc(slices.Clone(c.nodes[loser].Addresses), func(b netip.Addr) bool { return a == b })
}

func (c *cluster) usableAddresses(n *Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Addresses {
		a = a.Unmap().WithZone("")
		switch {
		case !a.IsGlobalUnicast():
			c.problem(n.Name, ReasonInvalidAddress, "node %s has the address %s, which other nodes cannot send to; it is not used: set the kubelet's --node-ip", n.Name, a)
		case containedInAny(c.net.PodCIDRs, a):
			c.problem(n.Name, ReasonAddressInPodNetwork, "node %s has the address %s inside the pod network, so a tunnel to it would enter itself; it is not used: give the pod network a range that no node is in", n.Name, a)
		case !OfFamily(out, FamilyOf(a)).IsValid():
			out = append(out, a)
		}
	}
	return out
}
