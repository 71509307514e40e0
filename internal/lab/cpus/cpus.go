// Package cpus says how busy the machine is.
package cpus

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Times are what one CPU did since boot, in clock ticks (proc_stat(5)). What the
// hypervisor took is busy.
type Times struct{ Busy, All float64 }

// Read returns CPU number -> what it did.
func Read() (map[int]Times, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, fmt.Errorf("read what the CPUs do: %w", err)
	}
	return parse(string(data)), nil
}

func parse(text string) map[int]Times {
	cpus := map[int]Times{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 9 || !strings.HasPrefix(fields[0], "cpu") || fields[0] == "cpu" {
			continue
		}
		number, err := strconv.Atoi(strings.TrimPrefix(fields[0], "cpu"))
		if err != nil {
			continue
		}
		var t Times
		for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal
			v, _ := strconv.ParseFloat(f, 64)
			t.All += v
			if i != 3 && i != 4 {
				t.Busy += v
			}
		}
		cpus[number] = t
	}
	return cpus
}

// Share is the part of the time between two readings that a CPU was busy, 0 to 1.
func Share(before, after Times) float64 {
	if after.All <= before.All {
		return 0
	}
	return (after.Busy - before.Busy) / (after.All - before.All)
}

// Idle is the part of the time between two readings in which CPUs had nothing to
// do, 0 to 1, of all of them together.
func Idle(before, after map[int]Times) float64 {
	busy := 0.0
	for cpu := range after {
		busy += Share(before[cpu], after[cpu])
	}
	return 1 - busy/float64(max(1, len(after)))
}
