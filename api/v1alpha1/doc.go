// Package v1alpha1 holds Ropeway's own API objects: ClusterNetwork and AddressPool,
// which a person writes, and AddressBlock and NodeNetwork, which Ropeway writes.
//
// +kubebuilder:object:generate=true
// +groupName=ropeway.dev
package v1alpha1

//go:generate go build -C ../../test/tools -o ../../bin/tools/controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen
//go:generate ../../bin/tools/controller-gen object crd paths=. output:crd:artifacts:config=../../config/crd
