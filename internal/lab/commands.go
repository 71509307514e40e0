package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/ledger"
)

// HostCommand prepares a command on a host of the lab: in all namespaces of a
// node (by its name), or, for "control-plane" and "outside", in the network
// namespace only, so that it sees the machine's files. The caller sets stdin
// and the rest and runs it.
func (l *Lab) HostCommand(ctx context.Context, host string, argv ...string) (*exec.Cmd, error) {
	line, err := l.commandLine(host, argv)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = l.Environment(host, os.Environ())
	return cmd, nil
}

// commandLine is the command line of HostCommand.
func (l *Lab) commandLine(host string, argv []string) ([]string, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("run a command on %s: no command was given", host)
	}
	h, found := l.manifest.Host(host)
	if !found {
		return nil, fmt.Errorf("lab %q has no host %q; it has %s", l.Name(), host, strings.Join(l.HostNames(), ", "))
	}
	if h.Role != ledger.Node {
		return append([]string{"nsenter", "--net=" + filepath.Join("/run/netns", h.Netns), "--"}, argv...), nil
	}
	if !h.Init.Alive() {
		return nil, fmt.Errorf("node %s does not run; see %s", h.Name, h.Logs())
	}
	// To enter a pid namespace nsenter has to fork, and would leave its child
	// behind when it is killed.
	enter := []string{"nsenter", "--target", strconv.Itoa(h.Init.PID),
		"--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
		"setpriv", "--pdeathsig", "KILL", "--"}
	return append(enter, argv...), nil
}

// Environment is what a command on a host sees: of this process's environment
// what means something inside a lab (not the machine's proxies and
// kubeconfigs), and the lab's programs first on the search path.
func (l *Lab) Environment(host string, environ []string) []string {
	env := slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		name = strings.ToLower(name)
		return name == "path" || name == "kubeconfig" || strings.HasSuffix(name, "_proxy")
	})
	if h, found := l.manifest.Host(host); found && h.Role == ledger.Node {
		return append(env, "PATH="+config.Path)
	}
	return append(env, "PATH="+binDir(l.Dir())+":"+config.Path, "KUBECONFIG="+l.Kubeconfig())
}

// HostNames lists the hosts of the lab, nodes and others.
func (l *Lab) HostNames() []string {
	var names []string
	for _, h := range l.manifest.Hosts {
		names = append(names, h.Name)
	}
	return names
}

// NodeExec runs a command in all namespaces of a node and returns its stdout;
// the error holds its stderr.
func (l *Lab) NodeExec(ctx context.Context, node string, argv ...string) ([]byte, error) {
	cmd, err := l.HostCommand(ctx, node, argv...)
	if err != nil {
		return nil, err
	}
	out, err := output(cmd)
	if err != nil {
		return out, fmt.Errorf("%s: %s: %w", node, strings.Join(argv, " "), err)
	}
	return out, nil
}

// Kubectl runs kubectl as the cluster's administrator and returns its stdout;
// the error holds its stderr.
func (l *Lab) Kubectl(ctx context.Context, args ...string) ([]byte, error) {
	return l.KubectlInput(ctx, nil, args...)
}

// KubectlInput is Kubectl with something on stdin (`apply -f -`).
func (l *Lab) KubectlInput(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	cmd, err := l.KubectlCommand(ctx, args...)
	if err != nil {
		return nil, err
	}
	cmd.Stdin = stdin
	out, err := output(cmd)
	if err != nil {
		return out, fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return out, nil
}

// KubectlCommand prepares a kubectl command; the caller sets stdin and the rest
// and runs it.
func (l *Lab) KubectlCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	return l.HostCommand(ctx, controlPlaneHost, l.kubectl(args)...)
}

// KubectlLine is the whole command line that runs kubectl, for a caller that
// replaces itself with it or gives it a terminal.
func (l *Lab) KubectlLine(args ...string) ([]string, error) {
	return l.commandLine(controlPlaneHost, l.kubectl(args))
}

// HostLine is the same for a command on a host.
func (l *Lab) HostLine(host string, argv ...string) ([]string, error) {
	return l.commandLine(host, argv)
}

func (l *Lab) kubectl(args []string) []string {
	return append([]string{
		l.Binary("kubectl"),
		"--kubeconfig=" + l.Kubeconfig(),
		"--cache-dir=" + filepath.Join(l.Dir(), "kubectl-cache"),
	}, args...)
}

// ImportImage imports an image archive (OCI layout in a tar) into every node,
// as an operator without a registry would.
func (l *Lab) ImportImage(ctx context.Context, archive string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range l.Nodes() {
		group.Go(func() error { return l.importOn(ctx, node.Name, archive) })
	}
	return group.Wait()
}

func (l *Lab) importOn(ctx context.Context, node, archive string) error {
	file, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("import an image: %w", err)
	}
	defer file.Close()
	cmd, err := l.HostCommand(ctx, node, config.ImportCommand("-")...)
	if err != nil {
		return err
	}
	cmd.Stdin = file
	if _, err := output(cmd); err != nil {
		return fmt.Errorf("import image archive %s on node %s: %w; it must be an OCI layout in a tar, for this machine's architecture", archive, node, err)
	}
	return nil
}

// CopyToNode writes a file of the machine into a node, at an absolute path,
// with the same permissions; directories are made, and a program that runs
// from that path is replaced, not overwritten.
func (l *Lab) CopyToNode(ctx context.Context, node, from, to string) error {
	file, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy a file to node %s: %w", node, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("copy a file to node %s: %w", node, err)
	}
	const script = `set -e; mkdir -p "$(dirname "$1")"; cat > "$1.new"; chmod "$2" "$1.new"; mv -f "$1.new" "$1"`
	cmd, err := l.HostCommand(ctx, node, "/bin/sh", "-c", script, "copy", to, fmt.Sprintf("%o", info.Mode().Perm()))
	if err != nil {
		return err
	}
	cmd.Stdin = file
	if _, err := output(cmd); err != nil {
		return fmt.Errorf("copy %s to %s on node %s: %w", from, to, node, err)
	}
	return nil
}

// outputDelay is how long the output of a killed command is waited for.
const outputDelay = 2 * time.Second

// output runs a command; its error ends with what the command complained of.
// The command does not outlive this process: a `kubectl wait` left behind by a
// killed `up` would hold on to the lab's namespaces. That tie is to the thread
// that starts it.
func output(cmd *exec.Cmd) ([]byte, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = outputDelay
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	if complaint := strings.TrimSpace(stderr.String()); complaint != "" {
		return out, fmt.Errorf("%w: %s", err, complaint)
	}
	return out, err
}
