// Package cniwire is what the CNI plugin and the node's agent say to one
// another over a unix socket: one JSON request, one JSON response, one line
// each, one exchange per connection. It imports the standard library only,
// since the plugin starts once for every pod.
package cniwire

import (
	"net/netip"
	"time"
)

// Paths on the node, the same for plugin and agent. RunDir is cleared by a
// boot, as is everything that it speaks of.
const (
	RunDir       = "/run/ropeway"
	SocketPath   = RunDir + "/cni.sock"
	TombstoneDir = RunDir + "/tombstones"
)

// MaxMessage bounds a message in bytes; a longer one is refused.
const MaxMessage = 1 << 20

// DialTimeout is how long the plugin waits for an agent that is not there.
const DialTimeout = 30 * time.Second

// Verb is what is asked of the agent.
type Verb string

// The verbs. Add, Del, Check, Status and GC mirror the CNI specification's
// (1.1.0, section 2); Node asks for what a delegated IPAM plugin needs.
const (
	Add    Verb = "ADD"
	Del    Verb = "DEL"
	Check  Verb = "CHECK"
	Status Verb = "STATUS"
	GC     Verb = "GC"
	Node   Verb = "NODE"
)

// IsServed reports whether the agent gives addresses for an ipam.type.
func IsServed(ipamType string) bool {
	switch ipamType {
	case "ropeway-ipam", "calico-ipam", "spiderpool":
		return true
	}
	return false
}

// Address families, spelled as Kubernetes does.
const (
	FamilyIPv4 = "IPv4"
	FamilyIPv6 = "IPv6"
)

// Attachment names one interface of one sandbox: the key of an address.
type Attachment struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Pod is whose sandbox it is, from CNI_ARGS (K8S_POD_*); zero outside Kubernetes.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Request is what the plugin asks.
type Request struct {
	Version    int        `json:"version"`
	Verb       Verb       `json:"verb"`
	Attachment Attachment `json:"attachment"`
	Pod        Pod        `json:"pod,omitzero"`
	Netns      string     `json:"netns,omitempty"`
	// IPAM is the ipam.type of the configuration: one of ours (the agent
	// allocates), or another's (Addresses says what that plugin gave, and the
	// agent only records it).
	IPAM      string       `json:"ipam,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Families are the address families that the configuration asks for, of
	// FamilyIPv4 and FamilyIPv6, for Add with an ipam.type of ours; empty means
	// those of the network.
	Families []string `json:"families,omitempty"`
	// Retired says, for Del, that the attachment's link is out of use and is left
	// for the agent to remove, if the agent answers that it does (Reaps).
	Retired bool `json:"retired,omitempty"`
	// IPv4Pools and IPv6Pools are the address pools that the configuration
	// names, and Wanted exact addresses that the runtime asks for, for Add with
	// an ipam.type of ours.
	IPv4Pools []string     `json:"ipv4Pools,omitempty"`
	IPv6Pools []string     `json:"ipv6Pools,omitempty"`
	Wanted    []netip.Addr `json:"wanted,omitempty"`
	// OtherMain says, for Add, that another main plugin makes the interface (macvlan,
	// ptp). Only for such a one an address outside of the pod network will do.
	OtherMain bool `json:"otherMain,omitempty"`
	// Valid are the attachments that the runtime still knows, for GC
	// (cni.dev/valid-attachments).
	Valid []Attachment `json:"valid,omitempty"`
}

// Response is what the agent answers.
type Response struct {
	Version int    `json:"version"`
	Error   *Error `json:"error,omitempty"`
	// Addresses are the pod's, at most one per family, for Add and Check.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Subnets and Gateways belong to Addresses, index by index, for Add: the
	// CIDR of this node that the address is from, and the node's own address
	// in the pod network of that family (which no pod gets); or what the address's
	// pool states, where an underlay's may have no gateway (the zero Addr). The plugin
	// needs them where it serves addresses to another main plugin (ptp, bridge).
	Subnets  []netip.Prefix `json:"subnets,omitempty"`
	Gateways []netip.Addr   `json:"gateways,omitempty"`
	// Routes are those that the addresses' pools state, for Add: another main
	// plugin gives them to the interface that it makes. A pod of ours has one
	// way out, and all of its packets follow the node's routes.
	Routes []Route `json:"routes,omitempty"`
	// HostInterface is the name that the host end of the pod's veth has or gets.
	HostInterface string `json:"hostInterface,omitempty"`
	// MTU is the pod interface's, in bytes.
	MTU int `json:"mtu,omitempty"`
	// NodeCIDRs are the node's spec.podCIDRs, for Node: what host-local's
	// usePodCidr and usePodCidrIPv6 stand for.
	NodeCIDRs []netip.Prefix `json:"nodeCIDRs,omitempty"`
	// Reaps says, for Del, that the agent removes the retired link: soon, and
	// before it gives the addresses to anybody else.
	Reaps bool `json:"reaps,omitempty"`
	// AgentVersion is the agent's release.
	AgentVersion string `json:"agentVersion,omitempty"`
}

// Route is a route of a pod's interface.
type Route struct {
	Dst netip.Prefix `json:"dst"`
	Via netip.Addr   `json:"via"`
}

// Error is a failure as the CNI specification (1.1.0, section 5) reports it.
type Error struct {
	// Code is one of the specification's: 1-10 well known, 11 try again
	// later, 50 the plugin is not available, 100 and above our own.
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Codes used between agent and plugin (CNI specification 1.1.0, section 5).
const (
	CodeIncompatibleVersion = 1
	CodeInvalidEnvironment  = 4
	CodeIO                  = 5
	CodeDecode              = 6
	CodeInvalidConfig       = 7
	CodeTryAgainLater       = 11
	CodeNotAvailable        = 50
	CodeNoAddress           = 110
	CodeMismatch            = 111
	CodeInternal            = 112
)

// Error implements error.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + ": " + e.Details
}
