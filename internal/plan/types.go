// Package plan computes what every node's kernel should hold so that each pod
// CIDR is reached by the best transport that is allowed and not found failing.
// It is pure: a Snapshot in, a State out; no I/O, clock, goroutine or logger.
package plan

import "net/netip"

// Transport is a way to carry packets to the node that owns a destination.
type Transport string

// The transports. Local is a destination that the node itself owns. Direct
// leaves packets bare: the fabric's own routes lead to the owner. It is the only
// one that needs somebody else's doing, so it is used where it is proven; the
// tunnels are used where they are not found failing.
const (
	Local  Transport = "local"
	Direct Transport = "direct"
	IPIP   Transport = "ipip"
	VXLAN  Transport = "vxlan"
)

// Family is an address family, spelled as Kubernetes does.
type Family string

// The families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() || a.Is4In6() {
		return IPv4
	}
	return IPv6
}

// MAC is an Ethernet address.
type MAC [6]byte

// MTU policies.
const (
	MTUPerRoute = "perRoute"
	MTUSmallest = "smallest"
	MTUFixed    = "fixed"
)

// MTUPolicy says how large packets may be.
type MTUPolicy struct {
	Mode  string // MTUPerRoute, MTUSmallest or MTUFixed
	Bytes int    // for MTUFixed: the pods' MTU
}

// Network is the cluster-wide configuration in force.
type Network struct {
	ClusterID string         // UID of the kube-system namespace
	PodCIDRs  []netip.Prefix // of one or both families
	NodeCIDR  bool           // addresses come from spec.podCIDRs, not from blocks
	// Shared are parts of PodCIDRs that are leased to nodes address by address:
	// nobody gives others of them, whoever's podCIDR they are in.
	Shared []netip.Prefix
	// Diverted are addresses that the fabric has routes of their own to, or may still
	// have: where these lead, and where the addresses are, changes at different times.
	Diverted []netip.Addr
	// Resting are single addresses that are kept for pods which do not run: no node has
	// them.
	Resting    []netip.Addr
	BlockBits  map[Family]int // family -> prefix length of a block
	Transports []Transport    // allowed, the most preferred first
	VXLANPort  uint16
	VXLANVNI   uint32
	MTU        MTUPolicy
	Masquerade bool // translate what leaves the pod network
	// FabricCIDRs are where the fabric's own routes hold: a pod whose range is
	// proven direct needs no translation towards them.
	FabricCIDRs []netip.Prefix
	// Metadata says which pods may reach the cloud's metadata service.
	Metadata MetadataAccess
}

// Node is one node as the cluster knows it.
type Node struct {
	Name, UID string
	// Created is when the Node object was made, in seconds since 1970. Where
	// two nodes claim the same range, the older one keeps it.
	Created int64
	// Silent is true while the cluster hears nothing of the machine.
	Silent bool
	// Addresses are the node's own in the fabric, at most one per family.
	Addresses []netip.Addr
	// NodeCIDRs are spec.podCIDRs, as the Node object has them.
	NodeCIDRs []netip.Prefix
	// Blocks are the leases that the node holds.
	Blocks []netip.Prefix
	// Singles are addresses that the node holds by themselves, wherever they
	// lie; Asked are those that it waits for: until the node whose range they
	// lie in has let go of them, nobody gives them.
	Singles, Asked []netip.Addr
	// Holds are ranges that the node's agent says are in use there. Those of
	// NodeCIDRs that are among them are the node's also where addresses come
	// from blocks: pods may still have addresses of before.
	Holds []netip.Prefix
	// Ready is true once the node's agent has said, for this UID, that its
	// kernel is programmed; the fields below are its words.
	Ready bool
	// Sources are the node's own addresses in the pod network, which no pod
	// gets. The first of a family is what the node sends from; the others are
	// there to be probed, one in each further range that the node owns.
	Sources []netip.Addr
	VTEP    MAC // of the node's vxlan device
	// Refuses maps transport -> why the node cannot receive by it.
	Refuses map[Transport]string
	// Faults maps what the node found wrong with itself -> a sentence.
	Faults map[Fault]string
}

// Probe is what one node found when it tried to reach another's pod-network
// address by one transport.
type Probe struct {
	From, To  string // names of nodes
	ToUID     string // UID of the destination that was probed
	Family    Family // of the inner packet
	Transport Transport
	// Address is the one that was probed, where the Transport is Direct: each
	// range has a route of its own in the fabric. Without it, the first of the
	// node's Sources is meant.
	Address   netip.Addr
	Reachable bool
	// Fault is what is wrong with the path, as far as the prober can tell. A
	// path that is reachable may have one: packets of full size get lost.
	Fault  Fault
	Reason string // what was seen, instead of an answer or beside it
	// PathMTU is the largest packet in bytes, without what the transport adds,
	// that a path with an MTUBlackHole carries; 0 without one.
	PathMTU int
}

// Snapshot is everything that the plan depends on.
type Snapshot struct {
	Self    string // name of the node that the plan is for
	Network Network
	Nodes   []Node      // all of them, Self included
	Probes  []Published // by all nodes
	// Own are Self's latest probes. Unless they are nil, what Self has published
	// does not count.
	Own []Probe
	// Now are the routes that Self's kernel has: a way in use is left only for
	// one that is proven, or that is at least no worse.
	Now []Route
	// HeldBack maps a way that was left -> why it is not gone back to yet, where
	// what is in use works (Moves.Hold).
	HeldBack map[PeerWay]string
	// Pods are Self's own.
	Pods []LocalPod
	// BadOffload is true once Self's interface was found to get the checksums of
	// packets inside vxlan wrong.
	BadOffload bool
}

// State is what one node's kernel should hold. It is plain data: two equal
// snapshots give two equal States, in one order.
type State struct {
	Self       string
	Addresses  []netip.Addr   // own, in the fabric
	Sources    []netip.Addr   // own, in the pod network, as Node.Sources: assigned to lo
	CIDRs      []netip.Prefix // own destinations, aggregated
	Singles    []netip.Prefix // own addresses outside CIDRs, one by one
	PodCIDRs   []netip.Prefix // pods' packets to these leave untranslated
	Transports []Transport    // allowed, and others in use; MTU and MSS follow the smallest
	VXLAN      VXLANDevice
	MTU        MTUPolicy
	Masquerade bool
	// Bare says where pods' packets to outside the pod network leave
	// untranslated although Masquerade is set.
	Bare Bare
	// Metadata says which of the node's pods reach the metadata service.
	Metadata Metadata
	Peers    []Peer    // by name
	Routes   []Route   // by destination
	Problems []Problem // what a person must know, by node
}

// Bare is what leaves untranslated: packets from one of Sources to one of
// Destinations. Both are empty unless other nodes have proven that the fabric
// leads to Sources by itself; what has answers to come back for is translated
// otherwise.
type Bare struct {
	Sources      []netip.Prefix // own ranges that are proven direct
	Destinations []netip.Prefix // Network.FabricCIDRs
}

// VXLANDevice are the parameters of the node's vxlan device.
type VXLANDevice struct {
	VNI  uint32
	Port uint16
	MAC  MAC
	// Checksums is true where the node computes those of the packets inside,
	// since its interface gets them wrong.
	Checksums bool
}

// Peer is another node: whom to accept encapsulated packets from, and which
// inner sources with that outer source.
type Peer struct {
	Name      string
	Addresses []netip.Addr
	Sources   []netip.Addr
	CIDRs     []netip.Prefix
	VTEP      MAC
}

// Route says how one destination is reached.
type Route struct {
	Dst       netip.Prefix
	Peer      string // name of the owner
	Transport Transport
	Outer     netip.Addr // the owner's address in the fabric
	Gateway   netip.Addr // the owner's pod-network address of Dst's family: vxlan's next hop
	Source    netip.Addr // preferred source of what this node itself sends; may be invalid (none)
	VTEP      MAC
	MTU       int    // the largest packet in bytes that the path is found to carry; 0: what the uplink allows
	Reason    string // why this transport
	// OffFabric is true where single addresses keep the packets off the fabric: that
	// they go by a tunnel is no fault.
	OffFabric bool
}

// Problem is something wrong with a node's input that the plan worked around.
type Problem struct {
	Node    string // whose
	Reason  string // CamelCase, for conditions
	Message string // what, where, what to do
}
