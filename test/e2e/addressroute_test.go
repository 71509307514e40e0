//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/openapi"
)

// addressRoute: a fixed address that is away from home has an entry of its own in the
// VPC's table, by which machines that are no nodes reach it there; and when it is at home again,
// nobody waits for the cloud to take that away, and nothing is lost meanwhile. The lab is
// in the routed mode with a tunnel behind it.
func addressRoute(t *testing.T, l *lab.Lab) {
	console, err := l.Cloud()
	if err != nil {
		t.Fatal(err)
	}
	away, home := l.Nodes()[0].Name, l.Nodes()[1].Name
	hops := map[string]string{} // node -> instance
	cloud, err := console.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, in := range cloud.Instances {
		hops[in.Host] = in.ID
	}
	at := slices.IndexFunc(cloud.Entries, func(e openapi.Entry) bool { return e.NextHop == hops[home] && e.Dst.Addr().Is4() })
	if at < 0 {
		t.Fatalf("the table has no entry for %s: %+v", home, cloud.Entries)
	}
	quad := cloud.Entries[at].Dst.Addr().As4()
	quad[3] += 50
	fixed := netip.PrefixFrom(netip.AddrFrom4(quad), 32)
	entry := func() string {
		now, err := console.Snapshot(t.Context())
		if err != nil {
			return err.Error()
		}
		for _, e := range now.Entries {
			if e.Dst == fixed {
				return e.NextHop
			}
		}
		return ""
	}
	limit := func(n int) {
		kubectl(t, l, "patch", "clusternetwork", "default", "--type", "merge", "-p", fmt.Sprintf(`{"spec":{"cloud":{"fixedAddressRoutes":%d}}}`, n))
	}
	on := func(node string) {
		kubectl(t, l, "delete", "pod", "fixed-route", "--ignore-not-found", "--timeout=60s")
		asks := fmt.Sprintf("{name: fixed-route, annotations: {ropeway.dev/ips: '[%q]'}, ", fixed.Addr())
		apply(t, l, strings.Replace(pod("fixed-route", node, ""), "{name: fixed-route, ", asks, 1))
		kubectl(t, l, "wait", "--for=condition=Ready", "pod/fixed-route", "--timeout=60s")
	}
	reached := func(from string) error {
		out, err := l.NodeExec(t.Context(), from, "ping", "-c1", "-W1", fixed.Addr().String())
		if err != nil {
			return fmt.Errorf("from %s: %w: %s", from, err, out)
		}
		return nil
	}
	everywhere := func() error {
		for _, n := range l.Nodes() {
			if err := reached(n.Name); err != nil {
				return err
			}
		}
		return nil
	}
	// The control plane's machine is in the VPC and no node.
	fromVPC := func() error {
		if err := reached("control-plane"); err != nil {
			return err
		}
		out, err := l.NodeExec(t.Context(), "control-plane", "curl", "-sS", "-m", "3", "http://"+fixed.Addr().String())
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	limit(5)
	defer limit(0)
	defer kubectl(t, l, "delete", "pod", "fixed-route", "--ignore-not-found", "--timeout=60s")

	on(away)
	eventually(t, 20*time.Second, everywhere) // others hear of it a moment after its own node
	eventually(t, time.Minute, func() error {
		if hop := entry(); hop != hops[away] {
			return fmt.Errorf("the entry for %s leads to %q, want %s", fixed, hop, hops[away])
		}
		return fromVPC()
	})
	if err := everywhere(); err != nil {
		t.Errorf("with an entry of its own: %v", err)
	}
	if out, _ := ropeway(t, l, "routes"); !strings.Contains(out, fixed.String()) {
		t.Errorf("ropeway routes does not show %s:\n%s", fixed, out)
	}

	// Else the entry would lead home before the pod is Ready.
	for _, action := range []string{"ModifyRouteEntry", "DeleteRouteEntr*"} {
		if _, err := console.Inject(t.Context(), openapi.Fault{Kind: openapi.FaultError, Action: action, Code: "SystemBusy"}); err != nil {
			t.Fatal(err)
		}
	}
	on(home)
	eventually(t, 5*time.Second, everywhere)
	throughout(t, 5*time.Second, func() error {
		if hop := entry(); hop != hops[away] {
			return fmt.Errorf("the entry leads to %q: nothing is shown", hop)
		}
		return everywhere()
	})
	if err := console.ClearFaults(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 45*time.Second, fromVPC) // the entry is led home before it goes
	eventually(t, 4*time.Minute, func() error {
		if err := everywhere(); err != nil {
			t.Fatalf("at home, the entry being %q: %v", entry(), err)
		}
		hop := entry()
		said := kubectl(t, l, "get", "clusternetwork", "default", "-o", "jsonpath={.status.addressRoutes}")
		switch there := strings.Contains(said, fixed.Addr().String()); {
		case hop != "" && !there && entry() != "": // it may have gone in between
			t.Fatalf("the table has an entry for %s, and the status says %q", fixed, said)
		case hop != "" || there:
			return fmt.Errorf("the entry is %q, the status says %q", hop, said)
		}
		return nil
	})
	eventually(t, 30*time.Second, func() error { return reachedBy(t, l, "direct") })
	throughout(t, 2*time.Second, everywhere)
	if err := fromVPC(); err != nil {
		t.Errorf("at home, by the range's own route: %v", err)
	}
}
