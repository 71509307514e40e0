package resident

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestLimitFollows: the limit leaves room for a heap that has grown, and goes down
// with one that has shrunk.
func TestLimitFollows(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	limit()
	settled := func(reached func(now int64) bool) int64 {
		deadline := time.Now().Add(30 * time.Second)
		for {
			runtime.GC()
			now := debug.SetMemoryLimit(-1)
			if reached(now) || time.Now().After(deadline) {
				return now
			}
			time.Sleep(time.Millisecond) // the cleanup has a goroutine of its own
		}
	}
	small := settled(func(now int64) bool { return now < before })
	const size = 64 << 20
	large := make([]*[1 << 20]byte, size>>20)
	for i := range large {
		large[i] = new([1 << 20]byte)
	}
	if now := settled(func(now int64) bool { return now >= limitFor(size) }); now < limitFor(size) {
		t.Errorf("with %d bytes alive the limit is %d, it was %d", size, now, small)
	}
	runtime.KeepAlive(large)
	large = nil
	if now := settled(func(now int64) bool { return now < limitFor(size) }); now >= limitFor(size) {
		t.Errorf("the heap is small again, and the limit is %d, it was %d", now, small)
	}
}
