// Package scenario plays scripted checks on a running lab and reports each
// step with its outcome and its time.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Report prints the steps of a scenario as they happen and counts them. It is
// for one goroutine.
type Report struct {
	out    io.Writer
	now    func() time.Time
	began  time.Time
	passed int
	failed []failure
}

// failure is a failed step, and why.
type failure struct {
	name string
	err  error
}

// NewReport makes a report that prints to out.
func NewReport(out io.Writer) *Report { return newReport(out, time.Now) }

func newReport(out io.Writer, now func() time.Time) *Report {
	return &Report{out: out, now: now, began: now()}
}

// Step runs one step and prints a line that says whether it passed, and how
// long it took; a failure's error follows, indented. It returns the error, for
// a scenario that cannot go on without the step.
func (r *Report) Step(ctx context.Context, name string, step func(context.Context) error) error {
	began := r.now()
	err := step(ctx)
	took := r.now().Sub(began)
	if err == nil {
		r.passed++
		fmt.Fprintf(r.out, "PASS  %s  %.1fs\n", name, took.Seconds())
		return nil
	}
	r.failed = append(r.failed, failure{name, err})
	fmt.Fprintf(r.out, "FAIL  %s  %.1fs\n%s", name, took.Seconds(), indent(err.Error()))
	return fmt.Errorf("%s: %w", name, err)
}

// Title prints a heading.
func (r *Report) Title(text string) {
	fmt.Fprintf(r.out, "\n== %s\n", text)
}

// Command prints a command as it would be typed, and what it answered.
func (r *Report) Command(line string, answer []byte) {
	fmt.Fprintf(r.out, "$ %s\n", line)
	if text := strings.TrimRight(string(answer), "\n"); text != "" {
		fmt.Fprintln(r.out, text)
	}
}

// ErrFailed means that at least one step failed.
var ErrFailed = errors.New("some steps failed")

// Summary prints the counts, the failed steps with their errors, which may be far
// above, and the whole time. It returns ErrFailed if there are any, or if nothing
// ran at all.
func (r *Report) Summary() error {
	fmt.Fprintf(r.out, "\n%d passed, %d failed in %.1fs\n", r.passed, len(r.failed), r.now().Sub(r.began).Seconds())
	var names []string
	for _, f := range r.failed {
		fmt.Fprintf(r.out, "  FAIL  %s\n%s", f.name, indent(f.err.Error()))
		names = append(names, f.name)
	}
	if len(names) > 0 {
		return fmt.Errorf("%w: %s", ErrFailed, strings.Join(names, "; "))
	}
	if r.passed == 0 {
		return fmt.Errorf("%w: no step ran", ErrFailed)
	}
	return nil
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimRight(text, "\n") + "\n") {
		b.WriteString("      " + line)
	}
	return b.String()
}

// Note prints a line that explains what is seen.
func (r *Report) Note(text string) { fmt.Fprintf(r.out, "      %s\n", text) }
