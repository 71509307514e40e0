package dataplane

import (
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/plan"
)

// TestChecksumsAreComputed: where the interface gets checksums wrong, the vxlan
// device computes them, and packets pass as before.
func TestChecksumsAreComputed(t *testing.T) {
	f := newFabric(t, 2, plan.VXLAN)
	f.setAll()
	n := f.nodes[0]
	by := func() string { return f.sh(n.ns, "ethtool -k rw-vxlan") }
	if !strings.Contains(by(), "tx-checksum-ip-generic: on") {
		t.Fatalf("a new device: %s", by())
	}
	snapshot := f.snapshot(n)
	snapshot.BadOffload = true
	want := plan.Compute(snapshot)
	for _, changed := range []bool{true, false} {
		var r Report
		if err := n.ns.Do(func() (err error) { r, err = n.dataplane.Set(t.Context(), want); return err }); err != nil {
			t.Fatal(err)
		}
		if r.Changed != changed {
			t.Errorf("changed %t, want %t", r.Changed, changed)
		}
	}
	if !strings.Contains(by(), "tx-checksum-ip-generic: off") {
		t.Errorf("the device still leaves them to the interface: %s", by())
	}
	a, b := n.addPod(1500), f.nodes[1].addPod(1500)
	if _, _, err := f.transfer(a.ns, b.ns, b.v4.String()+":80", 1<<20); err != nil {
		t.Errorf("TCP: %v", err)
	}
}
