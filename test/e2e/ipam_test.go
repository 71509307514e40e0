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

// underlay is a pool outside the pod network.
const underlay = `apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: e2e-underlay}
spec: {subnet: 172.31.250.0/24, ips: ["172.31.250.10-172.31.250.11"], gateway: 172.31.250.1}
`

// TestUnderlayPool: interfaces that another main plugin makes get addresses outside the
// pod network, each one node's; no node routes them, and everybody agrees about them.
func TestUnderlayPool(t *testing.T) {
	apply(t, cluster, underlay)
	defer kubectl(t, cluster, "delete", "spiderippool/e2e-underlay", "--ignore-not-found", "--timeout=60s")
	eventually(t, 30*time.Second, func() error {
		if got := kubectl(t, cluster, "get", "spiderippool/e2e-underlay", "-o", `jsonpath={.status.conditions[?(@.type=="Served")].reason}`); got != "OutsidePodNetwork" {
			return fmt.Errorf("the pool's condition Served has the reason %q", got)
		}
		return nil
	})
	plugin := func(node, verb string) string {
		return onNode(t, cluster, node, "sh", "-c", `echo '{"cniVersion":"1.0.0","name":"e2e-underlay","type":"macvlan","ipam":{"type":"ropeway-ipam","default_ipv4_ippool":["e2e-underlay"]}}' |
			CNI_COMMAND=`+verb+` CNI_CONTAINERID=e2e-underlay CNI_NETNS=/run/netns/e2e-underlay CNI_IFNAME=net1 CNI_PATH=/opt/cni/bin /opt/cni/bin/ropeway-ipam`)
	}
	first, second := cluster.Nodes()[0].Name, cluster.Nodes()[1].Name
	seen := map[string]string{} // address -> node
	for _, node := range []string{first, second} {
		onNode(t, cluster, node, "ip", "netns", "add", "e2e-underlay")
		defer onNode(t, cluster, node, "ip", "netns", "del", "e2e-underlay")
		result := plugin(node, "ADD")
		var given struct {
			IPs []struct{ Address, Gateway string }
		}
		if err := json.Unmarshal([]byte(result), &given); err != nil || len(given.IPs) != 1 || given.IPs[0].Gateway != "172.31.250.1" || !strings.HasSuffix(given.IPs[0].Address, "/24") {
			t.Fatalf("%v: %s", err, result)
		}
		address, _, _ := strings.Cut(given.IPs[0].Address, "/")
		if other := seen[address]; other != "" {
			t.Errorf("nodes %s and %s both have %s", other, node, address)
		}
		seen[address] = node
	}
	for address, node := range seen {
		if out, err := ropeway(t, cluster, "ipam", "who", address); err != nil || !strings.Contains(out, "leased to node "+node) {
			t.Errorf("who %s: %v\n%s", address, err, out)
		}
	}
	eventually(t, 2*time.Minute, func() error { return agreed(t) })
	for _, n := range cluster.Nodes() {
		if routes := onNode(t, cluster, n.Name, "ip", "route", "show", "table", "all"); strings.Contains(routes, "172.31.250.") {
			t.Errorf("node %s routes the underlay:\n%s", n.Name, routes)
		}
	}
	plugin(first, "DEL")
	plugin(second, "DEL")
	eventually(t, time.Minute, func() error {
		if left := kubectl(t, cluster, "get", "addressblocks", "-o", "name"); strings.Contains(left, "172-31-250") {
			return fmt.Errorf("leases are left: %s", left)
		}
		return nil
	})
}
