package kube

import (
	"errors"
	"net/netip"
	"time"

	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/ipam/share"
	"ropeway.dev/ropeway/internal/plan"
)

// ErrNotSynced says that the API server has not yet been read. It is wrapped
// with what is missing; test with errors.Is.
var ErrNotSynced = errors.New("the API server has not been read yet")

// View is what the cluster looks like from one node. It is a value: nothing in
// it changes later.
type View struct {
	// Snapshot is the plan's input; its Self is the node. Its Network is the
	// zero value when no network is in force.
	Snapshot plan.Snapshot
	// NodeUID is the UID of the node's own Node object; empty when there is
	// none (yet).
	NodeUID string
	// Condition is NetworkUnavailable of the node, as Ropeway's controller
	// wrote it; nil when it has not spoken.
	Condition *NodeCondition
	// ControllerAlive is whether a controller renewed its Lease within
	// ControllerTimeout.
	ControllerAlive bool
	// Leases are all AddressBlocks, of all nodes, by CIDR.
	Leases []Lease
	// Pools are all pools, and Reserved what nobody gets of them; PoolsKnown is
	// false while they have not been read. NodeLabels are the node's own.
	Pools      []*pool.Pool
	Reserved   []netip.Prefix
	PoolsKnown bool
	NodeLabels map[string]string
	// Problem is why no network is in force, as a sentence; else empty.
	Problem string
	// NetworkGeneration is the generation of the ClusterNetwork that is in force.
	NetworkGeneration int64
}

// NodeCondition is the node condition NetworkUnavailable.
type NodeCondition struct {
	// Status is true when the node's network is unavailable.
	Status          bool
	Reason, Message string
}

// Lease is an AddressBlock in our words.
type Lease = share.Lease

// Pod is what Ropeway needs to know of a pod.
type Pod struct {
	Namespace, Name, UID string
	// ConfigHash identifies a static pod: the runtime knows it by this and
	// not by the mirror pod's UID. Empty for other pods.
	ConfigHash string
	// Deleting is true once the pod was asked to go.
	Deleting bool
}

// PodWords are what a pod and its namespace say of the addresses that it wants.
type PodWords struct {
	UID                          string
	ConfigHash                   string // of a static pod, as Pod's
	Labels, Annotations          map[string]string
	NamespaceLabels, NSAnnotated map[string]string
	// StatefulSet is the name of the pod's controller, and its UID, if it is one.
	StatefulSet, StatefulSetUID string
}

// NodeStatus is what a node's agent says of itself, for NodeNetwork.status.
type NodeStatus struct {
	// NodeUID is the UID of the Node that this speaks of; the current one's
	// when empty.
	NodeUID      string
	AgentVersion string
	Addresses    []netip.Addr   // own, in the fabric
	CIDRs        []netip.Prefix // own pod ranges
	Sources      []netip.Addr   // own, in the pod network
	// NetworkGeneration is the View's that the kernel is set by; 0 if it is not.
	NetworkGeneration int64
	VTEP              plan.MAC
	// Refuses maps transport -> why this node cannot use it; the transports
	// that it does not name are supported.
	Refuses map[plan.Transport]string
	// Peers maps transport -> how many peers are reached by it.
	Peers map[plan.Transport]int
	// Exceptions are the peers not reached as preferred; what exceeds
	// v1alpha1.MaxExceptions is cut off.
	Exceptions []Exception
	Probes     []Probe
	// Faults maps what the node found wrong with itself -> a sentence.
	Faults map[plan.Fault]string
	Pods   int // addresses in use
	// Pools maps pool (Kind/name) -> addresses of it in use.
	Pools map[string]int32
	// Programmed is whether the kernel holds what the plan wants,
	// AddressesUsable whether the node's own CIDRs can be used.
	Programmed, AddressesUsable Condition
	// Conflist is whether the conflist is as its template says; without a
	// Reason nothing is said of it (there is none yet).
	Conflist Condition
}

// Condition is the status of a condition and why.
type Condition struct {
	Status          bool
	Reason, Message string // Reason is one CamelCase word
}

// Exception is a peer that is reached by another than the preferred transport,
// or (Transport empty) not at all.
type Exception struct {
	Node      string
	Transport plan.Transport
	Reason    string
}

// Probe is a probe's result with the time of its last flip; From is ignored in
// a NodeStatus. A zero Since means: since this is published, or since it was
// published first with the same result.
type Probe struct {
	plan.Probe
	Since time.Time
}
