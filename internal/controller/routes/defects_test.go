package routes

import (
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// The numbers are those of the vendor's cloud controller manager's defects,
// each of which harmed a cluster: the same input must not harm ours. Numbers 1
// and 4 are in planner_test.go, 9 in lab_test.go, 10 in cloud/alibaba, 5 in
// controller.

// Defect 2: a duplicate that leads to another instance counted as success.
func TestDefect2DuplicateThatLeadsElsewhere(t *testing.T) {
	b := newBench(t, 3)
	b.run(10 * time.Second)
	wrong := entry(7, "")
	wrong.NextHop = "i-other"
	b.cloud.Put(wrong) // which the last listing has not seen
	b.in.Wants = append(b.in.Wants, want(7))
	b.set()
	b.run(5 * time.Second)
	b.counts(map[State]int{Published: 3, Conflict: 1})
	if p := b.problem(ReasonConflict); p == nil || !strings.Contains(p.Message, "i-other") {
		t.Errorf("problems: %+v", b.p.Status().Problems)
	}
}

// Defect 3: a change of podCIDRs was compared with itself.
func TestDefect3PodCIDRsChange(t *testing.T) {
	b := newBench(t, 30)
	b.run(10 * time.Second)
	b.in.Wants[4].Dst, b.in.Wants[4].UID = dst(90), "uid-new"
	b.set()
	b.run(5 * time.Second)
	b.counts(map[State]int{Published: 30, Stale: 1})
	b.run(5 * time.Minute)
	if b.has(4) || !b.has(90) {
		t.Error("the node's former entry is still there, or its new one is not")
	}
}

// Defect 6: a listing that failed counted as a route.
func TestDefect6FailedListing(t *testing.T) {
	b := newBench(t, 3)
	for range 1000 {
		b.cloud.Fail("List", cloud.ErrInjected, false)
	}
	b.run(10 * time.Minute)
	if wanted, good := b.p.Status().Wanted(); good != 0 || b.writes() != 0 || b.problem(ReasonNoAnswer) == nil {
		t.Errorf("%d of %d are good, %d writes, problems %+v", good, wanted, b.writes(), b.p.Status().Problems)
	}
}

// Defect 7: a providerID that comes after the Node was no reason to act.
func TestDefect7ProviderIDThatComesLater(t *testing.T) {
	b := newBench(t, 2)
	b.in.Wants[1].ProviderID = ""
	b.set()
	b.run(time.Minute)
	b.counts(map[State]int{Published: 1, NoInstance: 1})
	b.in.Wants[1].ProviderID = "cn-chengdu.i-001"
	b.set()
	b.run(time.Second)
	b.counts(map[State]int{Published: 2})
}

// Defect 8: nodes with a bad providerID could stall the worker.
func TestDefect8BadNodesDoNotStall(t *testing.T) {
	b := newBench(t, 300)
	for i := range 299 {
		b.in.Wants[i].ProviderID = "nonsense"
	}
	b.set()
	b.run(time.Second)
	b.counts(map[State]int{Published: 1, NoInstance: 299})
}

// Defect 11: a full table was an event among others, and was tried for ever.
func TestDefect11FullTable(t *testing.T) {
	b := newBench(t, 10, cloud.Table{ID: table, Quota: 4})
	b.run(time.Hour)
	b.counts(map[State]int{Published: 4, OverQuota: 6})
	if b.problem(ReasonTableFull) == nil || len(b.p.Status().Problems) != 1 || b.cloud.Count("Apply") != 1 {
		t.Errorf("problems %+v, %d calls", b.p.Status().Problems, b.cloud.Count("Apply"))
	}
}

// Defect 12: throttling was not answered by waiting.
func TestDefect12Throttling(t *testing.T) {
	b := newBench(t, 3)
	for range 3 {
		b.cloud.Fail("Apply", &cloud.Error{Class: cloud.Throttled, Code: "Throttling.User", After: 20 * time.Second}, false)
	}
	b.run(50 * time.Second)
	if n := b.cloud.Count("Apply"); n > 3 {
		t.Errorf("%d calls in 50 s, where each was to wait for 20 s", n)
	}
	b.run(time.Minute)
	b.counts(map[State]int{Published: 3})
}

// TestAnHourWithoutAController: nodes come, go and are replaced meanwhile. The
// next leader makes what is missing at once and removes only what is left of
// nodes that are gone.
func TestAnHourWithoutAController(t *testing.T) {
	b := newBench(t, 60)
	b.run(10 * time.Second)
	b.now = b.now.Add(time.Hour)
	b.in.Wants = b.in.Wants[3:]
	b.in.Wants[0].ProviderID = "cn-chengdu.i-new"
	for i := 70; i < 75; i++ {
		b.in.Wants = append(b.in.Wants, want(i))
	}
	b.start()
	b.run(10 * time.Second)
	b.counts(map[State]int{Published: 62, Stale: 3})
	if b.cloud.Count("Withdraw") != 0 {
		t.Error("withdrawn after ten seconds")
	}
	b.run(5 * time.Minute)
	b.counts(map[State]int{Published: 62, Stale: 0})
	for i := range 3 {
		if b.has(i) {
			t.Errorf("the entry of node %d, which is gone, is still there", i)
		}
	}
}

// TestRevokedCredentials: for as long as they are, nothing changes; then all
// is made up for, and nothing that is wanted was ever withdrawn.
func TestRevokedCredentials(t *testing.T) {
	b := newBench(t, 40)
	b.run(10 * time.Second)
	for range 200 {
		b.cloud.Fail("", &cloud.Error{Class: cloud.Unauthenticated, Code: "InvalidAccessKeyId.Inactive"}, false)
	}
	b.in.Wants = append(b.in.Wants[1:], want(50))
	b.set()
	b.run(time.Hour)
	if n := len(b.cloud.Entries()); n != 40 || b.problem(ReasonCredentials) == nil {
		t.Fatalf("%d entries of 40, problems %+v", n, b.p.Status().Problems)
	}
	b.run(4 * time.Hour)
	b.counts(map[State]int{Published: 40, Stale: 0})
	if b.has(0) || !b.has(50) {
		t.Error("what came and went meanwhile was not made up for")
	}
}
