package kube

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"ropeway.dev/ropeway/api/v1alpha1"
)

func shown(c *claims, cached ...v1alpha1.AddressBlock) []string {
	o := &Objects{Blocks: cached}
	c.apply(o)
	var out []string
	for _, l := range o.Leases() {
		out = append(out, fmt.Sprintf("%s %s/%d", l.Prefix, l.NodeUID, l.Generation))
	}
	return out
}

func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestOwnWritesShowBeforeTheCacheHasThem(t *testing.T) {
	var c claims
	mine := block("10.244.1.0/26", "a", "ua")
	mine.UID = "1"
	other := block("10.244.2.0/26", "b", "ub")
	c.hold(&mine)
	expect(t, "claimed, not in the cache", shown(&c, other), "10.244.1.0/26 ua/1", "10.244.2.0/26 ub/1")
	expect(t, "claimed, in the cache", shown(&c, mine, other), "10.244.1.0/26 ua/1", "10.244.2.0/26 ub/1")
	expect(t, "taken away by somebody else", shown(&c, other), "10.244.2.0/26 ub/1")

	old := mine
	mine.Spec.NodeUID, mine.Spec.Generation = "new", 2
	c.hold(&mine)
	expect(t, "adopted, not in the cache", shown(&c, old), "10.244.1.0/26 new/2")
	expect(t, "adopted, in the cache", shown(&c, mine), "10.244.1.0/26 new/2")

	c.drop(mine.Name, mine.UID)
	expect(t, "given back, still in the cache", shown(&c, mine, other), "10.244.2.0/26 ub/1")
	again := block("10.244.1.0/26", "b", "ub")
	again.UID = "2"
	expect(t, "given back, and somebody else's now", shown(&c, again), "10.244.1.0/26 ub/1")
}

func TestOwnWritesAreForgotten(t *testing.T) {
	var c claims
	mine, gone := block("10.244.1.0/26", "a", "ua"), block("10.244.2.0/26", "a", "ua")
	c.hold(&mine)
	c.drop(gone.Name, "1")
	past := time.Now().Add(-time.Second)
	held, freed := c.held[mine.Name], c.freed[gone.Name]
	held.until, freed.until = past, past
	c.held[mine.Name], c.freed[gone.Name] = held, freed
	expect(t, "a claim that the cache never showed", shown(&c))
	if len(c.held)+len(c.freed) != 0 {
		t.Errorf("still remembered: %v %v", c.held, c.freed)
	}
}

func TestTakenErrorSaysWho(t *testing.T) {
	err := fmt.Errorf("lease: %w", &TakenError{Prefix: netip.MustParsePrefix("10.244.1.0/26"), Node: "b"})
	if !IsTaken(err) || IsTaken(fmt.Errorf("another")) {
		t.Error("IsTaken")
	}
	if want := "lease: the block 10.244.1.0/26 is leased to node b: choose another"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}
