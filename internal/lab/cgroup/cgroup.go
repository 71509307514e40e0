// Package cgroup keeps the processes of a lab together in the machine's
// control groups, version 1, version 2, or both at once, and gives a node a
// hierarchy of its own to mount.
//
// Controllers sit in one of the two versions only. A node sees the version
// that holds the memory controller, since that is where kubelet and runc work;
// the lab puts a host's processes into every hierarchy, so that they can be
// found and ended wherever one looks.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Hierarchy is one mounted cgroup tree.
type Hierarchy struct {
	// Mountpoint is where the machine has it.
	Mountpoint string `json:"mountpoint"`
	// Options are what mounts the same hierarchy of version 1 again, such as
	// "cpu,cpuacct" or "none,name=systemd"; empty for version 2.
	Options string `json:"options,omitempty"`
	// V2 marks the unified hierarchy.
	V2 bool `json:"v2,omitempty"`
}

// Layout is all of a machine's hierarchies.
type Layout []Hierarchy

// isController says whether a mount option names a controller of version 1;
// the others (rw, xattr, release_agent=...) do not choose the hierarchy.
func isController(option string) bool {
	switch option {
	case "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio",
		"pids", "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc":
		return true
	}
	return false
}

// Detect reads the machine's layout from /proc/self/mountinfo.
func Detect() (Layout, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find the machine's cgroups: %w", err)
	}
	defer file.Close()
	return parse(file)
}

// parse picks the cgroup mounts out of a mountinfo file, the first of each
// hierarchy; see proc_pid_mountinfo(5) for the fields.
func parse(mountinfo io.Reader) (Layout, error) {
	var layout Layout
	seen := map[string]bool{}
	scanner := bufio.NewScanner(mountinfo)
	for scanner.Scan() {
		before, after, found := strings.Cut(scanner.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !found || len(left) < 5 || len(right) < 3 {
			continue
		}
		h := Hierarchy{Mountpoint: left[4], V2: right[0] == "cgroup2"}
		if right[0] == "cgroup" {
			h.Options = hierarchyOptions(right[2])
		}
		if key := right[0] + h.Options; (h.V2 || h.Options != "") && !seen[key] {
			seen[key] = true
			layout = append(layout, h)
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("find the machine's cgroups: %w", err)
	}
	if len(layout) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")
	}
	return layout, nil
}

// hierarchyOptions reduces the options of a version 1 mount to those that
// choose the hierarchy.
func hierarchyOptions(options string) string {
	var kept []string
	for option := range strings.SplitSeq(options, ",") {
		if isController(option) {
			kept = append(kept, option)
		}
		if strings.HasPrefix(option, "name=") {
			kept = append(kept, "none", option)
		}
	}
	return strings.Join(kept, ",")
}

// has says whether a hierarchy of version 1 holds a controller.
func (h Hierarchy) has(controller string) bool {
	return slices.Contains(strings.Split(h.Options, ","), controller)
}

// V1 says whether the version 1 hierarchies hold the controllers that kubelet
// and runc need.
func (l Layout) V1() bool {
	return slices.ContainsFunc(l, func(h Hierarchy) bool { return h.has("memory") })
}

// Check says whether a node can work with this layout, and what is missing.
func (l Layout) Check() error {
	needed := []string{"cpu", "cpuset", "memory", "pids"}
	var have []string
	if l.V1() {
		for _, h := range l {
			have = append(have, strings.Split(h.Options, ",")...)
		}
	} else {
		data, err := os.ReadFile(filepath.Join(l.unified(), "cgroup.controllers"))
		if err != nil {
			return fmt.Errorf("read which controllers cgroup2 offers: %w", err)
		}
		have = strings.Fields(string(data))
	}
	var missing []string
	for _, c := range needed {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the cgroup controllers %s are missing; enable them on the kernel command line (cgroup_enable=...)", strings.Join(missing, ", "))
	}
	return nil
}

func (l Layout) unified() string {
	for _, h := range l {
		if h.V2 {
			return h.Mountpoint
		}
	}
	return ""
}

// Create makes a cgroup, and those above it, in every hierarchy. Where nodes
// work in version 2, controllers are handed down to it; else version 2 only
// keeps count of the processes, and its settings stay as they are.
func (l Layout) Create(path string) error {
	for _, h := range l {
		if err := h.create(path, h.V2 && !l.V1()); err != nil {
			return fmt.Errorf("make cgroup %s in %s: %w", path, h.Mountpoint, err)
		}
	}
	return nil
}

func (h Hierarchy) create(path string, handDown bool) error {
	at := h.Mountpoint
	for part := range strings.SplitSeq(path, "/") {
		parent := at
		at = filepath.Join(at, part)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if h.has("cpuset") {
			if err := inheritCpuset(parent, at); err != nil {
				return err
			}
		}
		if handDown {
			if err := delegate(parent); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCpuset fills a new cpuset of version 1, which starts empty and takes
// no process until it is filled.
func inheritCpuset(parent, child string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(child, name), value, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// delegate hands a version 2 cgroup's controllers down to its children.
func delegate(parent string) error {
	offered, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(string(offered)) {
		err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		// A controller may refuse (cpu, while a realtime process runs); what
		// a node cannot do without, Check has already named.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return nil
}

// Enter moves a process into the cgroup, in every hierarchy.
func (l Layout) Enter(path string, pid int) error {
	for _, h := range l {
		file := filepath.Join(h.Mountpoint, path, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return fmt.Errorf("move process %d into its cgroup: %w", pid, err)
		}
	}
	return nil
}

// Processes lists the processes in the cgroup and below it, in any hierarchy,
// in ascending order. A cgroup that does not exist holds none.
func (l Layout) Processes(path string) ([]int, error) {
	found := map[int]bool{}
	for _, h := range l {
		err := walk(filepath.Join(h.Mountpoint, path), func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				return err
			}
			for field := range strings.FieldsSeq(string(data)) {
				pid, err := strconv.Atoi(field)
				if err != nil {
					return err
				}
				// 0 stands for a process outside our pid namespace.
				if pid > 0 {
					found[pid] = true
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list the processes of cgroup %s: %w", path, err)
		}
	}
	pids := make([]int, 0, len(found))
	for pid := range found {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// walk visits a cgroup and those below it, children first. Cgroups that
// vanish meanwhile (errors ENOENT, ENODEV) are passed over.
func walk(dir string, visit func(dir string) error) error {
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := walk(filepath.Join(dir, e.Name()), visit); err != nil {
				return err
			}
		}
	}
	if err := visit(dir); err != nil && !gone(err) {
		return err
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}

// Kill ends every process in the cgroup and below, and returns when none is
// left. Processes that appear meanwhile are ended too.
func (l Layout) Kill(ctx context.Context, path string) error {
	for {
		pids, err := l.Processes(path)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, path, err)
			}
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("processes %v of cgroup %s do not end: %w", pids, path, err)
		}
	}
}

// Remove deletes the cgroup and those below it from every hierarchy. The
// kernel may hold one for a moment after its last process; so it is tried
// until ctx is done.
func (l Layout) Remove(ctx context.Context, path string) error {
	for {
		var busy error
		for _, h := range l {
			err := walk(filepath.Join(h.Mountpoint, path), func(dir string) error { return unix.Rmdir(dir) })
			if err != nil {
				busy = fmt.Errorf("remove cgroup %s from %s: %w", path, h.Mountpoint, err)
			}
		}
		if busy == nil {
			return nil
		}
		if pause(ctx) != nil {
			return busy
		}
	}
}

// pause waits a moment for the kernel.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}
