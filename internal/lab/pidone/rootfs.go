package pidone

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The root file system of a host is an overlay: the machine's root below, an
// upper layer in memory above. What a pod, a CNI installer or a person writes
// through a hostPath lands in the upper layer or in one of the host's own
// directories, never on the machine. The overlay shows the machine's root
// file system only; other file systems mounted on it are bound one by one
// where programs live (machineDirs), and everything else is left out.

// machineDirs hold programs and libraries; on some machines they are file
// systems of their own.
func machineDirs() []string {
	return []string{"/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/usr/local"}
}

// enterRoot makes the host's root file system and makes it the root of the
// calling process, which is alone in new mount, cgroup, IPC, UTS and pid
// namespaces.
func (s Spec) enterRoot() error {
	// Nothing that is mounted from here on may reach the machine.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make all mounts private: %w", err)
	}
	root, err := s.overlay()
	if err != nil {
		return err
	}
	for _, step := range []func(string) error{bindMachineDirs, mountKernel, s.mountCgroups, s.bind, s.writeFiles} {
		if err := step(root); err != nil {
			return err
		}
	}
	if err := pivot(root); err != nil {
		return err
	}
	// Containers' mounts must propagate between a node's own processes.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make all mounts shared: %w", err)
	}
	return s.shadow()
}

// overlay mounts a copy-on-write view of the machine's root and returns where.
func (s Spec) overlay() (string, error) {
	if err := mount("tmpfs", s.Scratch, "tmpfs", 0, "mode=755"); err != nil {
		return "", err
	}
	upper, work, root := filepath.Join(s.Scratch, "upper"), filepath.Join(s.Scratch, "work"), filepath.Join(s.Scratch, "root")
	for _, dir := range []string{upper, work, root} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", fmt.Errorf("prepare the root file system of host %s: %w", s.Hostname, err)
		}
	}
	options := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work)
	return root, mount("overlay", root, "overlay", 0, options)
}

func bindMachineDirs(root string) error {
	mounted, err := mountPoints()
	if err != nil {
		return err
	}
	for _, dir := range machineDirs() {
		if !mounted[dir] {
			continue
		}
		if err := bind(Bind{Source: dir, Target: filepath.Join(root, dir)}); err != nil {
			return err
		}
	}
	return nil
}

// mountPoints lists where file systems are mounted in this namespace.
func mountPoints() (map[string]bool, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list the machine's mounts: %w", err)
	}
	points := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points[fields[4]] = true
		}
	}
	return points, nil
}

// mountKernel mounts what the kernel itself offers, as this host's namespaces
// see it, and the host's own directories in memory.
func mountKernel(root string) error {
	at := func(path string) string { return filepath.Join(root, path) }
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := mount("proc", at("/proc"), "proc", quiet, ""); err != nil {
		return err
	}
	if err := mount("sysfs", at("/sys"), "sysfs", quiet, ""); err != nil {
		return err
	}
	if err := unix.Mount("/dev", at("/dev"), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind /dev: %w", err)
	}
	for path, mode := range map[string]string{"/run": "mode=755", "/tmp": "mode=1777"} {
		if err := mount("tmpfs", at(path), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, mode); err != nil {
			return err
		}
	}
	// Only where the kernel has BPF; the preflight names it when missing.
	if _, err := os.Stat(at("/sys/fs/bpf")); err == nil {
		return mount("bpf", at("/sys/fs/bpf"), "bpf", quiet, "mode=700")
	}
	return nil
}

func (s Spec) mountCgroups(root string) error {
	dir := filepath.Join(root, "sys/fs/cgroup")
	if err := s.Cgroups.Mount(dir); err != nil {
		return fmt.Errorf("host %s: %w", s.Hostname, err)
	}
	if err := s.Cgroups.Settle(dir); err != nil {
		return fmt.Errorf("host %s: %w", s.Hostname, err)
	}
	return nil
}

func (s Spec) bind(root string) error {
	for _, b := range s.Binds {
		b.Target = filepath.Join(root, b.Target)
		if err := bind(b); err != nil {
			return fmt.Errorf("host %s: %w", s.Hostname, err)
		}
	}
	return nil
}

func bind(b Bind) error {
	if err := makeMountPoint(b); err != nil {
		return fmt.Errorf("make mount point %s: %w", b.Target, err)
	}
	if err := unix.Mount(b.Source, b.Target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", b.Source, b.Target, err)
	}
	if !b.ReadOnly {
		return nil
	}
	// A bind mount takes read-only in a second step only, mount(2).
	if err := unix.Mount("", b.Target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", b.Target, err)
	}
	return nil
}

// makeMountPoint makes a directory for a directory and a file for a file.
func makeMountPoint(b Bind) error {
	if info, err := os.Stat(b.Source); err != nil || info.IsDir() {
		return os.MkdirAll(b.Target, 0o755) // mount(2) names a source that is missing
	}
	if err := os.MkdirAll(filepath.Dir(b.Target), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(b.Target, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

func (s Spec) writeFiles(root string) error {
	for _, f := range s.Files {
		if err := writeFile(filepath.Join(root, f.Path), f); err != nil {
			return fmt.Errorf("host %s: write %s: %w", s.Hostname, f.Path, err)
		}
	}
	return nil
}

// writeFile replaces whatever the machine has there, a link included: writing
// through the machine's /etc/resolv.conf link would land elsewhere.
func writeFile(path string, f File) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(path, []byte(f.Content), f.Mode); err != nil {
		return err
	}
	return os.Chmod(path, f.Mode)
}

// pivot makes root the root of this mount namespace and lets the machine's go.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	// With both names the same, the old root ends up on top of the new one,
	// from where it is unmounted; see NOTES of pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root file system: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let the machine's root file system go: %w", err)
	}
	return os.Chdir("/")
}

// shadow puts files over machine-wide sysctls.
func (s Spec) shadow() error {
	const dir = "/run/ropeway-lab/sysctl"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("prepare the shadows of sysctls: %w", err)
	}
	for path, value := range s.Shadows {
		target := filepath.Join("/proc/sys", path)
		if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
			continue // This kernel has no such sysctl to protect.
		}
		file := filepath.Join(dir, strings.ReplaceAll(path, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("shadow sysctl %s: %w", path, err)
		}
		if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("shadow sysctl %s: %w", path, err)
		}
	}
	return nil
}

// setSysctls sets what belongs to the host's own network namespace.
func (s Spec) setSysctls() error {
	for path, value := range s.Sysctls {
		if err := os.WriteFile(filepath.Join("/proc/sys", path), []byte(value), 0o644); err != nil {
			return fmt.Errorf("host %s: set sysctl %s to %s: %w", s.Hostname, path, value, err)
		}
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, target, err)
	}
	return nil
}
