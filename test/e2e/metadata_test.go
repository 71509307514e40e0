//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestMetadataIsClosedToPods: the service answers the node and not its pods,
// until their namespace is allowed.
func TestMetadataIsClosedToPods(t *testing.T) {
	n := cluster.Nodes()[0].Name
	apply(t, cluster, pod("curious", n, ""))
	defer kubectl(t, cluster, "delete", "pod", "curious", "--grace-period=0", "--force")
	kubectl(t, cluster, "wait", "--for=condition=Ready", "pod/curious", "--timeout=60s")
	ask := []string{"curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5", "http://100.100.100.200/latest/meta-data/"}
	if answer := onNode(t, cluster, n, ask...); answer != "200" {
		t.Fatalf("the node itself is answered %q", answer)
	}
	asked := append(insideOf(t, n, "curious"), ask...)
	answered := func(want bool) func() error {
		return func() error {
			out, err := cluster.NodeExec(t.Context(), n, asked...)
			if want && string(out) == "200" || !want && err != nil {
				return nil
			}
			return fmt.Errorf("the pod's answer is %q (%v), want one: %t", out, err, want)
		}
	}
	eventually(t, time.Second, answered(false))
	allow := func(namespaces string) {
		kubectl(t, cluster, "patch", "clusternetwork", "default", "--type", "merge", "-p", `{"spec":{"metadataAccess":`+namespaces+`}}`)
	}
	allow(`{"namespaces":["default"]}`)
	defer allow("null")
	eventually(t, 30*time.Second, answered(true))
	allow(`{"namespaces":["kube-system"]}`)
	eventually(t, 30*time.Second, answered(false))
}
