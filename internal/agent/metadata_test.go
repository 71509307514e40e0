package agent

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/plan"
)

// TestMetadataExemptions: pods do not reach the metadata address, but those of
// allowed namespaces, whenever they were started.
func TestMetadataExemptions(t *testing.T) {
	api, m := one(t)
	a := m.start()
	a.waitServing()
	in := func(namespace, name string) string {
		t.Helper()
		_, err := a.call(cniwire.Request{Verb: cniwire.Add, Attachment: attachment(name), IPAM: "ropeway-ipam",
			Pod: cniwire.Pod{Namespace: namespace, Name: name, UID: "uid-" + name}})
		if err != nil {
			t.Fatalf("ADD %s: %v", name, err)
		}
		return podlink.HostLinkName("k8s-pod-network", name, "eth0")
	}
	exempt := func(what string, links ...string) {
		t.Helper()
		slices.Sort(links)
		eventually(t, func() string {
			states := m.dataplane.States()
			if got := states[len(states)-1].Metadata; !slices.Equal(got.Links, links) || got.Open {
				return fmt.Sprintf("%s: exempt are %v (open %t), not %v", what, got.Links, got.Open, links)
			}
			return ""
		})
	}
	allow := func(namespaces ...string) {
		api.change(func(a *fakeAPI) { a.network.Metadata = plan.MetadataAccess{Namespaces: namespaces} })
	}
	first := in("agents", "p1")
	in("default", "p2")
	exempt("by default nobody")
	allow("agents")
	exempt("a pod that runs already", first)
	second := in("agents", "p3")
	in("default", "p4")
	exempt("a pod that is started later", first, second)
	if _, err := a.call(cniwire.Request{Verb: cniwire.Del, Attachment: attachment("p1")}); err != nil {
		t.Fatal(err)
	}
	exempt("without the pod that is gone", second)

	// The next agent knows whose pods they are: from the journal, and from the
	// kernel if that is lost.
	a.stop()
	a = m.start()
	exempt("after a restart", second)
	a.stop()
	if err := os.RemoveAll(m.root + "/run"); err != nil {
		t.Fatal(err)
	}
	alias, err := podlink.Alias(attachment("p3"), cniwire.Pod{Namespace: "agents", Name: "p3", UID: "u"})
	if err != nil {
		t.Fatal(err)
	}
	m.kernel.links = []dataplane.PodLink{{Name: second, Addresses: addrs("10.244.0.9"), Alias: alias}}
	a = m.start()
	exempt("after the run directory was lost", second)
	allow()
	exempt("nobody any more")
	allow(plan.AllNamespaces)
	eventually(t, func() string {
		states := m.dataplane.States()
		if !states[len(states)-1].Metadata.Open {
			return "the metadata service to be open to all"
		}
		return ""
	})
}
