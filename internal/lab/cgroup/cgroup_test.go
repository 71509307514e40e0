package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name      string
		mountinfo string
		want      Layout
		v1        bool
	}{
		{
			name:      "systemd with version 2 only",
			mountinfo: "30 24 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
			want:      Layout{{Mountpoint: "/sys/fs/cgroup", V2: true}},
		},
		{
			name: "systemd in hybrid mode, controllers mounted together",
			mountinfo: `31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:6 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:7 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:8 - cgroup cgroup rw,memory
`,
			want: Layout{
				{Mountpoint: "/sys/fs/cgroup/unified", V2: true},
				{Mountpoint: "/sys/fs/cgroup/systemd", Options: "none,name=systemd"},
				{Mountpoint: "/sys/fs/cgroup/cpu,cpuacct", Options: "cpu,cpuacct"},
				{Mountpoint: "/sys/fs/cgroup/memory", Options: "memory"},
			},
			v1: true,
		},
		{
			name: "no optional fields, other file systems, and a second mount of the same",
			mountinfo: `20 1 8:1 / / rw - ext4 /dev/vda rw
34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 30 0:30 / /mnt/again rw - cgroup cgroup rw,memory
`,
			want: Layout{{Mountpoint: "/sys/fs/cgroup/memory", Options: "memory"}},
			v1:   true,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parse(strings.NewReader(c.mountinfo))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("layout is %+v, want %+v", got, c.want)
			}
			if got.V1() != c.v1 {
				t.Errorf("V1() = %t, want %t", got.V1(), c.v1)
			}
		})
	}
	if _, err := parse(strings.NewReader("20 1 8:1 / / rw - ext4 /dev/vda rw\n")); err == nil {
		t.Error("a machine without cgroups passes")
	}
}

func TestCheckNamesMissingControllers(t *testing.T) {
	layout := Layout{{Mountpoint: "/m", Options: "memory"}, {Mountpoint: "/c", Options: "cpu,cpuacct"}}
	err := layout.Check()
	if err == nil || !strings.Contains(err.Error(), "cpuset, pids") {
		t.Errorf("Check: %v, want cpuset and pids to be named", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte("cpuset cpu io memory pids\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (Layout{{Mountpoint: dir, V2: true}}).Check(); err != nil {
		t.Errorf("version 2 with all controllers: %v", err)
	}
}

// fakeV2 is a directory that looks like a version 2 hierarchy as far as the
// files go that delegation touches.
func fakeV2(t *testing.T, controllers string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"cgroup.controllers": controllers, "cgroup.subtree_control": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestVersion2IsDelegatedOnlyWhereNodesUseIt(t *testing.T) {
	written := func(dir string) string {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	alone := fakeV2(t, "memory")
	if err := (Layout{{Mountpoint: alone, V2: true}}).Create("rwt"); err != nil {
		t.Fatal(err)
	}
	if written(alone) != "+memory" {
		t.Errorf("version 2 alone: %q was handed down, want +memory", written(alone))
	}
	beside := fakeV2(t, "hugetlb")
	layout := Layout{{Mountpoint: beside, V2: true}, {Mountpoint: t.TempDir(), Options: "memory"}}
	if err := layout.Create("rwt/node"); err != nil {
		t.Fatal(err)
	}
	if written(beside) != "" {
		t.Errorf("beside version 1: %q was handed down, want the machine's settings untouched", written(beside))
	}
}

// TestOnThisMachine goes through a cgroup's life in the kernel's hierarchies.
func TestOnThisMachine(t *testing.T) {
	netnstest.NeedRoot(t)
	layout, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("rwt-cgroup-%d", os.Getpid())
	inner := group + "/node"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = layout.Kill(ctx, group)
		_ = layout.Remove(ctx, group)
	})
	if err := layout.Create(inner); err != nil {
		t.Fatal(err)
	}
	if err := layout.Create(inner); err != nil {
		t.Errorf("making it again: %v", err)
	}

	child := exec.Command("sleep", "300")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	if err := layout.Enter(inner, child.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if got, err := layout.Processes(group); err != nil || !reflect.DeepEqual(got, []int{child.Process.Pid}) {
		t.Errorf("processes are %v, %v; want %d", got, err, child.Process.Pid)
	}
	if err := layout.Kill(ctx, group); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process ended with %v, want it killed", err)
	}
	if err := layout.Remove(ctx, group); err != nil {
		t.Fatal(err)
	}
	for _, h := range layout {
		if _, err := os.Stat(filepath.Join(h.Mountpoint, group)); !os.IsNotExist(err) {
			t.Errorf("%s still has it: %v", h.Mountpoint, err)
		}
	}
	if err := layout.Remove(ctx, group); err != nil {
		t.Errorf("removing it again: %v", err)
	}
}
