//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/openapi"
)

// fullTable: the table takes no more entries than those of the older node. The
// younger one's pods are reached by the tunnel, everybody says why, another leader
// chooses the same, and when there is room again it is direct. The lab is in the
// routed mode with a tunnel behind it.
func fullTable(t *testing.T, l *lab.Lab) {
	console, err := l.Cloud()
	if err != nil {
		t.Fatal(err)
	}
	before, err := console.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	young := youngest(nodes(t, l)).Metadata.Name
	at := slices.IndexFunc(before.Instances, func(in openapi.Instance) bool { return in.Host == young })
	if at < 0 {
		t.Fatalf("the cloud has no instance for %s", young)
	}
	of := func(entries []openapi.Entry) (theirs, others []openapi.Entry) {
		for _, e := range entries {
			if e.NextHop == before.Instances[at].ID {
				theirs = append(theirs, e)
			} else {
				others = append(others, e)
			}
		}
		return theirs, others
	}
	theirs, others := of(before.Entries)
	if len(theirs) == 0 || len(others) == 0 {
		t.Fatalf("entries of %s: %+v, of others: %+v", young, theirs, others)
	}
	quota := func(n int) {
		t.Helper()
		if err := console.Change(t.Context(), func(s *openapi.Settings) { s.Quota = n }); err != nil {
			t.Fatal(err)
		}
	}
	quota(len(others))
	defer quota(before.Settings.Quota)
	for _, e := range theirs {
		eventually(t, 30*time.Second, func() error { // another change may be under way
			_, err := console.Call(t.Context(), vpcVersion, "DeleteRouteEntry",
				map[string]string{"RouteTableId": e.Table, "DestinationCidrBlock": e.Dst.String(), "NextHopId": e.NextHop})
			return err
		})
	}
	full := func() error {
		for _, ask := range []struct {
			what  string
			words []string
			say   func() string
		}{
			{"the condition", []string{"False/RouteTableFull", "is full", "stay on the tunnel"}, func() string {
				return kubectl(t, l, "get", "clusternetwork", "default", "-o",
					`jsonpath={range .status.conditions[?(@.type=="RoutesPublished")]}{.status}/{.reason} {.message}{end}`)
			}},
			{"ropeway status", []string{"is full", "raise the table's quota"}, func() string { return said(ropeway(t, l, "status")) }},
			{"ropeway routes", []string{"OverQuota", theirs[0].Dst.String()}, func() string { return said(ropeway(t, l, "routes")) }},
			{"the metrics", []string{fmt.Sprintf(`ropeway_cloud_routes{state="OverQuota",table=%q} %d`, theirs[0].Table, len(theirs)), fmt.Sprintf(`ropeway_cloud_routes_quota_left{table=%q} 0`, theirs[0].Table)}, func() string { return leadersMetrics(t, l) }},
		} {
			text := ask.say()
			for _, word := range ask.words {
				if !strings.Contains(text, word) {
					return fmt.Errorf("%s does not say %q: %s", ask.what, word, text)
				}
			}
		}
		now, err := console.Snapshot(t.Context())
		if err != nil {
			return err
		}
		if young, old := of(now.Entries); len(young) != 0 || len(old) != len(others) {
			return fmt.Errorf("entries of the younger node: %+v, of the older: %+v", young, old)
		}
		return reachedBy(t, l, "ipip")
	}
	eventually(t, 90*time.Second, full)
	apply(t, l, pod("over-quota", young, ""))
	kubectl(t, l, "wait", "--for=condition=Ready", "pod/over-quota", "--timeout=60s")
	address := kubectl(t, l, "get", "pod", "over-quota", "-o", "jsonpath={.status.podIP}")
	for _, n := range l.Nodes() {
		onNode(t, l, n.Name, "ping", "-c1", "-W2", address)
	}
	kubectl(t, l, "delete", "pod", "over-quota", "--now")

	kubectl(t, l, "-n", "kube-system", "rollout", "restart", "deploy/ropeway-controller")
	kubectl(t, l, "-n", "kube-system", "rollout", "status", "deploy/ropeway-controller", "--timeout=90s")
	eventually(t, 90*time.Second, full) // another leader
	quota(before.Settings.Quota)
	kubectl(t, l, "-n", "kube-system", "rollout", "restart", "deploy/ropeway-controller") // or in ten minutes
	kubectl(t, l, "-n", "kube-system", "rollout", "status", "deploy/ropeway-controller", "--timeout=90s")
	eventually(t, 90*time.Second, func() error { return reachedBy(t, l, "direct") })
}

// said is what a program printed, however it ended.
func said(out string, err error) string { return fmt.Sprint(out, " ", err) }

// reachedBy says which node does not reach all others by the transport.
func reachedBy(t *testing.T, l *lab.Lab, transport string) error {
	t.Helper()
	out := kubectl(t, l, "get", "nodenetworks", "-o", "jsonpath={.items[*].status.peers}")
	if want := fmt.Sprintf(`{"%s":%d}`, transport, len(l.Nodes())-1); strings.Count(out, want) != len(l.Nodes()) {
		return fmt.Errorf("peers are reached by %s, want %s", out, transport)
	}
	return nil
}

// leadersMetrics are those of the controller that leads.
func leadersMetrics(t *testing.T, l *lab.Lab) string {
	t.Helper()
	for _, name := range strings.Fields(kubectl(t, l, "-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/component=controller", "-o", "jsonpath={.items[*].metadata.name}")) {
		out, err := l.Kubectl(t.Context(), "get", "--raw", "/api/v1/namespaces/kube-system/pods/"+name+":9799/proxy/metrics")
		// A line of its own: the help text says these words, too.
		if err == nil && strings.Contains(string(out), "\nropeway_controller_leader 1\n") {
			return string(out)
		}
	}
	return "no leader"
}
