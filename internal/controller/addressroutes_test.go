package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/routes"
)

// TestFixedAddressRoutes: a fixed address away from home gets an entry that follows it,
// as many as are allowed; and as long as there is one, before it is made and after the
// address is at home again, the status says so.
func TestFixedAddressRoutes(t *testing.T) {
	api := admin(t)
	fake := cloud.NewFake("cn-chengdu", cloud.Table{ID: "vtb-1", Quota: 200})
	create(t, api, directNetwork(func(s *v1alpha1.ClusterNetworkSpec) { s.Cloud.FixedAddressRoutes, s.Cloud.CredentialsSecret = 2, "" }))
	uids := map[string]string{}
	for i := range 3 {
		n := register(t, api, fmt.Sprintf("n%d", i), fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("10.244.%d.0/24", i))
		setProvider(t, api, n, fmt.Sprintf("cn-chengdu.i-%d", i))
		uids[n.Name] = string(n.UID)
	}
	lease := func(a, node string, change func(*v1alpha1.AddressBlockSpec)) *v1alpha1.AddressBlock {
		b := block(a+"/32", node)
		b.Spec.NodeUID, b.Spec.From, b.Spec.Grant = uids[node], "n0", v1alpha1.Granted
		change(&b.Spec)
		create(t, api, &b)
		return &b
	}
	none := func(*v1alpha1.AddressBlockSpec) {}
	lease("10.244.0.5", "n1", func(b *v1alpha1.AddressBlockSpec) { b.Pool = "AddressPool/p" }) // for anyone
	moving := lease("10.244.0.7", "n1", none)
	lease("10.244.0.8", "n2", none)
	spare := lease("10.244.0.9", "n2", none)
	lease("10.244.0.6", "n1", func(b *v1alpha1.AddressBlockSpec) { b.Grant = "" }) // asked for
	ranges := "10.244.0.0/24 i-0, "
	others := "10.244.1.0/24 i-1, 10.244.2.0/24 i-2"

	startReplica(t, "one", func(cfg *Config) {
		cfg.Providers = map[string]cloud.New{"alibaba": func(context.Context, cloud.Settings) (cloud.Provider, error) { return fake, nil }}
	})
	// said checks what must hold at every moment.
	said := func() string {
		var entries []string
		for _, e := range fake.Entries() {
			if e.Dst.IsSingleIP() {
				entries = append(entries, e.Dst.Addr().String())
			}
		}
		var cn v1alpha1.ClusterNetwork
		if err := api.Get(t.Context(), client.ObjectKey{Name: "default"}, &cn); err != nil {
			return err.Error()
		}
		for _, a := range entries {
			if !slices.Contains(cn.Status.AddressRoutes, a) {
				t.Errorf("%s has an entry, and the status has only %v", a, cn.Status.AddressRoutes)
			}
		}
		return strings.Join(cn.Status.AddressRoutes, ",")
	}
	become := func(what, status, entries string) {
		t.Helper()
		eventually(t, what, func() string {
			if got := said(); got != status {
				return "the status has " + got
			}
			return entriesAre(fake, entries)()
		})
	}
	become("the first two", "10.244.0.7,10.244.0.8", ranges+"10.244.0.7/32 i-1, 10.244.0.8/32 i-2, "+others)

	before := moving.DeepCopy()
	moving.Spec.Node, moving.Spec.NodeUID, moving.Spec.Generation = "n2", uids["n2"], moving.Spec.Generation+1
	if err := api.Patch(t.Context(), moving, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	become("the one that moved", "10.244.0.7,10.244.0.8", ranges+"10.244.0.7/32 i-2, 10.244.0.8/32 i-2, "+others)

	if err := api.Delete(t.Context(), moving); err != nil {
		t.Fatal(err)
	}
	become("the next in its place", "10.244.0.8,10.244.0.9", ranges+"10.244.0.8/32 i-2, 10.244.0.9/32 i-2, "+others)
	if err := api.Delete(t.Context(), spare); err != nil {
		t.Fatal(err)
	}
	become("the last", "10.244.0.8", ranges+"10.244.0.8/32 i-2, "+others)
}

// TestAddressRoutesStay: what a table may still have is said until a listing that is new
// enough does not have it.
func TestAddressRoutesStay(t *testing.T) {
	m := newMemory()
	a := netip.MustParseAddr("10.244.0.7")
	start := time.Unix(1_000_000, 0)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	for i, step := range []struct {
		now    int
		fixed  bool
		listed int
		shown  bool
		want   int
	}{
		{0, true, 0, false, 1},
		{10, false, 5, true, 1},    // gone home; the entry is there
		{20, false, 20, false, 1},  // a listing without it, but a call may be under way
		{80, false, 20, false, 1},  // late, but nothing was listed since
		{90, true, 85, false, 1},   // away again
		{95, false, 95, false, 1},  // and home: the clock begins anew
		{160, false, 160, true, 1}, // the entry was made all the same
		{170, false, 170, false, 0},
	} {
		s := &routes.Status{Mode: routes.Write, Begun: at(step.listed)}
		if step.shown {
			s.Diverted = []netip.Addr{a}
		}
		var fixed []fixedAddress
		if step.fixed {
			fixed = []fixedAddress{{a, "b"}}
		}
		if got := m.addressRoutes([]netip.Addr{a}, fixed, s, time.Minute, at(step.now)); len(got) != step.want {
			t.Errorf("step %d: the status has %v", i, got)
		}
	}
	// Forgotten, and there all the same.
	if got := newMemory().addressRoutes(nil, nil, &routes.Status{Mode: routes.Write, Begun: start, Diverted: []netip.Addr{a}}, time.Minute, start); len(got) != 1 {
		t.Errorf("of an entry that is there the status says %v", got)
	}
	// Somebody else writes the tables: what is to be there is not made.
	if got := newMemory().addressRoutes(nil, []fixedAddress{{a, "b"}}, &routes.Status{Mode: routes.External}, time.Minute, start); len(got) != 0 {
		t.Errorf("where no entry is made the status says %v", got)
	}
	// Not read: nothing is known.
	m = newMemory()
	for _, s := range []*routes.Status{{}, {Mode: routes.Off}} {
		for _, now := range []int{0, 10_000} {
			if got := m.addressRoutes([]netip.Addr{a}, nil, s, time.Minute, at(now)); len(got) != 1 {
				t.Errorf("%+v: the status has %v", s, got)
			}
		}
	}
	// Full: what may be there is not dropped for what is to be.
	var had []netip.Addr
	for next := a; len(had) < v1alpha1.MaxAddressRoutes; next = next.Next() {
		had = append(had, next)
	}
	got := newMemory().addressRoutes(had, []fixedAddress{{netip.MustParseAddr("10.1.1.1"), "b"}}, &routes.Status{Mode: routes.Write}, time.Minute, start)
	if len(got) != len(had) || slices.Contains(got, "10.1.1.1") {
		t.Errorf("%d of %d stay", len(got), len(had))
	}
}
