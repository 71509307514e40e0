package vpc

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// TestNetnsBelowAnotherMount: a namespace is removed also when `ip netns add` has
// laid the directory over itself since. That happens in a mount namespace of the
// test's own, in another process.
func TestNetnsBelowAnotherMount(t *testing.T) {
	netnstest.NeedRoot(t)
	const inside = "RWLAB_TEST_OWN_MOUNTS"
	if os.Getenv(inside) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNetnsBelowAnotherMount$")
		cmd.Env = append(os.Environ(), inside+"=yes")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	name := "rwlab-" + newLab() + "-below"
	if err := createNetns(name); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := removeNetns(name); err != nil {
		t.Error(err)
	}
	for range 2 { // above, and below
		if netnsExists(name) {
			t.Error("the name is still there")
		}
		if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil {
			break
		}
	}
}
