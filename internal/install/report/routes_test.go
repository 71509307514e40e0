package report

import (
	"bytes"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/internal/controller/routes"
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
		})
	}
}
