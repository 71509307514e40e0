package pidone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// backoff is how long an ended program rests before it is started again;
// systemd's default for a service (RestartSec) is shorter, kubelet's unit on
// real nodes has 10 s.
const backoff = time.Second

// probeInterval is how often a starting program is asked whether it is ready,
// gateInterval how often a gate is looked at.
const (
	probeInterval = 100 * time.Millisecond
	gateInterval  = 50 * time.Millisecond
)

// Run is the life of a host's first process. It returns only when the host
// cannot be set up: a pid 1 is ended by being killed, and its programs with it.
// Its own log goes to the logger.
func Run(ctx context.Context, s Spec, log *slog.Logger) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("host %s: this is process %d, not the first of a pid namespace; use `ropeway-lab up`", s.Hostname, os.Getpid())
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set the host name %s: %w", s.Hostname, err)
	}
	if err := s.enterRoot(); err != nil {
		return err
	}
	if err := s.setSysctls(); err != nil {
		return err
	}
	log.Info("root file system is set up", "host", s.Hostname, "programs", len(s.Programs))
	return newSupervisor(s, log).run(ctx)
}

// supervisor starts the programs of a host and knows how each fares. Only its
// run loop touches its fields.
type supervisor struct {
	spec     Spec
	log      *slog.Logger
	status   []Status // same order as spec.Programs
	restarts []time.Time
	ready    chan readiness
}

// readiness is the good news that a probe brings.
type readiness struct {
	program int
	pid     int
}

func newSupervisor(s Spec, log *slog.Logger) *supervisor {
	v := &supervisor{
		spec: s, log: log,
		status:   make([]Status, len(s.Programs)),
		restarts: make([]time.Time, len(s.Programs)),
		ready:    make(chan readiness),
	}
	for i, p := range s.Programs {
		v.status[i] = Status{Name: p.Name, Phase: Waiting}
	}
	return v
}

// run is the loop: start what can start, then wait for a death, a success or
// the end of a rest.
func (v *supervisor) run(ctx context.Context) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	var written []Status
	for {
		v.startDue(ctx, time.Now())
		if !slices.Equal(written, v.status) {
			if err := writeJSON(v.spec.State, State{Programs: v.status}); err != nil {
				v.log.Error("write the state file", "path", v.spec.State, "err", err)
			}
			written = slices.Clone(v.status)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-children:
			v.reap(time.Now())
		case r := <-v.ready:
			if st := &v.status[r.program]; st.PID == r.pid && st.Phase == Starting {
				st.Phase = Ready
				v.log.Info("program is ready", "program", st.Name)
			}
		case <-time.After(v.rest()):
		}
	}
}

// rest is how long nothing is due unless something happens. Restarts are due
// after whole backoffs; a steady beat is simpler than a timer for each, and
// costs a wake-up of one small process.
func (v *supervisor) rest() time.Duration {
	for i, p := range v.spec.Programs {
		if p.Gate != "" && v.status[i].Phase == Waiting {
			return gateInterval
		}
	}
	return backoff
}

// startDue starts every program that waits for nothing (any more).
func (v *supervisor) startDue(ctx context.Context, now time.Time) {
	for progress := true; progress; {
		progress = false
		for i, p := range v.spec.Programs {
			st := &v.status[i]
			due := st.Phase == Waiting || st.Phase == Ended && !now.Before(v.restarts[i])
			if !due || !v.settled(p.After) || !isOpen(p.Gate) {
				continue
			}
			v.start(ctx, i, now)
			progress = progress || st.Phase.Settled()
		}
	}
}

// isOpen says whether a gate is.
func isOpen(gate string) bool {
	if gate == "" {
		return true
	}
	_, err := os.Stat(gate)
	return err == nil
}

func (v *supervisor) settled(names []string) bool {
	return !slices.ContainsFunc(v.status, func(s Status) bool {
		return slices.Contains(names, s.Name) && !s.Phase.Settled()
	})
}

func (v *supervisor) start(ctx context.Context, i int, now time.Time) {
	p, st := v.spec.Programs[i], &v.status[i]
	if st.Phase == Ended {
		st.Restarts++ // also where it cannot be: whoever waits for it gives up by this count
	}
	pid, err := spawn(p)
	if err != nil {
		v.ended(i, now, err.Error())
		return
	}
	st.PID, st.Phase = pid, Starting
	v.log.Info("program started", "program", p.Name, "pid", pid)
	switch {
	case p.Once: // ready only when done
	case p.Ready == nil:
		st.Phase = Ready
	default:
		go v.probe(ctx, i, pid, *p.Ready)
	}
}

// probe asks until the answer is good; it ends quietly when the program has
// been replaced or the host goes down.
func (v *supervisor) probe(ctx context.Context, i, pid int, p Probe) {
	ticker := time.NewTicker(probeInterval)
	defer ticker.Stop()
	for {
		if err := p.ask(ctx); err == nil {
			select {
			case v.ready <- readiness{program: i, pid: pid}:
			case <-ctx.Done():
			}
			return
		}
		// The program may be dead and its number free by now; its successor
		// has a probe of its own.
		if unix.Kill(pid, 0) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// reap takes the exit status of every dead child: the programs, and orphans
// of containers that fell to pid 1.
func (v *supervisor) reap(now time.Time) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for i := range v.status {
			if v.status[i].PID == pid {
				v.ended(i, now, describe(status))
			}
		}
	}
}

func (v *supervisor) ended(i int, now time.Time, how string) {
	st := &v.status[i]
	st.PID, st.LastExit = 0, how
	switch {
	case !v.spec.Programs[i].Once:
		st.Phase = Ended
		v.restarts[i] = now.Add(backoff)
		v.log.Warn("program ended and will be started again", "program", st.Name, "how", how, "restarts", st.Restarts)
	case how == exitedWell:
		st.Phase = Done
		v.log.Info("program is done", "program", st.Name)
	default:
		st.Phase = Failed
		v.log.Error("program failed", "program", st.Name, "how", how)
	}
}

const exitedWell = "exit status 0"

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return "killed by " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// spawn starts a program in a session of its own. The process is not waited
// for here: pid 1 reaps all children in one place.
func spawn(p Program) (pid int, err error) {
	if len(p.Argv) == 0 {
		return 0, fmt.Errorf("start %s: it has no command line", p.Name)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, fmt.Errorf("open the log of %s: %w", p.Name, err)
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer null.Close()
	pid, err = syscall.ForkExec(p.Argv[0], p.Argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   p.Env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %s: %w", p.Name, p.Argv[0], err)
	}
	return pid, nil
}
