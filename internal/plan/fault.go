package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Fault is what is wrong with a path between two nodes, or with a node, in one
// word: the same in the API, metrics, events and ropeway doctor.
type Fault string

// The faults.
const (
	// Protocol4Blocked: ipip's packets do not arrive, others do.
	Protocol4Blocked Fault = "Protocol4Blocked"
	// VXLANBlocked: vxlan's UDP port does not pass, others do.
	VXLANBlocked Fault = "VXLANBlocked"
	// NodeSilent: nothing from the node's prober arrives by any way.
	NodeSilent Fault = "NodeSilent"
	// DirectBlocked: bare packets do not arrive, whether their source is a
	// pod's address or their destination is.
	DirectBlocked Fault = "DirectBlocked"
	// RouteMissing: bare packets to the node's range do not arrive, from
	// whatever source.
	RouteMissing Fault = "RouteMissing"
	// WrongNextHop: bare packets to the node's range arrive at another node.
	WrongNextHop Fault = "WrongNextHop"
	// PodCIDRNotAllowed: bare packets from a pod's address do not arrive, even
	// where the destination is the node itself.
	PodCIDRNotAllowed Fault = "PodCIDRNotAllowed"
	// SourceDestCheck: an interface of the cloud drops what is not from or to
	// its own addresses. Only the cloud's API can say so.
	SourceDestCheck Fault = "SourceDestCheck"
	// OtherRouteTable: the node's subnet goes by a route table that nobody
	// writes. Only the cloud's API can say so.
	OtherRouteTable Fault = "OtherRouteTable"
	// InstanceNotRunning: the cloud says that the machine does not run.
	InstanceNotRunning Fault = "InstanceNotRunning"
	// MTUBlackHole: packets get lost that are no larger than they may be.
	MTUBlackHole Fault = "MTUBlackHole"
	// ChecksumOffload: packets whose inner checksum is left to the network
	// interface arrive with a wrong one.
	ChecksumOffload Fault = "ChecksumOffload"
	// ReversePathFilter: somebody sets the node's rp_filter to strict.
	ReversePathFilter Fault = "ReversePathFilter"
	// ProberFault: everything that the node probes stopped to answer at the
	// same moment, so its results are not believed.
	ProberFault Fault = "ProberFault"
)

// remedies maps fault -> what to do, as an order.
func remedies() map[Fault]string {
	return map[Fault]string{
		Protocol4Blocked:   "allow protocol 4 between the nodes in the security group and the nodes' firewalls (a cloud's rule for it is one for all protocols), or leave ipip out of spec.transports",
		VXLANBlocked:       "allow UDP to the vxlan port (4789, unless spec.vxlan.port says otherwise) between the nodes in the security group and the nodes' firewalls, or leave vxlan out of spec.transports",
		NodeSilent:         "see whether the node and its agent run; if they do, allow protocol 4 or the vxlan port between the nodes, in the security group and the nodes' firewalls",
		DirectBlocked:      "give the fabric a route for each node's range to that node; switch off the source and destination check of the nodes' interfaces (SourceDestCheck); allow all protocols from the pod network in the security group",
		RouteMissing:       "give the fabric a route for the range to its node (ropeway routes shows the cloud's), in the table of the sender's subnet; switch off the node's SourceDestCheck",
		WrongNextHop:       "correct the next hop of the fabric's route for the range (ropeway routes shows the cloud's)",
		PodCIDRNotAllowed:  "allow all protocols from the pod network in the security group and the nodes' firewalls; switch off the sender's SourceDestCheck",
		SourceDestCheck:    "switch SourceDestCheck off on the interface",
		OtherRouteTable:    "add the table to spec.cloud.routeTableIDs of the ClusterNetwork",
		InstanceNotRunning: "start the instance, or remove its Node",
		MTUBlackHole:       "make every interface on the way as large as the nodes', or let it answer with ICMP; until then, routes' MTU is lowered to what passes",
		ChecksumOffload:    "update the network interface's driver or firmware; until then, the node computes the checksums of vxlan packets itself",
		ReversePathFilter:  "remove the setting from /etc/sysctl.d, or from the program that writes it; until then, the agent sets it back",
		ProberFault:        "look at the node's uplink and at the agent's log there; routes stay as they are",
	}
}

// Remedy says what to do, where nothing more exact is known.
func (f Fault) Remedy() string { return remedies()[f] }

// Direct reports whether the fault keeps bare packets away.
func (f Fault) Direct() bool {
	switch f {
	case DirectBlocked, RouteMissing, WrongNextHop, PodCIDRNotAllowed, SourceDestCheck, OtherRouteTable, InstanceNotRunning:
		return true
	}
	return false
}

// Defect is a fault at one place.
type Defect struct {
	Fault Fault
	// Node is whom it keeps packets from, or who has it.
	Node string
	// From is the node that found it: Node itself for a fault of its own.
	From      string
	Family    Family    // of a path
	Transport Transport // of a path
	Message   string    // what and where
	Remedy    string    // what to do, where something more exact is known than the fault's own
	// Degraded is true where packets find no other allowed way.
	Degraded bool
}

// Defects returns what the nodes have found: on the paths that the configuration
// allows, to nodes as they are now, and of themselves. What a node found on a path
// before it fell silent is left out: nobody would ever take it back. They are in
// the order of faults, nodes and finders.
func Defects(s Snapshot) []Defect {
	c := check("", s.Network, s.Nodes)
	found := weigh(c, s.Probes, nil)
	var out []Defect
	for _, n := range c.nodes {
		for fault, message := range n.Faults {
			out = append(out, Defect{Fault: fault, Node: n.Name, From: n.Name, Message: message})
		}
	}
	for p := range ProbesOf(s.Probes) {
		to, known := c.index[p.To]
		from, fromKnown := c.index[p.From]
		if p.Fault == "" || !known || !fromKnown || c.nodes[from].Silent || c.nodes[to].UID != p.ToUID {
			continue
		}
		if !slices.Contains(c.ways(to, p.Family), p.Transport) {
			continue
		}
		_, verdict := c.proven(to, p.Family, found)
		out = append(out, Defect{Fault: p.Fault, Node: p.To, From: p.From, Family: p.Family, Transport: p.Transport,
			Message: p.Reason, Degraded: !verdict.Reachable})
	}
	slices.SortFunc(out, func(a, b Defect) int {
		return cmp.Or(cmp.Compare(a.Fault, b.Fault), strings.Compare(a.Node, b.Node), strings.Compare(a.From, b.From),
			cmp.Compare(a.Family, b.Family), cmp.Compare(a.Transport, b.Transport))
	})
	return out
}

// ways returns the transports that may carry the family to a node.
func (c *cluster) ways(to int, f Family) []Transport {
	out := Allowed(c.net, f)
	if !OfFamily(c.nodes[to].Addresses, f).IsValid() && !slices.Contains(out, VXLAN) {
		out = append(out, VXLAN)
	}
	return out
}

// FaultReport is one fault, wherever it is.
type FaultReport struct {
	Fault   Fault
	Nodes   []string // whom it concerns, in order
	Message string   // of the first
	Remedy  string
	// Degraded is true where for one of the nodes there is no other way.
	Degraded bool
}

// Summarize puts defects of the same fault together, in the order of faults.
func Summarize(defects []Defect) []FaultReport {
	byFault := map[Fault]*FaultReport{}
	for _, d := range defects {
		r := byFault[d.Fault]
		if r == nil {
			r = &FaultReport{Fault: d.Fault}
			byFault[d.Fault] = r
		}
		if len(r.Nodes) == 0 || d.Node < r.Nodes[0] {
			r.Message, r.Remedy = d.Message, cmp.Or(d.Remedy, d.Fault.Remedy())
		}
		at, known := slices.BinarySearch(r.Nodes, d.Node)
		if !known {
			r.Nodes = slices.Insert(r.Nodes, at, d.Node)
		}
		r.Degraded = r.Degraded || d.Degraded
	}
	var out []FaultReport
	for _, fault := range slices.Sorted(maps.Keys(byFault)) {
		out = append(out, *byFault[fault])
	}
	return out
}

// String is "RouteMissing at 3 nodes, such as b: sentence".
func (r FaultReport) String() string {
	if len(r.Nodes) == 0 {
		return fmt.Sprintf("%s: %s", r.Fault, r.Message)
	}
	where := "node " + r.Nodes[0]
	if len(r.Nodes) > 1 {
		where = fmt.Sprintf("%d nodes, such as %s", len(r.Nodes), r.Nodes[0])
	}
	return fmt.Sprintf("%s at %s: %s", r.Fault, where, r.Message)
}
