package report

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/plan"
)

// cloudStatus fits scenarioObjects: one route is there, the other has no room.
func cloudStatus() *routes.Status {
	return &routes.Status{
		Mode: routes.Write, Provider: "alibaba",
		Tables: []routes.Table{{ID: "vtb-2vc", Quota: 200, Entries: 200, Ours: 1, Wanted: 2, Good: 1}},
		Rows: []routes.Row{
			{Table: "vtb-2vc", Dst: "10.244.236.192/26", Node: nodeR, Instance: "i-2vcxxr", NextHop: "i-2vcxxr", Owner: "cluster", State: routes.Published, Cloud: "Available"},
			{Table: "vtb-2vc", Dst: "10.244.140.0/26", Node: nodeS, Instance: "i-2vcxxs", State: routes.OverQuota, Message: "the table is full (200 of 200 entries)"},
		},
		Problems: []routes.Problem{{Reason: routes.ReasonTableFull, Message: "route table vtb-2vc is full (200 of 200 entries): 1 destinations have no route"}},
	}
}

func TestRoutes(t *testing.T) {
	for name, status := range map[string]*routes.Status{"routes-cloud": cloudStatus(), "routes-no-cloud": {Mode: routes.Off}, "routes-unknown": nil} {
		t.Run(name, func(t *testing.T) {
			r, err := RoutesOf(scenarioObjects(), status, "")
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Routes) != 2 {
				t.Errorf("%d rows for two destinations", len(r.Routes))
			}
			compareGolden(t, name+".txt", written(t, r, func(w *bytes.Buffer, wide bool) error { return r.Table(w, wide) }))
		})
	}
	if _, err := RoutesOf(scenarioObjects(), nil, "nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("an unknown node: %v", err)
	}
}

// TestRoutesHeldBack: that a way waits since it has failed of late only the node
// itself knows, and it says so.
func TestRoutesHeldBack(t *testing.T) {
	const why = "direct: it has failed 3 times of late and is used again when it has worked for 12s"
	if !plan.SaysHeldBack(why) || plan.SaysHeldBack("direct: node a does not reach it (no answer)") {
		t.Fatal("the words of package plan are not known")
	}
	o := scenarioObjects()
	seen := func() (transport, reason string) {
		r, err := RoutesOf(o, nil, nodeS)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(r.Routes, func(x RouteRow) bool { return x.Node == nodeR })
		return r.Routes[i].Transport, r.Routes[i].Reason
	}
	transport, _ := seen()
	other := "vxlan"
	if transport == other {
		other = "ipip"
	}
	i := slices.IndexFunc(o.NodeNetworks, func(nn *v1alpha1.NodeNetwork) bool { return nn.Name == nodeS })
	for reason, want := range map[string]string{why: other, "something else": transport} {
		o.NodeNetworks[i].Status.Exceptions = []v1alpha1.PeerException{{Node: nodeR, Transport: other, Reason: reason}}
		if got, said := seen(); got != want || reason == why && said != why {
			t.Errorf("node %s says %q of node %s: shown as %s (%s)", nodeS, reason, nodeR, got, said)
		}
	}
}

func TestDoctorOfCloudRoutes(t *testing.T) {
	for name, c := range map[string]struct {
		conditions []metav1.Condition
		want       Outcome
	}{
		"no cloud":   {nil, ""},
		"published":  {[]metav1.Condition{{Type: routes.ConditionPublished, Status: metav1.ConditionTrue}}, OK},
		"publishing": {[]metav1.Condition{{Type: routes.ConditionPublished, Status: metav1.ConditionFalse, Reason: routes.ReasonPublishing}}, Warn},
		"full":       {[]metav1.Condition{{Type: routes.ConditionPublished, Status: metav1.ConditionFalse, Reason: routes.ReasonTableFull}}, Warn},
		"foreign":    {[]metav1.Condition{{Type: routes.ConditionPublished, Status: metav1.ConditionFalse, Reason: routes.ReasonConflict}}, Fail},
		"withheld": {[]metav1.Condition{{Type: routes.ConditionPublished, Status: metav1.ConditionTrue},
			{Type: routes.ConditionWithheld, Status: metav1.ConditionTrue}}, Fail},
	} {
		t.Run(name, func(t *testing.T) {
			o := scenarioObjects()
			o.Network.Status.Conditions = append(o.Network.Status.Conditions, c.conditions...)
			var got Outcome
			for _, check := range Doctor(scenarioSurvey(o), o).Checks {
				if check.Name == "cloud routes" {
					got = check.Outcome
				}
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			status, err := StatusOf(o, nil)
			if silent := name == "no cloud" || name == "published" || name == "publishing" || name == "withheld"; err != nil || (len(status.Network.Cloud) == 0) != silent {
				t.Errorf("ropeway status says %q of the cloud (%v)", status.Network.Cloud, err)
			}
		})
	}
}
