package main

import (
	"bytes"
	"context"
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
		b.samples["rss."+role] = sample{values: v, detail: "VmRSS, the largest of all of them; pages of the program's file count in full"}
	}
	return nil
}

// residents are the resident memories, in MiB, of the lab's processes `ropeway ROLE`.
func residents(labName, role string) ([]float64, error) {
	var found []float64
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		argv, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(argv, []byte("/usr/bin/ropeway\x00"+role+"\x00")) {
			continue
		}
		dir := filepath.Dir(path)
		cgroup, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err != nil || !strings.Contains(string(cgroup), "/rwlab-"+labName+"/") {
			continue // it has ended, or is another lab's
		}
		if size, err := resident(filepath.Join(dir, "status")); err == nil {
			found = append(found, size)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no process `ropeway %s` is in lab %s", role, labName)
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
