package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab"
)

const (
	mib = 1 << 20
	// settle is how long after the boot the memory of idle programs is read,
	// and between readings.
	settle = 15 * time.Second
	pause  = 2 * time.Second
)

// footprint measures resident memory of idle programs, and sizes.
func (b *bench) footprint(ctx context.Context, l *lab.Lab) error {
	if err := b.sizes(); err != nil {
		return err
	}
	b.say("footprint: letting agent and controller be idle for %s", settle)
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	idle, err := cpuShares(ctx, l.Name(), settle)
	if err != nil {
		return err
	}
	busy, err := b.atPace(ctx, l)
	if err != nil {
		return err
	}
	values := map[string][]float64{}
	for range 5 {
		for _, role := range []string{"agent", "controller"} {
			sizes, err := residents(l.Name(), role)
			if err != nil {
				return err
			}
			values[role] = append(values[role], slices.Max(sizes))
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	for role, v := range values {
		b.samples["rss."+role] = sample{values: v, detail: fmt.Sprintf("VmRSS, the largest of all of them; pages of the program's file count in full. CPU: %s %% of one idle, %s %% with %d sandboxes added and deleted per second on one node",
			number(100*idle[role]), number(100*busy[role]), pace)}
	}
	return nil
}

// atPace is what CPU they take while sandboxes come and go on a node, pace per
// second.
func (b *bench) atPace(ctx context.Context, l *lab.Lab) (map[string]float64, error) {
	node := l.Nodes()[0].Name
	if err := l.CopyToNode(ctx, node, b.self, filepath.Join(nodeDir, "bench")); err != nil {
		return nil, err
	}
	podCIDR, err := podCIDROf(ctx, l, node)
	if err != nil {
		return nil, err
	}
	cmd, err := l.HostCommand(ctx, node, filepath.Join(nodeDir, "bench"), paceCommand, "/etc/cni/net.d", podCIDR)
	if err != nil {
		return nil, err
	}
	cmd.Stderr = b.out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("add sandboxes on node %s: %w", node, err)
	}
	shares, err := cpuShares(ctx, l.Name(), paceLength)
	if waitErr := cmd.Wait(); waitErr != nil {
		return nil, fmt.Errorf("add sandboxes on node %s: %w", node, waitErr)
	}
	return shares, err
}

// cpuShares is the part of one CPU, 0 to 1, that the busiest process of each role
// takes during a time.
func cpuShares(ctx context.Context, labName string, d time.Duration) (map[string]float64, error) {
	const ticks = 100 // in a second, for user space (proc_pid_stat(5))
	spent := func() (map[string]float64, error) {
		out := map[string]float64{}
		for _, role := range []string{"agent", "controller"} {
			dirs, err := processes(labName, role)
			if err != nil {
				return nil, err
			}
			for _, dir := range dirs {
				if v, err := cpuTicks(filepath.Join(dir, "stat")); err == nil { // it may have ended
					out[role+" "+dir] = v
				}
			}
		}
		return out, nil
	}
	before, err := spent()
	if err != nil {
		return nil, err
	}
	if err := sleep(ctx, d); err != nil {
		return nil, err
	}
	after, err := spent()
	if err != nil {
		return nil, err
	}
	shares := map[string]float64{}
	for process, v := range after {
		role, _, _ := strings.Cut(process, " ")
		if was, there := before[process]; there {
			shares[role] = max(shares[role], (v-was)/ticks/d.Seconds())
		}
	}
	return shares, nil
}

// cpuTicks reads utime and stime (proc_pid_stat(5)).
func cpuTicks(stat string) (float64, error) {
	data, err := os.ReadFile(stat)
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s has %d fields", stat, len(fields))
	}
	user, errUser := strconv.ParseFloat(fields[11], 64)
	system, errSystem := strconv.ParseFloat(fields[12], 64)
	return user + system, errors.Join(errUser, errSystem)
}

// residents are the resident memories, in MiB, of the lab's processes `ropeway ROLE`.
func residents(labName, role string) ([]float64, error) {
	dirs, err := processes(labName, role)
	if err != nil {
		return nil, err
	}
	var found []float64
	for _, dir := range dirs {
		if size, err := resident(filepath.Join(dir, "status")); err == nil { // it may have ended
			found = append(found, size)
		}
	}
	return found, nil
}

// processes are the directories below /proc of the lab's `ropeway ROLE`.
func processes(labName, role string) ([]string, error) {
	found, err := processesOf(labName, func(argv []byte) bool { return bytes.HasPrefix(argv, []byte("/usr/bin/ropeway\x00"+role+"\x00")) })
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("no process `ropeway %s` is in lab %s", role, labName)
	}
	return found, err
}

// processesOf are the directories below /proc of those of a lab's processes whose
// command line (NUL behind each argument) matches.
func processesOf(labName string, match func(argv []byte) bool) ([]string, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, path := range paths {
		argv, err := os.ReadFile(path)
		if err != nil || !match(argv) {
			continue // it has ended, or is another
		}
		dir := filepath.Dir(path)
		cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err == nil && strings.Contains(string(cgroup), "/rwlab-"+labName+"/") {
			found = append(found, dir)
		}
	}
	return found, nil
}

// resident reads VmRSS (proc_pid_status(5)), in MiB.
func resident(status string) (float64, error) {
	data, err := os.ReadFile(status)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no VmRSS", status)
}

// sizes reads the sizes of what is installed.
func (b *bench) sizes() error {
	plugin, err := os.Stat(filepath.Join(b.programs, "ropeway-cni"))
	if err != nil {
		return fmt.Errorf("size of the plugin: %w", err)
	}
	b.samples["size.plugin"] = sample{values: []float64{float64(plugin.Size()) / mib}}
	archives, err := filepath.Glob(filepath.Join(b.cache, "image", "ropeway-image-*.tar"))
	if err != nil {
		return err
	}
	newest, err := newest(archives)
	if err != nil {
		return fmt.Errorf("size of the image: %w: the lab puts it there when it installs Ropeway", err)
	}
	b.samples["size.image"] = sample{values: []float64{float64(newest.Size()) / mib}, detail: "the archive " + newest.Name()}
	return nil
}

func newest(paths []string) (os.FileInfo, error) {
	var last os.FileInfo
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if last == nil || info.ModTime().After(last.ModTime()) {
			last = info
		}
	}
	if last == nil {
		return nil, os.ErrNotExist
	}
	return last, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
