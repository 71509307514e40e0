package kube

import (
	"errors"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/ipam/share"
)

// twoNodes are the clients of two nodes of the cluster.
func twoNodes(t *testing.T, one, other string) (a, b *NodeClient) {
	t.Helper()
	c := admin(t)
	for _, name := range []string{one, other} {
		create(t, c, newNode(name))
	}
	a, b = startNode(t, shared.Config(t), one), startNode(t, shared.Config(t), other)
	for _, n := range []*NodeClient{a, b} {
		eventually(t, n, "its Node", func(v View) bool { return v.NodeUID != "" })
	}
	return a, b
}

// leaseIn waits until a client sees a lease that fits, and returns it.
func leaseIn(t *testing.T, c *NodeClient, p netip.Prefix, fits func(Lease) bool) Lease {
	t.Helper()
	var found Lease
	eventually(t, c, "the lease of "+p.String(), func(v View) bool {
		for _, l := range v.Leases {
			if l.Prefix == p && fits(l) {
				found = l
				return true
			}
		}
		return false
	})
	return found
}

func claimOne(t *testing.T, c *NodeClient, claim share.Claim) (Lease, error) {
	t.Helper()
	got := c.ClaimAddresses(t.Context(), []share.Claim{claim})
	return got[0].Lease, got[0].Err
}

func remains(t *testing.T, c client.Client, p netip.Prefix) bool {
	t.Helper()
	err := c.Get(t.Context(), client.ObjectKey{Name: v1alpha1.BlockName(p)}, &v1alpha1.AddressBlock{})
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return err == nil
}

// TestSingleAddressesAtTheAPIServer: a block is shared unless somebody has a part
// of it, one node gets an address of it, and what is kept goes from node to node.
func TestSingleAddressesAtTheAPIServer(t *testing.T) {
	c := admin(t)
	a, b := twoNodes(t, "single-a", "single-b")
	block, address := netip.MustParsePrefix("10.61.0.0/26"), netip.MustParsePrefix("10.61.0.5/32")
	defer func() {
		for _, p := range []netip.Prefix{block, address} {
			_ = c.Delete(t.Context(), &v1alpha1.AddressBlock{ObjectMeta: newNode(v1alpha1.BlockName(p)).ObjectMeta})
		}
	}()
	claim := share.Claim{Lease: Lease{Prefix: address, Generation: 1, Pool: "AddressPool/p",
		KeptFor: share.Kept{Namespace: "d", Pod: "web-0", StatefulSet: "web", UID: "u", Interface: "net1"}}, Within: block}
	if _, err := claimOne(t, a, claim); err == nil || remains(t, c, address) {
		t.Errorf("of a block that is not shared: %v", err)
	}
	for _, n := range []*NodeClient{a, b} {
		if err := n.ShareBlocks(t.Context(), []netip.Prefix{block}); err != nil {
			t.Fatal(err)
		}
	}
	leaseIn(t, b, block, func(l Lease) bool { return l.Sharing == share.Confirmed })
	for _, p := range []string{"10.61.0.0/26", "10.61.0.0/25", "10.61.0.32/27"} {
		if _, err := a.ClaimBlock(t.Context(), netip.MustParsePrefix(p)); !IsTaken(err) {
			t.Errorf("a node leases %s: %v", p, err)
		}
	}
	if remains(t, c, netip.MustParsePrefix("10.61.0.0/25")) {
		t.Error("a lease around a shared block stays")
	}
	if _, err := claimOne(t, a, claim); err != nil {
		t.Fatal(err)
	}
	if _, err := claimOne(t, b, claim); !IsTaken(err) {
		t.Errorf("two nodes lease one address: %v", err)
	}
	held := leaseIn(t, b, address, func(l Lease) bool { return l.Node == "single-a" })
	if err := a.ReleaseAddress(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	rests := leaseIn(t, b, address, func(l Lease) bool { return l.Node == "" })
	if rests.KeptFor != claim.KeptFor || rests.Pool != claim.Pool || rests.Generation != 2 {
		t.Errorf("what is kept: %+v", rests)
	}
	taken, err := b.TakeAddress(t.Context(), rests)
	if err != nil || taken.Node != "single-b" || taken.Generation != 3 {
		t.Errorf("taken: %+v, %v", taken, err)
	}
	if _, err := a.TakeAddress(t.Context(), rests); !IsTaken(err) {
		t.Errorf("taken twice: %v", err)
	}
	// Calls that were made of what was seen before change nothing.
	if err := errors.Join(a.ReleaseAddress(t.Context(), held), a.Unshare(t.Context(), held)); err != nil {
		t.Error(err)
	}
	var now v1alpha1.AddressBlock
	if err := c.Get(t.Context(), client.ObjectKey{Name: v1alpha1.BlockName(address)}, &now); err != nil || now.Spec.Node != "single-b" {
		t.Errorf("after late calls: %+v, %v", now.Spec, err)
	}
}

// TestManyClaimsAtOnce: each claim of a batch stands for itself: one of a block that
// is not shared, or of an address that another node has, takes none of the others
// with it, and what is no lease remains none.
func TestManyClaimsAtOnce(t *testing.T) {
	c := admin(t)
	a, b := twoNodes(t, "batch-a", "batch-b")
	shared, not := netip.MustParsePrefix("10.64.0.0/26"), netip.MustParsePrefix("10.64.1.0/26")
	if err := a.ShareBlocks(t.Context(), []netip.Prefix{shared}); err != nil {
		t.Fatal(err)
	}
	var claims []share.Claim
	for i, block := range []netip.Prefix{shared, not, shared, shared} {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, block.Addr().As4()[2], byte(i)}), 32)
		claims = append(claims, share.Claim{Lease: Lease{Prefix: p, Generation: 1, Pool: "AddressPool/p"}, Within: block})
	}
	if _, err := claimOne(t, b, claims[2]); err != nil {
		t.Fatal(err)
	}
	for i, got := range a.ClaimAddresses(t.Context(), claims) {
		fine := map[int]bool{0: got.Err == nil, 1: got.Err != nil && !IsTaken(got.Err), 2: IsTaken(got.Err), 3: got.Err == nil}[i]
		if !fine || got.Err == nil && (got.Lease.Prefix != claims[i].Prefix || got.Lease.Node != "batch-a") {
			t.Errorf("claim %d: %+v", i, got)
		}
		if there := remains(t, c, claims[i].Prefix); there != (i != 1) {
			t.Errorf("claim %d is there: %v", i, there)
		}
	}
}

// TestBlocksOfNodesAreNotShared: what a podCIDR or a lease has a part of.
func TestBlocksOfNodesAreNotShared(t *testing.T) {
	c := admin(t)
	a, b := twoNodes(t, "owner-a", "owner-b")
	withCIDR := newNode("owner-c")
	withCIDR.Spec = corev1.NodeSpec{PodCIDR: "10.62.0.0/28", PodCIDRs: []string{"10.62.0.0/28"}}
	create(t, c, withCIDR)
	if _, err := b.ClaimBlock(t.Context(), netip.MustParsePrefix("10.62.1.0/25")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"10.62.0.0/26", "10.62.1.64/26"} {
		block := netip.MustParsePrefix(p)
		if err := a.ShareBlocks(t.Context(), []netip.Prefix{block}); !errors.Is(err, ErrNotShareable) || remains(t, c, block) {
			t.Errorf("%s is shared: %v", p, err)
		}
	}
	if err := b.ReleaseBlock(t.Context(), netip.MustParsePrefix("10.62.1.0/25")); err != nil {
		t.Error(err)
	}
}

// TestAskedAddress: the node that an address is from answers, once.
func TestAskedAddress(t *testing.T) {
	c := admin(t)
	a, b := twoNodes(t, "asked-a", "asked-b")
	address := netip.MustParsePrefix("10.63.0.5/32")
	if _, err := claimOne(t, a, share.Claim{Lease: Lease{Prefix: address, Generation: 1, From: "asked-b"}}); err != nil {
		t.Fatal(err)
	}
	asked := leaseIn(t, b, address, func(l Lease) bool { return l.From == "asked-b" && !l.Usable() })
	if err := b.AnswerAddress(t.Context(), share.Answer{Lease: asked, Grant: share.Granted}); err != nil {
		t.Fatal(err)
	}
	if err := b.AnswerAddress(t.Context(), share.Answer{Lease: asked, Grant: share.Refused, Reason: "late"}); err != nil {
		t.Fatal(err)
	}
	granted := leaseIn(t, a, address, Lease.Usable)
	if err := a.ReleaseAddress(t.Context(), granted); err != nil || remains(t, c, address) {
		t.Errorf("given back: %v", err)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Name: v1alpha1.BlockName(address)}, &v1alpha1.AddressBlock{}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}
