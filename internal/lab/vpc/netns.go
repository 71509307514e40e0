package vpc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named network namespaces.
const netnsDir = "/run/netns"

func netnsPath(name string) string { return filepath.Join(netnsDir, name) }

// netnsExists reports whether the name is taken, alive or not.
func netnsExists(name string) bool {
	_, err := os.Lstat(netnsPath(name))
	return err == nil
}

// createNetns makes a named network namespace as `ip netns add` does. A name that is taken is os.ErrExist.
func createNetns(name string) error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of network namespaces: %w", err)
	}
	file, err := os.OpenFile(netnsPath(name), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0)
	if err != nil {
		return fmt.Errorf("claim the network namespace name %s (root is needed): %w", name, err)
	}
	file.Close()

	done := make(chan error, 1)
	go func() {
		// The thread is in the new namespace for good: it is never unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		done <- mountNewNetns(netnsPath(name))
	}()
	if err := <-done; err != nil {
		return errors.Join(fmt.Errorf("make network namespace %s: %w", name, err), os.Remove(netnsPath(name)))
	}
	return nil
}

func mountNewNetns(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare (root is needed): %w", err)
	}
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount on %s: %w", path, err)
	}
	return nil
}

// removeNetns takes the name away; the namespace goes with its last process. A name that is not there is no error.
func removeNetns(name string) error {
	path := netnsPath(name)
	for {
		// More than one mount can lie on a name when an earlier life was cut short.
		err := unix.Unmount(path, unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", name, err)
		}
	}
	err := os.Remove(path)
	if errors.Is(err, unix.EBUSY) {
		err = removeHidden(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// removeHidden removes a name that is still mounted on below another mount of netnsDir: the first `ip netns add` on a
// machine lays the directory over itself, and what was mounted before can be reached by no path. In a mount namespace
// that has neither mount the name can be removed, and the kernel then takes the mounts on it away everywhere.
func removeHidden(path string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good, as in createNetns
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			done <- fmt.Errorf("make mounts private: %w", err)
			return
		}
		for _, on := range []string{netnsDir, path} {
			for unix.Unmount(on, unix.MNT_DETACH) == nil {
			}
		}
		done <- os.Remove(path)
	}()
	return <-done
}

// inNetns runs f on a thread of the named namespace. Goroutines that f starts are not in it; processes are.
func inNetns(name string, f func() error) error {
	handle, err := ns.GetNS(netnsPath(name))
	if err != nil {
		return fmt.Errorf("%w: network namespace %s: %w", ErrNotUp, name, err)
	}
	defer handle.Close()
	return handle.Do(func(ns.NetNS) error { return f() })
}

// sysctl is a setting below /proc/sys/net of the namespace that the thread is in.
type sysctl struct{ key, value string }

func setSysctls(settings []sysctl) error {
	for _, s := range settings {
		path := filepath.Join("/proc/sys/net", strings.ReplaceAll(s.key, ".", "/"))
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			return fmt.Errorf("set net.%s to %s: %w", s.key, s.value, err)
		}
	}
	return nil
}
