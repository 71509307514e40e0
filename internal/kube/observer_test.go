package kube

import (
	"testing"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// TestWhatCanWait: only a lease that nobody is known to wait for is told by Leased, and
// only to a node.
func TestWhatCanWait(t *testing.T) {
	plain := v1alpha1.AddressBlockSpec{CIDR: "10.0.0.1/32", Node: "a", Pool: "P"}
	asked, kept, block, shared := plain, plain, plain, plain
	asked.From = "b"
	kept.KeptFor = &v1alpha1.KeptFor{Pod: "web-0"}
	block.CIDR = "10.0.0.0/26"
	shared.Sharing = v1alpha1.SharingDeclared
	for name, tt := range map[string]struct {
		spec v1alpha1.AddressBlockSpec
		node bool
		wait bool
	}{
		"an address": {plain, true, true}, "of the controller's": {plain, false, false}, "asked for": {asked, true, false},
		"kept": {kept, true, false}, "a block": {block, true, false}, "shared": {shared, true, false},
	} {
		o := &Observer{node: tt.node, changed: make(chan struct{}, 1), leased: make(chan struct{}, 1)}
		o.touchFor(&v1alpha1.AddressBlock{Spec: tt.spec})
		if waits, told := len(o.leased) == 1, len(o.changed) == 1; waits != tt.wait || told == tt.wait {
			t.Errorf("%s: Leased %v, Changed %v", name, waits, told)
		}
	}
}
