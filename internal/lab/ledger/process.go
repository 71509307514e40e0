package ledger

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Process names a process for good: a pid alone may be another process later.
type Process struct {
	// PID is the machine's number for it; 0 for none.
	PID int `json:"pid,omitempty"`
	// Start is its start time in clock ticks since boot, field 22 of
	// proc_pid_stat(5).
	Start uint64 `json:"start,omitempty"`
}

// Identify returns the identity of a running process.
func Identify(pid int) (Process, error) {
	_, start, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start}, nil
}

// Alive says whether this very process still runs; a zombie does not.
func (p Process) Alive() bool {
	if p.PID == 0 {
		return false
	}
	state, start, err := readStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// Gone says that the process has ended and its parent knows: not even a
// zombie is left.
func (p Process) Gone() bool {
	if p.PID == 0 {
		return true
	}
	_, start, err := readStat(p.PID)
	return err != nil || start != p.Start
}

// readStat returns the state and the start time of a process.
func readStat(pid int) (state byte, start uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("look at process %d: %w", pid, err)
	}
	return parseStat(pid, data)
}

// parseStat takes the fields after the command, which is in parentheses and
// may itself hold parentheses and spaces.
func parseStat(pid int, data []byte) (state byte, start uint64, err error) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("look at process %d: /proc/%d/stat has no command in it", pid, pid)
	}
	fields := strings.Fields(string(data[end+1:]))
	const startField = 22 - 3
	if len(fields) <= startField {
		return 0, 0, fmt.Errorf("look at process %d: /proc/%d/stat has only %d fields", pid, pid, len(fields)+2)
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("look at process %d: start time: %w", pid, err)
	}
	return fields[0][0], start, nil
}
