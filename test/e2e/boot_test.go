//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These are in the first file, and TestNothingLeaks in the second: what they compare
// with is a cluster as it was made, in which no other test's blocks are on their way
// back.

// TestRuntimeRestart: containerd ends and comes back while pods live: they keep their
// addresses and lose no packet, pods come and go as before, and nothing leaks.
func TestRuntimeRestart(t *testing.T) {
	from, on := cluster.Nodes()[0].Name, cluster.Nodes()[1].Name
	before := holdingsAtRest(t)
	apply(t, cluster, pod("stays", on, ""))
	apply(t, cluster, pod("leaves", on, ""))
	defer kubectl(t, cluster, "delete", "pod", "stays", "leaves", "comes", "--ignore-not-found", "--timeout=60s")
	kubectl(t, cluster, "wait", "--for=condition=Ready", "pod/stays", "pod/leaves", "--timeout=60s")
	was := podsOn(t, on)["default/stays"]

	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		stop := pinging(t, from, was.Status.PodIP)
		if err := cluster.Restart(t.Context(), on, "containerd", signal); err != nil {
			t.Fatal(err)
		}
		if out := stop(); !noneLost(out) {
			t.Errorf("containerd ended by %s; a ping to a pod meanwhile: %s", signal, out)
		}
	}
	kubectl(t, cluster, "delete", "pod", "leaves", "--timeout=60s")
	apply(t, cluster, pod("comes", on, ""))
	kubectl(t, cluster, "wait", "--for=condition=Ready", "pod/comes", "pod/stays", "--timeout=60s")
	now := podsOn(t, on)
	if is := now["default/stays"]; is.Status.PodIP != was.Status.PodIP || is.restarts() != 0 {
		t.Errorf("the pod that lived had %s and has %s; its container restarted %d times", was.Status.PodIP, is.Status.PodIP, is.restarts())
	}
	onNode(t, cluster, from, "ping", "-c1", "-W2", now["default/comes"].Status.PodIP)
	noAddressTwice(t)
	kubectl(t, cluster, "delete", "pod", "stays", "comes", "--timeout=60s")
	eventually(t, 60*time.Second, func() error { return before.differFrom(holdings(t)) })
}

// TestNodeReboot: a node is switched off with pods on it, and on again: its agent sets
// it up from nothing, the pods come back and are reached from the other node, no
// address is given twice, and nothing of the time before is left.
func TestNodeReboot(t *testing.T) {
	from, off := cluster.Nodes()[0].Name, cluster.Nodes()[1].Name
	before := holdingsAtRest(t).nameless()
	names := []string{"rebooted-0", "rebooted-1", "rebooted-2"}
	all := append([]string{"pod"}, names...)
	for _, name := range names {
		apply(t, cluster, pod(name, off, ""))
	}
	defer kubectl(t, cluster, append([]string{"delete", "--ignore-not-found", "--timeout=60s"}, all...)...)
	kubectl(t, cluster, append([]string{"wait", "--for=condition=Ready", "--timeout=60s"}, all...)...)
	was, boot := podsOn(t, off), bootID(t, off)

	if err := cluster.Reboot(t.Context(), off); err != nil {
		t.Fatal(err)
	}
	// The API server does not know yet that the pods are gone: what says that they
	// are back is that their containers are others.
	eventually(t, 3*time.Minute, func() error {
		now := podsOn(t, off)
		for key, p := range was {
			if again := now[key]; again.restarts() <= p.restarts() || !again.ready() {
				return fmt.Errorf("pod %s on node %s: restarted %d times before, %d now, ready: %t", key, off, p.restarts(), again.restarts(), again.ready())
			}
		}
		return nil
	})
	if now := bootID(t, off); now == boot {
		t.Errorf("node %s has not noticed that it booted: its boot id is %s still", off, now)
	}
	noAddressTwice(t)
	for _, name := range names {
		address := podsOn(t, off)["default/"+name].Status.PodIP
		onNode(t, cluster, from, "ping", "-c1", "-W2", address)
		kubectl(t, cluster, "exec", name, "--", "ping", "-c1", "-W2", cluster.Nodes()[0].Addresses[0].Addr().String())
	}
	kubectl(t, cluster, append([]string{"delete", "--timeout=60s"}, all...)...)
	eventually(t, 120*time.Second, func() error { return before.differFrom(holdings(t).nameless()) })
	eventually(t, 60*time.Second, func() error {
		out, err := ropeway(t, cluster, "doctor")
		if err != nil {
			return fmt.Errorf("doctor after the reboot: %w\n%s", err, out)
		}
		return nil
	})
}

// bootID is the boot of a node that its kubelet speaks of.
func bootID(t *testing.T, node string) string {
	t.Helper()
	return kubectl(t, cluster, "get", "node", node, "-o", "jsonpath={.status.nodeInfo.bootID}")
}

var pingCounts = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// noneLost reads what a ping says that was told to stop: it counts the packet that is
// on its way at that moment as lost.
func noneLost(out string) bool {
	m := pingCounts.FindStringSubmatch(out)
	if m == nil {
		return false
	}
	sent, _ := strconv.Atoi(m[1])
	received, _ := strconv.Atoi(m[2])
	return received > 0 && sent-received <= 1
}

// pinging pings an address from a node until it is told to stop; then it returns
// what the ping says.
func pinging(t *testing.T, node, address string) (stop func() string) {
	t.Helper()
	const script = `ping -q -i 0.02 -w 180 "$1" & ping=$!; read -r _; kill -INT $ping; wait $ping`
	cmd, err := cluster.HostCommand(t.Context(), node, "sh", "-c", script, "pinging", address)
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() string {
		_ = in.Close() // the shell reads its end
		_ = cmd.Wait() // what was lost is in the text
		return out.String()
	}
}

// runningPod is the part of a Pod that these tests look at.
type runningPod struct {
	Metadata struct{ Namespace, Name string }
	Spec     struct{ HostNetwork bool }
	Status   struct {
		PodIP      string
		PodIPs     []struct{ IP string }
		Conditions []struct{ Type, Status string }

		ContainerStatuses []struct{ RestartCount int }
	}
}

// restarts counts those of the pod's containers.
func (p runningPod) restarts() int {
	sum := 0
	for _, c := range p.Status.ContainerStatuses {
		sum += c.RestartCount
	}
	return sum
}

func (p runningPod) ready() bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c struct{ Type, Status string }) bool { return c.Type == "Ready" && c.Status == "True" })
}

// podsOn are the pods of a node: namespace/name -> pod.
func podsOn(t *testing.T, node string) map[string]runningPod {
	t.Helper()
	var list struct{ Items []runningPod }
	if err := json.Unmarshal([]byte(kubectl(t, cluster, "get", "pods", "-A", "--field-selector", "spec.nodeName="+node, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	found := map[string]runningPod{}
	for _, p := range list.Items {
		found[p.Metadata.Namespace+"/"+p.Metadata.Name] = p
	}
	return found
}

// noAddressTwice: invariant 1, as the API says it and as the kernels route it.
func noAddressTwice(t *testing.T) {
	t.Helper()
	holder := map[string]string{} // address -> pod
	for _, n := range cluster.Nodes() {
		routed := onNode(t, cluster, n.Name, "sh", "-c", `(ip route; ip -6 route) | grep ' dev rwp' || true`)
		for key, p := range podsOn(t, n.Name) {
			if p.Spec.HostNetwork {
				continue
			}
			for _, a := range p.Status.PodIPs {
				if other, twice := holder[a.IP]; twice {
					t.Errorf("pods %s and %s both have %s", other, key, a.IP)
				}
				holder[a.IP] = key
				if count := strings.Count("\n"+routed, "\n"+netip.MustParseAddr(a.IP).String()+" dev rwp"); count != 1 {
					t.Errorf("node %s has %d routes to %s of pod %s:\n%s", n.Name, count, a.IP, key, routed)
				}
			}
		}
	}
}
