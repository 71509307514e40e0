//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestScenario plays what `make demo` shows, and more.
func TestScenario(t *testing.T) {
	play(t, cluster, "install", "tunnel-ipip", "services", "chained", "tunnel-vxlan", "services", "routed", "services")
	t.Run("a full route table leaves the rest on the tunnel", func(t *testing.T) { fullTable(t, cluster) })
	t.Run("a fixed address away from home has a route", func(t *testing.T) { addressRoute(t, cluster) })
	t.Run("faults of the cloud are named", func(t *testing.T) { faultsAreNamed(t, cluster) })
	play(t, cluster, "steady", "tunnel-ipip")
}

// TestNodeHasNoCredentials: no token and no kubeconfig for the plugin is left
// on a node.
func TestNodeHasNoCredentials(t *testing.T) {
	for _, n := range cluster.Nodes() {
		if out := onNode(t, cluster, n.Name, "find", "/etc/cni", "/opt/cni", "/run/ropeway", "-iname", "*kubeconfig*", "-o", "-iname", "*token*"); out != "" {
			t.Errorf("node %s has %s", n.Name, out)
		}
		conf := onNode(t, cluster, n.Name, "cat", "/etc/cni/net.d/10-ropeway.conflist")
		if strings.Contains(conf, "token") || strings.Contains(conf, "certificate") {
			t.Errorf("the conflist of node %s holds credentials: %s", n.Name, conf)
		}
	}
}

// TestInvariant2ReachableBeforeReady: a pod that was answered ADD is reachable
// from every node before it is Ready. Each pod is asked for once, by every
// node, at the first moment that the API server knows its address.
func TestInvariant2ReachableBeforeReady(t *testing.T) {
	const pods = 6
	for i := range pods {
		name := fmt.Sprintf("fresh-%d", i)
		apply(t, cluster, pod(name, cluster.Nodes()[i%2].Name, ""))
		defer kubectl(t, cluster, "delete", "pod", name, "--grace-period=0", "--force", "--ignore-not-found")
		var address string
		eventually(t, 60*time.Second, func() error {
			address = kubectl(t, cluster, "get", "pod", name, "-o", "jsonpath={.status.podIP}")
			if address == "" {
				return fmt.Errorf("pod %s has no address", name)
			}
			return nil
		})
		for _, n := range cluster.Nodes() {
			onNode(t, cluster, n.Name, "ping", "-c1", "-W2", address)
		}
	}
}

// pod is a web server on a node; extra is put into its spec.
func pod(name, node, extra string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers:
  - {name: web, image: "lab.ropeway.dev/web:1", imagePullPolicy: IfNotPresent, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}
%s`, name, name, node, extra)
}

// TestInvariant6DelWithoutAgent: a pod goes away while its node has no agent,
// and its address is free afterwards.
func TestInvariant6DelWithoutAgent(t *testing.T) {
	victim := cluster.Nodes()[0].Name
	apply(t, cluster, pod("leaving", victim, ""))
	kubectl(t, cluster, "wait", "--for=condition=Ready", "pod/leaving", "--timeout=60s")
	address := kubectl(t, cluster, "get", "pod", "leaving", "-o", "jsonpath={.status.podIP}")
	if out := onNode(t, cluster, victim, "ip", "route", "show", address); out == "" {
		t.Fatalf("node %s has no route to %s while the pod lives", victim, address)
	}

	withoutAgents(t, func() {
		kubectl(t, cluster, "delete", "pod", "leaving", "--timeout=40s")
		if out := onNode(t, cluster, victim, "ip", "route", "show", address); out != "" {
			t.Errorf("the route of the deleted pod is still there: %s", out)
		}
	})
	eventually(t, 60*time.Second, func() error {
		state := onNode(t, cluster, victim, "curl", "-s", agentURL(cluster.Nodes()[0])+"/v1/state")
		if strings.Contains(state, `"`+address+`"`) {
			return fmt.Errorf("the agent still holds %s", address)
		}
		return nil
	})
}

// withoutAgents runs f while no node has an agent, and waits for them to be
// back afterwards.
func withoutAgents(t *testing.T, f func()) {
	t.Helper()
	patch := func(selector string) {
		kubectl(t, cluster, "-n", "kube-system", "patch", "daemonset", "ropeway-agent", "--type", "json", "-p",
			`[{"op": "add", "path": "/spec/template/spec/nodeSelector", "value": `+selector+`}]`)
	}
	patch(`{"kubernetes.io/os": "linux", "ropeway.dev/e2e": "nowhere"}`)
	defer func() {
		patch(`{"kubernetes.io/os": "linux"}`)
		kubectl(t, cluster, "-n", "kube-system", "rollout", "status", "ds/ropeway-agent", "--timeout=90s")
	}()
	eventually(t, 60*time.Second, func() error {
		if out := kubectl(t, cluster, "-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", "name"); out != "" {
			return fmt.Errorf("agents are still there: %s", out)
		}
		return nil
	})
	f()
}

// TestInvariant7AddWithoutAPIServer: while the API server is stopped, a pod's
// ADD is answered as fast as ever, by plugin and agent as they are installed.
func TestInvariant7AddWithoutAPIServer(t *testing.T) {
	n := cluster.Nodes()[1].Name
	pause(t, "kube-apiserver")
	sandbox := "e2e-without-api"
	onNode(t, cluster, n, "ip", "netns", "add", sandbox)
	defer func() { _, _ = cluster.NodeExec(context.Background(), n, "ip", "netns", "del", sandbox) }()

	began := time.Now()
	answer := cni(t, n, "ADD", sandbox)
	took := time.Since(began)
	defer cni(t, n, "DEL", sandbox)
	// A bound that only waiting for the API server can miss, not a figure.
	if took > 5*time.Second {
		t.Errorf("ADD took %s while the API server was stopped", took)
	}
	if !strings.Contains(answer, `"ips"`) {
		t.Fatalf("ADD answered %s", answer)
	}
	onNode(t, cluster, n, "ip", "netns", "exec", sandbox, "ping", "-c1", "-W2", cluster.Nodes()[1].Addresses[0].Addr().String())
}

// cni runs the installed plugin as a container runtime would.
func cni(t *testing.T, node, verb, sandbox string) string {
	t.Helper()
	answer, err := invoke(node, verb, sandbox)
	if err != nil {
		t.Fatalf("%s: %v", verb, err)
	}
	return answer
}

// pause stops a control plane program for the rest of the test.
func pause(t *testing.T, program string) {
	t.Helper()
	status, err := cluster.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	for _, host := range status.Hosts {
		for _, p := range host.Programs {
			if p.Name == program {
				pid = p.PID
			}
		}
	}
	if pid == 0 {
		t.Fatalf("the lab has no process %s", program)
	}
	signal := func(name string) {
		if out, err := exec.Command("kill", "-"+name, fmt.Sprint(pid)).CombinedOutput(); err != nil {
			t.Fatalf("kill -%s %s: %v: %s", name, program, err, out)
		}
	}
	signal("STOP")
	t.Cleanup(func() {
		signal("CONT")
		eventually(t, 60*time.Second, func() error {
			_, err := cluster.Kubectl(context.Background(), "get", "--raw", "/readyz")
			return err
		})
	})
}

// TestInvariant8WrongInput: what is refused says which field and why, and what
// works goes on working.
func TestInvariant8WrongInput(t *testing.T) {
	for name, c := range map[string]struct{ patch, want string }{
		"an unknown transport":     {`{"spec":{"transports":["wireguard"]}}`, "transports"},
		"the same transport twice": {`{"spec":{"transports":["ipip","ipip"]}}`, "transports"},
		"no transport":             {`{"spec":{"transports":[]}}`, "transports"},
		"a malformed CIDR":         {`{"spec":{"podCIDRs":["10.244.0.0/33"]}}`, "podCIDRs"},
		"bits behind the prefix":   {`{"spec":{"podCIDRs":["10.244.0.7/16"]}}`, "podCIDRs"},
		"CIDRs that overlap":       {`{"spec":{"podCIDRs":["10.244.0.0/16","10.244.8.0/24"]}}`, "overlap"},
		"an MTU below IPv6's":      {`{"spec":{"mtu":1000}}`, "mtu"},
		"direct twice":             {`{"spec":{"transports":["direct","direct"]}}`, "transports"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := cluster.Kubectl(t.Context(), "patch", "clusternetwork", "default", "--type", "merge", "-p", c.patch)
			if err == nil {
				t.Fatalf("accepted: %s", c.patch)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("the refusal does not speak of %q: %v", c.want, err)
			}
		})
	}
	t.Run("pod CIDRs that overlap the Services", func(t *testing.T) {
		before := kubectl(t, cluster, "get", "clusternetwork", "default", "-o", "jsonpath={.spec.podCIDRs}")
		patch := func(cidrs string) {
			kubectl(t, cluster, "patch", "clusternetwork", "default", "--type", "merge", "-p", `{"spec":{"podCIDRs":`+cidrs+`}}`)
		}
		patch(`["172.21.0.0/16"]`)
		defer patch(before)
		eventually(t, 20*time.Second, func() error {
			status := kubectl(t, cluster, "get", "clusternetwork", "default", "-o",
				`jsonpath={range .status.conditions[?(@.type=="Accepted")]}{.status} {.message}{end}`)
			if !strings.HasPrefix(status, "False") || !strings.Contains(status, "172.21.0.0/16") {
				return fmt.Errorf("condition Accepted is %q", status)
			}
			return nil
		})
		if inForce := kubectl(t, cluster, "get", "clusternetwork", "default", "-o", "jsonpath={.status.inForce.podCIDRs}"); inForce != before {
			t.Errorf("in force is %s, want %s still", inForce, before)
		}
	})
	play(t, cluster, "tunnel-ipip")
}

// TestInvariant10Spoofing: a pod cannot send from an address that is not its
// own. Its answers would go elsewhere, so what counts is what arrives.
func TestInvariant10Spoofing(t *testing.T) {
	a, b := cluster.Nodes()[0].Name, cluster.Nodes()[1].Name
	raw := "" // the image's root user has NET_RAW, which is all that ping and this need
	apply(t, cluster, pod("liar", a, raw))
	apply(t, cluster, pod("target", b, raw))
	defer kubectl(t, cluster, "delete", "pod", "liar", "target", "--grace-period=0", "--force")
	kubectl(t, cluster, "wait", "--for=condition=Ready", "pod/liar", "pod/target", "--timeout=60s")
	target := kubectl(t, cluster, "get", "pod", "target", "-o", "jsonpath={.status.podIP}")

	dropped := func() string {
		return onNode(t, cluster, a, "sh", "-c", `nft list chain inet ropeway from_pods | grep -o 'packets [0-9]*' | tail -1`)
	}
	before := dropped()
	// From the pod's namespace, with an address that is not the pod's: as a
	// privileged program in it could.
	inPod := insideOf(t, a, "liar")
	onNode(t, cluster, a, append(inPod, "ip", "addr", "add", "10.244.99.99/32", "dev", "lo")...)
	if _, err := cluster.NodeExec(t.Context(), a, append(inPod, "ping", "-c3", "-W1", "-i0.2", "-I", "10.244.99.99", target)...); err == nil {
		t.Error("a ping with a foreign source was answered")
	}
	if after := dropped(); after == before {
		t.Errorf("no packet was dropped as spoofed: %s before, %s after", before, after)
	}
	onNode(t, cluster, a, append(inPod, "ping", "-c1", "-W2", target)...)
}

// insideOf returns the beginning of a command on the node that runs in the
// network namespace of one of its pods.
func insideOf(t *testing.T, node, pod string) []string {
	t.Helper()
	pid := strings.TrimSpace(onNode(t, cluster, node, "sh", "-c",
		`for p in /proc/[0-9]*; do grep -qsx `+pod+` $p/root/etc/hostname && basename $p && break; done`))
	if pid == "" {
		t.Fatalf("a process of pod %s was not found on its node", pod)
	}
	return []string{"nsenter", "-t", pid, "-n"}
}
