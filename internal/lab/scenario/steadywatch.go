package scenario

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/steady"
)

// attempts is how often an event is played on a machine that is too busy to tell.
const attempts = 3

// unnoticed lets something happen while every way is watched. Where the machine
// was too busy to tell, it happens again, with less to do.
func (s *stage) unnoticed(ctx context.Context, w *watches, e event) error {
	for attempt := 1; ; attempt++ {
		noticed, busy, err := s.play(ctx, w, e)
		switch {
		case err != nil:
			return err
		case noticed == nil || busy == "":
			return noticed
		}
		noticed = fmt.Errorf("the machine is too busy to tell: %s\n%w", busy, noticed)
		if attempt == attempts {
			return noticed
		}
		s.note("%s", strings.ReplaceAll(noticed.Error(), "\n", "\n      "))
		w.slower()
		if e.undo != nil {
			if err := e.undo(ctx); err != nil {
				return err
			}
		}
	}
}

// play lets it happen once. It returns what was noticed of it, or that it did not
// happen, and why that tells nothing of Ropeway, if so.
func (s *stage) play(ctx context.Context, w *watches, e event) (noticed error, busy string, err error) {
	if e.prepare != nil {
		if err := e.prepare(ctx); err != nil {
			return nil, "", err
		}
	}
	counted, err := s.count(ctx)
	if err != nil {
		return nil, "", err
	}
	if _, err := w.cut(); err != nil {
		return nil, "", err
	}
	failed := e.happen(ctx)
	results, err := w.cut()
	if err != nil {
		return nil, "", errors.Join(failed, err)
	}
	ways, control := results[:len(results)-1], results[len(results)-1]
	if noticed = errors.Join(failed, s.judge(w.each, ways)); noticed == nil {
		return nil, "", nil
	}
	return errors.Join(noticed, s.whereLost(ctx, counted)), tooBusy(ways, control), nil
}

// tooBusy says why what was noticed tells nothing of Ropeway, or "": the control,
// which nothing of Ropeway's is part of, has noticed something too, the watchers
// themselves stood still, or all that is lost has arrived where a program that did
// not run left no room for it.
func tooBusy(ways []steady.Result, control steady.Result) string {
	if !control.Clean() {
		return fmt.Sprintf("between the nodes themselves, %s", control)
	}
	for _, r := range append(slices.Clone(ways), control) {
		if r.Stall >= steady.Standstill {
			return fmt.Sprintf("the programs that watch stood still for %s", r.Stall.Round(time.Millisecond))
		}
	}
	lost, atServer, unread := 0, 0, 0
	for _, r := range ways {
		lost, atServer, unread = lost+r.Lost, max(atServer, r.Overrun), unread+r.Unread
		r.Lost = 0
		if !r.Clean() {
			return ""
		}
	}
	if lost > atServer+unread {
		return ""
	}
	return fmt.Sprintf("the programs that watch lost all of the %d datagrams themselves", lost)
}

// judge returns what was noticed on the ways, and prints the results if nothing was.
func (s *stage) judge(watches []*watch, results []steady.Result) error {
	var noticed error
	for i, r := range results {
		if !r.Clean() {
			noticed = errors.Join(noticed, fmt.Errorf("%s: %s", watches[i].name, r))
		}
	}
	if noticed == nil {
		for i, r := range results {
			s.note("%s: %s", watches[i].name, r)
		}
	}
	return noticed
}

// watch is a watcher at work.
type watch struct {
	name string
	in   io.Writer
	out  *bufio.Scanner
}

// watcher is the command that watches a way.
func (s *stage) watcher(ctx context.Context, w way) (*exec.Cmd, error) {
	argv := []string{config.Binary("ropeway-lab"), steady.Command, "watch", w.target.String()}
	switch w.host {
	case "":
		argv[0] = "/steady"
		return s.l.KubectlCommand(ctx, append([]string{"exec", "-i", "steady-client", "--"}, argv...)...)
	case "outside":
		argv[0] = s.l.Binary("ropeway-lab")
	}
	return s.l.HostCommand(ctx, w.host, argv...)
}

// watchAll starts a watcher for each way, and returns once all of them watch at a
// pace that the machine can bear.
func (s *stage) watchAll(ctx context.Context, ways []way) (*watches, error) {
	each, err := atOnce(ways, func(w way) (*watch, error) {
		cmd, err := s.watcher(ctx, w)
		if err != nil {
			return nil, err
		}
		one := &watch{name: w.name}
		if one.in, one.out, err = converse(cmd, steady.Watching); err != nil {
			err = fmt.Errorf("%s: %w", w.name, err)
		}
		return one, err
	})
	if err != nil {
		return nil, err
	}
	w := &watches{each, closest}
	return w, s.pace(ctx, w)
}

// cut ends the span of every watch and returns what was seen in it.
func (w *watches) cut() ([]steady.Result, error) {
	return atOnce(w.each, func(one *watch) (steady.Result, error) {
		var r steady.Result
		if _, err := fmt.Fprintln(one.in, w.every); err != nil {
			return r, fmt.Errorf("%s: the watcher has ended: %w", one.name, err)
		}
		if !one.out.Scan() {
			return r, fmt.Errorf("%s: the watcher has ended", one.name)
		}
		if err := json.Unmarshal(one.out.Bytes(), &r); err != nil {
			return r, fmt.Errorf("%s: reading %q: %w", one.name, one.out.Text(), err)
		}
		return r, nil
	})
}

// atOnce calls f for each, all at the same time.
func atOnce[T, R any](each []T, f func(T) (R, error)) ([]R, error) {
	results, failures := make([]R, len(each)), make([]error, len(each))
	var work sync.WaitGroup
	for i, one := range each {
		work.Go(func() { results[i], failures[i] = f(one) })
	}
	work.Wait()
	return results, errors.Join(failures...)
}

// converse starts a command and returns once it has written the line that it
// begins with. The command ends with its context.
func converse(cmd *exec.Cmd, first string) (in io.Writer, out *bufio.Scanner, err error) {
	if in, err = cmd.StdinPipe(); err != nil {
		return nil, nil, err
	}
	read, written := io.Pipe()
	var complaints strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = written, &complaints, 5*time.Second
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(complaints.String()))
		}
		written.CloseWithError(err)
	}()
	out = bufio.NewScanner(read)
	if !out.Scan() || out.Text() != first {
		return nil, nil, errors.Join(fmt.Errorf("got %q, want %q", out.Text(), first), out.Err())
	}
	return in, out, nil
}
