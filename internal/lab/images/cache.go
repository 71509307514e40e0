package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// keep is how long an image or a layer stays in the cache after it was last used.
const keep = 14 * 24 * time.Hour

// lock waits until no other process builds images in the cache.
func (b *builder) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(b.cache, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for {
		// Closing the file, or the end of the process, gives the lock back.
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the cache %s: %w", f.Name(), err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another lab that builds images: %w", ctx.Err()), f.Close())
		case <-poll.C:
		}
	}
}

// touch marks files of the cache as used.
func touch(files ...string) error {
	now := time.Now()
	for _, f := range files {
		if err := os.Chtimes(f, now, now); err != nil {
			return fmt.Errorf("mark as used: %w", err)
		}
	}
	return nil
}

// prune deletes what has not been used for long. The lock is held.
func (b *builder) prune() error {
	oldest := time.Now().Add(-keep)
	return filepath.WalkDir(b.cache, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == ".lock" {
			return err
		}
		info, err := d.Info()
		if err != nil || info.ModTime().After(oldest) {
			return err
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("delete what is no longer used from the cache: %w", err)
		}
		return nil
	})
}
