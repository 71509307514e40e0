//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
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
	agrees := func() error { return agreed(t) }
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

// agreed is nil once ipam check finds no difference.
func agreed(t *testing.T) error {
	if out, err := ropeway(t, cluster, "ipam", "check"); err != nil {
		return fmt.Errorf("ipam check: %w: %s", err, out)
	}
	return nil
}

// tight is a pool of as many addresses as its Deployment has pods, of no node's range.
const tight = `apiVersion: ropeway.dev/v1alpha1
kind: AddressPool
metadata: {name: tight}
spec: {subnets: ["10.244.250.0/24"], ranges: ["10.244.250.11-10.244.250.14"]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: tight}
spec:
  replicas: 4
  selector: {matchLabels: {app: tight}}
  template:
    metadata: {labels: {app: tight}, annotations: {ipam.spidernet.io/ippool: '{"ipv4": ["tight"]}'}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: tight}}}]
      containers: [{name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}]
`

// TestRestartWithAsManyAddressesAsPods: a rolling restart makes pods on all nodes wait
// for the addresses of those that end; each is reached on its node at once, and
// everybody agrees about who has which.
func TestRestartWithAsManyAddressesAsPods(t *testing.T) {
	apply(t, cluster, tight)
	defer kubectl(t, cluster, "delete", "deploy/tight", "addresspool/tight", "--ignore-not-found", "--cascade=foreground", "--timeout=60s")
	kubectl(t, cluster, "rollout", "status", "deploy/tight", "--timeout=90s")
	for range 2 {
		began := time.Now()
		kubectl(t, cluster, "rollout", "restart", "deploy/tight")
		kubectl(t, cluster, "rollout", "status", "deploy/tight", "--timeout=120s")
		t.Logf("restarted within %.1f s", time.Since(began).Seconds())
		eventually(t, 60*time.Second, func() error {
			got := strings.Fields(kubectl(t, cluster, "get", "pods", "-l", "app=tight", "-o", "jsonpath={.items[*].status.podIP}"))
			slices.Sort(got)
			if want := []string{"10.244.250.11", "10.244.250.12", "10.244.250.13", "10.244.250.14"}; !slices.Equal(got, want) {
				return fmt.Errorf("the pods have %v, want %v", got, want) // one may be on its way out
			}
			return nil
		})
		noAddressTwice(t)
		eventually(t, 2*time.Minute, func() error { return agreed(t) })
		for _, n := range cluster.Nodes() {
			for i := range 4 {
				onNode(t, cluster, n.Name, "ping", "-c1", "-W2", fmt.Sprintf("10.244.250.%d", 11+i))
			}
		}
	}
}
