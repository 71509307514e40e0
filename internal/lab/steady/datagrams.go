package steady

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stream is numbered datagrams, one every so often, and what came back of them.
type stream struct {
	c     *net.UDPConn
	every atomic.Int64 // time.Duration
	sent  atomic.Uint32

	mu     sync.Mutex
	seen   []bool // by number
	latest int    // number that has come back
	// overrun counts, from the beginning, what the server's socket and this one
	// had no room for, since their programs did not run.
	overrun struct{ there, here uint32 }
}

// burst is how many datagrams are sent at once at most, where a busy machine's
// clock has skipped some. More would be a test of queues.
const burst = 10

// send sends until ctx is done. What cannot be sent counts as lost.
func (s *stream) send(ctx context.Context) {
	for ctx.Err() == nil {
		s.sendEvery(ctx, s.interval())
	}
}

// sendEvery sends until the interval is another one.
func (s *stream) sendEvery(ctx context.Context, every time.Duration) {
	began, first := time.Now(), s.sent.Load()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil && s.interval() == every {
		due := first + uint32(time.Since(began)/every)
		for n := 0; n < burst && s.sent.Load() < due; n++ {
			// Counted first: what has arrived somewhere is of the span that ends then.
			_, _ = s.c.Write(binary.BigEndian.AppendUint32(nil, s.sent.Add(1)-1))
		}
		<-tick.C
	}
}

func (s *stream) interval() time.Duration { return time.Duration(s.every.Load()) }

// read notes what comes back until the socket is closed.
func (s *stream) read() {
	buffer := make([]byte, 64)
	for {
		n, here, _, err := receive(s.c, buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err == nil && n >= 8:
			s.note(int(binary.BigEndian.Uint32(buffer)), binary.BigEndian.Uint32(buffer[4:]), here)
		}
	}
}

func (s *stream) note(number int, there, here uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overrun.there, s.overrun.here = max(s.overrun.there, there), max(s.overrun.here, here)
	for number >= len(s.seen) {
		s.seen = append(s.seen, make([]bool, 1<<12)...)
	}
	s.seen[number] = true
	s.latest = max(s.latest, number)
}

// settle waits for what was sent before end: for the grace, and then until
// something comes back that was sent a grace later, or nothing does for too long.
func (s *stream) settle(end uint32) {
	time.Sleep(grace)
	later := int(end + uint32(grace/s.interval()))
	for deadline := time.Now().Add(overdue); time.Now().Before(deadline) && !s.backSince(later); {
		time.Sleep(10 * time.Millisecond)
	}
}

// backSince says whether a datagram of that number or a later one has come back.
func (s *stream) backSince(number int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest >= number
}

// overruns is how many datagrams found no room until now.
func (s *stream) overruns() (there, here int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.overrun.there), int(s.overrun.here)
}

// missing counts what did not come back of the datagrams from first to before
// end, and the most at one stretch.
func (s *stream) missing(first, end uint32) (lost, stretch int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	run := 0
	for i := int(first); i < int(end); i++ {
		if i < len(s.seen) && s.seen[i] {
			run = 0
			continue
		}
		lost++
		run++
		stretch = max(stretch, run)
	}
	return lost, stretch
}

// plenty is for what arrives while a busy machine runs something else: about
// half a minute of five streams. The kernel accounts some 800 bytes for each.
const plenty = 128 << 20

// receive reads a datagram. overrun is how many the kernel has thrown away at
// the socket, for want of room, until this one came.
func receive(c *net.UDPConn, buffer []byte) (n int, overrun uint32, from netip.AddrPort, err error) {
	var control [64]byte
	n, size, _, from, err := c.ReadMsgUDPAddrPort(buffer, control[:])
	messages, _ := unix.ParseSocketControlMessage(control[:size])
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_RXQ_OVFL && len(m.Data) >= 4 {
			overrun = binary.NativeEndian.Uint32(m.Data)
		}
	}
	return n, overrun, from, err
}

// roomy gives a socket its room, and lets it count what does not fit, whatever net.core.rmem_max is if the process
// may (CAP_NET_ADMIN): at the usual 208 KiB a server that waits for a CPU for a
// twentieth of a second loses what it is sent, and nothing on the way is to blame.
func roomy(c *net.UDPConn, room int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room))
	})
	if err = errors.Join(err, refused); err != nil {
		return fmt.Errorf("make room for %d MiB of datagrams (needs CAP_NET_ADMIN): %w", room>>20, err)
	}
	return nil
}
