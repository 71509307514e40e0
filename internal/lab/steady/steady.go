// Package steady tells whether a change goes unnoticed: a server that echoes, and
// a watcher that keeps datagrams, old connections and new ones going to it, and
// counts what is lost, broken, refused or sent again.
package steady

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Port is where the server listens in a pod of the lab, TCP and UDP; ControlPort
// is that of a server on a node.
const (
	Port        = 9000
	ControlPort = 9001
)

// Command is the hidden command of ropeway-lab that is both ends.
const Command = "__steady"

// Load is how much a watcher sends.
type Load struct {
	Every       time.Duration // between datagrams
	Connections int           // that are held, each with a message every heldEvery
	NewEvery    time.Duration // between new connections
}

// Shared is the load of one watcher of so many that are at work at once: a
// datagram each millisecond each, and together a hundred connections and fifty
// new ones a second.
func Shared(watchers int) Load {
	return Load{Every: time.Millisecond, Connections: 100 / watchers, NewEvery: time.Duration(watchers) * 20 * time.Millisecond}
}

const (
	// grace is how long datagrams may be under way after a span's end, on a
	// machine that has a CPU for everybody.
	grace = time.Second
	// overdue is how long they may be where it has not: what waits in a queue
	// for its program to run is late, and not lost.
	overdue = 30 * time.Second
)

// Result is what a watcher saw in a span of time.
type Result struct {
	Datagrams int           `json:"datagrams"` // that were sent
	Lost      int           `json:"lost"`      // of them, there or back
	Gap       time.Duration `json:"gap"`       // the longest time that is missing at one stretch
	// Overrun is how many datagrams found no room at the server's socket, whoever
	// sent them, and Unread at the watcher's own: the programs did not run for long.
	// They are among those that are lost, and nothing on the way is to blame.
	Overrun int `json:"overrun"`
	Unread  int `json:"unread"`
	// Stall is the longest time that the watcher was late by: it was due to run, and
	// the machine ran something else, or nothing.
	Stall   time.Duration `json:"stall"`
	Held    int           `json:"held"`    // connections from beginning to end
	Broken  int           `json:"broken"`  // of them
	New     int           `json:"new"`     // connections that were tried
	Refused int           `json:"refused"` // of them: no answer, or a reset
	Again   int           `json:"again"`   // of them: a packet had to be sent again
	// Why is the first thing that went wrong with a connection.
	Why string `json:"why,omitempty"`
}

// Clean says that nothing was noticed.
func (r Result) Clean() bool {
	return r.Datagrams > 0 && r.New > 0 && r.Held > 0 && r.Lost+r.Broken+r.Refused+r.Again == 0
}

// String is the result in one line.
func (r Result) String() string {
	s := fmt.Sprintf("%d datagrams, %d lost (%s at a stretch); %d connections held, %d broken; %d new ones, %d refused, %d by a packet sent again",
		r.Datagrams, r.Lost, r.Gap.Round(time.Millisecond), r.Held, r.Broken, r.New, r.Refused, r.Again)
	if r.Overrun+r.Unread > 0 {
		s += fmt.Sprintf("; %d found no room at the server, %d at the watcher", r.Overrun, r.Unread)
	}
	if r.Stall >= Standstill {
		s += fmt.Sprintf("; the watcher stood still for %s", r.Stall.Round(time.Millisecond))
	}
	if r.Why != "" {
		s += ": " + r.Why
	}
	return s
}

// Standstill is a Stall that tells something: the kernel sends again what has not
// been answered within 200 ms (TCP_RTO_MIN), and on a machine that stands still for
// half of that nothing has to be lost for it.
const Standstill = 100 * time.Millisecond

// beat is how often a watcher looks whether it is late.
const beat = 10 * time.Millisecond

// The lines that a watcher and a server write when they begin.
const (
	Watching = "watching"
	Serving  = "serving"
)

// Watch sends to a server. It writes Watching on a line of its own once every
// held connection stands; then, for each line that it reads from in, the Result
// of the time since the line before, as a line of JSON. The traffic goes on
// meanwhile, until in ends. A line with a duration (Go's form, such as 2ms) is the
// time between datagrams from then on; an empty one leaves it as it is. It returns
// an error only if it cannot watch at all, or does not understand a line.
func Watch(ctx context.Context, server netip.AddrPort, load Load, in io.Reader, out io.Writer) error {
	w := &watcher{server: server, load: load, span: &span{}}
	held, err := w.hold(ctx)
	if err != nil {
		return err
	}
	socket, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return fmt.Errorf("open a socket to %s: %w", server, err)
	}
	if err := roomy(socket, plenty); err != nil {
		return err
	}
	w.stream = &stream{c: socket}
	w.stream.every.Store(int64(load.Every))
	if _, err := fmt.Fprintln(out, Watching); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer socket.Close()
	defer cancel()
	for _, c := range held {
		work.Go(func() { w.use(ctx, c) })
	}
	work.Go(func() { w.stream.send(ctx) })
	work.Go(w.stream.read)
	work.Go(func() { w.dial(ctx) })
	work.Go(func() { w.beat(ctx) })
	return w.report(in, out)
}

// report answers each line with the result of the span that it ends.
func (w *watcher) report(in io.Reader, out io.Writer) error {
	lines, results := bufio.NewScanner(in), json.NewEncoder(out)
	for lines.Scan() {
		every := w.stream.interval()
		if text := lines.Text(); text != "" {
			d, err := time.ParseDuration(text)
			if err != nil || d <= 0 {
				return fmt.Errorf("time between datagrams: %q is no positive duration", text)
			}
			every = d
		}
		if err := results.Encode(w.cut(every)); err != nil {
			return err
		}
	}
	return nil // the input's end is the sign, whatever it is
}

type watcher struct {
	server netip.AddrPort
	load   Load
	stream *stream

	mu   sync.Mutex
	span *span // the one that goes on
}

// span is what happens between two lines.
type span struct {
	first  uint32         // datagram
	before [2]int         // overruns, there and here
	open   sync.WaitGroup // new connections that began in it
	result Result
}

// cut ends the span that goes on and returns what was seen in it. What began in
// it is waited for. every is the time between datagrams in the next one.
func (w *watcher) cut(every time.Duration) Result {
	w.mu.Lock()
	s := w.span
	end, was := w.stream.sent.Load(), time.Duration(w.stream.every.Swap(int64(every)))
	w.span = &span{first: end}
	w.span.before[0], w.span.before[1] = w.stream.overruns()
	w.mu.Unlock()
	w.stream.settle(end)
	s.open.Wait()
	lost, stretch := w.stream.missing(s.first, end)
	there, here := w.stream.overruns()
	w.mu.Lock()
	defer w.mu.Unlock()
	r := s.result
	r.Held = w.load.Connections
	r.Overrun, r.Unread = there-s.before[0], here-s.before[1]
	r.Datagrams, r.Lost, r.Gap = int(end-s.first), lost, time.Duration(stretch)*was
	return r
}

// beat notes how late it is each time that it is due.
func (w *watcher) beat(ctx context.Context) {
	for ctx.Err() == nil {
		due := time.Now().Add(beat)
		time.Sleep(beat)
		late := time.Since(due)
		w.note(w.now(false), func(r *Result) { r.Stall = max(r.Stall, late) }, nil)
	}
}

// note changes a span's result.
func (w *watcher) note(s *span, change func(*Result), why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&s.result)
	if why != nil && s.result.Why == "" {
		s.result.Why = why.Error()
	}
}

// now is the span that goes on; one more connection is open in it if so asked.
func (w *watcher) now(opens bool) *span {
	w.mu.Lock()
	defer w.mu.Unlock()
	if opens {
		w.span.open.Add(1)
	}
	return w.span
}
