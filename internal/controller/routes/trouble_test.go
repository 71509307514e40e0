package routes

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// A right that is missing for removals must not hold up the routes of new
// nodes, nor make the state flap at every listing that succeeds.
func TestARefusedRemovalDoesNotHoldUpAdditions(t *testing.T) {
	b := newBench(t, 30)
	b.run(10 * time.Second)
	b.in.Wants = b.in.Wants[:29]
	b.set()
	for i := range 50 {
		b.cloud.Fail("Withdraw", &cloud.Error{Class: cloud.Forbidden, Code: "Forbidden.RAM", Action: "DeleteRouteEntries", Request: fmt.Sprint("R-", i)}, false)
	}
	var log bytes.Buffer
	b.p.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	b.run(5 * time.Minute)
	if p := b.problem(ReasonForbidden); p == nil || !strings.Contains(p.Message, "DeleteRouteEntries") {
		t.Fatalf("problems: %+v", b.p.Status().Problems)
	}
	b.in.Wants = append(b.in.Wants, want(40))
	b.set()
	b.run(5 * time.Second)
	if !b.has(40) {
		t.Error("a new node's route waits for a right that it does not need")
	}
	changes := 0
	b.p.cfg.Changed = func() { changes++ }
	b.run(20 * time.Minute)
	if changes > 3 {
		t.Errorf("the status changed %d times while nothing did", changes)
	}
	if n := strings.Count(log.String(), "request=R-"); n != 1 || !strings.Contains(log.String(), "request=R-0") {
		t.Errorf("%d refusals are in the log, want the first one, with its request:\n%s", n, &log)
	}
	if n := b.cloud.Count("Withdraw"); n > 15 {
		t.Errorf("%d refused calls in 25 minutes", n)
	}
}

// Entries that are refused one by one for lack of rights are one problem, and
// do not hold up the others.
func TestEntriesRefusedForLackOfRights(t *testing.T) {
	b := newBench(t, 30)
	for i := range 20 {
		b.cloud.Put(entry(i, ""))
	}
	b.in.Adopt = ParseSelection("all")
	b.p.cfg.Make = b.maker(noMarks{b.cloud})
	b.set()
	b.run(30 * time.Second)
	b.counts(map[State]int{Used: 20, Published: 10})
	if p := b.p.Status().Problems; len(p) != 1 || p[0].Reason != ReasonForbidden || !strings.Contains(p[0].Message, "ModifyRouteEntry") {
		t.Errorf("problems: %+v", p)
	}
	b.in.Wants = append(b.in.Wants, want(60))
	b.set()
	b.run(3 * time.Second)
	if !b.has(60) {
		t.Error("a new node's route waits for a right that it does not need")
	}
}

// Another writer that keeps the VPC busy is a thing for a person to know.
func TestAVPCThatIsAlwaysBusy(t *testing.T) {
	b := newBench(t, 3)
	busy := &cloud.Error{Class: cloud.Passing, Action: "CreateRouteEntries", Code: "TaskConflict"}
	for range 1000 {
		b.cloud.Fail("Apply", busy, false)
	}
	b.run(90 * time.Second)
	if b.problem(ReasonBusy) != nil {
		t.Error("told of before two minutes")
	}
	b.run(90 * time.Second)
	if p := b.problem(ReasonBusy); p == nil || !strings.Contains(p.Message, "TaskConflict") {
		t.Fatalf("problems: %+v", b.p.Status().Problems)
	}
	b.in.Wants = nil
	b.in.Mode = External
	b.set()
	b.run(time.Second)
	if b.problem(ReasonBusy) != nil {
		t.Error("still told of when nobody wants to write")
	}
}

// A cloud that cannot be reached is not one that another writer keeps busy.
func TestACloudThatIsNotReached(t *testing.T) {
	b := newBench(t, 3)
	for range 1000 {
		b.cloud.Fail("Apply", &cloud.Error{Class: cloud.Unreachable, Action: "CreateRouteEntries"}, false)
	}
	b.run(5 * time.Minute)
	if p := b.p.Status().Problems; len(p) != 1 || p[0].Reason != ReasonNoAnswer || !strings.Contains(p[0].Message, "was not asked") {
		t.Errorf("problems: %+v", p)
	}
}

// External: another program gets a minute for its work before a person is told.
func TestExternalRoutesMayTakeAMinute(t *testing.T) {
	b := newBench(t, 2)
	b.in.Mode = External
	b.set()
	b.run(40 * time.Second)
	if b.problem(ReasonMissing) != nil {
		t.Error("told of before a minute")
	}
	b.cloud.Put(entry(0, ""))
	b.run(2 * time.Minute)
	if p := b.problem(ReasonMissing); p == nil || p.Node != "node-001" || len(b.p.Status().Problems) != 1 {
		t.Errorf("problems: %+v", b.p.Status().Problems)
	}
	b.in.Blocks = true
	b.set()
	b.run(time.Second)
	if p := b.problem(ReasonMissing); p == nil || !strings.Contains(p.Message, "NodeCIDR") {
		t.Errorf("of a block it is not said that nobody else makes entries for it: %+v", p)
	}
}

// An entry for a part of a destination takes that part elsewhere, by the
// longest match, and no probe of the node's own address sees it.
func TestNarrowerEntries(t *testing.T) {
	b := newBench(t, 12)
	part := cloudPrefix("10.244.1.128/25")
	b.cloud.Put(
		cloud.RouteEntry{Table: table, Dst: part, NextHop: instance(2)},
		cloud.RouteEntry{Table: table, Dst: cloudPrefix("10.244.3.0/26"), NextHop: instance(3)}, // the same way
		cloud.RouteEntry{Table: table, Dst: cloudPrefix("10.244.4.64/26"), NextHop: instance(5), Owner: cluster},
	)
	b.in.PodCIDRs = append(b.in.PodCIDRs, cloudPrefix("10.244.0.0/16"))
	b.set()
	b.run(20 * time.Second)
	b.counts(map[State]int{Shadowed: 2, Published: 10, Foreign: 2, Stale: 1})
	if p := b.problem(ReasonConflict); p == nil || p.Node != "node-001" || !strings.Contains(p.Message, part.String()) || len(b.p.Status().Problems) != 1 {
		t.Errorf("problems: %+v", b.p.Status().Problems)
	}
	if _, good := b.p.Status().Wanted(); good != 10 {
		t.Errorf("%d destinations count as good", good)
	}
	b.run(5 * time.Minute)
	b.counts(map[State]int{Shadowed: 1, Published: 11, Foreign: 2, Stale: 0}) // ours is gone, theirs stays
}

func TestForeignEntriesOutsideOfThePodNetworkAreNobodysBusiness(t *testing.T) {
	b := newBench(t, 1)
	b.in.PodCIDRs = append(b.in.PodCIDRs, cloudPrefix("10.244.0.0/16"))
	b.cloud.Put(cloud.RouteEntry{Table: table, Dst: cloudPrefix("0.0.0.0/0"), NextHop: "i-nat"},
		cloud.RouteEntry{Table: table, Dst: cloudPrefix("10.0.0.0/8"), NextHop: "i-vpn"},
		cloud.RouteEntry{Table: table, Dst: cloudPrefix("10.245.0.0/24"), NextHop: "i-x"},
		cloud.RouteEntry{Table: table, Dst: cloudPrefix("10.244.200.0/24"), NextHop: "i-old"})
	b.set()
	b.run(10 * time.Second)
	b.counts(map[State]int{Published: 1, Foreign: 1})
	if p := b.p.Status().Problems; len(p) != 0 {
		t.Errorf("problems: %+v", p)
	}
}
