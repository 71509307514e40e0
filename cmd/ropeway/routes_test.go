package main

import (
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/controller/routes"
)

// TestRoutesMark: a destination is never named in both annotations. Where the other
// one says all, the name counts for more (routes.TestNamesCountForMoreThanAll).
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

// TestConfirms: a word that is not the one that is waited for is an error, and says
// which one is.
func TestConfirms(t *testing.T) {
	waits := &routes.Status{Withheld: 3, Token: "0123456789"}
	for _, c := range []struct {
		status      *routes.Status
		token, want string
	}{
		{waits, "0123456789", ""}, {waits, "abc", "abc is not the token of what waits now, which is 0123456789 (3 routes)"},
		{&routes.Status{}, "abc", "nothing waits"}, {nil, "abc", "nothing waits"},
	} {
		err := confirms(c.status, c.token)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.token, err, c.want)
		}
	}
}
