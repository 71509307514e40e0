package main

import (
	"context"
	"testing"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// TestBlockCluster: the cluster that section blocks plays is filled as it says, and
// each pod has its address in a block of its node.
func TestBlockCluster(t *testing.T) {
	c := newBlockCluster(1)
	c.day = 0
	if err := c.live(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(c.pods) != podsInAll {
		t.Errorf("%d pods, want %d", len(c.pods), podsInAll)
	}
	owner := map[string]string{}
	for _, n := range c.nodes {
		held := 0
		for _, p := range n.owned {
			if other := owner[p.String()]; other != "" {
				t.Errorf("%s is leased to %s and %s", p, other, n.name)
			}
			owner[p.String()] = n.name
			if got := len(n.allocator.HeldIn(p)); got != n.held[p] || got > int(cidr.Size(p))-1 {
				t.Errorf("%s: %d addresses are held, %d were counted", p, got, n.held[p])
			}
			held += n.held[p]
		}
		if held != n.pods {
			t.Errorf("%s has %d pods, and %d addresses", n.name, n.pods, held)
		}
	}
	for _, p := range c.pods {
		if owner[p.block.String()] != p.node.name {
			t.Errorf("a pod of %s has its address in %s of %s", p.node.name, p.block, owner[p.block.String()])
		}
	}
}
