// Package v1alpha1 holds Ropeway's own API objects: ClusterNetwork, which a
// person writes, and AddressBlock and NodeNetwork, which Ropeway writes.
//
// +kubebuilder:object:generate=true
// +groupName=ropeway.dev
package v1alpha1
