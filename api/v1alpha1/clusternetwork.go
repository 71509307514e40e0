package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ClusterNetworkName is the name of the one ClusterNetwork of a cluster.
const ClusterNetworkName = "default"

// Transport is a way to carry packets to the node that owns a destination.
//
// +kubebuilder:validation:Enum=direct;ipip;vxlan
type Transport string

// The transports that this version can carry packets by.
const (
	// TransportDirect leaves packets as they are: the fabric's own routes (a
	// VPC's route table, or a common layer-2 network) lead to the owner.
	TransportDirect Transport = "direct"
	TransportIPIP   Transport = "ipip"
	TransportVXLAN  Transport = "vxlan"
)

// AddressSource says where the addresses of a node's pods come from.
//
// +kubebuilder:validation:Enum=Blocks;NodeCIDR
type AddressSource string

const (
	// AddressesFromBlocks leases blocks of the pod CIDRs to nodes on demand.
	AddressesFromBlocks AddressSource = "Blocks"
	// AddressesFromNodeCIDR uses each node's spec.podCIDRs.
	AddressesFromNodeCIDR AddressSource = "NodeCIDR"
)

// ClusterNetworkSpec is the pod network that a person asks for.
//
// +kubebuilder:validation:XValidation:rule="!self.podCIDRs.all(c, isCIDR(c)) || self.podCIDRs.all(a, self.podCIDRs.exists_one(b, cidr(a).containsCIDR(cidr(b)) || cidr(b).containsCIDR(cidr(a))))",message="podCIDRs overlap: give ranges that have no address in common",fieldPath=".podCIDRs"
// +kubebuilder:validation:XValidation:rule="self.addressSource != 'Blocks' || !self.podCIDRs.all(c, isCIDR(c)) || self.podCIDRs.all(c, cidr(c).prefixLength() <= (cidr(c).ip().family() == 4 ? self.blockSize.ipv4 : self.blockSize.ipv6))",message="blocks are larger than one of podCIDRs: give a longer prefix length in blockSize, or a wider range",fieldPath=".blockSize"
type ClusterNetworkSpec struct {
	// PodCIDRs are the ranges that pods' addresses come from, of one or both
	// families, without overlap.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR such as 10.244.0.0/16 or fd00:10:244::/48, with no bits set behind the prefix"
	// +kubebuilder:validation:items:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() >= (cidr(self).ip().family() == 4 ? 8 : 16) && cidr(self).prefixLength() <= (cidr(self).ip().family() == 4 ? 29 : 125)",message="must be from /8 to /29 for IPv4, from /16 to /125 for IPv6"
	// +listType=atomic
	PodCIDRs []string `json:"podCIDRs"`

	// AddressSource says where a node's pod addresses come from.
	//
	// +kubebuilder:default=Blocks
	// +optional
	AddressSource AddressSource `json:"addressSource,omitempty"`

	// BlockSize is the prefix length of the blocks leased to nodes.
	//
	// +kubebuilder:default={}
	// +optional
	BlockSize BlockSize `json:"blockSize,omitempty"`

	// Transports are the allowed ways to reach another node's pods, the most
	// preferred first. A tunnel is used only where it is not found failing, and
	// direct only where it is proven; one entry alone means that one, strictly.
	//
	// +kubebuilder:default={ipip,vxlan}
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=3
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a == b))",message="Duplicate value: name each transport once"
	// +listType=atomic
	// +optional
	Transports []Transport `json:"transports,omitempty"`

	// VXLAN holds the parameters of the vxlan transport.
	//
	// +kubebuilder:default={}
	// +optional
	VXLAN VXLANSpec `json:"vxlan,omitempty"`

	// MTU is "perRoute" (pods take the uplink's, each route its transport's),
	// "smallest" (pods take the smallest allowed transport's), or a number of
	// bytes for pods.
	//
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? (self >= 1280 && self <= 65535) : self in ['perRoute', 'smallest']",message="must be perRoute, smallest, or a number of bytes from 1280 to 65535"
	// +kubebuilder:default=perRoute
	// +optional
	MTU *intstr.IntOrString `json:"mtu,omitempty"`

	// NAT says what is translated when it leaves the pod network.
	//
	// +kubebuilder:default={}
	// +optional
	NAT NATSpec `json:"nat,omitempty"`

	// Cloud is the cloud that the nodes run on, where Ropeway is to deal with
	// it. Without it, direct needs a fabric that knows the pods' ranges by
	// itself, such as a common layer-2 network.
	//
	// +optional
	Cloud *CloudSpec `json:"cloud,omitempty"`

	// MetadataAccess says which pods may reach the cloud's metadata service,
	// which gives the credentials of the instance's role to whoever asks. None
	// may, where it is absent.
	//
	// +optional
	MetadataAccess *MetadataAccess `json:"metadataAccess,omitempty"`
}

// MetadataAccess says which pods may reach the cloud's metadata service. Pods in
// their node's own network (hostNetwork) are the node, and always may.
type MetadataAccess struct {
	// Namespaces are those whose pods may; "*" means all.
	//
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=63
	// +kubebuilder:validation:items:Pattern=`^([a-z0-9]([-a-z0-9]*[a-z0-9])?|\*)$`
	// +listType=set
	// +optional
	Namespaces []string `json:"namespaces,omitempty"`

	// Addresses are the service's; 100.100.100.200, 169.254.169.254 and
	// fd00:ec2::254 when absent.
	//
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=45
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) && !ip(self).isUnspecified() && !ip(self).isLoopback()",message="must be an address such as 100.100.100.200 or fd00:ec2::254"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a == b))",message="Duplicate value: name each address once"
	// +listType=atomic
	// +optional
	Addresses []string `json:"addresses,omitempty"`
}

// BlockSize is a prefix length for each family.
type BlockSize struct {
	// +kubebuilder:default=26
	// +kubebuilder:validation:Minimum=20
	// +kubebuilder:validation:Maximum=31
	// +optional
	IPv4 int32 `json:"ipv4,omitempty"`
	// +kubebuilder:default=122
	// +kubebuilder:validation:Minimum=112
	// +kubebuilder:validation:Maximum=127
	// +optional
	IPv6 int32 `json:"ipv6,omitempty"`
}

// VXLANSpec are the parameters of the vxlan transport. They cannot change
// while the network is in use: nodes of two opinions would not hear each other.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the vxlan port and VNI cannot be changed on a live network: uninstall first"
type VXLANSpec struct {
	// +kubebuilder:default=4789
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	// +optional
	Port int32 `json:"port,omitempty"`
	// +kubebuilder:default=4096
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=16777215
	// +optional
	VNI int32 `json:"vni,omitempty"`
}

// NATSpec says what is translated when it leaves the pod network.
type NATSpec struct {
	// Outgoing translates a pod's address to its node's wherever the fabric
	// would not know the way back.
	//
	// +kubebuilder:default=true
	// +optional
	Outgoing *bool `json:"outgoing,omitempty"`
}

// CloudProvider is a cloud that this version knows.
//
// +kubebuilder:validation:Enum=alibaba
type CloudProvider string

// CloudAlibaba is Alibaba Cloud: VPC route tables by its OpenAPI.
const CloudAlibaba CloudProvider = "alibaba"

// CloudDuty says who does a part of the cloud's work.
//
// +kubebuilder:validation:Enum=ropeway;external;off
type CloudDuty string

const (
	// DutyRopeway lets Ropeway's controller do it.
	DutyRopeway CloudDuty = "ropeway"
	// DutyExternal leaves it to another program, such as the vendor's cloud
	// controller manager; Ropeway looks at what that does.
	DutyExternal CloudDuty = "external"
	// DutyOff leaves it undone.
	DutyOff CloudDuty = "off"
)

// CloudSpec says how to reach the cloud, and who does what there. Beside a
// vendor's cloud controller manager the defaults fit: routes by Ropeway, the
// rest by the vendor's.
//
// +kubebuilder:validation:XValidation:rule="self.nodes != 'ropeway' || has(self.provider)",message="nodes: ropeway needs a cloud to ask about instances: give provider",fieldPath=".nodes"
// +kubebuilder:validation:XValidation:rule="!has(self.fixedAddressRoutes) || self.fixedAddressRoutes == 0 || has(self.provider) && self.routes == 'ropeway'",message="entries for fixed addresses are made where Ropeway publishes the routes: give provider, and routes: ropeway",fieldPath=".fixedAddressRoutes"
// +kubebuilder:validation:XValidation:rule="!has(self.provider) || has(self.regionID) && size(self.regionID) > 0",message="a cloud provider needs the region: give regionID, such as cn-chengdu",fieldPath=".regionID"
// +kubebuilder:validation:XValidation:rule="!has(self.provider) || has(self.vpcID) && size(self.vpcID) > 0",message="a cloud provider needs the VPC: give vpcID, such as vpc-2vc...",fieldPath=".vpcID"
type CloudSpec struct {
	// Provider is the cloud; nothing is asked of one when it is absent.
	//
	// +optional
	Provider CloudProvider `json:"provider,omitempty"`

	// RegionID is the cloud's name of the region, such as cn-chengdu.
	//
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^([a-z0-9]+(-[a-z0-9]+)*)?$`
	// +optional
	RegionID string `json:"regionID,omitempty"`

	// VPCID is the cloud's id of the VPC that the nodes are in.
	//
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9-]*$`
	// +optional
	VPCID string `json:"vpcID,omitempty"`

	// RouteTableIDs are the route tables that pods' ranges are published in;
	// the VPC's only one when absent. Where it has several, they must be named.
	//
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=64
	// +kubebuilder:validation:items:Pattern=`^[A-Za-z0-9-]+$`
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a == b))",message="Duplicate value: name each route table once"
	// +listType=atomic
	// +optional
	RouteTableIDs []string `json:"routeTableIDs,omitempty"`

	// VPCCIDRs are the ranges inside which a pod's address is known: towards
	// them it is left as it is, once the pod's own range is proven direct.
	// Without any, it is translated towards everything but pods.
	//
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR such as 192.168.0.0/16, with no bits set behind the prefix"
	// +kubebuilder:validation:items:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() >= 8",message="must be /8 or longer: it is the VPC's own range, not the world"
	// +kubebuilder:validation:XValidation:rule="self.all(a, self.exists_one(b, a == b))",message="Duplicate value: name each range once"
	// +listType=atomic
	// +optional
	VPCCIDRs []string `json:"vpcCIDRs,omitempty"`

	// Endpoint is the host (with a port and a scheme where they are not the
	// usual ones) of the cloud's API, where it is not the region's for machines
	// of the VPC: a private endpoint, the lab's, or for a controller outside of
	// the VPC the public one, {product}.{region}.aliyuncs.com. {product} and
	// {region} stand for their names.
	//
	// +kubebuilder:validation:MaxLength=256
	// +optional
	Endpoint string `json:"endpoint,omitempty"`

	// Routes says who publishes the nodes' ranges in the provider's route
	// tables.
	//
	// +kubebuilder:default=ropeway
	// +optional
	Routes CloudDuty `json:"routes,omitempty"`

	// FixedAddressRoutes is how many fixed addresses may have an entry of their own
	// in each route table, while they are on a node whose range does not have them:
	// addresses of StatefulSets' pods, and those that a pod's annotation names. It is
	// for what is in the VPC and no node of the cluster; nodes reach such addresses by
	// tunnel, with an entry or without. The table's quota must have room for them beside
	// the nodes' ranges, which are published first.
	//
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=200
	// +optional
	FixedAddressRoutes int32 `json:"fixedAddressRoutes,omitempty"`

	// Nodes says who tells Kubernetes about the nodes' instances: providerID,
	// labels and addresses of a new node, the taint of a stopped one, and the
	// end of the Node whose instance is released. With ropeway, no other cloud
	// controller manager may do so.
	//
	// +kubebuilder:default=external
	// +optional
	Nodes CloudDuty `json:"nodes,omitempty"`

	// LoadBalancers says who makes the load balancers of Services. This version
	// has none of its own.
	//
	// +kubebuilder:default=external
	// +kubebuilder:validation:XValidation:rule="self != 'ropeway'",message="this version makes no load balancers: leave loadBalancers to external (the vendor's cloud controller manager), or set it to off"
	// +optional
	LoadBalancers CloudDuty `json:"loadBalancers,omitempty"`

	// CredentialsSecret names the Secret, in Ropeway's namespace, that holds
	// accessKeyID and accessKeySecret; when absent, the AccessKey in the
	// controller's environment is used, or else the RAM role of its instance.
	//
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$`
	// +optional
	CredentialsSecret string `json:"credentialsSecret,omitempty"`
}

// PublishesRoutes reports whether Ropeway is to publish routes in the cloud.
func (c *CloudSpec) PublishesRoutes() bool {
	return c != nil && c.Provider != "" && (c.Routes == "" || c.Routes == DutyRopeway)
}

// KeepsNodes reports whether Ropeway is to tell Kubernetes about the nodes'
// instances.
func (c *CloudSpec) KeepsNodes() bool {
	return c != nil && c.Provider != "" && c.Nodes == DutyRopeway
}

// Conditions of a ClusterNetwork.
const (
	// ConditionAccepted is False when the spec contradicts something else in
	// the cluster; what was in force before stays in force.
	ConditionAccepted = "Accepted"
	// ConditionNodesReachable is True when every node's CIDRs are proven.
	ConditionNodesReachable = "NodesReachable"
	// ConditionPolicyEnforced is False when the cluster has NetworkPolicies
	// that this version does not enforce.
	ConditionPolicyEnforced = "PolicyEnforced"
	// ConditionPathsSound is False when a path between nodes that the spec
	// allows does not carry what it should; status.faults says which and why.
	ConditionPathsSound = "PathsSound"
	// ConditionNodesKnown is True when the cloud shows the instance of every
	// node. It is there only with spec.cloud.nodes: ropeway.
	ConditionNodesKnown = "NodesKnown"
	// ConditionCloudRights is False when the cloud refuses an action that the
	// configuration needs to the controller's credentials. It is there only
	// where something is needed.
	ConditionCloudRights = "CloudRights"
)

// Bounds of lists in the ClusterNetworkStatus.
const (
	MaxFaults        = 16  // Faults
	MaxAddressRoutes = 512 // AddressRoutes
)

// ClusterNetworkStatus is what is in force.
type ClusterNetworkStatus struct {
	// ObservedGeneration is the generation that the conditions speak of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// InForce is the last accepted spec: what the nodes do.
	// +optional
	InForce *ClusterNetworkSpec `json:"inForce,omitempty"`
	// Nodes and ReachableNodes count nodes, and those proven reachable.
	// +optional
	Nodes int32 `json:"nodes"`
	// +optional
	ReachableNodes int32 `json:"reachableNodes"`
	// Faults are what is wrong with the paths between nodes, in the order of
	// names.
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=fault
	// +optional
	Faults []FaultReport `json:"faults,omitempty"`
	// AddressRoutes are single addresses that the cloud's route tables have entries
	// for, or are about to have, or may still have: nodes reach these by tunnel,
	// wherever they are.
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MaxLength=45
	// +listType=atomic
	// +optional
	AddressRoutes []string `json:"addressRoutes,omitempty"`
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// FaultReport is one fault, wherever in the cluster it is.
type FaultReport struct {
	// Fault is one word, such as RouteMissing.
	Fault string `json:"fault"`
	// Nodes counts the nodes that it concerns; Node is the first of them.
	Nodes int32  `json:"nodes"`
	Node  string `json:"node,omitempty"`
	// Message says what was seen, at that node.
	Message string `json:"message"`
	// Remedy says what to do.
	Remedy string `json:"remedy,omitempty"`
	// Degraded is true where packets find no other allowed way.
	Degraded bool `json:"degraded,omitempty"`
}

// ClusterNetwork is the cluster's pod network. There is one, named default.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=cnet
// +kubebuilder:validation:XValidation:rule="self.metadata.name == 'default'",message="there is one ClusterNetwork in a cluster, and its name is default"
// +kubebuilder:printcolumn:name="Pod CIDRs",type=string,JSONPath=`.spec.podCIDRs`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addressSource`
// +kubebuilder:printcolumn:name="Transports",type=string,JSONPath=`.spec.transports`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Reachable",type=integer,JSONPath=`.status.reachableNodes`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type ClusterNetwork struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ClusterNetworkSpec   `json:"spec"`
	Status ClusterNetworkStatus `json:"status,omitempty"`
}

// ClusterNetworkList is a list of ClusterNetworks.
//
// +kubebuilder:object:root=true
type ClusterNetworkList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ClusterNetwork `json:"items"`
}
