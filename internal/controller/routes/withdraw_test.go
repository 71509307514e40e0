package routes

import (
	"strings"
	"testing"
	"time"
)

// TestWithdraw: routes that nobody needs go when a person has asked for it and
// has seen how many they are; those of others stay.
func TestWithdraw(t *testing.T) {
	b := newBench(t, 70)
	b.cloud.Put(entry(0, ""), entry(1, "another-cluster"))
	b.run(10 * time.Second)
	in := b.in
	in.Mode, in.Wants = Withdraw, nil
	b.in = in
	b.set()
	b.run(time.Hour)
	s := b.p.Status()
	if len(b.cloud.Entries()) != 70 || s.Withheld != 68 || s.Token == "" {
		t.Fatalf("%d of 70 entries are left, %d withheld, token %q", len(b.cloud.Entries()), s.Withheld, s.Token)
	}
	if p := b.problem(ReasonWithheld); p == nil || !strings.Contains(p.Message, "ropeway routes confirm "+s.Token) {
		t.Errorf("problems: %+v", s.Problems)
	}
	b.in.Confirmed = s.Token
	b.set()
	live := in
	live.Mode, live.Why = Off, "node b still uses them" // which the cache does not know
	b.live = func() (Input, error) { return live, nil }
	b.run(10 * time.Minute)
	if n := len(b.cloud.Entries()); n != 70 {
		t.Fatalf("%d of 70 entries are left although the API server does not say so", n)
	}
	if p := b.problem(ReasonInUse); p == nil || p.Message != live.Why {
		t.Errorf("problems: %+v", b.p.Status().Problems)
	}
	b.live = nil
	b.run(10 * time.Minute)
	if e := b.cloud.Entries(); len(e) != 2 || e[0].Owner != "" || e[1].Owner != "another-cluster" {
		t.Errorf("left: %+v", e)
	}
	if s := b.p.Status(); s.Withheld != 0 || len(s.Problems) != 0 {
		t.Errorf("withheld %d, problems %+v", s.Withheld, s.Problems)
	}
}

// Even two entries wait for the word: who switches direct on again later must
// not lose what an old request had in mind.
func TestWithdrawOfFewWaitsToo(t *testing.T) {
	b := newBench(t, 2)
	b.run(10 * time.Second)
	b.in.Mode, b.in.Wants = Withdraw, nil
	b.set()
	b.run(time.Hour)
	if len(b.cloud.Entries()) != 2 || b.p.Status().Token == "" {
		t.Errorf("%d entries are left, token %q", len(b.cloud.Entries()), b.p.Status().Token)
	}
}

// TestWithdrawOfReleased: what was released stays in the table, whatever becomes of
// the rest.
func TestWithdrawOfReleased(t *testing.T) {
	b := newBench(t, 5)
	b.run(10 * time.Second)
	b.in.Mode, b.in.Wants, b.in.Release = Withdraw, nil, ParseSelection("all")
	b.set()
	b.run(time.Hour)
	s := b.p.Status()
	if len(b.cloud.Entries()) != 5 || s.Ours() != 0 || s.Withheld != 0 || len(s.Problems) != 0 {
		t.Errorf("%d entries, %d ours, %d withheld, problems %+v", len(b.cloud.Entries()), s.Ours(), s.Withheld, s.Problems)
	}
}
