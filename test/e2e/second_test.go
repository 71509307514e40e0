//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// TestSecondLab boots another lab beside the first: no podCIDRs, kube-proxy in
// iptables mode, and a VPC that lets no tunnel through at first.
func TestSecondLab(t *testing.T) {
	ctx := t.Context()
	o, err := options("e2esecond", os.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	o.Bare, o.AllocateNodeCIDRs, o.ProxyMode = true, false, "iptables"
	l, err := bootLab(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := takeDown(t.Context(), l, t.Failed()); err != nil {
			t.Error(err)
		}
	}()
	t.Run("invariant 3: not available until proven", func(t *testing.T) { notAvailableUntilProven(t, l, o) })
	if t.Failed() {
		return
	}
	play(t, l, "install", "services", "tunnel-vxlan")
	t.Run("invariant 11: a node joins without the controller", func(t *testing.T) { joinsWithoutController(t, l) })
	t.Run("vxlan where protocol 4 does not pass", func(t *testing.T) { fallsBack(t, l) })
	t.Run("NetworkPolicies are not ignored silently", func(t *testing.T) { policiesAreNamed(t, l) })
	play(t, l, "steady-transports")
}

func block(t *testing.T, l *lab.Lab, what string, on bool) {
	t.Helper()
	if err := vpc.Block(t.Context(), l.Name(), what, on); err != nil {
		t.Fatal(err)
	}
}

// notAvailableUntilProven installs Ropeway while the security group drops both
// tunnels. The cluster's first node may be proven by its local path; the other
// must not become available before something reaches it, and then must.
func notAvailableUntilProven(t *testing.T, l *lab.Lab, o lab.Options) {
	block(t, l, "ipip", true)
	block(t, l, "vxlan", true)
	installed := make(chan error, 1)
	go func() { installed <- o.Install(t.Context(), l) }()

	name := youngest(nodes(t, l)).Metadata.Name
	withheld := func() error {
		n := youngest(nodes(t, l))
		if status, reason := n.condition("NetworkUnavailable"); status != "True" {
			return fmt.Errorf("node %s: NetworkUnavailable is %q (%s)", name, status, reason)
		}
		return nil
	}
	eventually(t, 90*time.Second, func() error {
		out := kubectl(t, l, "-n", "kube-system", "get", "ds", "-o", "jsonpath={.items[*].status.numberReady}/{.items[*].status.desiredNumberScheduled}")
		if out != "2/2" {
			return fmt.Errorf("agents ready: %s", out)
		}
		return withheld()
	})
	throughout(t, 10*time.Second, func() error {
		if out, err := l.NodeExec(t.Context(), name, "ls", "-A", "/etc/cni/net.d"); err != nil || len(out) != 0 {
			return fmt.Errorf("node %s has a conflist before it is proven: %s (%v)", name, out, err)
		}
		return withheld()
	})
	block(t, l, "vxlan", false)
	if err := <-installed; err != nil {
		t.Fatal(err)
	}
	if err := l.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	block(t, l, "ipip", false)
}

// joinsWithoutController: with no controller, a node that has lost its
// conflist (as a new one has none) gets it back after its agent starts, and
// takes pods.
func joinsWithoutController(t *testing.T, l *lab.Lab) {
	n := l.Nodes()[1].Name
	kubectl(t, l, "-n", "kube-system", "scale", "deploy/ropeway-controller", "--replicas=0")
	defer func() {
		kubectl(t, l, "-n", "kube-system", "scale", "deploy/ropeway-controller", "--replicas=2")
		kubectl(t, l, "-n", "kube-system", "rollout", "status", "deploy/ropeway-controller", "--timeout=90s")
	}()
	eventually(t, 60*time.Second, func() error {
		if out := kubectl(t, l, "-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/component=controller", "-o", "name"); out != "" {
			return errors.New("controllers are still there: " + out)
		}
		return nil
	})
	// As a node that joins: no word of the controller's on it, no lease, no
	// state, no conflist.
	if _, err := l.NodeExec(t.Context(), n, "rm", "-f", "/etc/cni/net.d/10-ropeway.conflist"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, l, "delete", "nodenetwork", n)
	kubectl(t, l, "patch", "node", n, "--subresource=status", "--type=strategic", "-p",
		`{"status":{"conditions":[{"type":"NetworkUnavailable","$patch":"delete"}]}}`)
	kubectl(t, l, "-n", "kube-system", "delete", "pod", "-l", "app.kubernetes.io/component=agent", "--field-selector", "spec.nodeName="+n)
	eventually(t, 90*time.Second, func() error {
		_, err := l.NodeExec(t.Context(), n, "cat", "/etc/cni/net.d/10-ropeway.conflist")
		return err
	})
	apply(t, l, pod("joined", n, ""))
	kubectl(t, l, "wait", "--for=condition=Ready", "pod/joined", "--timeout=60s")
	address := kubectl(t, l, "get", "pod", "joined", "-o", "jsonpath={.status.podIP}")
	onNode(t, l, l.Nodes()[0].Name, "ping", "-c1", "-W2", address)
	kubectl(t, l, "delete", "pod", "joined")
}

// fallsBack: with the default transports, destinations that protocol 4 does
// not reach go by vxlan, and back.
func fallsBack(t *testing.T, l *lab.Lab) {
	kubectl(t, l, "patch", "clusternetwork", "default", "--type", "merge", "-p", `{"spec":{"transports":["ipip","vxlan"]}}`)
	by := func(transport string) func() error {
		return func() error {
			out := kubectl(t, l, "get", "nodenetworks", "-o", "jsonpath={.items[*].status.peers}")
			if want := fmt.Sprintf(`{"%s":1}`, transport); strings.Count(out, want) != len(l.Nodes()) {
				return fmt.Errorf("peers are reached by %s, want %s", out, transport)
			}
			return nil
		}
	}
	eventually(t, 30*time.Second, by("ipip"))
	block(t, l, "ipip", true)
	defer block(t, l, "ipip", false)
	eventually(t, 60*time.Second, by("vxlan"))
	// The tunnel that is left carries all: doctor names the fault, and ends well.
	eventually(t, 30*time.Second, func() error {
		if out, err := ropeway(t, l, "doctor", "-o", "json"); err != nil || !strings.Contains(out, "Protocol4Blocked") {
			return fmt.Errorf("doctor, which is to name Protocol4Blocked: %v: %s", err, out)
		}
		return nil
	})
	out, err := ropeway(t, l, "plan")
	if err != nil || !strings.Contains(out, "vxlan") {
		t.Errorf("ropeway plan (%v): %s", err, out)
	}
	block(t, l, "ipip", false)
	eventually(t, 60*time.Second, by("ipip"))
}

// policiesAreNamed: a NetworkPolicy that is not enforced is a condition and
// makes doctor fail.
func policiesAreNamed(t *testing.T, l *lab.Lab) {
	apply(t, l, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
`)
	defer kubectl(t, l, "delete", "networkpolicy", "deny")
	eventually(t, 30*time.Second, func() error {
		out := kubectl(t, l, "get", "clusternetwork", "default", "-o", `jsonpath={.status.conditions[?(@.type=="PolicyEnforced")].status}`)
		if out != "False" {
			return fmt.Errorf("PolicyEnforced is %q", out)
		}
		return nil
	})
	out, err := ropeway(t, l, "doctor")
	if err == nil {
		t.Errorf("doctor passes beside a NetworkPolicy that is not enforced:\n%s", out)
	}
	if !strings.Contains(out, "NetworkPolic") {
		t.Errorf("doctor does not speak of NetworkPolicies:\n%s", out)
	}
}
