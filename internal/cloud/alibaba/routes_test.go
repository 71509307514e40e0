package alibaba

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/cloud"
)

func TestListInPages(t *testing.T) {
	s := newStub(t)
	page := func(from, n int) []string {
		var out []string
		for i := from; i < from+n; i++ {
			out = append(out, entryJSON(fmt.Sprint("rte-", i), fmt.Sprintf("10.%d.%d.0/24", 100+i/256, i%256), "Instance", "i-1", "Available", cloud.Mark(testUID)))
		}
		return out
	}
	s.on("DescribeRouteEntryList", reply{body: entriesBody("a", page(0, 100)...)}, reply{body: entriesBody("b", page(100, 100)...)},
		// an entry that slid back a page while it was read
		reply{body: entriesBody("", page(199, 11)...)})
	listing, err := s.provider().Routes().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(listing.Entries) != 210 || len(listing.Tables) != 1 || listing.Tables[0].ID != testTable {
		t.Errorf("%d entries of %v, want 210, each once", len(listing.Entries), listing.Tables)
	}
	calls := s.calls("DescribeRouteEntryList")
	for i, token := range []string{"", "a", "b"} {
		want := map[string]string{"RegionId": testRegion, "RouteTableId": testTable, "RouteEntryType": "Custom", "MaxResult": "100"}
		if token != "" {
			want["NextToken"] = token
		}
		if !maps.Equal(calls[i].params, want) {
			t.Errorf("page %d asked with %v, want %v", i, calls[i].params, want)
		}
	}
}

func TestListOfEverySort(t *testing.T) {
	s := newStub(t)
	two := `{"RouteEntryId":"rte-ecmp","DestinationCidrBlock":"10.9.0.0/16","Type":"Custom","Status":"Available","NextHops":{"NextHop":[{"NextHopId":"ri-1","NextHopType":"RouterInterface"},{"NextHopId":"ri-2","NextHopType":"RouterInterface"}]}}`
	system := `{"RouteEntryId":"rte-sys","DestinationCidrBlock":"100.64.0.0/10","Type":"System","Status":"Available","NextHops":{"NextHop":[{"NextHopType":"service"}]}}`
	s.on("DescribeRouteEntryList", reply{body: entriesBody("",
		entryJSON("rte-1", "10.244.1.0/24", "Instance", "i-1", "Available", cloud.Mark(testUID)),
		entryJSON("rte-2", "10.244.2.0/24", "Instance", "i-2", "Pending", ""),
		entryJSON("rte-3", "0.0.0.0/0", "NatGateway", "ngw-1", "Available", "way out"),
		entryJSON("rte-4", "fd00:10::/64", "Instance", "i-1", "Modifying", cloud.Mark("other")+" do not touch"),
		entryJSON("rte-5", "10.8.7.6", "NetworkInterface", "eni-1", "Deleting", ""),
		entryJSON("rte-6", "pl-2vc000", "Instance", "i-1", "Available", ""),
		entryJSON("rte-7", "10.7.0.0/16", "Instance", "i-3", "SomethingNew", ""),
		two, system)})
	listing, err := s.provider().Routes().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range listing.Entries {
		got = append(got, fmt.Sprintf("%s %s hop=%q type=%s %s owner=%q", e.ID, e.Dst, e.NextHop, e.HopType, e.State, e.Owner))
	}
	want := []string{
		`rte-1 10.244.1.0/24 hop="i-1" type=Instance Available owner="` + testUID + `"`,
		`rte-2 10.244.2.0/24 hop="i-2" type=Instance Pending owner=""`,
		`rte-3 0.0.0.0/0 hop="" type=NatGateway Available owner=""`,
		`rte-4 fd00:10::/64 hop="i-1" type=Instance Modifying owner="other"`,
		`rte-5 10.8.7.6/32 hop="" type=NetworkInterface Deleting owner=""`,
		`rte-7 10.7.0.0/16 hop="i-3" type=Instance Unknown owner=""`,
		`rte-ecmp 10.9.0.0/16 hop="" type=several Available owner=""`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A listing that is empty for another reason than an empty table would have
// everything written again, or nothing withdrawn ever: it must not be believed.
func TestEmptyTableNeedsItsSystemEntries(t *testing.T) {
	s := newStub(t)
	s.on("DescribeRouteEntryList", reply{body: entriesBody("")})
	if _, err := s.provider().Routes().List(t.Context()); !cloud.Is(err, cloud.Lost) {
		t.Errorf("a table without system entries: %v, want an error", err)
	}
	system := `{"RouteEntryId":"rte-sys","DestinationCidrBlock":"100.64.0.0/10","Type":"System","Status":"Available"}`
	s.on("DescribeRouteEntryList", reply{body: entriesBody("")}, reply{body: entriesBody("", system)})
	listing, err := s.provider().Routes().List(t.Context())
	if err != nil || len(listing.Entries) != 0 || len(listing.Tables) != 1 {
		t.Errorf("an empty table: %v, %v", listing, err)
	}
}

func TestListThatDoesNotEnd(t *testing.T) {
	s := newStub(t)
	s.on("DescribeRouteEntryList", reply{body: entriesBody("again")})
	if _, err := s.provider().Routes().List(t.Context()); !cloud.Is(err, cloud.Lost) {
		t.Errorf("%v, want lost", err)
	}
}

func TestListIsWholeOrNothing(t *testing.T) {
	s := newStub(t)
	s.on("DescribeRouteEntryList", reply{body: entriesBody("a", entryJSON("rte-1", "10.244.1.0/24", "Instance", "i-1", "Available", ""))}, refused(400, "IllegalParam.NextTokenExpired"))
	listing, err := s.provider().Routes().List(t.Context())
	if err == nil || len(listing.Entries) != 0 {
		t.Errorf("a listing cut short: %v, %v", listing, err)
	}
}

func TestTables(t *testing.T) {
	main, own, gateway, unbound := tableJSON("vtb-main", "VSwitch", "vsw-1"), tableJSON("vtb-own", "VSwitch", "vsw-2"), tableJSON("vtb-gw", "Gateway"), tableJSON("vtb-spare", "VSwitch")
	foreign := strings.Replace(tableJSON("vtb-foreign", "VSwitch", "vsw-9"), testVPC, "vpc-other", 1)
	for _, c := range []struct {
		name       string
		tables     []string
		configured []string
		want       string
		refused    string
	}{
		{"the only one", []string{main}, nil, "vtb-main", ""},
		{"a gateway's does not count", []string{main, gateway}, nil, "vtb-main", ""},
		{"nor one without vSwitches", []string{main, unbound}, nil, "vtb-main", ""},
		{"nor another VPC's", []string{main, foreign}, nil, "vtb-main", ""},
		{"the only one, without vSwitches", []string{unbound}, nil, "vtb-spare", ""},
		{"several", []string{main, own}, nil, "", "vtb-main, vtb-own"},
		{"several, named", []string{main, own}, []string{"vtb-own", "vtb-main", "vtb-own"}, "vtb-main vtb-own", ""},
		{"one that is not there", []string{main}, []string{"vtb-main", "vtb-x"}, "", "no route table vtb-x"},
		{"one of another VPC", []string{main, foreign}, []string{"vtb-foreign"}, "", "no route table vtb-foreign"},
		{"a gateway's, named", []string{main, gateway}, []string{"vtb-gw"}, "", "gateway"},
		{"none", nil, nil, "", "spec.cloud.vpcID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStub(t)
			s.on("DescribeRouteTableList", reply{body: tablesBody(c.tables...)})
			p := s.provider(func(o *Options) { o.Tables = c.configured })
			got, err := p.usedTables(t.Context())
			if c.refused != "" {
				if !cloud.Is(err, cloud.Permanent) || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("%v, %v; want an error with %q", got, err, c.refused)
				}
				return
			}
			if err != nil || strings.Join(got, " ") != c.want {
				t.Errorf("%v, %v; want %s", got, err, c.want)
			}
			if _, err := p.usedTables(t.Context()); err != nil || len(s.calls("DescribeRouteTableList")) != 1 {
				t.Errorf("tables are asked for each time: %d calls, %v", len(s.calls("DescribeRouteTableList")), err)
			}
		})
	}
}

func TestTablesAreForgottenWhenTheyAreGone(t *testing.T) {
	s := newStub(t)
	s.on("DescribeRouteEntryList", refused(404, "InvalidRouteTableId.NotFound"))
	p := s.provider()
	for range 2 {
		if _, err := p.Routes().List(t.Context()); !cloud.Is(err, cloud.Permanent) {
			t.Fatalf("%v, want permanent", err)
		}
	}
	if n := len(s.calls("DescribeRouteTableList")); n != 2 {
		t.Errorf("%d looks at the tables, want a new one after the table was gone", n)
	}
}

func TestTablesInPages(t *testing.T) {
	s := newStub(t)
	first := strings.Replace(tablesBody(tableJSON("vtb-1", "VSwitch", "vsw-1")), `"TotalCount":1`, `"TotalCount":2`, 1)
	second := strings.Replace(tablesBody(tableJSON("vtb-2", "VSwitch", "vsw-2")), `"TotalCount":1`, `"TotalCount":2`, 1)
	s.on("DescribeRouteTableList", reply{body: first}, reply{body: second})
	p := s.provider(func(o *Options) { o.Tables = []string{"vtb-2"} })
	if got, err := p.usedTables(t.Context()); err != nil || len(got) != 1 {
		t.Errorf("%v, %v: the second page was not read", got, err)
	}
}

func TestApplyMakesABatch(t *testing.T) {
	s := newStub(t)
	s.on("CreateRouteEntries", reply{body: `{"RequestId":"R","SuccessCount":2,"FailedCount":2,"RouteEntryIds":["rte-1","rte-2"],"FailedRouteEntries":[
		{"DstCidrBlock":"10.244.3.0/24","NextHop":"i-1","FailedCode":"VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE","FailedMessage":"there"},
		{"DstCidrBlock":"10.244.4.0/24","NextHop":"i-1","FailedCode":"QuotaExceeded","FailedMessage":"full"}]}`})
	// Two entries share a next hop with a failed one: failures are matched by
	// destination, not by next hop.
	results, err := s.provider().Routes().Apply(t.Context(), []cloud.RouteChange{
		change("10.244.1.0/24", "i-1"), change("fd00:10:1::/64", "i-2"), change("10.244.3.0/24", "i-1"), change("10.244.4.0/24", "i-1"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(classes(results), " "); got != "ok ok conflict quota" {
		t.Errorf("results %s; a duplicate is no success", got)
	}
	calls := s.calls("CreateRouteEntries")
	want := map[string]string{"RegionId": testRegion}
	for i, dst := range []string{"10.244.1.0/24", "fd00:10:1::/64", "10.244.3.0/24", "10.244.4.0/24"} {
		n := fmt.Sprintf("RouteEntries.%d.", i+1)
		want[n+"RouteTableId"], want[n+"DstCidrBlock"], want[n+"NextHopType"] = testTable, dst, "Instance"
		want[n+"NextHop"], want[n+"Name"], want[n+"Description"] = "i-1", "ropeway", "ropeway cluster="+testUID
	}
	want["RouteEntries.2.NextHop"], want["RouteEntries.2.IpVersion"] = "i-2", "6"
	if len(calls) != 1 || !maps.Equal(calls[0].params, want) || calls[0].version != "2016-04-28" {
		t.Errorf("%d calls, with\n%v\nwant\n%v", len(calls), calls[0].params, want)
	}
}

// One call for all tables, though failures do not name theirs: where the same
// destination goes into two tables and one fails, both are unknown.
func TestApplyOverTables(t *testing.T) {
	fail := func(fields string) string {
		return "{" + fields + `,"FailedCode":"QuotaExceeded","FailedMessage":"full"}`
	}
	dst := `"DstCidrBlock":"10.244.1.0/24","NextHop":"i-1"`
	for name, c := range map[string]struct {
		failures []string
		want     string
	}{
		"none":                {nil, "ok ok ok"},
		"one, without table":  {[]string{fail(dst)}, "lost lost ok"},
		"both, without table": {[]string{fail(dst), fail(dst)}, "quota quota ok"},
		"one, with its table": {[]string{fail(dst + `,"RouteTableId":"vtb-other"`)}, "ok quota ok"},
		"both, with tables":   {[]string{fail(dst + `,"RouteTableId":"vtb-other"`), fail(dst + `,"RouteTableId":"` + testTable + `"`)}, "quota quota ok"},
		"more than there are": {[]string{fail(dst), fail(dst), fail(dst)}, "quota quota lost"},
		"another destination": {[]string{fail(`"DstCidrBlock":"10.244.2.0/24"`)}, "ok ok quota"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStub(t)
			s.on("CreateRouteEntries", reply{body: fmt.Sprintf(`{"FailedCount":%d,"FailedRouteEntries":[%s]}`, len(c.failures), join(c.failures))})
			one, two, three := change("10.244.1.0/24", "i-1"), change("10.244.1.0/24", "i-1"), change("10.244.2.0/24", "i-1")
			two.Table = "vtb-other"
			results, err := s.provider().Routes().Apply(t.Context(), []cloud.RouteChange{one, two, three})
			if got := strings.Join(classes(results), " "); err != nil || got != c.want {
				t.Errorf("results %s, %v; want %s", got, err, c.want)
			}
			calls := s.calls("CreateRouteEntries")
			if len(calls) != 1 || calls[0].params["RouteEntries.2.RouteTableId"] != "vtb-other" {
				t.Errorf("%d calls: %v", len(calls), calls)
			}
		})
	}
}

func TestFailuresThatNameNoEntry(t *testing.T) {
	for name, body := range map[string]string{
		"a count alone":      `{"SuccessCount":2,"FailedCount":1}`,
		"an unknown entry":   `{"SuccessCount":2,"FailedCount":1,"FailedRouteEntries":[{"DstCidrBlock":"1.2.3.0/24","FailedCode":"QuotaExceeded"}]}`,
		"one named, one not": `{"SuccessCount":1,"FailedCount":2,"FailedRouteEntries":[{"DstCidrBlock":"10.244.3.0/24","FailedCode":"QuotaExceeded"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := newStub(t)
			s.on("CreateRouteEntries", reply{body: body})
			results, err := s.provider().Routes().Apply(t.Context(), []cloud.RouteChange{
				change("10.244.1.0/24", "i-1"), change("10.244.2.0/24", "i-2"), change("10.244.3.0/24", "i-3")})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range classes(results) {
				if c == "ok" {
					t.Errorf("results %v: success without knowing", classes(results))
				}
			}
		})
	}
}

func TestApplyChangesInPlace(t *testing.T) {
	s := newStub(t)
	s.on("ModifyRouteEntry", reply{body: `{"RequestId":"R"}`})
	was := func(id, hop, owner string) *cloud.RouteEntry {
		return &cloud.RouteEntry{ID: id, Table: testTable, Dst: prefix("10.244.1.0/24"), NextHop: hop, Owner: owner, State: cloud.Available}
	}
	adopt, move, release, foreign := change("10.244.1.0/24", "i-1"), change("10.244.1.0/24", "i-2"), change("10.244.1.0/24", "i-1"), change("10.244.1.0/24", "i-2")
	adopt.Replaces, move.Replaces, release.Replaces, foreign.Replaces = was("rte-1", "i-1", ""), was("rte-2", "i-1", testUID), was("rte-3", "i-1", testUID), was("rte-4", "i-1", "")
	release.Owner = ""
	results, err := s.provider().Routes().Apply(t.Context(), []cloud.RouteChange{adopt, move, release, foreign})
	if got := strings.Join(classes(results), " "); err != nil || got != "ok ok ok permanent" {
		t.Errorf("results %s, %v; a foreign entry's next hop is never changed", got, err)
	}
	calls := s.calls("ModifyRouteEntry")
	for i, want := range []map[string]string{
		{"RegionId": testRegion, "RouteEntryId": "rte-1", "Description": "ropeway cluster=" + testUID},
		{"RegionId": testRegion, "RouteEntryId": "rte-2", "NewNextHopId": "i-2", "NewNextHopType": "Instance"},
		{"RegionId": testRegion, "RouteEntryId": "rte-3", "Description": "released by ropeway"},
	} {
		if i >= len(calls) || !maps.Equal(calls[i].params, want) {
			t.Errorf("call %d of %d: want %v; all: %v", i, len(calls), want, calls)
		}
	}
	if cloud.OwnerOf("released by ropeway") != "" {
		t.Error("a released entry still has an owner")
	}
}

// After the first call the VPC is busy, which refuses the next: what came
// through stays known, and what was not tried is said to be untouched.
func TestApplyAfterACallThatHalts(t *testing.T) {
	s := newStub(t)
	s.on("CreateRouteEntries", reply{body: `{"SuccessCount":1,"FailedCount":0}`})
	s.on("ModifyRouteEntry", refused(503, "ServiceUnavailable"))
	results, err := s.provider().Routes().Apply(t.Context(), []cloud.RouteChange{moved("10.244.2.0/24"), moved("10.244.3.0/24"), change("10.244.1.0/24", "i-1")})
	if got := strings.Join(classes(results), " "); err != nil || got != "lost untried ok" {
		t.Errorf("results %s, %v; want lost untried ok", got, err)
	}
	if n := len(s.calls("ModifyRouteEntry")); n != 1 {
		t.Errorf("%d modifications after one that was lost", n)
	}
}

// A change in place keeps the VPC busy, so that the next one is refused: that one
// and those which are not asked for then have nothing against them.
func TestChangesInPlaceGoOneAtATime(t *testing.T) {
	s := newStub(t)
	s.on("ModifyRouteEntry", reply{body: `{"RequestId":"R"}`}, refused(409, "IncorrectStatus.VpcRouteEntry"))
	results, err := s.provider().Routes().Apply(t.Context(), []cloud.RouteChange{moved("10.244.1.0/24"), moved("10.244.2.0/24"), moved("10.244.3.0/24")})
	if got := strings.Join(classes(results), " "); err != nil || got != "ok untried untried" {
		t.Errorf("results %s, %v; want ok untried untried", got, err)
	}
	if n := len(s.calls("ModifyRouteEntry")); n != 2 {
		t.Errorf("%d calls, want one after the other until one is refused", n)
	}
}

// moved is an own entry that is to lead elsewhere.
func moved(dst string) cloud.RouteChange {
	c := change(dst, "i-2")
	c.Replaces = &cloud.RouteEntry{ID: "rte-" + dst, Table: testTable, Dst: c.Dst, NextHop: "i-1", Owner: testUID}
	return c
}

// The right to change entries that is missing is a matter of that entry, although
// it is the only one: creations are not to wait for it.
func TestOneChangeWithoutTheRightToModify(t *testing.T) {
	s := newStub(t)
	s.on("ModifyRouteEntry", refused(403, "Forbidden.RAM"))
	results, err := s.provider().Routes().Apply(t.Context(), []cloud.RouteChange{moved("10.244.2.0/24")})
	if got := strings.Join(classes(results), " "); err != nil || got != "forbidden" {
		t.Errorf("results %s, %v; want forbidden", got, err)
	}
}

// A right that is missing for one action says nothing of the others.
func TestApplyWithoutTheRightToModify(t *testing.T) {
	s := newStub(t)
	s.on("ModifyRouteEntry", refused(403, "Forbidden.RAM"))
	s.on("CreateRouteEntries", refused(403, "Forbidden.RAM"), reply{body: `{"SuccessCount":1,"FailedCount":0}`})
	both := []cloud.RouteChange{moved("10.244.2.0/24"), change("10.244.1.0/24", "i-1")}
	p := s.provider()
	for _, want := range []string{"forbidden forbidden", "forbidden ok"} {
		results, err := p.Routes().Apply(t.Context(), both)
		if got := strings.Join(classes(results), " "); err != nil || got != want {
			t.Errorf("results %s, %v; want %s", got, err, want)
		}
		if cloud.ActionOf(results[0].Err) != "ModifyRouteEntry" {
			t.Errorf("%v names the wrong action", results[0].Err)
		}
	}
}

func TestWithdraw(t *testing.T) {
	s := newStub(t)
	s.on("DeleteRouteEntries", reply{body: `{"SuccessCount":1,"FailedCount":3,"FailedRouteEntries":[
		{"RouteEntryId":"rte-2","FailedCode":"VPC_ROUTER_ENTRY_NOT_EXIST"},
		{"DstCidrBlock":"10.244.3.0/24","NextHop":"i-3","FailedCode":"VPC_ROUTE_ENTRY_STATUS_ERROR"},
		{"RouteEntryId":"rte-4","FailedCode":"OperationDenied.DeleteManagedRouteEntry"}]}`})
	own := func(n int) cloud.RouteEntry {
		return cloud.RouteEntry{ID: fmt.Sprint("rte-", n), Table: testTable, Dst: prefix(fmt.Sprintf("10.244.%d.0/24", n)), NextHop: fmt.Sprint("i-", n), Owner: testUID}
	}
	third := own(3)
	third.ID = ""
	foreign := own(5)
	foreign.Owner = ""
	results, err := s.provider().Routes().Withdraw(t.Context(), []cloud.RouteEntry{own(1), own(2), third, own(4), foreign})
	if got := strings.Join(classes(results), " "); err != nil || got != "ok ok passing permanent permanent" {
		t.Errorf("results %s, %v", got, err)
	}
	want := map[string]string{"RegionId": testRegion}
	for i, id := range []string{"rte-1", "rte-2", "", "rte-4"} {
		n := fmt.Sprintf("RouteEntries.%d.", i+1)
		want[n+"RouteTableId"], want[n+"RouteEntryId"] = testTable, id
	}
	delete(want, "RouteEntries.3.RouteEntryId")
	want["RouteEntries.3.DstCidrBlock"], want["RouteEntries.3.NextHop"] = "10.244.3.0/24", "i-3"
	if calls := s.calls("DeleteRouteEntries"); len(calls) != 1 || !maps.Equal(calls[0].params, want) {
		t.Errorf("asked %v\nwant %v: never the foreign entry", calls, want)
	}
}

func TestBatchesHaveABound(t *testing.T) {
	s := newStub(t)
	_, err := s.provider().Routes().Apply(t.Context(), make([]cloud.RouteChange, cloud.MaxBatch+1))
	_, err2 := s.provider().Routes().Withdraw(t.Context(), make([]cloud.RouteEntry, cloud.MaxBatch+1))
	if !cloud.Is(err, cloud.Permanent) || !cloud.Is(err2, cloud.Permanent) || len(s.asked) != 0 {
		t.Errorf("%v, %v, %d calls", err, err2, len(s.asked))
	}
	results, err := s.provider().Routes().Apply(t.Context(), nil)
	if err != nil || len(results) != 0 || len(s.asked) != 0 {
		t.Errorf("nothing to do: %v, %v, %d calls", results, err, len(s.asked))
	}
}

func TestErrorsAreTheClouds(t *testing.T) {
	var e *cloud.Error
	if err := notOurs("X", cloud.Key{Table: "t", Dst: prefix("10.0.0.0/8")}); !errors.As(err, &e) || !strings.Contains(err.Error(), "adopt") {
		t.Errorf("%v", err)
	}
}
