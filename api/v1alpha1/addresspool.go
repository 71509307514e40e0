package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressPoolSpec says which addresses a pool gives, and to whom.
//
// +kubebuilder:validation:XValidation:rule="self.subnets.size() < 2 || cidr(self.subnets[0]).ip().family() != cidr(self.subnets[1]).ip().family()",message="two subnets of one family: make a pool for each",fieldPath=".subnets"
// +kubebuilder:validation:XValidation:rule="!has(self.gateways) || self.gateways.all(g, !isIP(g) || self.subnets.exists(s, isCIDR(s) && cidr(s).containsIP(ip(g))))",message="a gateway is in none of the subnets",fieldPath=".gateways"
// +kubebuilder:validation:XValidation:rule="!has(self.routes) || self.routes.all(r, !isIP(r.gw) || self.subnets.exists(s, isCIDR(s) && cidr(s).containsIP(ip(r.gw))))",message="a route's gw is not inside one of the subnets",fieldPath=".routes"
// +kubebuilder:validation:XValidation:rule="!has(self.routes) || self.routes.all(r, !isIP(r.gw) || !isCIDR(r.dst) || ip(r.gw).family() == cidr(r.dst).ip().family())",message="a route's gw is of another family than its dst",fieldPath=".routes"
type AddressPoolSpec struct {
	// Subnets are the networks that the addresses are of, one for each family.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=43
	// +kubebuilder:validation:items:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR such as 10.244.0.0/16, with no bits set behind the prefix"
	// +listType=atomic
	Subnets []string `json:"subnets"`

	// Ranges are the addresses that the pool gives: single ones, or a-b.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MaxLength=79
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) || self.split('-').size() == 2 && self.split('-').all(a, isIP(a))",message="must be an address, or a range such as 10.244.0.10-10.244.0.20"
	// +listType=atomic
	Ranges []string `json:"ranges"`

	// Exclude are addresses of Ranges that nobody gets.
	//
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MaxLength=79
	// +kubebuilder:validation:items:XValidation:rule="isIP(self) || self.split('-').size() == 2 && self.split('-').all(a, isIP(a))",message="must be an address, or a range such as 10.244.0.10-10.244.0.20"
	// +listType=atomic
	// +optional
	Exclude []string `json:"exclude,omitempty"`

	// Gateways are the routers of Subnets, for interfaces that another main
	// plugin makes.
	//
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:validation:items:MaxLength=39
	// +kubebuilder:validation:items:XValidation:rule="isIP(self)",message="must be an address"
	// +listType=atomic
	// +optional
	Gateways []string `json:"gateways,omitempty"`

	// Routes are routes of the pods' interfaces that another main plugin makes.
	//
	// +kubebuilder:validation:MaxItems=256
	// +listType=map
	// +listMapKey=dst
	// +optional
	Routes []PoolRoute `json:"routes,omitempty"`

	// Order decides among pools that a rule does not order: the lower, the
	// earlier.
	//
	// +kubebuilder:default=0
	// +optional
	Order int32 `json:"order,omitempty"`

	// Default makes the pool serve pods that ask for none.
	//
	// +kubebuilder:default=false
	// +optional
	Default bool `json:"default,omitempty"`

	// Disable stops the pool from giving addresses; what is held stays held.
	//
	// +kubebuilder:default=false
	// +optional
	Disable bool `json:"disable,omitempty"`

	// NodeNames are the nodes that the pool is used on; NodeSelector counts
	// where there are none.
	//
	// +kubebuilder:validation:MaxItems=512
	// +listType=set
	// +optional
	NodeNames []string `json:"nodeNames,omitempty"`
	// +optional
	NodeSelector *metav1.LabelSelector `json:"nodeSelector,omitempty"`

	// NamespaceNames are the namespaces that the pool serves; NamespaceSelector
	// counts where there are none.
	//
	// +kubebuilder:validation:MaxItems=512
	// +listType=set
	// +optional
	NamespaceNames []string `json:"namespaceNames,omitempty"`
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// PodSelector are the pods that the pool serves.
	//
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`

	// Networks are the names of the CNI networks that the pool serves.
	//
	// +kubebuilder:validation:MaxItems=512
	// +listType=set
	// +optional
	Networks []string `json:"networks,omitempty"`
}

// PoolRoute is a route of pods' interfaces.
type PoolRoute struct {
	// Dst is where it leads, as a CIDR.
	//
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && cidr(self) == cidr(self).masked()",message="must be a CIDR such as 10.0.0.0/8, with no bits set behind the prefix"
	// +kubebuilder:validation:XValidation:rule="!isCIDR(self) || cidr(self).prefixLength() > 0",message="the default route is the pool's gateway: set that"
	Dst string `json:"dst"`
	// Gw is the router, inside one of the pool's subnets.
	//
	// +kubebuilder:validation:MaxLength=39
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an address"
	Gw string `json:"gw"`
}

// ConditionServed of a pool says where its addresses are given: on any node, or,
// where they lie in a node's podCIDR or block, on that node alone.
const ConditionServed = "Served"

// AddressPoolStatus is what became of a pool.
type AddressPoolStatus struct {
	// ObservedGeneration is the generation that the conditions speak of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Total counts the addresses that the pool gives, Allocated those in use.
	// +optional
	Total int64 `json:"total"`
	// +optional
	Allocated int64 `json:"allocated"`
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// AddressPool is a pool of pod addresses.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=apool
// +kubebuilder:printcolumn:name="Ranges",type=string,JSONPath=`.spec.ranges`
// +kubebuilder:printcolumn:name="Allocated",type=integer,JSONPath=`.status.allocated`
// +kubebuilder:printcolumn:name="Total",type=integer,JSONPath=`.status.total`
// +kubebuilder:printcolumn:name="Default",type=boolean,JSONPath=`.spec.default`
// +kubebuilder:printcolumn:name="Accepted",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   AddressPoolSpec   `json:"spec"`
	Status AddressPoolStatus `json:"status,omitempty"`
}

// AddressPoolList is a list of AddressPools.
//
// +kubebuilder:object:root=true
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AddressPool `json:"items"`
}
