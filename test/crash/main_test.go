// Package crash plays random operations against the real thing: the plugin's
// binary, agents and controller as processes that are killed with -9, a real
// kube-apiserver that stops and is slow, nodes with a kernel of their own.
// After every step no address may be held by two pods, and every pod that runs
// must have its own: both are read from the kernel, and now and then from the API
// server, not from what anybody has written down.
package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/test/apiserver"
)

//nolint:gochecknoglobals // flags of the test
var (
	seedFlag   = flag.Uint64("crash.seed", 0, "the random start of the schedule; 0: another each time")
	operations = flag.Int("crash.operations", 0, "how many operations are played; 0: the test is left out")
	most       = flag.Duration("crash.most", 0, "begin no more operations after this long; 0: all of them")
	keep       = flag.Bool("crash.keep", false, "keep the programs' logs")
	race       = flag.Bool("crash.race", false, "build the programs with the race detector, and fail where it finds something")
)

// TestCrashSchedule: invariants 1 and 6, and nothing lost, under everything that
// happens to a cluster at once.
func TestCrashSchedule(t *testing.T) {
	if *operations == 0 {
		t.Skip("no operations: give -crash.operations, as test/all.sh does (docs/development.md)")
	}
	netnstest.NeedRoot(t)
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	// Printed at once: whoever sees the test hang wants it too.
	fmt.Printf("crash schedule: replay with: go test ./test/crash -crash.seed=%d -crash.operations=%d\n", seed, *operations)
	w := newWorld(t, seed)
	w.play(*operations, *most)
}

// programs builds what is run, as it is shipped, but for the race detector.
func programs(dir string) error {
	for _, name := range []string{"ropeway", "ropeway-cni"} {
		how, cgo := "-trimpath", "CGO_ENABLED=0"
		if *race && name == "ropeway" {
			how, cgo = "-race", "CGO_ENABLED=1"
		}
		build := exec.Command("go", "build", how, "-buildvcs=false", "-o", filepath.Join(dir, name), "ropeway.dev/ropeway/cmd/"+name)
		build.Env = append(os.Environ(), cgo)
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return nil
}

// directory is where everything of a run lies. It stays if the test failed.
func directory(t *testing.T) string {
	dir, err := os.MkdirTemp("", "rwcrash-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() || *keep {
			t.Logf("the programs' logs are in %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// races returns what the race detector has written into the programs' logs.
func races(dir string) (string, error) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, log := range logs {
		text, failed := os.ReadFile(log)
		err = errors.Join(err, failed)
		if _, found, ok := strings.Cut(string(text), "WARNING: DATA RACE"); ok {
			return log + ": " + found[:min(len(found), 4000)], err
		}
	}
	return "", err
}

// startServer starts the API server; the test's end stops it.
func startServer(t *testing.T) *apiserver.Server {
	server, err := apiserver.Start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(server.Resume(), server.Stop()); err != nil {
			t.Error(err)
		}
	})
	return server
}

// alone waits until no other run has the names that this one uses.
func alone(t *testing.T) {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "rwcrash.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
}

// within calls done again and again until it returns "", or for so long.
func within(d time.Duration, done func() string) error {
	for end := time.Now().Add(d); ; {
		missing := done()
		if missing == "" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %s: %s", d, missing)
		}
		<-time.After(100 * time.Millisecond)
	}
}
