package pidone

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// play runs the programs under a supervisor until the test ends, or until the
// condition holds; it fails when that takes too long. Nothing else in this
// package's tests starts processes: the supervisor reaps every child.
func play(t *testing.T, programs []Program, until func(map[string]Status) bool) map[string]Status {
	t.Helper()
	dir := t.TempDir()
	spec := Spec{Hostname: "rwt", State: filepath.Join(dir, "state.json"), Programs: programs}
	for i := range spec.Programs {
		if spec.Programs[i].Log == "" {
			spec.Programs[i].Log = filepath.Join(dir, spec.Programs[i].Name+".log")
		}
		spec.Programs[i].Env = []string{"PATH=/usr/bin:/bin"}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	ended := make(chan error, 1)
	go func() { ended <- newSupervisor(spec, slog.New(slog.DiscardHandler)).run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended; endAll(spec.State) })
	for {
		state, err := ReadState(spec.State)
		if err == nil && until(byName(state)) {
			return byName(state)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the programs did not come so far: %+v, %v", state, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func byName(s State) map[string]Status {
	m := map[string]Status{}
	for _, p := range s.Programs {
		m[p.Name] = p
	}
	return m
}

// endAll kills what a supervisor left running, as the end of pid 1 would.
func endAll(state string) {
	s, err := ReadState(state)
	if err != nil {
		return
	}
	for _, p := range s.Programs {
		if p.PID > 1 {
			_ = unix.Kill(p.PID, unix.SIGKILL)
			_, _ = unix.Wait4(p.PID, nil, 0, nil)
		}
	}
}

func sh(name, script string, after ...string) Program {
	return Program{Name: name, Argv: []string{"/bin/sh", "-c", script}, After: after}
}

func TestProgramsStartInOrder(t *testing.T) {
	order := filepath.Join(t.TempDir(), "order")
	once := func(name string, after ...string) Program {
		p := sh(name, "echo "+name+" >> "+order, after...)
		p.Once = true
		return p
	}
	got := play(t, []Program{once("third", "second"), once("second", "first"), once("first")}, func(s map[string]Status) bool {
		return s["third"].Phase == Done
	})
	data, err := os.ReadFile(order)
	if err != nil || string(data) != "first\nsecond\nthird\n" {
		t.Errorf("order is %q, %v; states are %+v", data, err, got)
	}
}

func TestAProgramThatEndsIsStartedAgain(t *testing.T) {
	got := play(t, []Program{sh("restless", "exit 3")}, func(s map[string]Status) bool { return s["restless"].Restarts >= 2 })
	if got["restless"].LastExit != "exit status 3" {
		t.Errorf("it ended with %q", got["restless"].LastExit)
	}
}

func TestAKilledProgramIsToldApart(t *testing.T) {
	got := play(t, []Program{sh("suicidal", "kill -9 $$")}, func(s map[string]Status) bool { return s["suicidal"].LastExit != "" })
	if got["suicidal"].LastExit != "killed by killed" {
		t.Errorf("it ended with %q", got["suicidal"].LastExit)
	}
}

func TestAFailureHoldsBackWhatComesAfter(t *testing.T) {
	broken := sh("broken", "exit 1")
	broken.Once = true
	got := play(t, []Program{broken, sh("later", "exec sleep 300", "broken")}, func(s map[string]Status) bool { return s["broken"].Phase == Failed })
	if got["later"].Phase != Waiting {
		t.Errorf("the program after a failed one is %s", got["later"].Phase)
	}
}

func TestAMissingProgramIsAFailureWithItsName(t *testing.T) {
	p := Program{Name: "missing", Argv: []string{"/does/not/exist"}, Once: true}
	got := play(t, []Program{p}, func(s map[string]Status) bool { return s["missing"].Phase == Failed })
	if !strings.Contains(got["missing"].LastExit, "/does/not/exist") {
		t.Errorf("it ended with %q", got["missing"].LastExit)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	dir := t.TempDir()
	// As pid 1, the supervisor inherits orphans; here it must be told to.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	file := filepath.Join(dir, "orphan")
	p := sh("parent", "(sleep 0.1; exit 0) & echo $! > "+file)
	p.Once = true
	play(t, []Program{p, sh("keeper", "exec sleep 300")}, func(s map[string]Status) bool {
		data, err := os.ReadFile(file)
		pid := strings.TrimSpace(string(data))
		if s["parent"].Phase != Done || err != nil || pid == "" {
			return false
		}
		_, err = os.Stat("/proc/" + pid)
		return os.IsNotExist(err)
	})
}

func TestAGateHoldsAProgramBack(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	gated := sh("gated", "exec sleep 300")
	gated.Gate = gate
	opened := false
	play(t, []Program{gated, sh("free", "exec sleep 300")}, func(s map[string]Status) bool {
		if s["free"].Phase == Ready && !opened {
			if s["gated"].Phase != Waiting {
				t.Errorf("before its gate is open the program is %s", s["gated"].Phase)
			}
			opened = true
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return s["gated"].Phase == Ready
	})
}

func TestAProbeDecidesWhenAProgramIsReady(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	slow := sh("slow", "exec sleep 300")
	slow.Ready = &Probe{Unix: socket}
	var listener net.Listener
	play(t, []Program{slow, sh("later", "exec sleep 300", "slow")}, func(s map[string]Status) bool {
		if s["slow"].Phase == Starting && listener == nil {
			if s["later"].Phase != Waiting {
				t.Errorf("the program after one that is not ready is %s", s["later"].Phase)
			}
			var err error
			if listener, err = net.Listen("unix", socket); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { listener.Close() })
		}
		return s["later"].Phase == Ready
	})
}

func TestLogsTakeWhatProgramsPrint(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p := sh("talker", "echo out; echo err >&2")
	p.Once, p.Log = true, log
	play(t, []Program{p}, func(s map[string]Status) bool { return s["talker"].Phase == Done })
	if data, err := os.ReadFile(log); err != nil || string(data) != "out\nerr\n" {
		t.Errorf("log is %q, %v", data, err)
	}
}

func TestRunIsForPidOneOnly(t *testing.T) {
	err := Run(t.Context(), Spec{Hostname: "rwt"}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "not the first of a pid namespace") {
		t.Errorf("Run outside a pid namespace: %v", err)
	}
}

func TestProbeOfAURL(t *testing.T) {
	healthy := false
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !healthy {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer server.Close()
	p := Probe{URL: server.URL}
	if err := p.ask(t.Context()); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("an unhealthy server: %v", err)
	}
	healthy = true
	if err := p.ask(t.Context()); err != nil {
		t.Errorf("a healthy server: %v", err)
	}
	authority := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(authority, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Authority = authority
	if err := p.ask(t.Context()); err == nil || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("a broken authority: %v", err)
	}
	if err := (Probe{}).ask(t.Context()); err == nil {
		t.Error("an empty probe passes")
	}
}
