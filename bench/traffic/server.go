// Package traffic is the client and the server that the dataplane is measured
// with. Both use blocking system calls and one thread each, so that what is
// measured is the network and not a scheduler; the caller pins them to a CPU.
package traffic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What a connection is for: its first byte.
const (
	askEcho  = 'r' // answer each byte by one
	askOnce  = 'c' // answer once, and close
	askSink  = 's' // swallow all, then tell how much it was
	askCount = 'u' // tell how many datagrams came since last asked
)

// Serve answers clients at a TCP and a UDP port of the same number until the
// process ends. It calls ready once clients may come.
func Serve(at netip.AddrPort, ready func()) error {
	listener, err := open(unix.SOCK_STREAM, at, true)
	if err != nil {
		return err
	}
	if err := unix.Listen(listener, 1024); err != nil {
		return fmt.Errorf("listen at %s: %w", at, err)
	}
	datagrams, err := open(unix.SOCK_DGRAM, at, true)
	if err != nil {
		return err
	}
	s := &server{buffer: make([]byte, 256<<10)}
	go s.count(datagrams)
	ready()
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept at %s: %w", at, err)
		}
		// A client that goes away is no failure of the server.
		_ = s.answer(fd)
		unix.Close(fd)
	}
}

type server struct {
	buffer    []byte
	datagrams atomic.Uint64
}

func (s *server) count(fd int) {
	buffer := make([]byte, 2048)
	for {
		if _, err := unix.Read(fd, buffer); err == nil {
			s.datagrams.Add(1)
		}
	}
}

// answer serves one connection.
func (s *server) answer(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	ask := s.buffer[:1]
	if n, err := unix.Read(fd, ask); n != 1 {
		return err
	}
	switch ask[0] {
	case askOnce:
		_, err := unix.Write(fd, ask)
		return err
	case askEcho:
		return s.echo(fd)
	case askSink:
		return s.sink(fd)
	case askCount:
		return tell(fd, s.datagrams.Swap(0))
	}
	return fmt.Errorf("a client asks for %q", ask)
}

func (s *server) echo(fd int) error {
	one := s.buffer[:1]
	for {
		if n, err := unix.Read(fd, one); n != 1 {
			return err
		}
		if _, err := unix.Write(fd, one); err != nil {
			return err
		}
	}
}

func (s *server) sink(fd int) error {
	total := uint64(0)
	for {
		n, err := unix.Read(fd, s.buffer)
		if err != nil {
			return err
		}
		if n == 0 {
			return tell(fd, total)
		}
		total += uint64(n)
	}
}

func tell(fd int, number uint64) error {
	_, err := unix.Write(fd, binary.BigEndian.AppendUint64(nil, number))
	return err
}

// open makes a blocking socket, bound to or connected with an address.
func open(kind int, at netip.AddrPort, bind bool) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	address := &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	if bind {
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, address))
	} else {
		err = unix.Connect(fd, address)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("use the address %s: %w", at, err)
	}
	return fd, nil
}
