//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab"
)

// TestUninstallThenCalicoManifest is in the last file, hence runs last on the
// shared lab: uninstall
// leaves nothing on any node, and then the scenario's own ConfigMap gives what
// its user meant: addresses by the real host-local from the node's podCIDR.
func TestUninstallThenCalicoManifest(t *testing.T) {
	// Drained, as the manual says: a pod that lives keeps its interface.
	kubectl(t, cluster, "delete", "deploy,ds,svc,pods", "--all", "-n", "default", "--timeout=60s")
	// A ReplicaSet that is still there makes pods again.
	eventually(t, 60*time.Second, func() error {
		if left := kubectl(t, cluster, "get", "pods,rs", "-n", "default", "-o", "name"); left != "" {
			return fmt.Errorf("left in the namespace default: %s", left)
		}
		return nil
	})
	kubectl(t, cluster, "-n", "kube-system", "scale", "deploy/coredns", "--replicas=0")
	kubectl(t, cluster, "-n", "kube-system", "wait", "--for=delete", "pod", "-l", "k8s-app=kube-dns", "--timeout=60s")
	if out, err := ropeway(t, cluster, "uninstall", "--yes", "--delete-pools"); err != nil {
		t.Fatalf("uninstall: %v\n%s", err, out)
	}
	t.Run("nothing is left", func(t *testing.T) {
		for _, n := range cluster.Nodes() {
			nothingLeft(t, n.Name)
		}
		for _, what := range []string{"crd", "clusterrole", "clusterrolebinding", "validatingadmissionpolicy", "ds,deploy,sa,cm,role,rolebinding,lease -n kube-system"} {
			out := kubectl(t, cluster, append([]string{"get", "-o", "name"}, strings.Fields(what)...)...)
			for line := range strings.Lines(out) {
				if strings.Contains(line, "ropeway") {
					t.Errorf("left in the API: %s", line)
				}
			}
		}
		for _, n := range nodes(t, cluster) {
			if _, reason := n.condition("NetworkUnavailable"); strings.HasPrefix(reason, "Ropeway") {
				t.Errorf("node %s still has the condition NetworkUnavailable with reason %s", n.Metadata.Name, reason)
			}
		}
	})
	t.Run("the scenario's host-local ConfigMap", hostLocal)
}

func nothingLeft(t *testing.T, n string) {
	t.Helper()
	for what, command := range map[string]string{
		"routes":     `ip route show proto 112; ip -6 route show proto 112`,
		"links":      `ip -o link | grep -E ' (rw-|rwp)' || true`,
		"nft tables": `nft list tables | grep ropeway || true`,
		"BPF pins":   `ls -A /sys/fs/bpf | grep ropeway || true`,
		"programs":   `ls /opt/cni/bin | grep -E '^(ropeway|calico)' || true`,
		"conflists":  `ls -A /etc/cni/net.d`,
		"state":      `find /run/ropeway -ls 2>/dev/null || true`,
		"addresses":  `ip -o addr show dev lo | grep -v -E ' (127\.0\.0\.1|::1)/' || true`,
	} {
		if out := onNode(t, cluster, n, "sh", "-c", command); out != "" {
			t.Errorf("left on node %s: %s: %s", n, what, out)
		}
	}
}

func hostLocal(t *testing.T) {
	p, err := installation(lab.DefaultCache(os.Getenv), func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	p.Args = []string{"--calico-manifest", "../scenario/calico-config.host-local.yaml"}
	if err := p.Apply(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	kubectl(t, cluster, "-n", "kube-system", "scale", "deploy/coredns", "--replicas=1")
	if err := cluster.AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	play(t, cluster, "tunnel-ipip", "routed-host-local")
	for _, n := range nodes(t, cluster) {
		cidr := netip.MustParsePrefix(n.Spec.PodCIDR)
		out := kubectl(t, cluster, "get", "pods", "-l", "app=test", "--field-selector", "spec.nodeName="+n.Metadata.Name, "-o", "jsonpath={.items[*].status.podIP}")
		if out == "" {
			t.Errorf("node %s has no pod", n.Metadata.Name)
		}
		for _, text := range strings.Fields(out) {
			if address := netip.MustParseAddr(text); !cidr.Contains(address) {
				t.Errorf("%s on node %s is outside of the node's podCIDR %s", address, n.Metadata.Name, cidr)
			}
			// The real host-local keeps a file for each address.
			if files := onNode(t, cluster, n.Metadata.Name, "ls", "/var/lib/cni/networks/k8s-pod-network"); !strings.Contains(files, text) {
				t.Errorf("host-local on node %s has no file for %s: %s", n.Metadata.Name, text, files)
			}
		}
	}
	play(t, cluster, "routed-pools")
}
