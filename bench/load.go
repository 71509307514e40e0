package main

import (
	"runtime"

	"ropeway.dev/ropeway/internal/lab/cpus"
)

// pinnedCPU is the one that clients and servers share.
func pinnedCPU() int { return runtime.NumCPU() - 1 }

// foreign is how busy the other CPUs were between two readings: nothing of the
// bench runs there.
func foreign(before, after map[int]cpus.Times) float64 {
	most := 0.0
	for cpu := range after {
		if cpu != pinnedCPU() {
			most = max(most, cpus.Share(before[cpu], after[cpu]))
		}
	}
	return most
}
