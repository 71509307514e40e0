package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane"
)

// Clean removes from the node everything that an agent and its dataplane ever
// made, for uninstalling: the conflist first, so that no pod starts any more,
// then plugins (what was taken over is put back), kernel state, and the run
// directory. The agent must not be running. It goes on after a failure, returns
// all of them, and may be called again.
func Clean(ctx context.Context, cfg Config) error {
	cfg.Defaults()
	linux, err := dataplane.New(dataplane.Options{StateDir: cfg.RunDir, Log: cfg.Log})
	if err != nil {
		return fmt.Errorf("preparing to clean the dataplane: %w", err)
	}
	return clean(ctx, cfg, linux)
}

func clean(ctx context.Context, cfg Config, dp dataplane.Dataplane) error {
	err := errors.Join(cfg.host().Remove(), dp.Clean(ctx), removeRunDir(cfg.RunDir))
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
