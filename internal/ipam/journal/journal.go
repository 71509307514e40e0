// Package journal is an ipam.Store in a file: one line per record, each with a
// checksum of its own. It outlives a kill -9 of the agent at any point. It is
// meant for a tmpfs (/run), which a boot clears, and does not fsync.
//
// The first line is "ropeway-journal VERSION"; every other one is the CRC-32C
// of the rest of the line in eight hex digits, a space, and a record in JSON.
// A last line without its newline was cut off while it was written, so its
// writer was never told that it is there: it is dropped. Anything else that
// cannot be read means that the file is not what was written.
package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"ropeway.dev/ropeway/internal/ipam"
)

// compactAfter is the number of lines from which on the file is rewritten when
// half of it or more is out of date.
const compactAfter = 1024

// Journal is an open journal. It is not safe for use by several goroutines;
// ipam.Allocator has one at a time.
type Journal struct {
	path string
	lock *os.File
	file *os.File
	size int64 // bytes of whole lines
	// records are what the file says, so that compaction need not read it.
	records []ipam.Record
	// compactAt is the number of records at which to compact next.
	compactAt int
	torn      int
	// broken is set when the end of the file is not known any more.
	broken error
}

// Open opens the journal at path, and makes it and its directory if they are
// not there. The caller is its only user until Close; if another process is,
// the error is ErrLocked. A file that cannot be read is moved aside and the
// error is a *CorruptError, or a *VersionError if a newer version wrote it: open
// again for an empty journal, after finding out elsewhere what is held.
func Open(path string) (*Journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the address journal: %w", err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	j := &Journal{path: path, lock: lock, compactAt: compactAfter}
	if err := j.open(); err != nil {
		j.Close()
		return nil, err
	}
	return j, nil
}

// Lock keeps every agent off the journal at path, without a look into it, until
// the returned function is called. While an agent has it, the error is
// ErrLocked. The directory is made if it is not there.
func Lock(path string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the address journal: %w", err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// lockFile takes the lock that a process has until it ends. The journal itself
// cannot be locked, since compaction replaces it.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the address journal: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func (j *Journal) open() error {
	data, err := os.ReadFile(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return j.rewrite(nil)
	}
	if err != nil {
		return fmt.Errorf("read the address journal: %w", err)
	}
	content, err := parse(data)
	var corrupt *CorruptError
	if errors.As(err, &corrupt) {
		corrupt.Path = j.path
		return j.moveAside("corrupt", &corrupt.MovedTo, corrupt)
	}
	var newer *VersionError
	if errors.As(err, &newer) {
		newer.Path = j.path
		return j.moveAside("newer", &newer.MovedTo, newer)
	}
	if err != nil {
		return fmt.Errorf("read the address journal %s: %w", j.path, err)
	}
	j.records, j.size, j.torn = content.records, content.size, len(data)-int(content.size)
	if content.version < Version {
		// What is appended is of this version, and so must be what the file says
		// of itself, or the release before would take it for its own.
		return j.rewrite(j.records)
	}
	if j.file, err = os.OpenFile(j.path, os.O_WRONLY|syscall.O_CLOEXEC, 0o600); err != nil {
		return fmt.Errorf("open the address journal: %w", err)
	}
	if j.torn > 0 {
		if err := j.file.Truncate(j.size); err != nil {
			return fmt.Errorf("cut the unfinished last line off the address journal: %w", err)
		}
	}
	return nil
}

// moveAside moves the file aside, under a name that nothing has yet, which it
// writes to movedTo. It returns the reason.
func (j *Journal) moveAside(as string, movedTo *string, reason error) error {
	for n := 1; ; n++ {
		aside := fmt.Sprintf("%s.%s-%d", j.path, as, n)
		if _, err := os.Lstat(aside); err == nil {
			continue
		}
		if err := os.Rename(j.path, aside); err != nil {
			return fmt.Errorf("move an address journal that cannot be read aside: %w (%w)", err, reason)
		}
		*movedTo = aside
		return reason
	}
}

// Torn returns the number of bytes of an unfinished last line that Open cut
// off. It is worth a line in the log and nothing else.
func (j *Journal) Torn() int { return j.torn }

// Load implements ipam.Store.
func (j *Journal) Load() ([]ipam.Record, error) {
	return append([]ipam.Record(nil), j.records...), nil
}

// Append implements ipam.Store. After an error, as when the disk is full, the
// file is as it was before.
func (j *Journal) Append(r ipam.Record) error {
	if j.broken != nil {
		return j.broken
	}
	line, err := format(r)
	if err != nil {
		return err
	}
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		err = fmt.Errorf("write to the address journal %s: %w", j.path, err)
		if cut := j.file.Truncate(j.size); cut != nil {
			j.broken = fmt.Errorf("%w; and its end cannot be cut off, so nothing more is written until the agent starts again: %w", err, cut)
			return j.broken
		}
		return err
	}
	j.size += int64(len(line))
	j.records = append(j.records, r)
	if len(j.records) >= j.compactAt {
		j.compact()
	}
	return nil
}

// compact rewrites the file if that makes it half as long. If it fails, the
// old file is still there and whole, and it is tried again later.
func (j *Journal) compact() {
	records := ipam.Compact(j.records)
	if 2*len(records) <= len(j.records) && j.rewrite(records) == nil {
		j.records = records
	}
	j.compactAt = max(compactAfter, 2*len(records), len(j.records)+compactAfter/2)
}

// rewrite replaces the file by one with these records, in one step.
func (j *Journal) rewrite(records []ipam.Record) error {
	data := []byte(header())
	for _, r := range records {
		line, err := format(r)
		if err != nil {
			return err
		}
		data = append(data, line...)
	}
	temp := j.path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make the address journal: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = os.Rename(temp, j.path)
	}
	if err != nil {
		f.Close()
		os.Remove(temp) // a leftover is harmless: the next rewrite truncates it
		return fmt.Errorf("write the address journal %s: %w", j.path, err)
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size = f, int64(len(data))
	return nil
}

// Close gives the journal up. Everything that was appended is in the file
// already.
func (j *Journal) Close() error {
	var errs []error
	for _, f := range []*os.File{j.file, j.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	j.file, j.lock = nil, nil
	j.broken = errors.Join(j.broken, errors.New("the address journal is closed"))
	return errors.Join(errs...)
}
