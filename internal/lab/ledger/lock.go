package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy means that another process holds a lab's lock.
var ErrBusy = errors.New("another ropeway-lab command is at work on it")

// Lock is the exclusive right to change a lab. It is held by an open file, so
// it goes away with the process, and can be handed to a child that must not
// be overtaken by `down` (File).
type Lock struct {
	dir  string
	file *os.File
}

// Lock takes the lock of a lab. With create, the lab's directory is made when
// missing; else a missing one is os.ErrNotExist. It waits until ctx is done
// and then returns ErrBusy.
func (s Store) Lock(ctx context.Context, lab string, create bool) (*Lock, error) {
	if err := CheckName(lab); err != nil {
		return nil, err
	}
	dir := s.Dir(lab)
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		lock, err := tryLock(dir, create)
		// With create, that something is missing means that another lab's end took the
		// common parent away just now.
		vanished := create && errors.Is(err, os.ErrNotExist)
		if err == nil || !errors.Is(err, ErrBusy) && !vanished {
			return lock, err
		}
		if ctx.Err() != nil && vanished {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lab %q: %w%s; wait for it or interrupt it", lab, ErrBusy, s.maker(lab))
		case <-ticker.C:
		}
	}
}

func (s Store) maker(lab string) string {
	m, err := s.Read(lab)
	if err != nil || !m.Maker.Alive() {
		return ""
	}
	return fmt.Sprintf(" (`up`, process %d)", m.Maker.PID)
}

func tryLock(dir string, create bool) (*Lock, error) {
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the lab's directory: %w", err)
		}
	}
	file, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the lab's directory: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// The holder before us may have removed the directory while we waited;
	// then this lock is on nothing, and the next turn sees the new state.
	if !same(file, dir) {
		file.Close()
		return nil, ErrBusy
	}
	return &Lock{dir: dir, file: file}, nil
}

func same(file *os.File, path string) bool {
	opened, err1 := file.Stat()
	named, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(opened, named)
}

// File is the open file that holds the lock; a child that inherits it holds
// the lock as long as it keeps the file open.
func (l *Lock) File() *os.File { return l.file }

// Unlock gives the lock back; the directory stays.
func (l *Lock) Unlock() { l.file.Close() }

// Remove deletes the lab's directory with all it holds, then gives the lock
// back. The parent goes as well when no other lab is left in it.
func (l *Lock) Remove() error {
	defer l.file.Close()
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove the lab's directory: %w", err)
	}
	// Fails, rightly, while other labs have their directories there.
	os.Remove(filepath.Dir(l.dir))
	return nil
}
