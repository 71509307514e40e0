// Package resident keeps small what a long-running program has in memory: it
// runs on every node, beside what the machine was bought for.
//
// Two things are large and of no use once such a program has started. The heap
// of its first look at the cluster, in which every object was decoded: the
// runtime gives freed memory back slowly, and not all of it. And the pages of the
// program's own file: starting it touches most of them (tables of types, the
// initialisation of every package), 35 MiB of 41 in a small cluster, where what
// goes on running needs a third. Both are given back now and then. Pages of the
// file that are needed again come from the page cache.
package resident

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// GCPercent is the growth of the heap between collections that Keep sets where
// the environment (GOGC) does not: collections cost little in programs that are
// idle, memory is missed by others.
const GCPercent = 30

// Keep gives back at once, since the start itself is what touches the program's
// file, then while the cluster is read for the first time, when the heap is at its
// largest. These are the pauses in between.
var pauses = []time.Duration{0, 500 * time.Millisecond, 500 * time.Millisecond, time.Second, 3 * time.Second, 5 * time.Second, 10 * time.Second}

// During a start, for startFor, each phase of it (the first answer of the API
// server, the plan, the first writes to the kernel) runs through other parts of the
// program's file, and all of them would be resident when the heap is at its largest.
// So it is unmapped whenever there is more of it than fileMost, which takes less than
// a millisecond.
const (
	startFor  = time.Minute
	lookStart = 20 * time.Millisecond
	fileMost  = 12 << 20 // bytes
)

// Afterwards it looks often, and gives back where it is worth a collection: what
// is mapped has grown by more than a quarter since, or for a long time nothing was
// given back.
const (
	look  = 15 * time.Second
	every = 2 * time.Minute
)

// Keep gives back until the context ends. configured says that somebody has
// chosen how garbage is collected (GOGC or GOMEMLIMIT is set).
func Keep(ctx context.Context, configured bool) {
	if !configured {
		debug.SetGCPercent(GCPercent)
		limit()
	}
	go keepFileSmall(ctx)
	timer := time.NewTimer(pauses[0])
	defer timer.Stop()
	var last time.Time // that it gave back
	var left uint64    // bytes that were mapped then
	for next := 1; ; next++ {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if next <= len(pauses) || mapped() > left+left/4 || time.Since(last) >= every {
			debug.FreeOSMemory()
			// Where it cannot be done, what is resident stays.
			_ = Forget()
			last, left = time.Now(), mapped()
		}
		if next < len(pauses) {
			timer.Reset(pauses[next])
		} else {
			timer.Reset(look)
		}
	}
}

// keepFileSmall unmaps the program's file again and again while it starts.
func keepFileSmall(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	tick := time.NewTicker(lookStart)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if ofFiles() <= fileMost {
				continue
			}
			if Forget() != nil || ofFiles() > fileMost {
				return // it is no use: the file was replaced, or what is resident is another's
			}
		}
	}
}

// ofFiles is how many bytes of files are resident (proc_pid_statm(5): shared).
func ofFiles() int {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident, shared int
	if _, err := fmt.Sscan(string(data), &size, &resident, &shared); err != nil {
		return 0
	}
	return shared * os.Getpagesize()
}

// mapped is how many bytes of memory the runtime has of the kernel.
func mapped() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 || sample[1].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64() - sample[1].Value.Uint64()
}

// Forget unmaps the pages of the program's own file, which the kernel maps
// again one by one as they are needed. It only touches private mappings that
// cannot be written, whose pages are the file's.
func Forget() error {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("read what is mapped: %w", err)
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the program's file: %w", err)
	}
	for _, m := range ownMappings(maps, exe) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.begin, m.end-m.begin, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unmap pages of %s: %w", exe, errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ begin, end uintptr }

// ownMappings reads proc_pid_maps(5): those of a file that are private and not
// writable.
func ownMappings(maps []byte, file string) []mapping {
	var out []mapping
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) != 6 || fields[5] != file || strings.Contains(fields[1], "w") || !strings.HasSuffix(fields[1], "p") {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		begin, errBegin := strconv.ParseUint(from, 16, 64)
		end, errEnd := strconv.ParseUint(to, 16, 64)
		if errBegin == nil && errEnd == nil && begin < end {
			out = append(out, mapping{uintptr(begin), uintptr(end)})
		}
	}
	return out
}
