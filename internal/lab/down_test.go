package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
)

// remains plays an `up` that was killed: a lab's directory, cgroups with a
// process, a named network namespace with a visitor; and returns the processes.
type remains struct {
	store   ledger.Store
	name    string
	layout  cgroup.Layout
	netns   string
	ended   chan int // numbers of processes that have ended
	process []int
}

func makeRemains(t *testing.T) remains {
	t.Helper()
	netnstest.NeedRoot(t)
	layout, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("rwt%d", os.Getpid()%1000000)
	r := remains{
		store: ledger.Store(filepath.Join(t.TempDir(), "store")), name: name, layout: layout,
		netns: ledger.NetnsPrefix(name) + "control-plane", ended: make(chan int, 2),
	}
	t.Cleanup(func() { _ = teardown(context.Background(), r.store, name) })
	if err := os.MkdirAll(filepath.Join(r.store.Dir(name), "hosts/x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := layout.Create(ledger.HostCgroup(name, "x")); err != nil {
		t.Fatal(err)
	}
	nameNetns(t, r.netns)
	inside := r.start(t, "sleep", "300")
	if err := layout.Enter(ledger.HostCgroup(name, "x"), inside); err != nil {
		t.Fatal(err)
	}
	r.start(t, "nsenter", "--net=/run/netns/"+r.netns, "--", "sleep", "300")
	return r
}

// nameNetns makes a named network namespace. Not with `ip netns add`, which
// puts a mount of its own on /run/netns for good.
func nameNetns(t *testing.T, name string) {
	t.Helper()
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("/run/netns", name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(netnstest.New(t).Path(), path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
}

func (r *remains) start(t *testing.T, argv ...string) int {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	// Whatever goes wrong here, nothing outlives the test for long.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	go func() { _ = cmd.Wait(); r.ended <- cmd.Process.Pid }()
	r.process = append(r.process, cmd.Process.Pid)
	return cmd.Process.Pid
}

// awaitVisit waits until the visitor is in the namespace.
func (r *remains) awaitVisit(t *testing.T) {
	t.Helper()
	var namespace unix.Stat_t
	if err := unix.Stat("/run/netns/"+r.netns, &namespace); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", r.process[1]))
		if link == fmt.Sprintf("net:[%d]", namespace.Ino) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the visitor is in %s", link)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (r *remains) check(t *testing.T) {
	t.Helper()
	for range r.process {
		select {
		case <-r.ended:
		case <-time.After(5 * time.Second):
			t.Fatalf("of the processes %v not all have ended", r.process)
		}
	}
	for _, h := range r.layout {
		if _, err := os.Stat(filepath.Join(h.Mountpoint, ledger.Cgroup(r.name))); !os.IsNotExist(err) {
			t.Errorf("cgroup in %s: %v", h.Mountpoint, err)
		}
	}
	if left, _ := filepath.Glob("/run/netns/" + ledger.NetnsPrefix(r.name) + "*"); len(left) > 0 {
		t.Errorf("network namespaces are left: %v", left)
	}
	if _, err := os.Stat(string(r.store)); !os.IsNotExist(err) {
		t.Errorf("the store: %v", err)
	}
}

func TestDownNeedsNothingButTheName(t *testing.T) {
	r := makeRemains(t)
	r.awaitVisit(t)
	if err := DownIn(t.Context(), r.store, r.name); err != nil {
		t.Fatal(err)
	}
	r.check(t)
	if err := DownIn(t.Context(), r.store, r.name); !errors.Is(err, ErrNotFound) {
		t.Errorf("down again: %v, want ErrNotFound", err)
	}
}

func TestDownClearsUpAfterABrokenManifest(t *testing.T) {
	r := makeRemains(t)
	r.awaitVisit(t)
	if err := os.WriteFile(filepath.Join(r.store.Dir(r.name), "manifest.json"), []byte(`{"name": "x", "ho`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := DownIn(t.Context(), r.store, r.name); err != nil {
		t.Fatal(err)
	}
	r.check(t)
}

func TestDownDoesNotReachThroughMounts(t *testing.T) {
	r := makeRemains(t)
	r.awaitVisit(t)
	precious := t.TempDir()
	if err := os.WriteFile(filepath.Join(precious, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(r.store.Dir(r.name), "hosts/x")
	if err := unix.Mount(precious, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	if err := DownIn(t.Context(), r.store, r.name); err != nil {
		t.Fatal(err)
	}
	r.check(t)
	if _, err := os.Stat(filepath.Join(precious, "file")); err != nil {
		t.Errorf("down removed a file behind a mount: %v", err)
	}
}

// A process number that was given to another process is not killed.
func TestDownSparesStrangers(t *testing.T) {
	r := makeRemains(t)
	r.awaitVisit(t)
	stranger := exec.Command("sleep", "300")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	identity, err := ledger.Identify(stranger.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	identity.Start--
	m := &ledger.Manifest{Name: r.name, Phase: ledger.Running, Hosts: []ledger.Host{{Name: "x", Init: identity}}}
	if err := r.store.Write(m); err != nil {
		t.Fatal(err)
	}
	if err := DownIn(t.Context(), r.store, r.name); err != nil {
		t.Fatal(err)
	}
	r.check(t)
	if now, err := ledger.Identify(stranger.Process.Pid); err != nil || !now.Alive() {
		t.Errorf("a stranger was killed: %v", err)
	}
}

func TestDownWaitsForWhoIsAtWork(t *testing.T) {
	netnstest.NeedRoot(t)
	store := ledger.Store(t.TempDir())
	lock, err := store.Lock(t.Context(), "busy", true)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	self, err := ledger.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Write(&ledger.Manifest{Name: "busy", Maker: self}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = DownIn(ctx, store, "busy")
	if !errors.Is(err, ledger.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("down of a lab that is being made: %v, want ErrBusy and its maker", err)
	}
}

func TestUpRefusesALabThatIsThere(t *testing.T) {
	netnstest.NeedRoot(t)
	self, err := ledger.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for phase, want := range map[ledger.Phase]string{ledger.Running: "is up since", ledger.Failed: "was kept"} {
		store := ledger.Store(t.TempDir())
		lock, err := store.Lock(t.Context(), "there", true)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Write(&ledger.Manifest{Name: "there", Phase: phase, Hosts: []ledger.Host{{Name: "x", Init: self}}}); err != nil {
			t.Fatal(err)
		}
		lock.Unlock()
		_, err = Up(t.Context(), options(func(o *Options) { o.Name, o.Store, o.Cache = "there", store, t.TempDir() }))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "ropeway-lab down --name there") {
			t.Errorf("up over a lab that is %s: %v", phase, err)
		}
	}
}

func TestUpThatCannotBeginLeavesNothing(t *testing.T) {
	netnstest.NeedRoot(t)
	store := ledger.Store(filepath.Join(t.TempDir(), "store"))
	_, err := Up(t.Context(), options(func(o *Options) { o.Store, o.Cache, o.Source = store, t.TempDir(), t.TempDir() }))
	if err == nil || !strings.Contains(err.Error(), "module file") {
		t.Errorf("up without a checkout: %v", err)
	}
	if _, err := os.Stat(string(store)); !os.IsNotExist(err) {
		t.Errorf("the store: %v", err)
	}
}

func TestOpenOfNothing(t *testing.T) {
	if _, err := OpenIn(ledger.Store(t.TempDir()), "lab"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Open: %v, want ErrNotFound", err)
	}
	if _, err := OpenIn(ledger.Store(t.TempDir()), "../lab"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Open of a path: %v, want the name refused", err)
	}
}
