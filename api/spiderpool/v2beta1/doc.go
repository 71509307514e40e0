// Package v2beta1 holds the objects of Spiderpool's API that Ropeway accepts as
// their users write them: SpiderIPPool and SpiderReservedIP. Fields, defaults
// and rules follow Spiderpool v1.x (docs/reference/crd-spiderippool.md and
// crd-spiderreservedip.md there).
//
// +kubebuilder:object:generate=true
// +groupName=spiderpool.spidernet.io
package v2beta1

//go:generate go build -C ../../../test/tools -o ../../bin/tools/controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen
//go:generate ../../../bin/tools/controller-gen object crd paths=. output:crd:artifacts:config=../../../config/crd
