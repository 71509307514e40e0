package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/ipam/journal"
)

// Clean removes from the node everything that an agent and its dataplane ever
// made, for uninstalling: the conflist first, so that no pod starts any more,
// then plugins (what was taken over is put back), kernel state, what podLinks
// removes, and the run directory. It has the journal's lock meanwhile: where an
// agent has it, nothing is touched and the error is journal.ErrLocked, and one
// that starts waits. It goes on after other failures, returns all of them, and
// may be called again.
func Clean(ctx context.Context, cfg Config, podLinks func() error) error {
	cfg.Defaults()
	linux, err := dataplane.New(dataplane.Options{StateDir: cfg.RunDir, Log: cfg.Log})
	if err != nil {
		return fmt.Errorf("preparing to clean the dataplane: %w", err)
	}
	return clean(ctx, cfg, linux, podLinks)
}

func clean(ctx context.Context, cfg Config, dp dataplane.Dataplane, podLinks func() error) error {
	release, err := journal.Lock(cfg.inRunDir(journalName))
	if err != nil {
		return fmt.Errorf("node %s is left as it is: %w", cfg.NodeName, err)
	}
	defer release()
	// Pods' links after the dataplane: until then, what they send meets the
	// guards. The run directory last, since the lock is in it.
	err = errors.Join(cfg.host().Remove(), dp.Clean(ctx), podLinks(), removeRunDir(cfg.RunDir))
	if err != nil {
		return fmt.Errorf("cleaning node %s: %w", cfg.NodeName, err)
	}
	return nil
}

// removeRunDir empties the run directory, and removes it unless it is a mount
// of the container that we run in.
func removeRunDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(dir+"/"+e.Name()))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
