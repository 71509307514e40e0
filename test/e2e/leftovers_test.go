//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/lab"
)

// TestDownLeavesNothing boots a lab by the command that a person types, killed
// half-way and to the end, takes it down, and compares the machine with what it
// was before. Those that are killed have the VPC and its cloud; the one that comes up
// whole is the lab on a plain layer-2 network, and plays its scenario.
func TestDownLeavesNothing(t *testing.T) {
	const name = "e2egone"
	for _, until := range []string{"VPC is up", "nodes have joined", ""} {
		title := "killed at " + until
		if until == "" {
			title = "to the end"
		}
		t.Run(title, func(t *testing.T) {
			before := machine(t, name)
			t.Cleanup(func() { _ = lab.Down(context.Background(), name) }) // ErrNotFound, where all went well
			fabric := "vpc"
			if until == "" {
				fabric = "switch"
			}
			boot(t, name, fabric, until)
			if until == "" {
				command(t, labProgram(t), "--name", name, "scenario", "layer2")
				if out := strings.Join(machine(t, name)["processes"], "\n"); out == "" {
					t.Error("the lab is up, and no process of it was found: the comparison would see nothing")
				}
			}
			if err := lab.Down(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			for what, after := range machine(t, name) {
				if !slices.Equal(before[what], after) {
					t.Errorf("%s:\nonly before: %v\nonly after: %v", what, without(before[what], after), without(after, before[what]))
				}
			}
		})
	}
}

func labProgram(t *testing.T) string {
	t.Helper()
	program, err := programPath("ropeway-lab")
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// boot runs `ropeway-lab up`, and kills it with -9 when it prints until.
func boot(t *testing.T, name, fabric, until string) {
	t.Helper()
	cmd := exec.Command(labProgram(t), "--name", name, "up", "--fabric", fabric)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if until != "" && strings.Contains(lines.Text(), until) {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			return
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("ropeway-lab up: %v", err)
	}
	if until != "" {
		t.Fatalf("ropeway-lab never printed %q", until)
	}
}

// machine is what a lab could leave behind: kind -> names.
func machine(t *testing.T, lab string) map[string][]string {
	t.Helper()
	found := map[string][]string{
		"namespaces": command(t, "ls", "/run/netns"),
		"links":      command(t, "sh", "-c", `ip -o link | awk '{print $2}'`),
		"nft tables": command(t, "nft", "list", "tables"),
		"mounts":     command(t, "sh", "-c", `awk '{print $2, $3}' /proc/self/mounts`),
		"bpffs":      command(t, "sh", "-c", `ls -A /sys/fs/bpf 2>/dev/null || true`),
		"cgroups":    cgroups(t, lab),
		"processes":  processes(t, lab),
		"state":      command(t, "sh", "-c", `ls -A /var/lib/ropeway-lab 2>/dev/null | grep -x `+lab+` || true`),
	}
	for what, names := range found {
		// Other labs come and go on the same machine; each bears its name.
		found[what] = slices.DeleteFunc(names, func(n string) bool {
			return strings.Contains(n, "rwlab-") && !strings.Contains(n, "rwlab-"+lab)
		})
	}
	return found
}

func command(t *testing.T, argv ...string) []string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(lines)
	return slices.DeleteFunc(lines, func(l string) bool { return l == "" })
}

func cgroups(t *testing.T, lab string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		if d.IsDir() && strings.Contains(d.Name(), lab) {
			found = append(found, path)
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// processes are those in a cgroup of the lab's.
func processes(t *testing.T, lab string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(text), lab) {
			found = append(found, fmt.Sprintf("%s: %s", filepath.Dir(file), text))
		}
	}
	return found
}

// without returns those of a that are not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}
