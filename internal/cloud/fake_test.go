package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

const table = "vtb-1"

func newFake(quota int) *cloud.Fake {
	return cloud.NewFake("cn-chengdu", cloud.Table{ID: table, Quota: quota})
}

func change(dst, hop string) cloud.RouteChange {
	return cloud.RouteChange{Table: table, Dst: netip.MustParsePrefix(dst), NextHop: hop, Owner: "me"}
}

// apply returns the class of each result, "ok" for success.
func apply(t *testing.T, f *cloud.Fake, changes ...cloud.RouteChange) []string {
	t.Helper()
	results, err := f.Routes().Apply(t.Context(), changes)
	if err != nil {
		return []string{cloud.ClassOf(err).String()}
	}
	var out []string
	for i, r := range results {
		if r.Key() != changes[i].Key() {
			t.Errorf("result %d is of %s, want %s", i, r.Key(), changes[i].Key())
		}
		if r.Err == nil {
			out = append(out, "ok")
		} else {
			out = append(out, cloud.ClassOf(r.Err).String())
		}
	}
	return out
}

func TestFakeApply(t *testing.T) {
	f := newFake(3)
	f.AddInstances(cloud.Instance{ID: "i-1"}, cloud.Instance{ID: "i-2"})
	for _, step := range []struct {
		what    string
		changes []cloud.RouteChange
		want    string
	}{
		{"two", []cloud.RouteChange{change("10.0.1.0/24", "i-1"), change("10.0.2.0/24", "i-2")}, "[ok ok]"},
		{"duplicate and new", []cloud.RouteChange{change("10.0.1.0/24", "i-2"), change("10.0.3.0/24", "i-1")}, "[conflict ok]"},
		{"full", []cloud.RouteChange{change("10.0.4.0/24", "i-1")}, "[quota]"},
		{"no such instance", []cloud.RouteChange{change("10.0.4.0/24", "i-9")}, "[bad_next_hop]"},
		{"no such table", []cloud.RouteChange{{Table: "x", Dst: netip.MustParsePrefix("10.9.0.0/16"), NextHop: "i-1"}}, "[permanent]"},
		{"host bits", []cloud.RouteChange{change("10.0.4.1/24", "i-1")}, "[permanent]"},
		{"too many", make([]cloud.RouteChange, cloud.MaxBatch+1), "[permanent]"},
	} {
		if got := fmt.Sprint(apply(t, f, step.changes...)); got != step.want {
			t.Errorf("%s: %s, want %s", step.what, got, step.want)
		}
	}
	entry := f.Entries()[0]
	replace := change("10.0.1.0/24", "i-2")
	replace.Replaces, replace.Owner = &entry, ""
	if got := fmt.Sprint(apply(t, f, replace)); got != "[ok]" {
		t.Fatalf("replace: %s", got)
	}
	if e := f.Entries()[0]; e.NextHop != "i-2" || e.Owner != "" || e.ID != entry.ID {
		t.Errorf("after the replacement: %+v", e)
	}
}

// TestFakeChangesOneAtATime: what comes after a change in place, or after new
// entries, meets a VPC that is busy.
func TestFakeChangesOneAtATime(t *testing.T) {
	f := newFake(0)
	apply(t, f, change("10.0.1.0/24", "i-1"), change("10.0.2.0/24", "i-1"))
	f.Async(true)
	var moves []cloud.RouteChange
	for _, e := range f.Entries() {
		moves = append(moves, cloud.RouteChange{Table: e.Table, Dst: e.Dst, NextHop: "i-2", Owner: "me", Replaces: &e})
	}
	if got := fmt.Sprint(apply(t, f, moves...)); got != "[ok untried]" {
		t.Errorf("two changes: %s", got)
	}
	f.Settle()
	if got := fmt.Sprint(apply(t, f, moves[1], change("10.0.3.0/24", "i-1"))); got != "[untried ok]" {
		t.Errorf("a change and a new entry: %s", got)
	}
}

func TestFakeIsAsynchronous(t *testing.T) {
	f := newFake(0)
	f.Async(true)
	if got := fmt.Sprint(apply(t, f, change("10.0.1.0/24", "i-1"))); got != "[ok]" {
		t.Fatal(got)
	}
	if s := f.Entries()[0].State; s != cloud.Pending {
		t.Errorf("state %s", s)
	}
	if got := fmt.Sprint(apply(t, f, change("10.0.2.0/24", "i-1"))); got != "[passing]" {
		t.Errorf("while another change is under way: %s", got)
	}
	f.Settle()
	results, err := f.Withdraw(t.Context(), []cloud.RouteEntry{f.Entries()[0], {Table: table, Dst: netip.MustParsePrefix("10.7.0.0/16")}})
	if err != nil || results[0].Err != nil || results[1].Err != nil {
		t.Fatalf("withdraw one, and one that is gone: %v, %v", results, err)
	}
	if s := f.Entries()[0].State; s != cloud.Deleting {
		t.Errorf("state %s", s)
	}
	f.Settle()
	if n := len(f.Entries()); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

func TestFakeFaults(t *testing.T) {
	f := newFake(0)
	f.Fail("Apply", cloud.ErrInjected, true)
	f.Fail("List", &cloud.Error{Class: cloud.Throttled, After: time.Second}, false)
	if got := fmt.Sprint(apply(t, f, change("10.0.1.0/24", "i-1"))); got != "[lost]" {
		t.Errorf("lost answer: %s", got)
	}
	if len(f.Entries()) != 1 {
		t.Error("the change did not happen although its answer only was lost")
	}
	if _, err := f.List(t.Context()); cloud.AfterOf(err) != time.Second {
		t.Errorf("list: %v", err)
	}
	if l, err := f.List(t.Context()); err != nil || len(l.Entries) != 1 || l.Tables[0].ID != table {
		t.Errorf("list after the fault: %+v, %v", l, err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.List(over); !errors.Is(err, context.Canceled) {
		t.Errorf("list after the end: %v", err)
	}
}

func TestFakeInstances(t *testing.T) {
	i := newFake(0).Instances()
	for text, want := range map[string]string{
		"cn-chengdu.i-1": "i-1", "fake://cn-chengdu.i-1": "i-1", "cn-beijing.i-1": "", "": "", "cn-chengdu.": "", "aws:///eu/i-1": "",
	} {
		if got, ok := i.Parse(text); got != want && ok || ok != (want != "") {
			t.Errorf("Parse(%q) = %q, %v", text, got, ok)
		}
	}
}

func TestMark(t *testing.T) {
	const uid = "0f3c2a4e-1111-4222-8333-444455556666"
	for text, want := range map[string]string{
		cloud.Mark(uid): uid, cloud.Mark(uid) + " do not delete": uid, " " + cloud.Mark("x"): "x", cloud.Mark(""): "",
		"": "", "ropeway": "", "by ropeway cluster=x": "", "ropeway cluster=": "",
	} {
		if got := cloud.OwnerOf(text); got != want {
			t.Errorf("OwnerOf(%q) = %q, want %q", text, got, want)
		}
	}
	if n := len(cloud.Mark(uid)); n > 256 {
		t.Errorf("the mark has %d characters", n)
	}
}

func TestErrorSaysWhatAndWhere(t *testing.T) {
	below := errors.New("connection reset")
	err := error(&cloud.Error{Class: cloud.Forbidden, Action: "CreateRouteEntries", Code: "Forbidden.RAM", Message: "no", Request: "R-1"})
	if got, want := err.Error(), "the cloud's CreateRouteEntries answered Forbidden.RAM: no"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	lost := fmt.Errorf("list: %w", &cloud.Error{Action: "DescribeRouteEntryList", Err: below})
	if !errors.Is(lost, below) || !cloud.Is(lost, cloud.Lost) || cloud.ActionOf(lost) != "DescribeRouteEntryList" {
		t.Errorf("%v: class %s", lost, cloud.ClassOf(lost))
	}
	if cloud.Is(nil, cloud.Lost) || !cloud.Is(below, cloud.Lost) || cloud.Is(err, cloud.Quota, cloud.Lost) {
		t.Error("predicates")
	}
	for c, refused := range map[cloud.Class]bool{cloud.Lost: false, cloud.Passing: true, cloud.Quota: true} {
		if c.Refused() != refused {
			t.Errorf("%s.Refused() = %v", c, !refused)
		}
	}
	if !cloud.Throttled.Passes() || cloud.Forbidden.Passes() || cloud.Class(99).String() != "class_99" {
		t.Error("classes")
	}
}
