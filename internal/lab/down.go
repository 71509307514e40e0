package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// Down takes the lab down; see the function Down.
func (l *Lab) Down(ctx context.Context) error { return DownIn(ctx, l.store, l.Name()) }

// Down takes a lab of the default store down, whatever state it is in, and
// leaves nothing of it on the machine. It needs the name only, may be repeated
// after a failure, and returns ErrNotFound when there was no such lab (and no
// remains of one).
func Down(ctx context.Context, name string) error { return DownIn(ctx, ledger.DefaultStore, name) }

// DownIn is Down for another store.
func DownIn(ctx context.Context, store ledger.Store, name string) error {
	if os.Geteuid() != 0 {
		return errors.New("take a lab down as root (sudo)")
	}
	lock, err := acquire(ctx, store, name, false)
	if errors.Is(err, os.ErrNotExist) {
		// Its directory is the first thing that a lab makes and the last that
		// it removes; but someone may have removed it by hand.
		if err := teardown(ctx, store, name); err != nil {
			return err
		}
		return fmt.Errorf("lab %q: %w", name, ErrNotFound)
	}
	if err != nil {
		return err
	}
	if err := teardown(ctx, store, name); err != nil {
		lock.Unlock()
		return err
	}
	return lock.Remove()
}

// teardown removes everything of a lab but its directory. It goes by names
// alone, never by what a process remembers. The caller holds the lock.
func teardown(ctx context.Context, store ledger.Store, name string) error {
	if err := ledger.CheckName(name); err != nil {
		return err
	}
	layout, err := cgroup.Detect()
	if err != nil {
		return err
	}
	first := killFirstProcesses(store, name)
	group := ledger.Cgroup(name)
	if err := layout.Kill(ctx, group); err != nil {
		return fmt.Errorf("take lab %q down: %w", name, err)
	}
	if err := layout.Remove(ctx, group); err != nil {
		return fmt.Errorf("take lab %q down: %w", name, err)
	}
	killVisitors(name)
	if err := vpc.Down(ctx, name); err != nil {
		return fmt.Errorf("take the VPC of lab %q down: %w", name, err)
	}
	if err := sweepNetns(name); err != nil {
		return fmt.Errorf("take lab %q down: %w", name, err)
	}
	if err := unmountBelow(store.Dir(name)); err != nil {
		return err
	}
	awaitBurial(ctx, first)
	return nil
}

// awaitBurial waits until the machine's init has taken note of the hosts' end,
// so that not even zombies are left. An init that does not care is no failure
// of the lab.
func awaitBurial(ctx context.Context, dead []ledger.Process) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for slices.ContainsFunc(dead, func(p ledger.Process) bool { return !p.Gone() }) {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// killFirstProcesses ends each host's pid 1, and the kernel the rest of the
// host with it; that is quicker and surer than to end processes one by one.
// What escapes it is ended by cgroup. It returns those that it knew of.
func killFirstProcesses(store ledger.Store, name string) []ledger.Process {
	m, err := store.Read(name)
	if err != nil {
		return nil // Never written, or broken: the cgroup tells.
	}
	var first []ledger.Process
	for _, h := range m.Hosts {
		if h.Init.Alive() {
			// It may end by itself meanwhile; then there is nothing to do.
			_ = unix.Kill(h.Init.PID, unix.SIGKILL)
			first = append(first, h.Init)
		}
	}
	return first
}

// sweepNetns removes named network namespaces of the lab that the VPC does not
// know of any more: someone may have removed the VPC's own by hand, in which
// its records lie.
func sweepNetns(name string) error {
	for _, path := range namedNetns(name) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("let network namespace %s go: %w", path, err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the name of a network namespace: %w", err)
		}
	}
	return nil
}

// namedNetns are the paths of a lab's network namespaces. Names of labs have
// no dash, so that the prefix is no other lab's.
func namedNetns(name string) []string {
	paths, err := filepath.Glob(filepath.Join("/run/netns", ledger.NetnsPrefix(name)+"*"))
	if err != nil {
		return nil // Names of labs hold nothing that could spoil the pattern.
	}
	return paths
}

// killVisitors ends what others run in the lab's network namespaces and so
// would keep them alive without a name: a forgotten `kubectl port-forward`, a
// capture, a shell.
func killVisitors(name string) {
	inside := map[string]bool{} // link text of /proc/PID/ns/net -> is the lab's
	for _, path := range namedNetns(name) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil {
			inside[fmt.Sprintf("net:[%d]", st.Ino)] = true
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !inside[target] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err == nil && pid != os.Getpid() {
			// It may end by itself meanwhile; then there is nothing to do.
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// unmountBelow detaches mounts in the lab's directory. The lab makes none in
// the machine's namespace; but someone who looked around may have, and removing
// the directory would reach through them.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("look for mounts in %s: %w", dir, err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", fields[4], err)
		}
	}
	return nil
}
