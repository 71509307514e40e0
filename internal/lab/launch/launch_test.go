package launch

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
)

// TestMain lets the test's own binary stand in for ropeway-lab.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 {
		var err error
		switch os.Args[1] {
		case LaunchCommand:
			err = Launch(os.Args[2])
		case InitCommand:
			err = runInit(os.Args[2])
		default:
			os.Exit(m.Run())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runInit(path string) error {
	spec, err := pidone.ReadSpec(path)
	if err != nil {
		return err
	}
	return pidone.Run(context.Background(), spec, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// host is one host under test and where it keeps its things.
type host struct {
	dir    string
	group  string
	layout cgroup.Layout
	init   ledger.Process
}

func start(t *testing.T, programs ...pidone.Program) host {
	t.Helper()
	netnstest.NeedRoot(t)
	layout, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	h := host{dir: t.TempDir(), group: fmt.Sprintf("rwt-launch-%d/host", os.Getpid()), layout: layout}
	for _, dir := range []string{"scratch", "log", "run", "lib"} {
		if err := os.Mkdir(filepath.Join(h.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range programs {
		programs[i].Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		programs[i].Log = "/var/log/" + programs[i].Name + ".log"
	}
	spec := pidone.Spec{
		Hostname: "rwt-host", Scratch: filepath.Join(h.dir, "scratch"), Cgroups: layout,
		Binds: []pidone.Bind{
			{Source: filepath.Join(h.dir, "log"), Target: "/var/log"},
			{Source: filepath.Join(h.dir, "run"), Target: "/run/ropeway-lab"},
			{Source: filepath.Join(h.dir, "lib"), Target: "/var/lib/rwt", ReadOnly: true},
		},
		Files:    []pidone.File{{Path: "/etc/rwt-marker", Content: "here", Mode: 0o600}},
		Sysctls:  map[string]string{"net/ipv4/ip_forward": "1"},
		Shadows:  map[string]string{"kernel/panic": "77", "kernel/no_such_sysctl": "1"},
		Programs: programs,
		State:    "/run/ropeway-lab/state.json",
	}
	path := filepath.Join(h.dir, "spec.json")
	if err := spec.Write(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.remove(t) })
	if err := layout.Create(h.group); err != nil {
		t.Fatal(err)
	}
	h.init, err = Start(t.Context(), Host{
		Binary: "/proc/self/exe", Netns: netnstest.New(t).Path(), Cgroup: h.group, Cgroups: layout,
		Spec: path, Log: filepath.Join(h.dir, "log", "init.log"),
	}, lockFileOf(t))
	if err != nil {
		t.Fatal(err, h.log("init"))
	}
	return h
}

func lockFileOf(t *testing.T) *os.File {
	t.Helper()
	lock, err := ledger.Store(t.TempDir()).Lock(t.Context(), "rwt", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lock.Unlock)
	return lock.File()
}

func (h host) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := h.layout.Kill(ctx, h.group); err != nil {
		t.Error(err)
	}
	if err := h.layout.Remove(ctx, filepath.Dir(h.group)); err != nil {
		t.Error(err)
	}
}

func (h host) log(program string) string {
	data, _ := os.ReadFile(filepath.Join(h.dir, "log", program+".log"))
	return string(data)
}

// await waits until the host's programs satisfy the condition.
func (h host) await(t *testing.T, what string, until func(map[string]pidone.Status) bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		state, err := pidone.ReadState(filepath.Join(h.dir, "run", "state.json"))
		programs := map[string]pidone.Status{}
		for _, p := range state.Programs {
			programs[p.Name] = p
		}
		if err == nil && until(programs) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time; %+v, %v\n%s", what, state, err, h.log("init"))
		}
		<-time.After(10 * time.Millisecond)
	}
}

func done(name string) func(map[string]pidone.Status) bool {
	return func(s map[string]pidone.Status) bool { return s[name].Phase == pidone.Done }
}

func once(name, script string) pidone.Program {
	return pidone.Program{Name: name, Argv: []string{"/bin/sh", "-c", script}, Once: true}
}

// A host sees a machine of its own.
func TestHostSeesItsOwn(t *testing.T) {
	h := start(t, once("facts", `
echo hostname=$(hostname)
echo marker=$(cat /etc/rwt-marker)
echo mode=$(stat -c %a /etc/rwt-marker)
echo init=$(tr '\0' ' ' < /proc/1/cmdline | cut -d' ' -f2)
echo forward=$(cat /proc/sys/net/ipv4/ip_forward)
echo panic=$(cat /proc/sys/kernel/panic)
echo links=$(ls /sys/class/net)
echo cgroup=$(cut -d: -f3 /proc/self/cgroup | sort -u)
touch /var/lib/rwt/x 2>/dev/null || echo readonly=yes
`))
	h.await(t, "the facts", done("facts"))
	got := h.log("facts")
	for _, want := range []string{
		"hostname=rwt-host", "marker=here", "mode=600", "init=" + InitCommand, "forward=1", "panic=77", "links=lo", "cgroup=/", "readonly=yes",
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("the host does not see %s:\n%s", want, got)
		}
	}
}

// What a host changes stays in the host.
func TestHostChangesNothingOfTheMachine(t *testing.T) {
	before := machine(t)
	h := start(t, once("vandal", `
for f in /etc/rwt-escape /root/rwt-escape /opt/rwt-escape /tmp/rwt-escape /usr/local/rwt-escape; do mkdir -p $(dirname $f); touch $f || exit 1; done
echo 99 > /proc/sys/kernel/panic
hostname rwt-vandal
mount -t tmpfs tmpfs /mnt && mount --make-shared /mnt
rm -f /etc/passwd
echo nameserver 192.0.2.1 > /etc/resolv.conf
`))
	h.await(t, "the vandal", done("vandal"))
	if after := machine(t); after != before {
		t.Errorf("the machine changed from\n%s\nto\n%s\nlog: %s", before, after, h.log("vandal"))
	}
}

// machine is what the vandal tried to change.
func machine(t *testing.T) string {
	t.Helper()
	state := map[string]string{}
	for _, path := range []string{"/proc/sys/kernel/panic", "/proc/sys/kernel/hostname", "/etc/passwd", "/etc/resolv.conf", "/proc/sys/net/ipv4/ip_forward"} {
		data, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		state[path] = string(data)
	}
	for _, path := range []string{"/etc/rwt-escape", "/root/rwt-escape", "/opt/rwt-escape", "/tmp/rwt-escape", "/usr/local/rwt-escape"} {
		if _, err := os.Stat(path); err == nil {
			state[path] = "there"
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	state["/mnt"] = fmt.Sprint(strings.Contains(string(mounts), " /mnt "))
	data, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A program that dies is started again; the host's end takes everything along.
func TestHostLivesAndDies(t *testing.T) {
	h := start(t,
		pidone.Program{Name: "server", Argv: []string{"/bin/sleep", "300"}},
		pidone.Program{Name: "other", Argv: []string{"/bin/sh", "-c", "sleep 301 & exec sleep 302"}})
	h.await(t, "the server", func(s map[string]pidone.Status) bool { return s["server"].Phase == pidone.Ready })
	pids, err := h.layout.Processes(h.group)
	if err != nil {
		t.Fatal(err)
	}
	if len(pids) < 2 || !slices.Contains(pids, h.init.PID) {
		t.Fatalf("the host's cgroup holds %v, want pid 1 (%d) and its programs", pids, h.init.PID)
	}
	killServer(t, pids)
	h.await(t, "the restart", func(s map[string]pidone.Status) bool {
		return s["server"].Phase == pidone.Ready && s["server"].Restarts == 1
	})
	if err := unix.Kill(h.init.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids, err := h.layout.Processes(h.group)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 0 && !h.init.Alive() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the end of pid 1 there are %v", pids)
		}
		<-time.After(10 * time.Millisecond)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), h.dir) {
		t.Errorf("mounts of the host are in the machine's namespace:\n%s", mounts)
	}
}

// killServer ends the program itself: the child of pid 1 that leads a session.
func killServer(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if session, err := unix.Getsid(pid); err == nil && session == pid {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if string(line) == "/bin/sleep\x00300\x00" {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatalf("none of %v is the program", pids)
}

func TestStartSaysWhy(t *testing.T) {
	netnstest.NeedRoot(t)
	layout, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("rwt-launch-%d-why", os.Getpid())
	if err := layout.Create(group); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := layout.Remove(ctx, group); err != nil {
			t.Error(err)
		}
	})
	log := filepath.Join(t.TempDir(), "init.log")
	_, err = Start(t.Context(), Host{Binary: "/proc/self/exe", Netns: "/run/netns/rwt-none", Cgroup: group, Cgroups: layout, Log: log}, lockFileOf(t))
	if err == nil || !strings.Contains(err.Error(), log) {
		t.Errorf("error %v does not name the log", err)
	}
	if data, _ := os.ReadFile(log); !strings.Contains(string(data), "rwt-none") {
		t.Errorf("the log %q does not name the missing namespace", data)
	}
}
