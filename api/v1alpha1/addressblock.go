package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SharedLabel is on shared blocks, so that they are found without reading all; nodes
// of the version before this one look for it.
const SharedLabel = "ropeway.dev/shared"

// Sharing says that a block is no node's: its addresses are leased one by one.
//
// +kubebuilder:validation:Enum=Declared;Confirmed;Retired
type Sharing string

const (
	// SharingDeclared is said first: nobody may lease the block any more.
	SharingDeclared Sharing = "Declared"
	// SharingConfirmed is said once no node was found to own a part of the
	// block: from then on nodes lease single addresses of it.
	SharingConfirmed Sharing = "Confirmed"
	// SharingRetired is said before the block is given back: nobody leases an
	// address of it any more.
	SharingRetired Sharing = "Retired"
)

// Grant is the word of the node that an address is taken from.
//
// +kubebuilder:validation:Enum=Granted;Refused
type Grant string

const (
	// Granted: that node has let go of the address, and gives it to nobody.
	Granted Grant = "Granted"
	// Refused: a pod of that node has it, or the node itself.
	Refused Grant = "Refused"
)

// KeptFor is the pod of a StatefulSet that an address outlives.
type KeptFor struct {
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`
	// Pod is the pod's name, which its successor will have too.
	//
	// +kubebuilder:validation:MaxLength=253
	Pod string `json:"pod"`
	// StatefulSet is the pod's controller, and UID that object's.
	//
	// +kubebuilder:validation:MaxLength=253
	StatefulSet string `json:"statefulSet"`
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
	// Interface is the pod's interface that the address is of; empty means the
	// first, eth0.
	//
	// +kubebuilder:validation:MaxLength=15
	// +optional
	Interface string `json:"interface,omitempty"`
}

// AddressBlockSpec is a lease: the CIDR belongs to the node. A shared block is
// no node's: it says that its addresses are leased one by one.
//
// +kubebuilder:validation:XValidation:rule="has(self.node) == has(self.nodeUID) && (has(self.node) || has(self.sharing) || has(self.keptFor))",message="a lease names its node and the node's UID"
// +kubebuilder:validation:XValidation:rule="!has(self.sharing) || !has(self.node)",message="a shared block is no node's"
// +kubebuilder:validation:XValidation:rule="has(self.sharing) == has(oldSelf.sharing)",message="a lease does not become a shared block, nor the other way round"
// +kubebuilder:validation:XValidation:rule="!has(self.pool) && !has(self.from) && !has(self.keptFor) || !isCIDR(self.cidr) || cidr(self.cidr).prefixLength() == (cidr(self.cidr).ip().family() == 4 ? 32 : 128)",message="pool, from and keptFor are of single addresses"
// +kubebuilder:validation:XValidation:rule="has(self.from) == has(oldSelf.from) && (!has(self.from) || self.from == oldSelf.from)",message="the node that an address is asked from never changes"
// +kubebuilder:validation:XValidation:rule="!has(self.grant) || has(self.from)",message="a grant is the word of the node that the address is from"
type AddressBlockSpec struct {
	// CIDR is the leased range. The object's name is derived from it (see
	// BlockName), so that two nodes cannot lease the same one.
	//
	// +kubebuilder:validation:MaxLength=43
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && string(cidr(self).masked()) == self",message="must be a CIDR in its canonical form, such as 10.244.1.0/26"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a lease's CIDR never changes"
	CIDR string `json:"cidr"`
	// Node is the name of the node that holds the lease. A shared block has none,
	// nor has an address that is kept for a pod that does not run.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +optional
	Node string `json:"node,omitempty"`
	// NodeUID is the UID of that Node object.
	//
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +optional
	NodeUID string `json:"nodeUID,omitempty"`
	// Generation grows by one each time that the lease changes hands; a
	// holder with an older one must not use the range.
	//
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:XValidation:rule="self >= oldSelf",message="a lease's generation never goes back"
	Generation int64 `json:"generation"`
	// Sharing makes the block one that single addresses are leased of, by any
	// node.
	//
	// +optional
	Sharing Sharing `json:"sharing,omitempty"`
	// Pool is the pool, as Kind/name, whose pods on the node may have the single
	// address; without it the address is for one pod that asked for it.
	//
	// +kubebuilder:validation:MaxLength=280
	// +optional
	Pool string `json:"pool,omitempty"`
	// From is the node in whose range the single address lies. Until that node
	// has granted it, the holder does not use it.
	//
	// +kubebuilder:validation:MaxLength=253
	// +optional
	From string `json:"from,omitempty"`
	// Grant is that node's answer, GrantReason why it is Refused.
	//
	// +optional
	Grant Grant `json:"grant,omitempty"`
	// +kubebuilder:validation:MaxLength=512
	// +optional
	GrantReason string `json:"grantReason,omitempty"`
	// KeptFor keeps the single address for the successors of a pod.
	//
	// +optional
	KeptFor *KeptFor `json:"keptFor,omitempty"`
}

// AddressBlock is a range of pod addresses that one node holds, or that nodes
// share.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=ablock
// +kubebuilder:validation:XValidation:rule="self.metadata.name == self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')",message="the name of a lease is its CIDR with a dash for each dot, colon and slash, so that no two nodes can hold the same range"
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.node`
// +kubebuilder:printcolumn:name="Sharing",type=string,JSONPath=`.spec.sharing`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.spec.pool`
// +kubebuilder:printcolumn:name="Kept For",type=string,JSONPath=`.spec.keptFor.pod`
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
