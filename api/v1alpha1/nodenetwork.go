package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Conditions of a NodeNetwork.
const (
	// ConditionProgrammed is True when the node's kernel holds the state that
	// the plan wants.
	ConditionProgrammed = "Programmed"
	// ConditionAddressesUsable is False when the node's CIDRs cannot be used:
	// outside the pod network, overlapping another node's, or missing.
	ConditionAddressesUsable = "AddressesUsable"
	// ConditionConflistInstalled is False when the conflist cannot be made from
	// its template; what was installed before stays.
	ConditionConflistInstalled = "ConflistInstalled"
)

// MaxExceptions bounds NodeNetworkStatus.Exceptions.
const MaxExceptions = 32

// NodeNetworkSpec is what other nodes have to know of a node's machine. The
// controller copies it from the Node object, so that no agent has to watch the
// cluster's Nodes: each of them is many times as large, and is written every few
// minutes for as long as it lives.
type NodeNetworkSpec struct {
	// NodeUID is the UID of the Node object that the rest is of.
	NodeUID string `json:"nodeUID,omitempty"`
	// NodeCreated is when that object was made.
	NodeCreated *metav1.Time `json:"nodeCreated,omitempty"`
	// Addresses are the node's internal addresses, in the Node's order.
	// +listType=atomic
	Addresses []string `json:"addresses,omitempty"`
	// PodCIDRs are the Node's spec.podCIDRs.
	// +listType=atomic
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// Silent is true while the cluster hears nothing of the node's kubelet.
	Silent bool `json:"silent,omitempty"`
}

// NodeNetworkStatus is what a node's agent says of itself and of the few peers
// that it proves. It never grows with the cluster.
type NodeNetworkStatus struct {
	// NodeUID is the UID of the Node object that this speaks of.
	NodeUID string `json:"nodeUID,omitempty"`
	// ReadySince is when the node's kernel first held the wanted state for this
	// UID. It stays when a later change cannot be programmed: what worked
	// before then still does.
	ReadySince *metav1.Time `json:"readySince,omitempty"`
	// AgentVersion is the version of the agent.
	AgentVersion string `json:"agentVersion,omitempty"`
	// Addresses are the node's own in the fabric, one per family.
	// +listType=atomic
	Addresses []string `json:"addresses,omitempty"`
	// CIDRs are the pod ranges that the node owns.
	// +listType=atomic
	CIDRs []string `json:"cidrs,omitempty"`
	// Sources are the node's own addresses in the pod network: first the one of
	// each family that it sends from, then, where direct is allowed, those at
	// which its further ranges are probed.
	// +listType=atomic
	Sources []string `json:"sources,omitempty"`
	// VTEP is the MAC address of the node's vxlan device.
	VTEP string `json:"vtep,omitempty"`
	// Transports says which transports the node can receive and send by.
	// +listType=map
	// +listMapKey=name
	Transports []TransportStatus `json:"transports,omitempty"`
	// NetworkGeneration is the generation of the ClusterNetwork that the node's
	// kernel is set by; by this and Peers it is known when every node has left a
	// transport that is allowed no more.
	NetworkGeneration int64 `json:"networkGeneration,omitempty"`
	// Peers counts this node's peers by the transport that it reaches them by.
	Peers map[string]int32 `json:"peers,omitempty"`
	// Exceptions are peers that are reached by another than the preferred
	// transport, or not at all; at most 32, in the order of names.
	// +kubebuilder:validation:MaxItems=32
	// +listType=atomic
	Exceptions []PeerException `json:"exceptions,omitempty"`
	// Probes are what this node found of the nodes that it was chosen to prove.
	// +listType=atomic
	Probes []ProbeResult `json:"probes,omitempty"`
	// Faults are what this node found wrong with itself.
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=fault
	Faults []NodeFault `json:"faults,omitempty"`
	// Pods counts the addresses in use on the node.
	Pods int32 `json:"pods,omitempty"`
	// Pools counts the addresses in use on the node, by address pool
	// (Kind/name).
	Pools map[string]int32 `json:"pools,omitempty"`
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// TransportStatus is whether a node can use a transport.
type TransportStatus struct {
	Name      string `json:"name"`
	Supported bool   `json:"supported"`
	// Reason says why not.
	Reason string `json:"reason,omitempty"`
}

// PeerException is a peer that is not reached as preferred.
type PeerException struct {
	Node      string `json:"node"`
	Transport string `json:"transport,omitempty"`
	Reason    string `json:"reason"`
}

// ProbeResult is whether a destination node was reached by a transport.
type ProbeResult struct {
	Node string `json:"node"`
	// NodeUID is the UID of the probed Node object.
	NodeUID   string `json:"nodeUID"`
	Family    string `json:"family"` // IPv4 or IPv6
	Transport string `json:"transport"`
	// Address is the one of the node's sources that was probed, where the
	// transport is direct; without it, the first.
	Address   string `json:"address,omitempty"`
	Reachable bool   `json:"reachable"`
	// Fault is what is wrong with the path, in one word such as RouteMissing. A
	// path that is reachable may have one, such as MTUBlackHole.
	Fault string `json:"fault,omitempty"`
	// PathMTU is the largest packet in bytes, without what the transport adds,
	// that a path with an MTUBlackHole carries.
	PathMTU int32 `json:"pathMTU,omitempty"`
	// Reason says what was seen, instead of an answer or beside it.
	Reason string      `json:"reason,omitempty"`
	Since  metav1.Time `json:"since"`
}

// NodeFault is something that is wrong with a node.
type NodeFault struct {
	// Fault is one word, such as ReversePathFilter.
	Fault   string `json:"fault"`
	Message string `json:"message"`
}

// NodeNetwork is one node's part of the pod network: its machine, as the
// controller knows it, and what its agent says.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=nnet
// +kubebuilder:printcolumn:name="CIDRs",type=string,JSONPath=`.status.cidrs`
// +kubebuilder:printcolumn:name="Peers",type=string,JSONPath=`.status.peers`
// +kubebuilder:printcolumn:name="Pods",type=integer,JSONPath=`.status.pods`
// +kubebuilder:printcolumn:name="Programmed",type=string,JSONPath=`.status.conditions[?(@.type=="Programmed")].status`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.agentVersion`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type NodeNetwork struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is written by the controller, the status by the node's agent.
	Spec   NodeNetworkSpec   `json:"spec,omitempty"`
	Status NodeNetworkStatus `json:"status,omitempty"`
}

// NodeNetworkList is a list of NodeNetworks.
//
// +kubebuilder:object:root=true
type NodeNetworkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeNetwork `json:"items"`
}
