package steady

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
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
			_, _ = c.WriteToUDPAddrPort(buffer[:size], from)
		}
	}
}

// watch watches the relay until enough was seen.
func watch(t *testing.T, r *relay) Result {
	t.Helper()
	r.start(t, serve(t))
	stopR, stopW := io.Pipe()
	outR, outW := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		err := Watch(t.Context(), r.address, Load{Every: time.Millisecond, Connections: 5, NewEvery: 10 * time.Millisecond}, stopR, outW)
		outW.CloseWithError(err)
		failed <- err
	}()
	lines := bufio.NewScanner(outR)
	if !lines.Scan() || lines.Text() != "watching" {
		t.Fatalf("the watcher says %q: %v", lines.Text(), <-failed)
	}
	time.Sleep(300 * time.Millisecond) // how long it watches, and nothing is waited for
	stopW.Close()
	if !lines.Scan() {
		t.Fatalf("no result: %v", <-failed)
	}
	var result Result
	if err := json.Unmarshal(lines.Bytes(), &result); err != nil {
		t.Fatal(err)
	}
	return result
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
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := Serve(ctx, port); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port))
	for {
		c, err := net.Dial("tcp", address.String())
		if err == nil {
			c.Close()
			return address
		}
		select {
		case <-done:
			t.Fatal("the server has ended")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestNothingToNotice(t *testing.T) {
	if r := watch(t, &relay{}); !r.Clean() || r.Held != 5 {
		t.Errorf("nothing happened, and the watcher saw: %s", r)
	}
}

func TestWhatIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		relay relay
		want  func(Result) bool
	}{
		"datagrams that are lost": {relay{drop: func(n int) bool { return n >= 20 && n < 30 }},
			func(r Result) bool { return r.Lost == 10 && r.Gap == 10*time.Millisecond && r.Broken+r.Refused == 0 }},
		"held connections that are reset": {relay{accept: func(n int) bool { return n != 2 }},
			func(r Result) bool { return r.Broken == 1 && r.Lost == 0 && strings.Contains(r.Why, "broke") }},
		"new connections that are reset": {relay{accept: func(n int) bool { return n != 9 }},
			func(r Result) bool { return r.Refused == 1 && r.Broken == 0 }},
	} {
		t.Run(name, func(t *testing.T) {
			if r := watch(t, &c.relay); !c.want(r) || r.Clean() {
				t.Errorf("the watcher saw: %s", r)
			}
		})
	}
}
