// Package pidone is the first process of a host of the lab: it makes the
// host's root file system out of the machine's, without changing the
// machine's, then starts, watches and reaps the host's programs.
package pidone

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"ropeway.dev/ropeway/internal/lab/cgroup"
)

// Spec is everything that a host's first process does. It is plain data, made
// by the process that runs `up` and read back from a file by pid 1.
type Spec struct {
	// Hostname is the host's name.
	Hostname string `json:"hostname"`
	// Scratch is an empty directory of the machine, used as a mount point
	// (seen by this host only) while the root file system is put together.
	Scratch string `json:"scratch"`
	// Cgroups is the machine's layout.
	Cgroups cgroup.Layout `json:"cgroups"`
	// Binds are directories of the machine that the host sees elsewhere.
	Binds []Bind `json:"binds"`
	// Files are written into the host's root file system.
	Files []File `json:"files"`
	// Sysctls are set in the host's network namespace: path below /proc/sys
	// -> value.
	Sysctls map[string]string `json:"sysctls"`
	// Shadows are files put over sysctls that belong to the whole machine,
	// so that programs that want a certain value find it and write nothing
	// that counts: path below /proc/sys -> value shown.
	Shadows map[string]string `json:"shadows"`
	// Programs are started in order of their dependencies.
	Programs []Program `json:"programs"`
	// State is the path, inside the host, of the file that tells what the
	// programs do (see State).
	State string `json:"state"`
}

// Bind is one bind mount, of a directory or a file.
type Bind struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// File is a small file of the host.
type File struct {
	Path    string      `json:"path"`
	Content string      `json:"content"`
	Mode    os.FileMode `json:"mode"`
}

// Program is one program that pid 1 keeps running.
type Program struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	// Log is the file, inside the host, that takes stdout and stderr.
	Log string `json:"log"`
	// Once marks a program that does its work and ends; any other is started
	// again when it ends.
	Once bool `json:"once,omitempty"`
	// After are names of programs that must be ready (or, for Once, done)
	// before this one starts.
	After []string `json:"after,omitempty"`
	// Gate is a path inside the host that must exist before the program
	// starts: how the process that boots the lab tells that it is time.
	Gate string `json:"gate,omitempty"`
	// Ready says when the program is ready; without it, it is once started.
	Ready *Probe `json:"ready,omitempty"`
}

// Probe asks a program whether it is ready; one field group is set.
type Probe struct {
	// Unix is the path of a socket that must accept a connection.
	Unix string `json:"unix,omitempty"`
	// URL must answer 200. With https, Authority verifies the server (when
	// empty the server is not verified: some health ports have self-made
	// certificates) and Certificate and Key are shown to it. All are paths of
	// PEM files.
	URL         string `json:"url,omitempty"`
	Authority   string `json:"authority,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
}

// Phase is what a program is doing.
type Phase string

// The phases of a program.
const (
	Waiting  Phase = "waiting"  // for the programs it comes after, or its gate
	Starting Phase = "starting" // started, not ready yet
	Ready    Phase = "ready"
	Done     Phase = "done"   // Once, and ended well
	Failed   Phase = "failed" // Once, and ended badly
	Ended    Phase = "ended"  // ended, to be started again
)

// Settled says that nothing waits for the program any more.
func (p Phase) Settled() bool { return p == Ready || p == Done }

// Status is what is known of one program.
type Status struct {
	Name  string `json:"name"`
	Phase Phase  `json:"phase"`
	// PID is the number inside the host; 0 when it does not run.
	PID int `json:"pid,omitempty"`
	// Restarts counts how often it was started again.
	Restarts int `json:"restarts,omitempty"`
	// LastExit says how it ended last.
	LastExit string `json:"lastExit,omitempty"`
}

// State is the content of the state file.
type State struct {
	// Error says why the host could not be set up at all.
	Error    string   `json:"error,omitempty"`
	Programs []Status `json:"programs"`
}

// ReadState reads a state file; path is as seen by the caller.
func ReadState(path string) (State, error) {
	var s State
	if err := readJSON(path, &s); err != nil {
		return State{}, fmt.Errorf("read what a host's programs do: %w", err)
	}
	return s, nil
}

// ReadSpec reads the file that Write wrote.
func ReadSpec(path string) (Spec, error) {
	var s Spec
	if err := readJSON(path, &s); err != nil {
		return Spec{}, fmt.Errorf("read the description of a host: %w", err)
	}
	return s, nil
}

// Write writes the description of a host into a file.
func (s Spec) Write(path string) error {
	if err := writeJSON(path, s); err != nil {
		return fmt.Errorf("write the description of host %s: %w", s.Hostname, err)
	}
	return nil
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON replaces a file atomically; readers poll it.
func writeJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(temporary, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
