package steady

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// send sends a numbered datagram every so often, and then counts what came back.
func (w *watcher) send(ctx context.Context, c *net.UDPConn) {
	back := newTally()
	var reading sync.WaitGroup
	reading.Go(func() { back.read(c) })
	sent := uint32(0)
	began := time.Now()
	tick := time.NewTicker(w.load.Every)
	defer tick.Stop()
	for ctx.Err() == nil {
		// What a busy machine's clock has skipped is made up for.
		for due := uint32(time.Since(began) / w.load.Every); sent < due; sent++ {
			message := binary.BigEndian.AppendUint32(nil, sent)
			if _, err := c.Write(message); err != nil {
				w.note(func(*Result) {}, err) // counts as lost, with its reason
			}
		}
		<-tick.C
	}
	_ = c.SetReadDeadline(time.Now().Add(grace))
	reading.Wait()
	lost, stretch := back.missing(sent)
	w.note(func(r *Result) {
		r.Datagrams, r.Lost, r.Gap = int(sent), lost, time.Duration(stretch)*w.load.Every
	}, nil)
}

// tally remembers which datagrams came back.
type tally struct{ seen map[uint32]bool }

func newTally() *tally { return &tally{seen: map[uint32]bool{}} }

// read notes what comes back until the deadline.
func (t *tally) read(c *net.UDPConn) {
	buffer := make([]byte, 64)
	for {
		n, err := c.Read(buffer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			return
		case err == nil && n >= 4:
			t.seen[binary.BigEndian.Uint32(buffer)] = true
		}
	}
}

// missing counts what did not come back of so many, and the most at one stretch.
func (t *tally) missing(sent uint32) (lost, stretch int) {
	run := 0
	for i := range sent {
		if t.seen[i] {
			run = 0
			continue
		}
		lost++
		run++
		stretch = max(stretch, run)
	}
	return lost, stretch
}
