// Package steady tells whether a change goes unnoticed: a server that echoes, and
// a watcher that keeps datagrams, old connections and new ones going to it, and
// counts what is lost, broken, refused or late.
package steady

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Port is where the server listens in the lab, TCP and UDP.
const Port = 9000

// Command is the hidden command of ropeway-lab that is both ends.
const Command = "__steady"

// Load is how much a watcher sends.
type Load struct {
	Every       time.Duration // between datagrams
	Connections int           // that are held, each with a message every HeldEvery
	NewEvery    time.Duration // between new connections
}

// Shared is the load of one watcher of so many that are at work at once: a
// datagram each millisecond each, and together a hundred connections and fifty
// new ones a second.
func Shared(watchers int) Load {
	return Load{Every: time.Millisecond, Connections: 100 / watchers, NewEvery: time.Duration(watchers) * 20 * time.Millisecond}
}

const (
	heldEvery = 100 * time.Millisecond
	// patience is how long an answer is waited for before a connection counts
	// as broken, or a new one as refused.
	patience = 10 * time.Second
	// late is when a new connection counts as late: its first packet was lost,
	// and sent again after a second (RFC 6298, section 2).
	late = 900 * time.Millisecond
	// grace is how long datagrams may be under way after the last one was sent.
	grace = time.Second
)

// Result is what a watcher saw.
type Result struct {
	Datagrams int           `json:"datagrams"` // that were sent
	Lost      int           `json:"lost"`      // of them, there or back
	Gap       time.Duration `json:"gap"`       // the longest time that is missing at one stretch
	Held      int           `json:"held"`      // connections from beginning to end
	Broken    int           `json:"broken"`    // of them
	New       int           `json:"new"`       // connections that were tried
	Refused   int           `json:"refused"`   // of them: no answer, or a reset
	Late      int           `json:"late"`      // of them: a packet had to be sent again
	// Why is the first thing that went wrong with a connection.
	Why string `json:"why,omitempty"`
}

// Clean says that nothing was noticed.
func (r Result) Clean() bool { return r.Carried() && r.Late == 0 }

// Carried says that nothing was lost, broken or refused. Late connections do not
// count: on a busy machine it may be the watcher that was late.
func (r Result) Carried() bool {
	return r.Datagrams > 0 && r.New > 0 && r.Held > 0 && r.Lost+r.Broken+r.Refused == 0
}

// String is the result in one line.
func (r Result) String() string {
	s := fmt.Sprintf("%d datagrams, %d lost (%s at a stretch); %d connections held, %d broken; %d new ones, %d refused, %d late",
		r.Datagrams, r.Lost, r.Gap.Round(time.Millisecond), r.Held, r.Broken, r.New, r.Refused, r.Late)
	if r.Why != "" {
		s += ": " + r.Why
	}
	return s
}

// Watch sends to a server until stop reads to its end, then writes its Result to
// out as JSON. It returns an error only if it cannot watch at all. "watching" is
// written first, on a line of its own, once every held connection stands.
func Watch(ctx context.Context, server netip.AddrPort, load Load, stop io.Reader, out io.Writer) error {
	w := &watcher{server: server, load: load}
	held, err := w.hold(ctx)
	if err != nil {
		return err
	}
	datagrams, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return fmt.Errorf("open a socket to %s: %w", server, err)
	}
	defer datagrams.Close()
	if err := datagrams.SetReadBuffer(4 << 20); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "watching"); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, stop) // its end is the sign, whatever it is
		cancel()
	}()
	var work sync.WaitGroup
	for _, c := range held {
		work.Go(func() { w.use(ctx, c) })
	}
	work.Go(func() { w.send(ctx, datagrams) })
	work.Go(func() { w.dial(ctx) })
	work.Wait()
	return json.NewEncoder(out).Encode(w.result)
}

type watcher struct {
	server netip.AddrPort
	load   Load

	mu     sync.Mutex
	result Result
}

func (w *watcher) note(change func(*Result), why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.result)
	if why != nil && w.result.Why == "" {
		w.result.Why = why.Error()
	}
}

// hold opens the connections that are to last.
func (w *watcher) hold(ctx context.Context) ([]net.Conn, error) {
	var held []net.Conn
	for range w.load.Connections {
		c, err := w.connect(ctx)
		if err != nil {
			return nil, fmt.Errorf("before anything changed: %w", err)
		}
		held = append(held, c)
	}
	w.result.Held = len(held)
	return held, nil
}

func (w *watcher) connect(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: patience}
	return dialer.DialContext(ctx, "tcp", w.server.String())
}

// use keeps one connection busy.
func (w *watcher) use(ctx context.Context, c net.Conn) {
	defer c.Close()
	tick := time.NewTicker(heldEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := exchange(c); err != nil {
			w.note(func(r *Result) { r.Broken++ }, fmt.Errorf("a connection broke: %w", err))
			return
		}
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
	var open sync.WaitGroup
	defer open.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			open.Go(w.once)
		}
	}
}

// once is one new connection. It is brought to an end also when watching ends.
func (w *watcher) once() {
	began := time.Now()
	c, err := w.connect(context.Background())
	took := time.Since(began)
	if err == nil {
		err = exchange(c)
		_ = c.Close()
	}
	w.note(func(r *Result) {
		r.New++
		switch {
		case err != nil:
			r.Refused++
		case took > late:
			r.Late++
		}
	}, err)
}

// Serve echoes at a TCP and a UDP port of the same number, of every address,
// until ctx is done.
func Serve(ctx context.Context, port int) error {
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{Port: port})
	if err != nil {
		return err
	}
	datagrams, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer context.AfterFunc(ctx, func() { _, _ = listener.Close(), datagrams.Close() })()
	if err := datagrams.SetReadBuffer(4 << 20); err != nil {
		return err
	}
	go echo(datagrams)
	for {
		c, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // a client that goes away is no failure
		}()
	}
}

func echo(c *net.UDPConn) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteToUDPAddrPort(buffer[:n], from) // lost is lost: the watcher counts
		}
	}
}
