package steady

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// relay passes datagrams and connections on to the server, and loses what it is
// told to.
type relay struct {
	address netip.AddrPort
	drop    func(n int) bool // the n-th datagram from the client
	accept  func(n int) bool // the n-th connection: false resets it
}

func (r *relay) start(t *testing.T, server netip.AddrPort) {
	t.Helper()
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r.address = listener.Addr().(*net.TCPAddr).AddrPort()
	datagrams, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(r.address))
	if err != nil {
		t.Fatal(err)
	}
	if err := roomy(datagrams, plenty); err != nil { // it is no more a queue than the server
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close(); datagrams.Close() })
	go r.connections(listener, server)
	go r.datagrams(datagrams)
}

func (r *relay) connections(l *net.TCPListener, server netip.AddrPort) {
	for n := 0; ; n++ {
		in, err := l.AcceptTCP()
		if err != nil {
			return
		}
		if r.accept != nil && !r.accept(n) {
			go func() {
				defer in.Close()
				_, _ = in.Read(make([]byte, 1)) // once it is in use, or the client's connect may fail
				_ = in.SetLinger(0)
			}()
			continue
		}
		out, err := net.Dial("tcp", server.String())
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(out, in); out.Close() }()
		go func() { _, _ = io.Copy(in, out); in.Close() }()
	}
}

// datagrams echoes by itself, but for those that are dropped.
func (r *relay) datagrams(c *net.UDPConn) {
	buffer := make([]byte, 64)
	for n := 0; ; n++ {
		size, from, err := c.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		if r.drop == nil || !r.drop(n) {
			_, _ = c.WriteToUDPAddrPort(append(buffer[:size], 0, 0, 0, 0), from)
		}
	}
}

// watch watches the relay, and returns what ends a span and says what was seen.
func watch(t *testing.T, r *relay) (cut func() Result) {
	t.Helper()
	pace := watchAtPace(t, r)
	return func() Result { t.Helper(); return pace("") }
}

// watchAtPace is watch, with the time between datagrams of the next span.
func watchAtPace(t *testing.T, r *relay) (cut func(every string) Result) {
	t.Helper()
	r.start(t, serve(t))
	stopR, stopW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := Watch(context.Background(), r.address, Load{Every: time.Millisecond, Connections: 5, NewEvery: 10 * time.Millisecond}, stopR, outW); err != nil {
			t.Error(err)
		}
		outW.Close()
	}()
	t.Cleanup(func() { stopW.Close(); <-done })
	lines := bufio.NewScanner(outR)
	if !lines.Scan() || lines.Text() != Watching {
		t.Fatalf("the watcher says %q", lines.Text())
	}
	return func(every string) Result {
		t.Helper()
		if _, err := io.WriteString(stopW, every+"\n"); err != nil {
			t.Fatal(err)
		}
		var result Result
		if !lines.Scan() {
			t.Fatal("no result")
		}
		if err := json.Unmarshal(lines.Bytes(), &result); err != nil {
			t.Fatal(err)
		}
		return result
	}
}

func serve(t *testing.T) netip.AddrPort {
	t.Helper()
	free, err := net.ListenTCP("tcp", &net.TCPAddr{})
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	free.Close()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := Serve(ctx, port, func() { close(ready) }); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-ready:
	case <-done:
		t.Fatal("the server has ended")
	}
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
}

// TestPace: datagrams go at the interval that the last line asked for, and a gap is
// as long as it was.
func TestPace(t *testing.T) {
	t.Parallel()
	var drop atomic.Int32
	cut := watchAtPace(t, &relay{drop: func(int) bool { return drop.Add(-1) >= 0 }})
	began := time.Now()
	cut("20ms")
	drop.Store(3)
	for deadline := time.Now().Add(overdue); drop.Load() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	r := cut("")
	if most := int(time.Since(began)/(20*time.Millisecond)) + burst; r.Datagrams == 0 || r.Datagrams > most {
		t.Errorf("%d datagrams in a span at 20 ms, at most %d", r.Datagrams, most)
	}
	if want := 60 * time.Millisecond; r.Lost != 3 || r.Gap != want {
		t.Errorf("saw %s, want a gap of %s", r, want)
	}
}

// undisturbed is the result of the first span that the machine did not stand still
// in: in others the kernel may send again what is only late.
func undisturbed(t *testing.T, cut func() Result) Result {
	t.Helper()
	for range 20 {
		if r := cut(); r.Stall < Standstill {
			return r
		}
	}
	t.Fatal("the machine stands still all the time")
	return Result{}
}

// TestStandstill stops the whole process for a while.
func TestStandstill(t *testing.T) {
	cut := watch(t, &relay{})
	cut()
	const stop = 300 * time.Millisecond
	self := strconv.Itoa(os.Getpid())
	out, err := exec.Command("sh", "-c", "kill -STOP "+self+" && sleep 0.3; kill -CONT "+self).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if r := cut(); r.Stall < stop-2*beat || !strings.Contains(r.String(), "stood still") {
		t.Errorf("stopped for %s, and the watcher saw a stall of %s: %s", stop, r.Stall, r)
	}
	if r := undisturbed(t, cut); r.Stall >= Standstill || strings.Contains(r.String(), "stood still") {
		t.Errorf("afterwards the watcher saw a stall of %s: %s", r.Stall, r)
	}
}

func TestNothingToNotice(t *testing.T) {
	t.Parallel()
	cut := watch(t, &relay{})
	cut() // which may be over before the first connection
	for range 2 {
		if r := undisturbed(t, cut); !r.Clean() || r.Held != 5 {
			t.Errorf("nothing happened, and the watcher saw: %s", r)
		}
	}
}

func TestWhatIsLostIsNoticed(t *testing.T) {
	t.Parallel()
	var left atomic.Int64
	over := make(chan struct{})
	cut := watch(t, &relay{drop: func(int) bool {
		n := left.Add(-1)
		if n == 0 {
			close(over)
		}
		return n >= 0
	}})
	cut()
	left.Store(10)
	<-over
	if r := cut(); r.Lost != 10 || r.Gap != 10*time.Millisecond || r.Broken+r.Refused+r.Again > 0 || r.Clean() {
		t.Errorf("ten datagrams were dropped, and the watcher saw: %s", r)
	}
	if r := undisturbed(t, cut); !r.Clean() {
		t.Errorf("afterwards the watcher saw: %s", r)
	}
}

func TestWhatBreaksIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		relay *relay
		want  func(Result) bool
	}{
		"held connections that are reset": {&relay{accept: func(n int) bool { return n != 2 }},
			func(r Result) bool { return r.Broken == 1 && r.Lost == 0 && strings.Contains(r.Why, "broke") }},
		"new connections that are reset": {&relay{accept: func(n int) bool { return n != 9 }},
			func(r Result) bool { return r.Refused == 1 && r.Broken == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cut := watch(t, c.relay)
			var seen Result
			for range 30 { // until it has happened
				if seen = cut(); seen.Broken+seen.Refused > 0 {
					break
				}
			}
			if !c.want(seen) || seen.Clean() {
				t.Errorf("the watcher saw: %s", seen)
			}
			// What was noticed is over, and a connection that broke stands again.
			if r := cut(); !r.Clean() {
				t.Errorf("afterwards the watcher saw: %s", r)
			}
		})
	}
}

// TestRoom: what a program that does not run for a while is sent waits for it, or
// is counted.
func TestRoom(t *testing.T) {
	const flood = 5000
	for room, fits := range map[int]bool{plenty: true, 64 << 10: false} {
		sleeper, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer sleeper.Close()
		if err := roomy(sleeper, room); err != nil {
			t.Fatal(err)
		}
		c, err := net.DialUDP("udp", nil, sleeper.LocalAddr().(*net.UDPAddr))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range flood {
			if _, err := c.Write([]byte("steady!\n")); err != nil {
				t.Fatal(err)
			}
		}
		read := 0
		for ; waiting(t, sleeper); read++ {
			if _, _, _, err := receive(sleeper, make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Write([]byte("steady!\n")); err != nil { // which tells of those before
			t.Fatal(err)
		}
		_, overrun, _, err := receive(sleeper, make([]byte, 8))
		if err != nil || read+int(overrun) != flood || (overrun == 0) != fits {
			t.Errorf("room for %d bytes: %d datagrams read, %d too many, of %d: %v", room, read, overrun, flood, err)
		}
	}
}

// waiting says whether a datagram waits to be read.
func waiting(t *testing.T, c *net.UDPConn) bool {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	size, asking := 0, error(nil)
	err = raw.Control(func(fd uintptr) { size, asking = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
	if err = errors.Join(err, asking); err != nil {
		t.Fatal(err)
	}
	return size > 0
}
