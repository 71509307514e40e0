package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressBlockSpec is a lease: the CIDR belongs to the node.
type AddressBlockSpec struct {
	// CIDR is the leased range. The object's name is derived from it (see
	// BlockName), so that two nodes cannot lease the same one.
	//
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && string(cidr(self).masked()) == self",message="must be a CIDR in its canonical form, such as 10.244.1.0/26"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a lease's CIDR never changes"
	CIDR string `json:"cidr"`
	// Node is the name of the node that holds the lease.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Node string `json:"node"`
	// NodeUID is the UID of that Node object.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	NodeUID string `json:"nodeUID"`
	// Generation grows by one each time that the lease changes hands; a
	// holder with an older one must not use the range.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:XValidation:rule="self >= oldSelf",message="a lease's generation never goes back"
	Generation int64 `json:"generation"`
}

// AddressBlock is a range of pod addresses that one node holds.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ablock
// +kubebuilder:validation:XValidation:rule="self.metadata.name == self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')",message="the name of a lease is its CIDR with a dash for each dot, colon and slash, so that no two nodes can hold the same range"
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Generation",type=integer,JSONPath=`.spec.generation`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressBlock struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec AddressBlockSpec `json:"spec"`
}

// AddressBlockList is a list of AddressBlocks.
//
// +kubebuilder:object:root=true
type AddressBlockList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AddressBlock `json:"items"`
}
