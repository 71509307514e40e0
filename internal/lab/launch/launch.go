// Package launch starts the first process of a host of the lab in namespaces
// and cgroups of its own.
//
// It takes three processes, since a cgroup has to be entered before the
// namespace that is rooted in it can be made, and the one who starts the host
// must not enter either:
//
//	up  -> `__launch` (enters the cgroups and the network namespace)
//	    -> `__init` (born in all other namespaces: pid 1 of the host)
//
// `__launch` tells the number of pid 1 and ends; pid 1 then belongs to the
// machine's own init.
package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
)

// The hidden commands of ropeway-lab that the processes run as.
const (
	LaunchCommand = "__launch"
	InitCommand   = "__init"
)

// Host is what has to be known to start a host.
type Host struct {
	// Binary is the ropeway-lab program.
	Binary string `json:"binary"`
	// Netns is the path of the network namespace.
	Netns string `json:"netns"`
	// Cgroup is the path below each hierarchy; it exists.
	Cgroup string `json:"cgroup"`
	// Cgroups is the machine's layout.
	Cgroups cgroup.Layout `json:"cgroups"`
	// Spec is the path of the file that pid 1 reads.
	Spec string `json:"spec"`
	// Log is the file that takes what pid 1 prints.
	Log string `json:"log"`
}

// Files that `__launch` inherits, after stdin, stdout and stderr.
const (
	pidFile  = 3 // where it writes the number of pid 1
	lockFile = 4 // the lab's lock
)

// Start runs the host's first process and returns its identity. The lab's lock
// goes along until the process is in its cgroup, where `down` finds it.
func Start(ctx context.Context, h Host, lock *os.File) (ledger.Process, error) {
	argument, err := json.Marshal(h)
	if err != nil {
		return ledger.Process{}, fmt.Errorf("start host %s: %w", h.Cgroup, err)
	}
	log, err := os.OpenFile(h.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return ledger.Process{}, fmt.Errorf("start host %s: open its log: %w", h.Cgroup, err)
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return ledger.Process{}, fmt.Errorf("start host %s: %w", h.Cgroup, err)
	}
	defer read.Close()
	cmd := exec.CommandContext(ctx, h.Binary, LaunchCommand, string(argument))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{write, lock}
	// Ctrl-C at the terminal is for `up`, which takes everything down in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Run()
	write.Close()
	if err != nil {
		return ledger.Process{}, fmt.Errorf("start host %s: %w; see %s", h.Cgroup, err, h.Log)
	}
	answer := make([]byte, 32)
	n, err := read.Read(answer)
	if err != nil {
		return ledger.Process{}, fmt.Errorf("start host %s: its process number was not told: %w; see %s", h.Cgroup, err, h.Log)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(answer[:n])))
	if err != nil {
		return ledger.Process{}, fmt.Errorf("start host %s: %w", h.Cgroup, err)
	}
	process, err := ledger.Identify(pid)
	if err != nil {
		return ledger.Process{}, fmt.Errorf("host %s ended as soon as it started: %w; see %s", h.Cgroup, err, h.Log)
	}
	return process, nil
}

// Launch is the hidden command LaunchCommand; argument is what Start passed.
func Launch(argument string) error {
	var h Host
	if err := json.Unmarshal([]byte(argument), &h); err != nil {
		return fmt.Errorf("%s is called by `ropeway-lab up` only: %w", LaunchCommand, err)
	}
	if err := h.Cgroups.Enter(h.Cgroup, os.Getpid()); err != nil {
		return err
	}
	// From here on, whatever is started is found by cgroup. Neither inherited
	// file may reach pid 1.
	unix.Close(lockFile)
	unix.CloseOnExec(pidFile)
	// The network namespace is a thread's; the child is born on this thread.
	runtime.LockOSThread()
	if err := enterNetns(h.Netns); err != nil {
		return err
	}
	cmd := exec.Command(h.Binary, InitCommand, h.Spec)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP | unix.CLONE_NEWPID,
		Setsid:     true,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s in new namespaces: %w", filepath.Base(h.Cgroup), err)
	}
	pipe := os.NewFile(pidFile, "pid pipe")
	if pipe == nil {
		return errors.New("the pipe to `ropeway-lab up` is missing")
	}
	if _, err := fmt.Fprintln(pipe, cmd.Process.Pid); err != nil {
		return fmt.Errorf("tell the number of pid 1: %w", err)
	}
	return pipe.Close()
}

func enterNetns(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the host's network namespace %s: %w", path, err)
	}
	return nil
}
