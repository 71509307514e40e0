package controller

import (
	"strings"
	"testing"

	"k8s.io/client-go/tools/record"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/plan"
)

// TestSeveralProblemsAreOneEvent: of one reason on one object, in whatever order
// they are found, and until one of them is gone.
func TestSeveralProblemsAreOneEvent(t *testing.T) {
	r := record.NewFakeRecorder(1000)
	c := &controller{recorder: r, log: quiet(), metrics: newMetrics()}
	before, m := map[told]string{}, newMemory()
	one := routes.Problem{Reason: routes.ReasonConflict, Node: "a", Message: "in vtb-1"}
	two := routes.Problem{Reason: routes.ReasonConflict, Node: "a", Message: "in vtb-2"}
	for i := range 20 {
		both := []routes.Problem{one, two}
		if i%2 == 1 {
			both = []routes.Problem{two, one}
		}
		c.tellCloud(&v1alpha1.ClusterNetwork{}, "routes", both, before)
		c.tellProblems(&observed{problems: []plan.Problem{{Node: "a", Reason: "Overlap", Message: "IPv4"}, {Node: "a", Reason: "Overlap", Message: "IPv6"}}}, m)
	}
	if n := len(r.Events); n != 2 {
		t.Fatalf("%d events, want one for each object and reason", n)
	}
	for _, want := range []string{"Warning ForeignRoute in vtb-1; in vtb-2", "Warning Overlap IPv4; IPv6"} {
		if got := <-r.Events; got != want {
			t.Errorf("event %q, want %q", got, want)
		}
	}
	c.tellCloud(&v1alpha1.ClusterNetwork{}, "routes", []routes.Problem{two}, before)
	if len(r.Events) != 1 || !strings.HasSuffix(<-r.Events, "in vtb-2") {
		t.Error("nobody hears that one of the two is gone")
	}
}
