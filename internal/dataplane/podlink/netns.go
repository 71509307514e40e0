package podlink

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
)

// ownNetns names the network namespace of the calling thread.
const ownNetns = "/proc/thread-self/ns/net"

// netns is an open network namespace. It is a bare file descriptor, since an
// os.File would be registered with a poller that nothing here needs.
type netns struct {
	fd   int
	path string
}

// openNetns opens the network namespace at path. Errors: ErrNoNetns, also
// where a namespace has left its mount point behind; ErrHostNetns.
func openNetns(path string) (*netns, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w at %q: %w", ErrNoNetns, path, err)
	}
	ns := &netns{fd: fd, path: path}
	var there, own unix.Stat_t
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		ns.Close()
		return nil, fmt.Errorf("%w at %q: the file is something else", ErrNoNetns, path)
	}
	if err := errors.Join(unix.Fstat(fd, &there), unix.Stat(ownNetns, &own)); err != nil {
		ns.Close()
		return nil, fmt.Errorf("comparing the network namespace %q with the node's: %w", path, err)
	}
	if there.Dev == own.Dev && there.Ino == own.Ino {
		ns.Close()
		return nil, fmt.Errorf("%w at %q", ErrHostNetns, path)
	}
	return ns, nil
}

// Close lets go of the namespace. It may be called on nil, and twice.
func (n *netns) Close() {
	if n != nil && n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
}

// do runs f on a thread that is in the namespace. A thread that cannot come
// back is not used again: its goroutine ends locked to it.
func (n *netns) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- n.visit(f)
	}()
	return <-done
}

// visit runs f in the namespace on the current thread, which is locked, and
// unlocks it once it is back where it was.
func (n *netns) visit(f func() error) error {
	home, err := unix.Open(ownNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the thread's network namespace: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering the network namespace %s: %w", n.path, err)
	}
	err = f()
	if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// conn opens a netlink socket that stays in the namespace.
func (n *netns) conn() (*rtnl.Conn, error) {
	var c *rtnl.Conn
	err := n.do(func() (err error) { c, err = rtnl.Open(); return err })
	if err != nil {
		return nil, fmt.Errorf("opening netlink in %s: %w", n.path, err)
	}
	return c, nil
}
