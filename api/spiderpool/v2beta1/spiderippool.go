package v2beta1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// IPPoolSpec says which addresses a pool gives, and to whom.
//
// +kubebuilder:validation:XValidation:rule="!has(self.ipVersion) || !isCIDR(self.subnet) || self.ipVersion == cidr(self.subnet).ip().family()",message="is not the family of the subnet",fieldPath=".ipVersion"
// +kubebuilder:validation:XValidation:rule="!has(self.gateway) || !isIP(self.gateway) || !isCIDR(self.subnet) || cidr(self.subnet).containsIP(ip(self.gateway))",message="is not inside the subnet",fieldPath=".gateway"
// +kubebuilder:validation:XValidation:rule="!has(self.gateway) || !has(self.ips) || !self.ips.exists(i, i == self.gateway) || has(self.excludeIPs) && self.excludeIPs.exists(i, i == self.gateway)",message="the gateway is in ips: put it into excludeIPs too",fieldPath=".gateway"
// +kubebuilder:validation:XValidation:rule="!has(self.routes) || !isCIDR(self.subnet) || self.routes.all(r, !isIP(r.gw) || cidr(self.subnet).containsIP(ip(r.gw)))",message="a route's gw is not inside the subnet",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="!has(self.routes) || self.routes.all(r, !isIP(r.gw) || !isCIDR(r.dst) || ip(r.gw).family() == cidr(r.dst).ip().family())",message="a route's gw is of another family than its dst",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="!has(oldSelf.ipVersion) || has(self.ipVersion) && self.ipVersion == oldSelf.ipVersion",message="never changes: make another pool",fieldPath=".ipVersion"
type IPPoolSpec struct {
	// IPVersion is 4 or 6; it follows from the subnet.
	//
	// +kubebuilder:validation:Enum=4;6
	// +optional
	IPVersion *int64 `json:"ipVersion,omitempty"`

	// Subnet is the network that the addresses are of.
	//
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR such as 10.244.0.0/16, with no bits set behind the prefix"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a pool's subnet never changes: make another pool"
	Subnet string `json:"subnet"`

	// IPs are the addresses that the pool gives: single ones, or a-b.
	//
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MaxLength=79
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) || self.split('-').size() == 2 && self.split('-').all(a, isIP(a))",message="must be an address, or a range such as 10.244.0.10-10.244.0.20"
	// +optional
	IPs []string `json:"ips,omitempty"`

	// ExcludeIPs are addresses of IPs that nobody gets.
	//
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MaxLength=79
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) || self.split('-').size() == 2 && self.split('-').all(a, isIP(a))",message="must be an address, or a range such as 10.244.0.10-10.244.0.20"
	// +optional
	ExcludeIPs []string `json:"excludeIPs,omitempty"`

	// Gateway is the router of the subnet.
	//
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an address"
	// +optional
	Gateway *string `json:"gateway,omitempty"`

	// Routes are routes of the pods' interfaces.
	//
	// +kubebuilder:validation:MaxItems=256
	// +listType=map
	// +listMapKey=dst
	// +optional
	Routes []Route `json:"routes,omitempty"`

	// PodAffinity are the pods that the pool serves.
	//
	// +kubebuilder:validation:XValidation:rule="has(self.matchLabels) && size(self.matchLabels) > 0 || has(self.matchExpressions) && size(self.matchExpressions) > 0",message="selects nothing in particular: give matchLabels or matchExpressions, or leave it out"
	// +optional
	PodAffinity *metav1.LabelSelector `json:"podAffinity,omitempty"`
	// NamespaceAffinity counts where there is no NamespaceName.
	//
	// +optional
	NamespaceAffinity *metav1.LabelSelector `json:"namespaceAffinity,omitempty"`
	// +optional
	NamespaceName []string `json:"namespaceName,omitempty"`
	// NodeAffinity counts where there is no NodeName.
	//
	// +optional
	NodeAffinity *metav1.LabelSelector `json:"nodeAffinity,omitempty"`
	// +optional
	NodeName []string `json:"nodeName,omitempty"`
	// MultusName are the network attachments that the pool serves.
	//
	// +optional
	MultusName []string `json:"multusName,omitempty"`

	// Default makes the pool serve pods that ask for none.
	//
	// +kubebuilder:default=false
	// +optional
	Default *bool `json:"default,omitempty"`
	// Disable stops the pool from giving addresses; what is held stays held.
	//
	// +kubebuilder:default=false
	// +optional
	Disable *bool `json:"disable,omitempty"`
}

// Route is a route of pods' interfaces.
type Route struct {
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self)",message="must be a CIDR"
	// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() > 0",message="the default route is the pool's gateway: set that"
	Dst string `json:"dst"`
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an address"
	Gw string `json:"gw"`
}

// ConditionAccepted is False when the pool contradicts something else in the
// cluster: it then gives no address, and what is held stays held.
const ConditionAccepted = "Accepted"

// IPPoolStatus is what became of a pool.
type IPPoolStatus struct {
	// IPVersion is 4 or 6, as the subnet is.
	//
	// +optional
	IPVersion *int64 `json:"ipVersion,omitempty"`
	// AllocatedIPs is a JSON text, kept for its readers.
	//
	// +optional
	AllocatedIPs *string `json:"allocatedIPs,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +optional
	TotalIPCount *int64 `json:"totalIPCount,omitempty"`
	// +kubebuilder:validation:Minimum=0
	// +optional
	AllocatedIPCount *int64 `json:"allocatedIPCount,omitempty"`
	// Conditions are Ropeway's own.
	//
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// SpiderIPPool is a pool of pod addresses.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories={spiderpool},path=spiderippools,scope=Cluster,shortName=sp,singular=spiderippool
// +kubebuilder:printcolumn:name="VERSION",type=string,JSONPath=`.status.ipVersion`
// +kubebuilder:printcolumn:name="SUBNET",type=string,JSONPath=`.spec.subnet`
// +kubebuilder:printcolumn:name="ALLOCATED-IP-COUNT",type=integer,JSONPath=`.status.allocatedIPCount`
// +kubebuilder:printcolumn:name="TOTAL-IP-COUNT",type=integer,JSONPath=`.status.totalIPCount`
// +kubebuilder:printcolumn:name="DEFAULT",type=boolean,JSONPath=`.spec.default`
// +kubebuilder:printcolumn:name="DISABLE",type=boolean,JSONPath=`.spec.disable`,priority=10
// +kubebuilder:printcolumn:name="NodeName",type=string,JSONPath=`.spec.nodeName`,priority=10
// +kubebuilder:printcolumn:name="MultusName",type=string,JSONPath=`.spec.multusName`,priority=10
// +kubebuilder:printcolumn:name="APP-NAMESPACE",type=string,JSONPath=`.spec.namespaceName`,priority=10
type SpiderIPPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   IPPoolSpec   `json:"spec,omitempty"`
	Status IPPoolStatus `json:"status,omitempty"`
}

// SpiderIPPoolList is a list of SpiderIPPools.
//
// +kubebuilder:object:root=true
type SpiderIPPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SpiderIPPool `json:"items"`
}

// ReservedIPSpec are addresses that no pod gets.
type ReservedIPSpec struct {
	// IPVersion is 4 or 6; it follows from the addresses.
	//
	// +kubebuilder:validation:Enum=4;6
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="never changes: make another object"
	// +optional
	IPVersion *int64 `json:"ipVersion,omitempty"`
	// IPs are single addresses, or a-b.
	//
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MaxLength=79
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) || self.split('-').size() == 2 && self.split('-').all(a, isIP(a))",message="must be an address, or a range such as 10.244.0.10-10.244.0.20"
	// +optional
	IPs []string `json:"ips,omitempty"`
}

// SpiderReservedIP keeps addresses from being given, whatever the pools say.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:categories={spiderpool},path=spiderreservedips,scope=Cluster,shortName=sr,singular=spiderreservedip
// +kubebuilder:printcolumn:name="VERSION",type=string,JSONPath=`.spec.ipVersion`
type SpiderReservedIP struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ReservedIPSpec `json:"spec,omitempty"`
}

// SpiderReservedIPList is a list of SpiderReservedIPs.
//
// +kubebuilder:object:root=true
type SpiderReservedIPList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []SpiderReservedIP `json:"items"`
}
