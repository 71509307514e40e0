package plan_test

import (
	"net/netip"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"ropeway.dev/ropeway/internal/plan"
)

// TestDestinationsByNode: all at once is the same as one by one.
func TestDestinationsByNode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySnapshot(t)
		got := plan.DestinationsByNode(s.Network, s.Nodes)
		seen := 0
		for _, n := range s.Nodes {
			want := destinations(s.Network, n, s.Nodes)
			if len(want) == 0 {
				if len(got[n.Name]) > 0 {
					t.Fatalf("node %q: %v, want none", n.Name, got[n.Name])
				}
				continue
			}
			seen++
			if !reflect.DeepEqual(got[n.Name], want) {
				t.Fatalf("node %q: %v, want %v", n.Name, got[n.Name], want)
			}
		}
		if len(got) > seen {
			t.Fatalf("%d nodes own something, want at most %d", len(got), seen)
		}
	})
}

// destinations is the second half of plan.Owned.
func destinations(network plan.Network, node plan.Node, all []plan.Node) []netip.Prefix {
	_, out := plan.Owned(network, node, all)
	return out
}
