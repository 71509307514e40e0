package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockName is the file in a cache directory that its user holds a lock on.
const lockName = ".lock"

// Lock makes a cache directory and waits until no other process holds it. The end of the process gives it back, too.
func Lock(ctx context.Context, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock the cache %s: %w", dir, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another process that uses the cache %s: %w", dir, ctx.Err()), f.Close())
		case <-poll.C:
		}
	}
}

// MarkUsed keeps files of a cache from Prune. A file that is not there is os.ErrNotExist.
func MarkUsed(files ...string) error {
	now := time.Now()
	for _, f := range files {
		if err := os.Chtimes(f, now, now); err != nil {
			return fmt.Errorf("mark as used: %w", err)
		}
	}
	return nil
}

// Prune deletes the files directly in a cache directory that nothing has marked as used for the given time. The caller
// holds the lock. A directory that is not there is no error.
func Prune(dir string, unused time.Duration) error {
	oldest := time.Now().Add(-unused)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for what is no longer used in the cache: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == lockName {
			continue
		}
		info, err := e.Info()
		if err == nil && info.ModTime().Before(oldest) {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("delete what is no longer used from the cache: %w", err)
		}
	}
	return nil
}
