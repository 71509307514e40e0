package scenario

import (
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab/steady"
)

// TestTooBusy: a loss is put down to the machine only if it is shown to be the
// machine's.
func TestTooBusy(t *testing.T) {
	clean := steady.Result{Datagrams: 1000, Held: 20, New: 50}
	with := func(change func(*steady.Result)) steady.Result {
		r := clean
		change(&r)
		return r
	}
	for name, c := range map[string]struct {
		ways    []steady.Result
		control steady.Result
		want    string // part of what it says; "": it tells
	}{
		"a loss on one way": {[]steady.Result{clean, with(func(r *steady.Result) { r.Lost = 1 })}, clean, ""},
		"the control loses too": {[]steady.Result{with(func(r *steady.Result) { r.Lost = 1 })},
			with(func(r *steady.Result) { r.Lost = 1 }), "between the nodes"},
		"a machine that stood still": {[]steady.Result{with(func(r *steady.Result) { r.Again = 1 }),
			with(func(r *steady.Result) { r.Stall = 1200 * time.Millisecond })}, clean, "stood still for 1.2s"},
		"a machine that was a little late": {[]steady.Result{with(func(r *steady.Result) { r.Again, r.Stall = 1, 40*time.Millisecond })}, clean, ""},
		"the server did not run": {[]steady.Result{with(func(r *steady.Result) { r.Lost, r.Overrun = 3, 5 }),
			with(func(r *steady.Result) { r.Lost, r.Overrun = 2, 5 })}, clean, "5 datagrams"},
		"the server's count is not each way's": {[]steady.Result{with(func(r *steady.Result) { r.Lost, r.Overrun = 3, 5 }),
			with(func(r *steady.Result) { r.Lost, r.Overrun = 3, 5 })}, clean, ""},
		"a watcher did not run":     {[]steady.Result{with(func(r *steady.Result) { r.Lost, r.Unread = 4, 4 })}, clean, "4 datagrams"},
		"a connection broke beside": {[]steady.Result{with(func(r *steady.Result) { r.Lost, r.Unread, r.Broken = 4, 4, 1 })}, clean, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tooBusy(c.ways, c.control); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
