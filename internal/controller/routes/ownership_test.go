package routes

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// Invariant 5: a route that is not ours is never changed.
func TestForeignEntries(t *testing.T) {
	b := newBench(t, 6)
	wrong := entry(1, "")
	wrong.NextHop = "i-other"
	theirs := entry(2, "another-cluster")
	theirs.NextHop = "i-theirs"
	odd := cloud.RouteEntry{Table: table, Dst: dst(3), HopType: "NatGateway", Description: "by hand"}
	elsewhere := cloud.RouteEntry{Table: table, Dst: cloudPrefix("172.16.0.0/16"), NextHop: "i-vpn", Description: "ropeway is not it"}
	b.cloud.Put(entry(0, ""), wrong, theirs, odd, elsewhere)
	before := map[cloud.Key]cloud.RouteEntry{}
	for _, e := range b.cloud.Entries() {
		before[e.Key()] = e
	}
	b.run(30 * time.Minute)
	b.counts(map[State]int{Used: 1, Conflict: 3, Published: 2})
	for _, e := range b.cloud.Entries() {
		if was, foreign := before[e.Key()]; foreign && was != e {
			t.Errorf("a foreign entry was changed: %+v -> %+v", was, e)
		}
	}
	named := ""
	for _, p := range b.p.Status().Problems {
		if p.Reason == ReasonConflict {
			named += p.Node + ": " + p.Message + "\n"
		}
	}
	for _, part := range []string{"node-001", "i-other", "another-cluster", "i-theirs", "NatGateway"} {
		if !strings.Contains(named, part) {
			t.Errorf("the problems do not name %s:\n%s", part, named)
		}
	}
}

func TestAdoptAndRelease(t *testing.T) {
	b := newBench(t, 3)
	b.cloud.Put(entry(0, ""), entry(1, ""), entry(2, "another-cluster"))
	b.in.Adopt = ParseSelection("all")
	b.set()
	b.run(time.Minute)
	b.counts(map[State]int{Published: 2, Used: 1})
	b.in.Adopt = ParseSelection("all, " + dst(2).String())
	b.set()
	b.run(time.Minute)
	b.counts(map[State]int{Published: 3})
	b.in.Release = ParseSelection(dst(1).String())
	b.set()
	b.run(time.Minute)
	b.counts(map[State]int{Published: 2, Used: 1})
	if len(b.cloud.Entries()) != 3 {
		t.Error("to adopt or release changed which entries there are")
	}
}

func TestDefect4DeletedWhileTheControllerWasDown(t *testing.T) {
	b := newBench(t, 30)
	b.cloud.Put(entry(40, cluster), entry(41, "another-cluster"), entry(42, ""))
	b.run(30 * time.Second)
	if !b.has(40) {
		t.Fatal("withdrawn after one listing")
	}
	b.run(3 * time.Minute)
	if b.has(40) {
		t.Error("our own stale entry is still there")
	}
	if !b.has(41) || !b.has(42) {
		t.Error("a foreign entry was withdrawn")
	}
}

func TestStaleEntryThatTheAPIServerStillWants(t *testing.T) {
	b := newBench(t, 30)
	b.run(10 * time.Second)
	full := b.in
	b.in.Wants = b.in.Wants[:29] // the cache has lost one
	b.set()
	b.live = func() (Input, error) { return full, nil }
	b.run(10 * time.Minute)
	if !b.has(29) || b.cloud.Count("Withdraw") != 0 {
		t.Error("withdrawn although the API server has the node")
	}
	b.live = func() (Input, error) { return Input{}, errors.New("no API server") }
	b.run(10 * time.Minute)
	if b.cloud.Count("Withdraw") != 0 {
		t.Error("withdrawn without asking the API server")
	}
	b.live = func() (Input, error) { other := full; other.Cluster = "restored"; other.Wants = nil; return other, nil }
	b.run(10 * time.Minute)
	if b.cloud.Count("Withdraw") != 0 {
		t.Error("withdrawn for another cluster")
	}
}

func TestStaleEntryThatComesBackStartsAnew(t *testing.T) {
	b := newBench(t, 30)
	b.run(10 * time.Second)
	all := b.in.Wants
	for range 5 {
		b.in.Wants = all[:29]
		b.set()
		b.run(45 * time.Second)
		b.in.Wants = all
		b.set()
		b.run(10 * time.Second)
	}
	if b.cloud.Count("Withdraw") != 0 {
		t.Error("withdrawn although it was never unwanted for a minute")
	}
}

// Invariant 5: ours are never removed by mistake in bulk.
func TestBulkWithdrawalAsks(t *testing.T) {
	b := newBench(t, 100)
	b.run(10 * time.Second)
	b.in.Wants = b.in.Wants[:80] // a restored etcd
	b.in.Nodes = 80
	b.set()
	b.run(time.Hour)
	if n := len(b.cloud.Entries()); n != 100 {
		t.Fatalf("%d entries are left of 100", n)
	}
	s := b.p.Status()
	if s.Withheld != 20 || s.Token == "" || b.problem(ReasonWithheld) == nil {
		t.Fatalf("withheld %d, token %q, problems %+v", s.Withheld, s.Token, s.Problems)
	}
	b.in.Confirmed = "yes"
	b.set()
	b.run(10 * time.Minute)
	if n := len(b.cloud.Entries()); n != 100 {
		t.Fatalf("a word that is not the token withdrew %d", 100-n)
	}
	b.in.Confirmed = s.Token
	b.set()
	b.run(10 * time.Minute)
	if n := len(b.cloud.Entries()); n != 80 {
		t.Errorf("%d entries are left after the person's word, want 80", n)
	}
	if b.p.Status().Withheld != 0 {
		t.Error("still withheld")
	}
	b.in.Wants = b.in.Wants[:60] // the word was for the other twenty only
	b.set()
	b.run(10 * time.Minute)
	if n := len(b.cloud.Entries()); n != 80 {
		t.Errorf("an old word withdrew %d more", 80-n)
	}
}

func TestNothingIsDoneWithoutNodes(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"empty cache":   func(in *Input) { in.Wants, in.Nodes = nil, 0 },
		"no cluster id": func(in *Input) { in.Cluster = "" },
		"wrong id":      func(in *Input) { in.Cluster = "another" },
		"off":           func(in *Input) { in.Mode = Off; in.Wants = nil },
		"external":      func(in *Input) { in.Mode = External; in.Wants = in.Wants[:1] },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 20)
			b.run(10 * time.Second)
			writes := b.writes()
			change(&b.in)
			b.set()
			b.run(time.Hour)
			if b.writes() != writes || len(b.cloud.Entries()) != 20 {
				t.Errorf("%d writes, %d of 20 entries left", b.writes()-writes, len(b.cloud.Entries()))
			}
		})
	}
}

func TestExternalRoutesAreVerified(t *testing.T) {
	b := newBench(t, 3)
	b.in.Mode = External
	b.set()
	wrong := entry(1, "")
	wrong.NextHop = "i-other"
	b.cloud.Put(entry(0, ""), wrong)
	b.run(2 * time.Minute)
	b.counts(map[State]int{Used: 1, Conflict: 1, Missing: 1})
	if b.problem(ReasonMissing) == nil || b.problem(ReasonConflict) == nil || b.writes() != 0 {
		t.Errorf("problems %+v, %d writes", b.p.Status().Problems, b.writes())
	}
}

// TestNamesCountForMoreThanAll: whichever of adopt and release says all, what the
// other one names is its.
func TestNamesCountForMoreThanAll(t *testing.T) {
	for _, c := range []struct {
		adopt, release  string
		published, used int
	}{
		{"10.244.1.0/24", "all", 1, 2},
		{"all", "10.244.1.0/24", 2, 1},
		{"all", "all", 0, 3},
	} {
		b := newBench(t, 3)
		b.cloud.Put(entry(0, cluster), entry(1, ""), entry(2, ""))
		b.in.Adopt, b.in.Release = ParseSelection(c.adopt), ParseSelection(c.release)
		b.set()
		b.run(time.Minute)
		b.counts(map[State]int{Published: c.published, Used: c.used})
	}
}

// TestSelectionThatIsNoCIDR is told, by the annotation that has it.
func TestSelectionThatIsNoCIDR(t *testing.T) {
	b := newBench(t, 1)
	b.in.Adopt = ParseSelection("10.244.0.0/24, 10.244.300.0/24")
	b.set()
	b.run(time.Minute)
	p := b.problem(ReasonSetup)
	if p == nil || !strings.Contains(p.Message, AdoptAnnotation) || !strings.Contains(p.Message, "10.244.300.0/24") {
		t.Errorf("problems: %+v", b.p.Status().Problems)
	}
}
