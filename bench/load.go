package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// jiffies are what one CPU did, in clock ticks (proc_stat(5)).
type jiffies struct{ busy, all float64 }

// readCPUs returns CPU number -> what it did since boot.
func readCPUs() (map[int]jiffies, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, fmt.Errorf("read what the CPUs do: %w", err)
	}
	return parseCPUs(string(data)), nil
}

func parseCPUs(text string) map[int]jiffies {
	cpus := map[int]jiffies{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 9 || !strings.HasPrefix(fields[0], "cpu") || fields[0] == "cpu" {
			continue
		}
		number, err := strconv.Atoi(strings.TrimPrefix(fields[0], "cpu"))
		if err != nil {
			continue
		}
		var j jiffies
		for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal
			v, _ := strconv.ParseFloat(f, 64)
			j.all += v
			if i != 3 && i != 4 {
				j.busy += v
			}
		}
		cpus[number] = j
	}
	return cpus
}

// share is the part of the time between two readings that a CPU was busy, 0 to 1.
func share(before, after jiffies) float64 {
	if after.all <= before.all {
		return 0
	}
	return (after.busy - before.busy) / (after.all - before.all)
}

// pinnedCPU is the one that clients and servers share.
func pinnedCPU() int { return runtime.NumCPU() - 1 }

// foreign is how busy the other CPUs were between two readings: nothing of the
// bench runs there.
func foreign(before, after map[int]jiffies) float64 {
	most := 0.0
	for cpu := range after {
		if cpu != pinnedCPU() {
			most = max(most, share(before[cpu], after[cpu]))
		}
	}
	return most
}
