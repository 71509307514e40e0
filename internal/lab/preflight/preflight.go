// Package preflight says before a lab is started what this machine lacks for
// it: all problems at once, each with what to do.
package preflight

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/lab/cgroup"
)

// Needs is what a lab is going to ask of the machine.
type Needs struct {
	// Nodes is the number of nodes.
	Nodes int
	// ProxyMode is kube-proxy's mode.
	ProxyMode string
	// Building says that programs have to be compiled first.
	Building bool
	// Compiler says that one of those needs a C compiler.
	Compiler bool
	// StateDir is where the lab's data goes.
	StateDir string
	// CacheDir is where programs and images are kept.
	CacheDir string
}

// Memory and disk that the parts of a lab take, in MiB, measured with some
// room to spare.
const (
	controlPlaneMemory = 800
	nodeMemory         = 350
	buildMemory        = 2048

	sharedDisk = 1024
	nodeDisk   = 1024
	buildDisk  = 7168
)

// Memory is the memory in MiB that must be free.
func (n Needs) Memory() int {
	need := controlPlaneMemory + n.Nodes*nodeMemory
	if n.Building && need < buildMemory {
		// Building is over before the lab starts.
		need = buildMemory
	}
	return need
}

// Problems is what stands in the way of a lab.
type Problems []string

func (p Problems) Error() string {
	return "this machine cannot run the lab:\n  - " + strings.Join(p, "\n  - ")
}

// Check looks at the machine and returns Problems, or nil.
func Check(ctx context.Context, n Needs) error {
	if os.Geteuid() != 0 {
		return Problems{"the lab makes namespaces, mounts and cgroups: run it as root (sudo)"}
	}
	var found Problems
	for _, check := range []func(Needs) Problems{tools, memory, disk, cgroups} {
		found = append(found, check(n)...)
	}
	found = append(found, kernel(ctx)...)
	if len(found) > 0 {
		return found
	}
	return nil
}

// tool is a program that must be on PATH, and the Debian package that has it.
type tool struct{ name, pkg string }

func tools(n Needs) Problems {
	needed := []tool{
		{"ip", "iproute2"}, {"nft", "nftables"}, {"nsenter", "util-linux"}, {"setpriv", "util-linux"},
		// The kubelet mounts volumes with these.
		{"mount", "mount"}, {"umount", "mount"},
	}
	if n.ProxyMode == "iptables" {
		needed = append(needed, tool{"iptables", "iptables"}, tool{"ip6tables", "iptables"})
	}
	if n.Building {
		needed = append(needed, tool{"go", "golang (or the release that go.mod names)"})
	}
	if n.Compiler {
		needed = append(needed, tool{"gcc", "gcc"}, tool{"pkg-config", "pkg-config"})
	}
	var found Problems
	for _, t := range needed {
		if _, err := exec.LookPath(t.name); err != nil {
			found = append(found, fmt.Sprintf("the program %s is not on PATH: apt-get install %s", t.name, t.pkg))
		}
	}
	if n.Compiler && exec.Command("pkg-config", "--exists", "libseccomp").Run() != nil {
		found = append(found, "the C headers of libseccomp, which runc is built with, are missing: apt-get install libseccomp-dev")
	}
	return found
}

func memory(n Needs) Problems {
	free, err := availableMemory()
	if err != nil {
		return Problems{fmt.Sprintf("free memory cannot be read: %v", err)}
	}
	if need := n.Memory(); free < need {
		return Problems{fmt.Sprintf("%d MiB of memory are available, %d nodes need %d MiB (%d for the control plane, %d for each node%s): "+
			"stop other programs or ask for fewer nodes (--nodes)", free, n.Nodes, need, controlPlaneMemory, nodeMemory,
			map[bool]string{true: fmt.Sprintf("; %d while programs are built", buildMemory)}[n.Building])}
	}
	return nil
}

// availableMemory is MemAvailable of proc_meminfo(5), in MiB.
func availableMemory() (int, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("read the machine's memory: /proc/meminfo has no MemAvailable")
}

func disk(n Needs) Problems {
	var found Problems
	check := func(dir, purpose string, need int) {
		free, at, err := freeDisk(dir)
		switch {
		case err != nil:
			found = append(found, fmt.Sprintf("free disk space at %s cannot be read: %v", dir, err))
		case free < need:
			found = append(found, fmt.Sprintf("%d MiB are free on the disk of %s, %s needs %d MiB: free some space", free, at, purpose, need))
		}
	}
	check(n.StateDir, "the lab's data", sharedDisk+n.Nodes*nodeDisk)
	if n.Building {
		check(n.CacheDir, "building the lab's programs", buildDisk)
	}
	return found
}

// freeDisk returns the free space in MiB of the file system that dir is going
// to lie on, and the existing directory that was asked.
func freeDisk(dir string) (mib int, at string, err error) {
	for at = dir; ; at = parent(at) {
		var fs unix.Statfs_t
		err := unix.Statfs(at, &fs)
		if err == nil {
			return int(fs.Bavail * uint64(fs.Bsize) >> 20), at, nil
		}
		if at == "/" || at == "." {
			return 0, at, fmt.Errorf("statfs %s: %w", at, err)
		}
	}
}

func parent(path string) string {
	cut := strings.LastIndexByte(strings.TrimRight(path, "/"), '/')
	if cut <= 0 {
		return "/"
	}
	return path[:cut]
}

func cgroups(Needs) Problems {
	layout, err := cgroup.Detect()
	if err == nil {
		err = layout.Check()
	}
	if err != nil {
		return Problems{err.Error()}
	}
	return nil
}
