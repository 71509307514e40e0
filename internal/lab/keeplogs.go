package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// lookLimit bounds each question to an API server that may be gone.
const lookLimit = 10 * time.Second

// KeepLogs copies the logs of all hosts, and what the API server says of pods
// and events if it still answers, to a new directory that outlives the lab,
// and returns its path. It is for a lab that failed and is about to go.
func (l *Lab) KeepLogs(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "rwlab-logs-"+l.Name()+"-")
	if err != nil {
		return "", fmt.Errorf("keep the logs of lab %q: %w", l.Name(), err)
	}
	return dir, l.keepLogs(ctx, dir)
}

// keepLogs is KeepLogs into a directory that exists.
func (l *Lab) keepLogs(ctx context.Context, dir string) error {
	var kept errgroup.Group
	for host, from := range l.LogDirs() {
		if _, err := os.Stat(from); err != nil {
			continue // A host that never started has none.
		}
		kept.Go(func() error {
			if err := os.CopyFS(filepath.Join(dir, host), os.DirFS(from)); err != nil {
				return fmt.Errorf("keep the logs of %s: %w", host, err)
			}
			return nil
		})
	}
	if l.apiServerRuns() {
		l.keepAnswers(ctx, &kept, dir)
	}
	return kept.Wait()
}

// apiServerRuns says whether there is someone to ask.
func (l *Lab) apiServerRuns() bool {
	waiting, err := l.look(l.manifest.Hosts[0], []string{"kube-apiserver"})
	return err == nil && len(waiting) == 0
}

// keepAnswers asks the API server everything at once: it may have stopped
// answering, and then each question takes its whole time.
func (l *Lab) keepAnswers(ctx context.Context, kept *errgroup.Group, dir string) {
	questions := map[string][]string{
		"pods.txt":     {"get", "pods", "-A", "-o", "wide"},
		"describe.txt": {"describe", "pods,nodes", "-A"},
		"events.txt":   {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		"ropeway.yaml": {"get", "clusternetworks,nodenetworks,addressblocks,nodes", "-o", "yaml"},
	}
	for file, args := range questions {
		kept.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, lookLimit)
			defer cancel()
			out, err := l.Kubectl(ctx, args...)
			if err != nil {
				// A complaint is an answer too.
				out = fmt.Appendf(out, "%v\n", err)
			}
			if err := os.WriteFile(filepath.Join(dir, file), out, 0o600); err != nil {
				return fmt.Errorf("keep the answer of the API server: %w", err)
			}
			return nil
		})
	}
}

// failureDir is where the logs of a failed `up` go, in place of those of the
// last one.
func (b *boot) failureDir() (string, error) {
	dir := filepath.Join(b.options.Cache, "failed", b.lab.Name())
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("remove the logs of an earlier failure: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a directory for the logs: %w", err)
	}
	return dir, nil
}

// keepLogs keeps the logs of a lab that is about to go, if it has come so far
// as to have any, and returns a sentence that says where.
func (b *boot) keepLogs(ctx context.Context) string {
	if _, err := os.Stat(b.manifest().Hosts[0].Logs()); err != nil {
		return ""
	}
	dir, err := b.failureDir()
	if err == nil {
		err = b.lab.keepLogs(ctx, dir)
	}
	if err != nil {
		return fmt.Sprintf("\n(its logs could not be kept: %v)", err)
	}
	return "\nits logs are in " + dir
}
