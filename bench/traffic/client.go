package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Test is one kind of traffic.
type Test string

// The tests.
const (
	RR     Test = "TCP_RR"     // a byte there and a byte back, on one connection
	CRR    Test = "TCP_CRR"    // the same, on a new connection each time
	Stream Test = "TCP_STREAM" // as much as goes one way
	UDP    Test = "UDP"        // datagrams at a fixed rate
)

// Tests lists all of them.
func Tests() []Test { return []Test{RR, CRR, Stream, UDP} }

// Datagrams of the test UDP.
const (
	Rate    = 10_000 // per second
	payload = 200    // bytes
)

// Result is what a client found. Value is what Unit says of the test.
type Result struct {
	// Value: requests per second, connections per second, Gbit/s of payload,
	// or the part of the datagrams that was lost, 0 to 1.
	Value float64 `json:"value"`
	// P50 and P99 are of RR and CRR: the time of one exchange.
	P50 time.Duration `json:"p50"`
	P99 time.Duration `json:"p99"`
	// Bits that were received (Stream).
	Bits float64 `json:"bits"`
}

// Run is the client: it plays a test with a server for about that long.
func Run(test Test, server netip.AddrPort, length time.Duration) (Result, error) {
	switch test {
	case RR:
		fd, err := connect(server, askEcho)
		if err != nil {
			return Result{}, err
		}
		defer unix.Close(fd)
		buffer := []byte{1}
		return exchanges(length, func() error { return onOne(fd, buffer) })
	case CRR:
		return exchanges(length, func() error { return onNew(server) })
	case Stream:
		return stream(server, length)
	case UDP:
		return datagrams(server, length)
	}
	return Result{}, fmt.Errorf("there is no test %q", test)
}

// warm is how many exchanges come before those that count.
const warm = 200

func exchanges(length time.Duration, one func() error) (Result, error) {
	for range warm {
		if err := one(); err != nil {
			return Result{}, err
		}
	}
	took := make([]time.Duration, 0, 1<<17)
	began := time.Now()
	last := began
	for last.Sub(began) < length {
		if err := one(); err != nil {
			return Result{}, err
		}
		now := time.Now()
		took = append(took, now.Sub(last))
		last = now
	}
	slices.Sort(took)
	return Result{
		Value: float64(len(took)) / last.Sub(began).Seconds(),
		P50:   took[len(took)/2], P99: took[len(took)*99/100],
	}, nil
}

// onNew leaves the closing to the server, whose port can be in TIME_WAIT with
// any number of clients.
func onNew(server netip.AddrPort) error {
	fd, err := connect(server, askOnce)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buffer := []byte{0}
	for range 2 { // the answer, and the end
		if _, err := unix.Read(fd, buffer); err != nil {
			return fmt.Errorf("read from %s: %w", server, err)
		}
	}
	return nil
}

func onOne(fd int, buffer []byte) error {
	if _, err := unix.Write(fd, buffer); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	n, err := unix.Read(fd, buffer)
	if err == nil && n != 1 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return nil
}

func connect(server netip.AddrPort, ask byte) (int, error) {
	fd, err := open(unix.SOCK_STREAM, server, false)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err == nil {
		_, err = unix.Write(fd, []byte{ask})
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("ask %s: %w", server, err)
	}
	return fd, nil
}

func stream(server netip.AddrPort, length time.Duration) (Result, error) {
	fd, err := connect(server, askSink)
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(fd)
	data := make([]byte, 128<<10)
	began := time.Now()
	for time.Since(began) < length {
		if _, err := unix.Write(fd, data); err != nil {
			return Result{}, fmt.Errorf("write: %w", err)
		}
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return Result{}, err
	}
	got, err := number(fd)
	bits := float64(got) * 8
	return Result{Value: bits / time.Since(began).Seconds() / 1e9, Bits: bits}, err
}

// number reads what tell wrote.
func number(fd int) (uint64, error) {
	buffer := make([]byte, 8)
	for have := 0; have < len(buffer); {
		n, err := unix.Read(fd, buffer[have:])
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, fmt.Errorf("read the server's count: %w", err)
		}
		have += n
	}
	return binary.BigEndian.Uint64(buffer), nil
}

// grace is how long datagrams may be under way after the last one was sent.
const grace = 50 * time.Millisecond

func datagrams(server netip.AddrPort, length time.Duration) (Result, error) {
	if _, err := counted(server); err != nil { // forget those of an earlier test
		return Result{}, err
	}
	fd, err := open(unix.SOCK_DGRAM, server, false)
	if err != nil {
		return Result{}, err
	}
	defer unix.Close(fd)
	data := make([]byte, payload)
	sent := 0
	began := time.Now()
	for elapsed := time.Duration(0); elapsed < length; elapsed = time.Since(began) {
		for due := int(elapsed.Seconds() * Rate); sent < due; sent++ {
			if _, err := unix.Write(fd, data); err != nil && !errors.Is(err, unix.ENOBUFS) {
				return Result{}, fmt.Errorf("send: %w", err)
			}
		}
		time.Sleep(500 * time.Microsecond) // the server is on the same CPU
	}
	time.Sleep(grace)
	got, err := counted(server)
	if err != nil {
		return Result{}, err
	}
	if sent == 0 {
		return Result{}, fmt.Errorf("nothing was sent within %s", length)
	}
	return Result{Value: 1 - float64(got)/float64(sent)}, nil
}

func counted(server netip.AddrPort) (uint64, error) {
	fd, err := connect(server, askCount)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return number(fd)
}
