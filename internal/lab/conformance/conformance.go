// Package conformance plays Kubernetes' own end-to-end specs on a lab, by the
// upstream test binary of the version that the lab runs.
package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/build"
	"ropeway.dev/ropeway/internal/lab/source"
)

// DefaultFocus chooses the specs of the pod network and of Services upon it
// that run in the one image that the lab has.
const DefaultFocus = `\[sig-network\] (` +
	`Networking Granular Checks: (Pods|Services)` +
	`|Services should (serve a basic endpoint|serve multiport|serve endpoints on same port and different protocols \[Conf` +
	`|have session affinity work|be able to switch session affinity|be able to create a functioning NodePort` +
	`|be able to change the type from|allow pods to hairpin|preserve source pod IP|respect internalTrafficPolicy` +
	`|support externalTrafficPolicy=Local|be rejected when no endpoints)` +
	`|NoSNAT|HostPort|Connectivity Pod Lifecycle|DNS HostNetwork spec.Hostname|DNS should support configurable pod DNS nameservers)`

// What else [sig-network] has and the lab cannot play: specs that look names up
// with dig (the image has none), that fetch with wget -T (which crashes Debian's static
// busybox), that go through the API server's proxy (the lab's control plane is not
// on the pod network), or that need nginx or jessie-dnsutils.

// skipped are specs that the focus may match and that are not played: what
// takes the cluster to itself, what takes long, and what a lab has not: SCTP in
// its kernel, a cloud's load balancer, enforcement of policies.
const skipped = `\[Slow\]|\[Serial\]|\[Disruptive\]|\[Feature:|\[Provider:|SCTP|LoadBalancer|NetworkPolicy`

// Options say which specs to play and how.
type Options struct {
	// Focus is a regular expression of full names; DefaultFocus when empty.
	Focus string
	// Processes is the number of specs at a time; 4 when 0.
	Processes int
	// Cache is the lab's, where the test binary is kept.
	Cache string
	// Out gets a line for each spec.
	Out io.Writer
	// Progress gets a line for each step before.
	Progress func(line string)
}

// Validate names what is wrong with the options.
func (o Options) Validate() error {
	if _, err := regexp.Compile(o.Focus); err != nil {
		return fmt.Errorf("--focus: give a regular expression: %w", err)
	}
	if o.Processes < 0 || o.Processes > 32 {
		return fmt.Errorf("--processes %d: give 1 to 32, or leave it out", o.Processes)
	}
	return nil
}

// Prepare builds the specs, or finds them in the cache, and returns the
// directory that they are in. It is best done before a lab is booted.
func (o Options) Prepare(ctx context.Context) (string, error) {
	root, err := source.Here()
	if err != nil {
		return "", err
	}
	b := &build.Builder{Source: root, Cache: filepath.Join(o.Cache, "parts"), Programs: build.Conformance(), Progress: o.Progress}
	dir := filepath.Join(o.Cache, "conformance")
	return dir, b.Install(ctx, dir)
}

// ErrFailed means that specs failed.
var ErrFailed = errors.New("specs failed")

// Run plays the specs in programs, which Prepare returned, on a lab that is up.
// The error is ErrFailed if a spec failed; it names them, and where ginkgo's
// full output is.
func (o Options) Run(ctx context.Context, l *lab.Lab, programs string) error {
	root, err := source.Here()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rwlab-conformance-")
	if err != nil {
		return fmt.Errorf("make a directory for the specs' files: %w", err)
	}
	keep := false
	defer func() {
		if !keep {
			os.RemoveAll(dir)
		}
	}()
	o.Progress("giving the nodes the image that the specs run in")
	if err := giveTools(ctx, l, root, filepath.Join(dir, "image")); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, "image")); err != nil {
		return err
	}
	err = o.play(ctx, l, programs, dir)
	if err != nil {
		keep = true
		return fmt.Errorf("%w\nginkgo's full output is %s", err, logFile(dir))
	}
	return nil
}

func logFile(dir string) string { return filepath.Join(dir, "ginkgo.log") }

// registries are where the specs look for images: the lab's names for them.
const registries = "promoterE2eRegistry: registry.k8s.io/e2e-test-images\n"

func (o Options) play(ctx context.Context, l *lab.Lab, programs, dir string) error {
	list := filepath.Join(dir, "registries.yaml")
	if err := os.WriteFile(list, []byte(registries), 0o644); err != nil {
		return fmt.Errorf("name the registries: %w", err)
	}
	cmd, err := l.HostCommand(ctx, "control-plane", o.arguments(l, programs, dir)...)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, "KUBE_TEST_REPO_LIST="+list)
	cmd.Dir = dir
	// ginkgo takes its processes down, and they their namespaces.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	// Ctrl-C at the terminal goes to ginkgo once, by us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r := &results{out: o.Out}
	failed, err := follow(cmd, r, logFile(dir))
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: %w", ctx.Err())
	case len(r.failed) > 0:
		return fmt.Errorf("%w: %d of %d", ErrFailed, len(r.failed), len(r.failed)+r.passed)
	case failed != nil:
		return fmt.Errorf("the specs did not run to their end: %w", failed)
	case r.passed == 0:
		return errors.New("no spec was played: does the --focus match any? (`e2e.test --list-tests` lists them)")
	}
	return nil
}

// follow runs a command whose output goes to a file and, as it comes, to r.
// failed is how the command ended.
func follow(cmd *exec.Cmd, r *results, path string) (failed, err error) {
	log, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("make the log of ginkgo: %w", err)
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	cmd.Stdout, cmd.Stderr = write, write
	err = cmd.Start()
	write.Close()
	if err != nil {
		return nil, fmt.Errorf("start ginkgo: %w", err)
	}
	readErr := r.follow(io.TeeReader(read, log))
	return cmd.Wait(), readErr
}

// arguments are ginkgo's own, and behind the -- those of the specs.
func (o Options) arguments(l *lab.Lab, programs, dir string) []string {
	focus, processes := o.Focus, o.Processes
	if focus == "" {
		focus = DefaultFocus
	}
	if processes == 0 {
		processes = 4
	}
	return []string{
		filepath.Join(programs, "ginkgo"), "--procs=" + strconv.Itoa(processes), "--no-color", "-v", "--timeout=2h",
		"--focus=" + focus, "--skip=" + skipped, filepath.Join(programs, "e2e.test"), "--",
		"--kubeconfig=" + l.Kubeconfig(), "--kubectl-path=" + l.Binary("kubectl"), "--provider=skeleton",
		"--num-nodes=" + strconv.Itoa(len(l.Nodes())), "--disable-log-dump", "--dump-logs-on-failure=false",
	}
}
