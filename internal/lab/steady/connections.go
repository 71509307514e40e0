package steady

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	heldEvery = 100 * time.Millisecond
	// patience is how long an answer is waited for before a connection counts
	// as broken, or a new one as refused.
	patience = 10 * time.Second
	// serviceWithin is how long a new Service may take to be served on all nodes.
	serviceWithin = 30 * time.Second
)

// hold opens the connections that are to last. kube-proxy may not have taken
// notice of a new Service yet, so the first one is asked for again for a while.
func (w *watcher) hold(ctx context.Context) ([]*net.TCPConn, error) {
	var held []*net.TCPConn
	began := time.Now()
	for range w.load.Connections {
		c, err := w.connect(ctx)
		for err != nil && len(held) == 0 && time.Since(began) < serviceWithin && ctx.Err() == nil {
			time.Sleep(heldEvery)
			c, err = w.connect(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("before anything changed: %w", err)
		}
		held = append(held, c)
	}
	return held, nil
}

func (w *watcher) connect(ctx context.Context) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.server.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// use keeps one connection busy, and opens another one if it breaks, so that
// what happens next is watched too.
func (w *watcher) use(ctx context.Context, c *net.TCPConn) {
	tick := time.NewTicker(heldEvery)
	defer tick.Stop()
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c != nil {
			err := exchange(c)
			if err == nil {
				continue
			}
			w.note(w.now(false), func(r *Result) { r.Broken++ }, fmt.Errorf("a connection broke: %w", err))
			_ = c.Close()
		}
		c, _ = w.connect(ctx) // or at the next tick: new connections have their own count
	}
}

// exchange sends eight bytes and wants them back.
func exchange(c net.Conn) error {
	message := []byte("steady!\n")
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(c, message)
	return err
}

// dial makes new connections at the load's rate; each has its own time.
func (w *watcher) dial(ctx context.Context) {
	tick := time.NewTicker(w.load.NewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			go w.once(w.now(true))
		}
	}
}

// once is one new connection, from its first packet to an answer.
func (w *watcher) once(s *span) {
	defer s.open.Done()
	c, err := w.connect(context.Background())
	again := false
	if err == nil {
		err = exchange(c)
		again = sentAgain(c)
		_ = c.Close()
	}
	w.note(s, func(r *Result) {
		r.New++
		switch {
		case err != nil:
			r.Refused++
		case again:
			r.Again++
		}
	}, err)
}

// sentAgain says whether the kernel had to send a packet of the connection again.
func sentAgain(c *net.TCPConn) (again bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		again = err == nil && info.Total_retrans > 0
	})
	return again
}
