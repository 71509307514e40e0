package scenario

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// clock goes on by a step whenever it is looked at.
func clock(step time.Duration) func() time.Time {
	now := time.Unix(0, 0)
	return func() time.Time { now = now.Add(step); return now }
}

func good(context.Context) error { return nil }

func bad(context.Context) error { return errors.New("first line\nsecond line") }

func TestReportReadsLikeThis(t *testing.T) {
	var out strings.Builder
	r := newReport(&out, clock(400*time.Millisecond))
	r.Title("tunnel: pods reach one another")
	if err := r.Step(t.Context(), "pod pings a pod on another node", good); err != nil {
		t.Error(err)
	}
	r.Command("kubectl get pods", []byte("NAME  READY\na     1/1\n"))
	if err := r.Step(t.Context(), "pod reaches the outside", bad); err == nil || !strings.Contains(err.Error(), "pod reaches the outside: first line") {
		t.Errorf("the failure reads %v", err)
	}
	err := r.Summary()
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "pod reaches the outside") {
		t.Errorf("the summary's error is %v", err)
	}
	want := `
== tunnel: pods reach one another
PASS  pod pings a pod on another node  0.4s
$ kubectl get pods
NAME  READY
a     1/1
FAIL  pod reaches the outside  0.4s
      first line
      second line

1 passed, 1 failed in 2.0s
  FAIL  pod reaches the outside
      first line
      second line
`
	if out.String() != want {
		t.Errorf("report is\n%s\nwant\n%s", out.String(), want)
	}
}

func TestSummaryOfNothingIsAFailure(t *testing.T) {
	if err := NewReport(&strings.Builder{}).Summary(); !errors.Is(err, ErrFailed) {
		t.Errorf("a scenario without steps: %v", err)
	}
}

func TestPlay(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(context.Context, Bed, *Report) error
		want error
		text string
	}{
		{"all steps pass", func(ctx context.Context, _ Bed, r *Report) error { return r.Step(ctx, "a", good) }, nil, ""},
		{"a step fails and the scenario goes on", func(ctx context.Context, _ Bed, r *Report) error {
			_ = r.Step(ctx, "a", bad)
			return r.Step(ctx, "b", good)
		}, ErrFailed, "a"},
		{"the scenario stops between steps", func(ctx context.Context, _ Bed, r *Report) error {
			_ = r.Step(ctx, "a", good)
			return errors.New("no pod to work with")
		}, nil, "no pod to work with"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Play(t.Context(), Scenario{Name: "x", Doc: "y", Run: c.run}, Bed{}, NewReport(&strings.Builder{}))
			switch {
			case c.want == nil && c.text == "" && err != nil:
				t.Errorf("Play: %v", err)
			case c.want != nil && !errors.Is(err, c.want):
				t.Errorf("Play: %v, want %v", err, c.want)
			case c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)):
				t.Errorf("Play: %v does not say %q", err, c.text)
			}
		})
	}
}

func TestScenariosCanBeFound(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range All() {
		if s.Name == "" || s.Doc == "" || s.Run == nil || seen[s.Name] {
			t.Errorf("scenario %+v is not whole, or its name is taken", s)
		}
		seen[s.Name] = true
		if found, err := Find(s.Name); err != nil || found.Name != s.Name {
			t.Errorf("Find(%s) = %s, %v", s.Name, found.Name, err)
		}
	}
	if _, err := Find("nothing"); err == nil || !strings.Contains(err.Error(), "bare") {
		t.Errorf("an unknown scenario: %v does not list the known ones", err)
	}
}
