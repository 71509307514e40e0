//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestIPAM: what an operator sees of addresses fits together, a leak and a file
// that host-local left are named, and only what nobody has is freed.
func TestIPAM(t *testing.T) {
	// A node that has run a pod: only there can the agent see that a network
	// namespace is gone, and what the runtime has noted.
	node := kubectl(t, cluster, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[0].spec.nodeName}")
	agrees := func() error {
		if out, err := ropeway(t, cluster, "ipam", "check"); err != nil {
			return fmt.Errorf("ipam check: %w: %s", err, out)
		}
		return nil
	}
	eventually(t, 2*time.Minute, agrees) // pods of other tests may be on their way out

	address := kubectl(t, cluster, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[0].status.podIP}")
	out, err := ropeway(t, cluster, "ipam", "who", address)
	if err != nil || !strings.Contains(out, "kube-system/coredns") || !strings.Contains(out, "to the link rwp") {
		t.Errorf("who %s: %v\n%s", address, err, out)
	}
	if out, err := ropeway(t, cluster, "ipam", "release", address); err == nil || !strings.Contains(out, "delete the pod") {
		t.Errorf("release of a live pod's address: %v %s", err, out)
	}

	const container = "e2e-leak"
	result := onNode(t, cluster, node, "sh", "-c", `echo '{"cniVersion":"1.0.0","name":"k8s-pod-network","type":"bridge","ipam":{"type":"ropeway-ipam"}}' |
		CNI_COMMAND=ADD CNI_CONTAINERID=`+container+` CNI_NETNS=/run/netns/e2e-none CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/ropeway-ipam`)
	var given struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal([]byte(result), &given); err != nil || len(given.IPs) == 0 {
		t.Fatalf("%v: %s", err, result)
	}
	leaked, _, _ := strings.Cut(given.IPs[0].Address, "/")
	if out, err := ropeway(t, cluster, "ipam", "check"); err == nil || !strings.Contains(out, "SandboxEnded") || !strings.Contains(out, leaked) {
		t.Errorf("a leaked address: %v\n%s", err, out)
	}
	if out, err := ropeway(t, cluster, "ipam", "release", leaked); err != nil || !strings.Contains(out, leaked+" is free") {
		t.Errorf("its release: %v %s", err, out)
	}

	file := "/var/lib/cni/networks/k8s-pod-network/" + leaked
	onNode(t, cluster, node, "sh", "-c", "mkdir -p $(dirname "+file+"); printf 'e2e-gone\\r\\neth0' >"+file+"; touch -d '1 hour ago' "+file)
	if out, err := ropeway(t, cluster, "ipam", "check", "-o", "json"); err == nil || !strings.Contains(out, `"kind": "StaleFile"`) {
		t.Errorf("a file that host-local left: %v\n%s", err, out)
	}
	for _, line := range [][]string{{"migrate", "addresses", "--dry-run", "--node", node}, {"migrate", "addresses"}} {
		if out, err := ropeway(t, cluster, line...); err != nil || !strings.Contains(out, " 1 freed") {
			t.Errorf("%v: %v\n%s", line, err, out)
		}
	}
	if left := onNode(t, cluster, node, "sh", "-c", "ls "+file+" 2>/dev/null || true"); left != "" {
		t.Errorf("it is left: %s", left)
	}
	eventually(t, 2*time.Minute, agrees)
}
