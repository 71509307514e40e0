// Package netnstest makes network namespaces for tests. They have no name and
// no mount: a namespace lives as long as the test holds it, and goes with the
// test's process even if that is killed.
package netnstest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RootlessEnv, set to 1, turns tests that need root into skips.
const RootlessEnv = "ROPEWAY_TEST_ROOTLESS"

const own = "/proc/thread-self/ns/net"

// NeedRoot ends a test that cannot run without root. A skip must be earned: a
// machine that says nothing is expected to run everything.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv(RootlessEnv) == "1" {
		t.Skip("needs root, and " + RootlessEnv + "=1 says that there is none")
	}
	t.Fatal("needs root, for network namespaces: run as root, or set " + RootlessEnv + "=1 to skip such tests")
}

// NS is one network namespace, with its loopback up.
type NS struct {
	file *os.File
}

// New makes a namespace that the end of the test releases.
func New(t testing.TB) *NS {
	t.Helper()
	NeedRoot(t)
	made := make(chan *os.File, 1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		f, err := create()
		if err != nil {
			failed <- err
			return
		}
		made <- f
	}()
	select {
	case err := <-failed:
		t.Fatalf("making a network namespace: %v", err)
		return nil
	case f := <-made:
		ns := &NS{file: f}
		t.Cleanup(ns.Close)
		return ns
	}
}

func create() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	f, err := os.Open(own)
	if err != nil {
		return nil, err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	return f, netlink.LinkSetUp(lo)
}

// Path names the namespace for this process and others.
func (n *NS) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// Close releases the namespace; the kernel removes it, if nothing else holds
// it. The path is gone afterwards. It may be called twice.
func (n *NS) Close() {
	n.file.Close()
}

// Enter puts the test's goroutine, and the processes that it starts, into the
// namespace until the test ends. Subtests have goroutines of their own.
func (n *NS) Enter(t testing.TB) {
	t.Helper()
	back, err := n.enter()
	if err != nil {
		t.Fatalf("entering a network namespace: %v", err)
	}
	t.Cleanup(back)
}

// Do runs f in the namespace, on the caller's thread.
func (n *NS) Do(f func() error) error {
	back, err := n.enter()
	if err != nil {
		return err
	}
	defer back()
	return f()
}

func (n *NS) enter() (back func(), err error) {
	runtime.LockOSThread()
	home, err := os.Open(own)
	if err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		home.Close()
		runtime.UnlockOSThread()
		return nil, err
	}
	return func() {
		defer home.Close()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err == nil {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
	}, nil
}
