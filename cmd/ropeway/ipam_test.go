package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/install/report"
	"ropeway.dev/ropeway/internal/ipam"
)

// TestLookFor: an address is found on whichever node holds it, also where the API
// server's objects say of none that it has it, as of a leaked one that nodes share.
func TestLookFor(t *testing.T) {
	a := netip.MustParseAddr("10.244.200.14")
	all := []string{"r", "s", "t"}
	for _, c := range []struct {
		name          string
		first, silent []string
		holder        string
		asked, found  string // the nodes asked, in turn; the holders that can be released
	}{
		{"where it is sent to", []string{"r"}, nil, "r", "[r]", "r"},
		{"elsewhere", []string{"r"}, nil, "t", "[r] [s t]", "t"},
		{"no node should know", nil, nil, "s", "[] [r s t]", "s"},
		{"no node knows", nil, nil, "", "[] [r s t]", "is held by no pod"},
		{"some are silent", nil, []string{"r"}, "s", "[] [r s t]", "s"},
		{"it may be held on a silent one", nil, []string{"r"}, "", "[] [r s t]", "may be held on a node that does not answer (r)"},
		{"the first are silent", []string{"r"}, []string{"r", "s", "t"}, "s", "[r]", "may be held on a node that does not answer (r)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked []string
			views, silent := lookFor(a, c.first, all, func(nodes []string) (map[string]addresses.View, map[string]string) {
				asked = append(asked, fmt.Sprint(nodes))
				views, silent := map[string]addresses.View{}, map[string]string{}
				for _, n := range nodes {
					var v addresses.View
					if n == c.holder {
						v.Holdings = []addresses.Holding{{Binding: ipam.Binding{Key: ipam.Key{ContainerID: "c"}, Addresses: []netip.Addr{a}}}}
					}
					if slices.Contains(c.silent, n) {
						silent[n] = "no answer"
					} else {
						views[n] = v
					}
				}
				return views, silent
			})
			who := report.Who{Address: a}
			for node, v := range views {
				who.Add(node, v)
			}
			for node := range silent {
				who.Silent = append(who.Silent, node)
			}
			found := ""
			if err := releasable(who); err != nil {
				found = err.Error()
			} else {
				found = who.Holders[0].Node
			}
			if got := strings.Join(asked, " "); got != c.asked || !strings.Contains(found, c.found) {
				t.Errorf("asked %s, want %s; found %q, want %q", got, c.asked, found, c.found)
			}
		})
	}
}
