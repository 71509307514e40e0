package podlink

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"golang.org/x/sys/unix"
)

// ownNetns names the network namespace of the calling thread.
const ownNetns = "/proc/thread-self/ns/net"

// openNetns opens the network namespace at path. Errors: ErrNoNetns, also
// where a namespace has left its mount point behind; ErrHostNetns.
func openNetns(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w at %q: %w", ErrNoNetns, path, err)
	}
	var there, own unix.Stat_t
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%w at %q: the file is something else", ErrNoNetns, path)
	}
	if err := errors.Join(unix.Fstat(int(f.Fd()), &there), unix.Stat(ownNetns, &own)); err != nil {
		f.Close()
		return nil, fmt.Errorf("comparing the network namespace %q with the node's: %w", path, err)
	}
	if there.Dev == own.Dev && there.Ino == own.Ino {
		f.Close()
		return nil, fmt.Errorf("%w at %q", ErrHostNetns, path)
	}
	return f, nil
}

// inNetns runs f on a thread that is in the namespace. A thread that cannot
// come back is not used again: its goroutine ends locked to it.
func inNetns(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- visit(ns, f)
	}()
	return <-done
}

// visit runs f in the namespace on the current thread, which is locked, and
// unlocks it once it is back where it was.
func visit(ns *os.File, f func() error) error {
	home, err := os.Open(ownNetns)
	if err != nil {
		return fmt.Errorf("opening the thread's network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering the network namespace %s: %w", ns.Name(), err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// handleIn opens a netlink handle that stays in the namespace.
func handleIn(ns *os.File) (netlinksafe.Handle, error) {
	var h netlinksafe.Handle
	err := inNetns(ns, func() error {
		var err error
		h, err = netlinksafe.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return h, fmt.Errorf("opening netlink in %s: %w", ns.Name(), err)
	}
	return h, nil
}
