package main

import (
	"testing"

	"ropeway.dev/ropeway/internal/controller/routes"
)

// TestRoutesMark: a destination is never in both annotations.
func TestRoutesMark(t *testing.T) {
	const one, two = "10.244.1.0/24", "10.244.2.0/24"
	for _, c := range []struct{ own, other, chosen, wantOwn, wantOther string }{
		{"", "", one, one, ""},
		{one, one + "," + two, one, one, two},
		{one, two, "all", "all," + one, ""},
		{"", "all", one, one, "all"},
	} {
		a := map[string]string{"own": c.own, "other": c.other}
		chosen := routes.ParseSelection(c.chosen)
		put(a, "own", plus(routes.ParseSelection(a["own"]), chosen))
		put(a, "other", minus(routes.ParseSelection(a["other"]), chosen))
		if a["own"] != c.wantOwn || a["other"] != c.wantOther {
			t.Errorf("%+v: own %q, other %q", c, a["own"], a["other"])
		}
		if _, there := a["other"]; c.wantOther == "" && there {
			t.Errorf("%+v: an empty annotation is left", c)
		}
	}
}
