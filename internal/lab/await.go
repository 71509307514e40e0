package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
)

const (
	// awaitTimeout bounds the wait for the programs of one host; images on a
	// slow disk take the longest.
	awaitTimeout = 3 * time.Minute
	awaitPoll    = 50 * time.Millisecond
	// hopeless is the number of restarts after which a program is given up:
	// some of them stop once or twice while the API server comes up.
	hopeless = 5
)

// await returns when the named programs of a host are ready or done, and gives
// up early when one cannot become so.
func (l *Lab) await(ctx context.Context, h ledger.Host, programs ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, awaitTimeout, fmt.Errorf("not within %s", awaitTimeout))
	defer cancel()
	ticker := time.NewTicker(awaitPoll)
	defer ticker.Stop()
	for {
		waiting, err := l.look(h, programs)
		if err != nil || len(waiting) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s on host %s: %w\n%s", strings.Join(waiting, ", "), h.Name, context.Cause(ctx), logTail(h, waiting[0]))
		case <-ticker.C:
		}
	}
}

// look returns the programs that are not settled yet.
func (l *Lab) look(h ledger.Host, programs []string) (waiting []string, err error) {
	if recorded, found := l.manifest.Host(h.Name); found {
		h = *recorded
	}
	if !h.Init.Alive() {
		return nil, fmt.Errorf("host %s went down:\n%s", h.Name, logTail(h, "init"))
	}
	state, err := pidone.ReadState(statePath(h))
	if errors.Is(err, os.ErrNotExist) {
		return programs, nil
	}
	if err != nil {
		return nil, err
	}
	for _, p := range state.Programs {
		switch {
		case !slices.Contains(programs, p.Name) || p.Phase.Settled():
		case p.Phase == pidone.Failed, p.Restarts >= hopeless:
			return nil, fmt.Errorf("%s on host %s fails (%s):\n%s", p.Name, h.Name, p.LastExit, logTail(h, p.Name))
		default:
			waiting = append(waiting, p.Name)
		}
	}
	return waiting, nil
}

// complaints collects what restarted or failed on the nodes, to explain why a
// wait failed; nil when nothing did.
func (l *Lab) complaints() error {
	var errs []error
	for _, h := range l.manifest.Hosts {
		state, err := pidone.ReadState(statePath(h))
		if err != nil {
			continue // The host has not come so far; its log is named elsewhere.
		}
		for _, p := range state.Programs {
			if p.Restarts > 0 || p.Phase == pidone.Failed {
				errs = append(errs, fmt.Errorf("%s on host %s ended %d times (%s):\n%s", p.Name, h.Name, p.Restarts+1, p.LastExit, logTail(h, p.Name)))
			}
		}
	}
	return errors.Join(errs...)
}

// logTail returns the end of a program's log, headed by its name: its path may
// be about to change.
func logTail(h ledger.Host, program string) string {
	name := program
	if strings.HasPrefix(program, importName("")) {
		name = "import"
	}
	path := filepath.Join(h.Logs(), name+".log")
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Sprintf("  (no log: %v)", err)
	}
	const lines = 8
	all := strings.Split(string(bytes.TrimSpace(data)), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return fmt.Sprintf("  the end of %s.log of %s:\n    ", name, h.Name) + strings.Join(all, "\n    ")
}
