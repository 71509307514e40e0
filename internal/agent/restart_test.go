package agent

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/plan"
)

// TestKillAndRestart: a new agent on the same run directory knows every pod,
// applies what the plugin left meanwhile, and gives nothing twice.
func TestKillAndRestart(t *testing.T) {
	_, m := one(t)
	a := m.start()
	p1, p2 := a.add("p1"), a.add("p2")
	a.stop()
	if !cniwire.ReadyLately(m.root + "/run/cni.sock") {
		t.Error("STATUS will not know that the agent was just there")
	}
	// The agent was killed while it wrote its journal, and a DEL came after.
	f, err := os.OpenFile(m.root+"/run/journal", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`12345678 {"op":"hol`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := cniwire.WriteTombstone(m.root+"/run/tombstones", cniwire.Tombstone{Attachment: attachment("p2")}); err != nil {
		t.Fatal(err)
	}
	a = m.start()
	if again := a.add("p1"); !slices.Equal(again, p1) {
		t.Errorf("p1 had %v and now has %v", p1, again)
	}
	a.refused(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("p2")}, cniwire.CodeMismatch, "")
	for i := range 10 {
		if got := a.add(fmt.Sprint("new", i)); slices.Equal(got, p1) || slices.Equal(got, p2) {
			t.Errorf("%v was given again: it is held, or has just been freed", got)
		}
	}
}

// TestTombstoneBeforeNextAllocation: a DEL that found no agent is applied before
// the next ADD, also if it appears while the agent runs.
func TestTombstoneBeforeNextAllocation(t *testing.T) {
	_, m := one(t)
	a := m.start()
	a.add("p1")
	if err := cniwire.WriteTombstone(m.root+"/run/tombstones", cniwire.Tombstone{Attachment: attachment("p1")}); err != nil {
		t.Fatal(err)
	}
	a.add("p2")
	a.refused(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("p1")}, cniwire.CodeMismatch, "")
	if left, err := cniwire.ReadTombstones(m.root + "/run/tombstones"); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestTombstoneIsSeen: a DEL that the running agent did not hear of frees the address
// without any other word.
func TestTombstoneIsSeen(t *testing.T) {
	_, m := one(t)
	m.config.timing.resync = time.Hour // and with it the sweep
	a := m.start()
	held := a.add("p1")[0]
	if err := cniwire.WriteTombstone(m.root+"/run/tombstones", cniwire.Tombstone{Attachment: attachment("p1")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if a.node.book.IsHeld(held) {
			return "the address to be free"
		}
		return ""
	})
}

// TestRestartWithoutAPI: the API server is down when a new agent starts. The
// conflist stays, pods are served from the ranges that the node had, and the
// kernel is kept as it was.
func TestRestartWithoutAPI(t *testing.T) {
	api, m := one(t)
	a := m.start()
	api.say("a", false)
	p1 := a.add("p1")
	eventually(t, func() string {
		if m.conflist() == "" {
			return "the conflist"
		}
		return ""
	})
	last := m.dataplane.States()[len(m.dataplane.States())-1]
	a.stop()
	api.change(func(a *fakeAPI) { a.down = true })
	before := len(m.dataplane.States())
	a = m.start()
	if got := a.add("p2"); slices.Equal(got, p1) {
		t.Errorf("%v was given twice", got)
	}
	if _, err := a.call(cniwire.Request{Verb: cniwire.Status}); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	eventually(t, func() string {
		if len(m.dataplane.States()) == before {
			return "the kernel to be set again"
		}
		return ""
	})
	for _, s := range m.dataplane.States()[before:] {
		if fmt.Sprint(s) != fmt.Sprint(last) {
			t.Errorf("the kernel was changed from %v to %v", last, s)
		}
	}
	if m.conflist() == "" {
		t.Error("the conflist is gone")
	}
	if code, _ := get(a, "/readyz"); code != 200 {
		t.Errorf("/readyz: %d", code)
	}
}

// TestLostRunDirectory: with nothing left but the kernel, the next agent holds
// what the kernel shows and keeps the node's own address.
func TestLostRunDirectory(t *testing.T) {
	api, m := one(t)
	a := m.start()
	p1 := a.add("p1")
	now, _ := a.node.board.get()
	source := now.sources
	a.stop()
	if err := os.RemoveAll(m.root + "/run"); err != nil {
		t.Fatal(err)
	}
	alias, err := podlink.Alias(attachment("p1"), cniwire.Pod{Namespace: "default", Name: "p1", UID: "u"})
	if err != nil {
		t.Fatal(err)
	}
	block := api.leasesOf("a")[0]
	lost, foreign := block.Addr().Next().Next().Next().Next(), block.Addr().Next().Next().Next()
	m.kernel.links = []dataplane.PodLink{
		{Name: "rwp1", Addresses: p1, Alias: alias},
		{Name: "rwp2", Addresses: []netip.Addr{lost}}, // its alias is lost
	}
	m.kernel.foreign = []addresses.ForeignPod{{Link: "cali123", Address: foreign}}
	a = m.start()
	if again := a.add("p1"); !slices.Equal(again, p1) {
		t.Errorf("p1 had %v and now has %v", p1, again)
	}
	for i := range 10 {
		got := a.add(fmt.Sprint("new", i))[0]
		if got == p1[0] || got == lost || got == foreign || slices.Contains(source, got) {
			t.Errorf("%v was given, and is in use", got)
		}
	}
	if now, _ := a.node.board.get(); !slices.Equal(now.sources, source) {
		t.Errorf("the node's own address changed from %v to %v", source, now.sources)
	}
	// The links go, without a DEL: what only they spoke for is free again.
	m.kernel.mu.Lock()
	m.kernel.links, m.kernel.foreign = m.kernel.links[:1], nil
	m.kernel.mu.Unlock()
	eventually(t, func() string {
		if a.node.book.IsHeld(lost) || a.node.book.IsHeld(foreign) {
			return "addresses of links that are gone to be freed"
		}
		return ""
	})
}

// TestHostLocalFilesAreHeld: what host-local gave before Ropeway came is nobody
// else's.
func TestHostLocalFilesAreHeld(t *testing.T) {
	api, m := one(t, "10.244.7.0/24")
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	m.write("cni/networks/k8s-pod-network/10.244.7.2", "old\r\neth0")
	m.write("cni/networks/k8s-pod-network/last_reserved_ip.0", "10.244.7.2")
	m.write("cni/networks/k8s-pod-network/lock", "")
	a := m.start()
	for i := range 5 {
		if got := a.add(fmt.Sprint("p", i)); got[0] == netip.MustParseAddr("10.244.7.2") {
			t.Errorf("%v was given, and host-local has it", got)
		}
	}
	resp, err := a.call(cniwire.Request{Verb: cniwire.Check, Attachment: attachment("old")})
	if err != nil || !slices.Equal(resp.Addresses, addrs("10.244.7.2")) {
		t.Errorf("CHECK of the old pod: %v, %v", resp.Addresses, err)
	}
}

// TestSwitchOfSource: addresses come from node CIDRs from now on; pods that run
// keep theirs, and their blocks stay leased.
func TestSwitchOfSource(t *testing.T) {
	api, m := one(t, "10.244.7.0/24")
	api.setNode("a", func(n *plan.Node) { n.NodeCIDRs = nil })
	a := m.start()
	old := a.add("old")
	api.setNode("a", func(n *plan.Node) { n.NodeCIDRs = prefixes("10.244.7.0/24") })
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	eventually(t, func() string {
		now, _ := a.node.board.get()
		if !now.nodeCIDRMode {
			return "the change"
		}
		return ""
	})
	if got := a.add("new"); !netip.MustParsePrefix("10.244.7.0/24").Contains(got[0]) {
		t.Errorf("a new pod has %v", got)
	}
	if got := a.add("old"); !slices.Equal(got, old) {
		t.Errorf("the old pod had %v and now has %v", old, got)
	}
	now, _ := a.node.board.get()
	if _, ok := now.owns(old[0]); !ok {
		t.Errorf("the old pod's address %v is in none of %v any more", old, now.cidrs)
	}
}

// TestLostLeaseIsLeasedAgain: somebody deleted the AddressBlock under a pod.
func TestLostLeaseIsLeasedAgain(t *testing.T) {
	api, m := one(t)
	a := m.start()
	a.add("p1")
	lease := api.leasesOf("a")[0]
	api.change(func(a *fakeAPI) { a.leases = nil })
	eventually(t, func() string {
		if !slices.Contains(api.leasesOf("a"), lease) {
			return "the lease of " + lease.String()
		}
		return ""
	})
}

// TestNodeMadeAnew: the Node object was deleted and registered again: leases are
// adopted, pods keep their addresses.
func TestNodeMadeAnew(t *testing.T) {
	api, m := one(t)
	a := m.start()
	held := a.add("p1")
	api.change(func(a *fakeAPI) { a.nodes[0].UID = "uid-2" })
	eventually(t, func() string {
		api.mu.Lock()
		defer api.mu.Unlock()
		if api.leases[0].NodeUID != "uid-2" || api.leases[0].Generation != 2 || api.published["a"].NodeUID != "uid-2" {
			return "the lease to be adopted and the node's word renewed"
		}
		return ""
	})
	if again := a.add("p1"); !slices.Equal(again, held) {
		t.Errorf("the pod had %v and now has %v", held, again)
	}
	if got := api.status("a").VTEP; got != plan.VTEPMAC("uid-2") {
		t.Errorf("VTEP %v is not the new node's", got)
	}
}

// TestNodeMadeAnewWithAnotherPodCIDR: new pods are of the new podCIDR; one that
// runs keeps its address, and the block around it is leased, so that others go on
// sending to it.
func TestNodeMadeAnewWithAnotherPodCIDR(t *testing.T) {
	api, m := one(t, "10.244.7.0/24")
	api.change(func(a *fakeAPI) { a.network.NodeCIDR = true })
	a := m.start()
	old := a.add("old")
	api.setNode("a", func(n *plan.Node) { n.UID, n.NodeCIDRs = "uid-2", prefixes("10.244.9.0/24") })
	eventually(t, func() string {
		st := api.status("a")
		if st.NodeUID != "uid-2" || !slices.Contains(st.CIDRs, netip.MustParsePrefix("10.244.9.0/24")) ||
			!slices.ContainsFunc(st.CIDRs, func(p netip.Prefix) bool { return p.Contains(old[0]) }) {
			return fmt.Sprintf("the node to have its new podCIDR and a block around %v, not %v", old, st.CIDRs)
		}
		return ""
	})
	if got := a.add("new"); !netip.MustParsePrefix("10.244.9.0/24").Contains(got[0]) {
		t.Errorf("a new pod has %v", got)
	}
	if again := a.add("old"); !slices.Equal(again, old) {
		t.Errorf("the old pod had %v and now has %v", old, again)
	}
}
