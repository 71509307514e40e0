package resident

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// The limit of what the runtime maps (debug.SetMemoryLimit), in terms of the heap
// that is alive. The collector alone bounds only the heap's goal: a pass over a
// large cluster makes several MiB of garbage while it marks, and freed spans stay
// with the process for minutes, so that it had four times as much resident as
// alive. The rest is for stacks, the collector's own tables and half-filled spans.
const (
	limitPercent = 130
	limitRest    = 12 << 20 // bytes
)

func limitFor(live uint64) int64 { return int64(live)*limitPercent/100 + limitRest }

// limit sets the limit anew after each collection, so that it never keeps a heap
// that grows from growing, whatever the cluster's size. It goes on for as long as
// the program lives.
func limit() {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() == metrics.KindUint64 {
		debug.SetMemoryLimit(limitFor(sample[0].Value.Uint64()))
	}
	afterCollection(limit)
}

// sentinel is garbage from the beginning. It has a pointer, or it would share its
// memory, and so its end, with others.
type sentinel struct{ _ *sentinel }

// afterCollection calls f once, after the next collection.
func afterCollection(f func()) {
	runtime.AddCleanup(&sentinel{}, func(f func()) { f() }, f)
}
