package dataplane

import (
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

// TestMetadataAccess: pods do not reach the cloud's metadata service, by any
// port, family or Service; those of allowed namespaces do, and so does the node;
// a change works at once for pods and flows that are there already.
func TestMetadataAccess(t *testing.T) {
	f := newFabric(t, 1, plan.IPIP)
	f.sh(f.outside, "ip addr add 100.100.100.200/32 dev lo; ip addr add fd00:ec2::254/128 dev lo")
	f.sh(f.router, "ip route add 100.100.100.200 via "+outsideAddress+"; ip route add fd00:ec2::254 via 2001:db8::1")
	f.setAll()
	n := f.nodes[0]
	a, agent := n.addPod(1500), n.addPod(1500)
	reaches := func(what string, from *netnstest.NS, want bool, addresses ...string) {
		t.Helper()
		for _, address := range addresses {
			_, _, err := f.transfer(from, f.outside, address, 1)
			if (err == nil) != want {
				t.Errorf("%s reaches %s: %v, want %t", what, address, err, want)
			}
			if !want && err != nil && !strings.Contains(err.Error(), "no route to host") && !strings.Contains(err.Error(), "permission denied") {
				t.Errorf("%s to %s waits for an answer: %v", what, address, err)
			}
		}
	}
	service := []string{"100.100.100.200:80", "100.100.100.200:8080", "[fd00:ec2::254]:80"}
	reaches("a pod", a.ns, false, service...)
	reaches("the node", n.ns, true, service...)
	reaches("a pod, what is no metadata service,", a.ns, true, outsideAddress+":80")
	f.sh(n.ns, "nft add table ip svc; nft add chain ip svc pre '{ type nat hook prerouting priority dstnat; }'; "+
		"nft add rule ip svc pre ip daddr 10.96.0.9 dnat to 100.100.100.200")
	if _, err := f.dial(a.ns, "10.96.0.9:80"); err == nil {
		t.Error("a pod reaches it by a Service")
	}

	f.pods = []plan.LocalPod{{Namespace: "default", Link: a.link}, {Namespace: "agents", Link: agent.link}}
	f.network.Metadata.Namespaces = []string{"agents"}
	f.setAll()
	reaches("a pod of an allowed namespace", agent.ns, true, service...)
	reaches("a pod of another", a.ns, false, service...)

	// Revoked, a flow stops, established or not (as invariant 9 says of policy).
	l := f.listen(f.outside, "100.100.100.200:81")
	client, err := f.dial(agent.ns, "100.100.100.200:81")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	echo(t, client, server)
	f.network.Metadata.Namespaces = nil
	f.setAll()
	before := n.counter(t, "forwarded", "metadata")
	client.Write([]byte("after all"))
	eventually(t, "an established flow is refused", func() bool { return n.counter(t, "forwarded", "metadata") > before })
	reaches("a pod whose namespace is no longer allowed", agent.ns, false, service...)

	f.network.Metadata.Namespaces = []string{plan.AllNamespaces}
	f.setAll()
	reaches("a pod, where all may,", a.ns, true, service...)
	// What an agent saved that knew nothing of it keeps pods away.
	old := plan.Compute(f.snapshot(n))
	old.Metadata = plan.Metadata{}
	if err := n.ns.Do(func() error { _, err := n.dataplane.Set(t.Context(), old); return err }); err != nil {
		t.Fatal(err)
	}
	reaches("a pod, by a former version's state,", a.ns, false, service...)
}
