package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount puts the hierarchies that a node sees on dir (its /sys/fs/cgroup). It
// runs inside the node's mount and cgroup namespaces.
func (l Layout) Mount(dir string) error {
	if !l.V1() {
		if err := unix.Mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount cgroup2 on %s: %w", dir, err)
		}
		return nil
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	for _, h := range l {
		if h.V2 {
			continue
		}
		if err := h.mount(dir); err != nil {
			return err
		}
	}
	return nil
}

// mount puts one version 1 hierarchy below dir, with a link for each
// controller of a hierarchy that has several.
func (h Hierarchy) mount(dir string) error {
	controllers := strings.Split(strings.TrimPrefix(h.Options, "none,"), ",")
	for i := range controllers {
		controllers[i] = strings.TrimPrefix(controllers[i], "name=")
	}
	name := strings.Join(controllers, ",")
	at := filepath.Join(dir, name)
	if err := os.Mkdir(at, 0o755); err != nil {
		return fmt.Errorf("make a mount point for cgroup %s: %w", h.Options, err)
	}
	if err := unix.Mount("cgroup", at, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.Options); err != nil {
		return fmt.Errorf("mount cgroup %s on %s: %w", h.Options, at, err)
	}
	if len(controllers) == 1 {
		return nil
	}
	for _, c := range controllers {
		if err := os.Symlink(name, filepath.Join(dir, c)); err != nil {
			return fmt.Errorf("link controller %s of cgroup %s: %w", c, h.Options, err)
		}
	}
	return nil
}

// Settle makes the root of a node's version 2 hierarchy able to hand
// controllers to children: a cgroup that does so may hold no process itself,
// so the calling process moves to a leaf. Version 1 has no such rule.
func (l Layout) Settle(dir string) error {
	if l.V1() {
		return nil
	}
	leaf := filepath.Join(dir, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return fmt.Errorf("make a cgroup for pid 1: %w", err)
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return fmt.Errorf("move pid 1 into its cgroup: %w", err)
	}
	if err := delegate(dir); err != nil {
		return fmt.Errorf("hand the cgroup controllers of the node down: %w", err)
	}
	return nil
}
