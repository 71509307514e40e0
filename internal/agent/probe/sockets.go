package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/plan"
)

// Sockets is the Wire over the kernel of the network namespace that the calling
// threads are in.
type Sockets struct {
	log      *slog.Logger
	received chan Datagram
	raw      int // sends IPv4 packets with their header; receives nothing
	bare     Bare

	mu        sync.Mutex
	listeners map[netip.Addr]net.PacketConn // own pod-network address -> socket
	senders   map[netip.Addr]net.PacketConn // own fabric address -> socket for VXLAN
	wrapped   map[plan.Family]int           // family -> socket for what is to leave bare
	closed    bool
}

// Bare says how a packet is made to leave an uplink bare, by the next hop of
// another address than its own: the kernel sends it behind a header of that
// address, with this IP protocol and mark, and the dataplane takes the header off.
type Bare struct{ Protocol, Mark int }

// NewSockets opens what probing needs. It needs CAP_NET_RAW, for protocol 4, and
// CAP_NET_ADMIN, for marks.
func NewSockets(bare Bare, log *slog.Logger) (*Sockets, error) {
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("opening a raw socket for probes by protocol 4 (it needs root, or the capability NET_RAW): %w", err)
	}
	return &Sockets{log: log, raw: raw, bare: bare, received: make(chan Datagram, 64), wrapped: map[plan.Family]int{},
		listeners: map[netip.Addr]net.PacketConn{}, senders: map[netip.Addr]net.PacketConn{}}, nil
}

// Received implements Wire.
func (s *Sockets) Received() <-chan Datagram { return s.received }

// Listen implements Wire. An address need not be assigned yet. All are tried,
// also after one failed.
func (s *Sockets) Listen(addresses []netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := map[netip.Addr]bool{}
	var errs []error
	for _, a := range addresses {
		want[a] = true
		if s.listeners[a] != nil || s.closed {
			continue
		}
		conn, err := listenOn(a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.listeners[a] = conn
		go s.read(conn)
	}
	for a, conn := range s.listeners {
		if !want[a] {
			_ = conn.Close() // its reader ends; nothing was buffered for writing
			delete(s.listeners, a)
		}
	}
	return errors.Join(errs...)
}

// listenOn binds the probe port on an address that the kernel may not have yet.
func listenOn(a netip.Addr) (net.PacketConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) {
			if a.Is4() {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			}
		}); e != nil {
			return e
		}
		return err
	}}
	conn, err := config.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, Port).String())
	if err != nil {
		return nil, fmt.Errorf("listening for probes on %s, UDP port %d (is another program bound to it?): %w", a, Port, err)
	}
	return conn, nil
}

// read passes on what arrives until the socket is closed. What nobody takes in
// time is dropped: a probe that waits in a queue is late anyway.
func (s *Sockets) read(conn net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Debug("receiving a probe", "err", err)
			continue
		}
		udp, ok := from.(*net.UDPAddr)
		if !ok || udp.Port != Port {
			continue
		}
		d := Datagram{From: udp.AddrPort().Addr().Unmap(), Message: append([]byte(nil), buf[:n]...)}
		select {
		case s.received <- d:
		default:
		}
	}
}

// Send implements Wire.
func (s *Sockets) Send(p Path, message []byte) error {
	packet := p.Packet(message)
	switch p.Transport {
	case plan.Direct:
		return s.sendBare(p.OuterDst, packet)
	case plan.IPIP:
		return s.sendRaw(p.OuterDst, packet)
	}
	conn, err := s.sender(p.OuterSrc)
	if err != nil {
		return err
	}
	if _, err := conn.WriteTo(packet, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.OuterDst, p.Port))); err != nil {
		// The address may have left the node: the next try binds anew.
		s.forget(p.OuterSrc)
		return err
	}
	return nil
}

// sendRaw holds the lock so that Close cannot hand the descriptor to another
// file in between.
func (s *Sockets) sendRaw(dst netip.Addr, packet []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if err := unix.Sendto(s.raw, packet, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: dst.As4()}); err != nil {
		return fmt.Errorf("protocol 4 to %s: %w", dst, err)
	}
	return nil
}

// sendBare sends a packet that travels as it is, by the next hop of via.
func (s *Sockets) sendBare(via netip.Addr, packet []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	fd, err := s.wrapper(plan.FamilyOf(via))
	if err != nil {
		return err
	}
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: via.As16()}
	if via.Is4() {
		to = &unix.SockaddrInet4{Addr: via.As4()}
	}
	if err := unix.Sendto(fd, packet, unix.MSG_DONTWAIT, to); err != nil {
		return fmt.Errorf("bare by way of %s: %w", via, err)
	}
	return nil
}

// wrapper returns the socket that puts a header in front of what is to leave
// bare. The caller holds the lock.
func (s *Sockets) wrapper(f plan.Family) (int, error) {
	if fd, known := s.wrapped[f]; known {
		return fd, nil
	}
	domain := unix.AF_INET
	if f == plan.IPv6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, s.bare.Protocol)
	if err != nil {
		return -1, fmt.Errorf("opening a raw socket for bare %s probes (it needs root, or the capability NET_RAW): %w", f, err)
	}
	// What comes in by that protocol is nobody's: nothing is to queue up here.
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, s.bare.Mark),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0))
	if err != nil {
		return -1, errors.Join(fmt.Errorf("marking bare probes (it needs the capability NET_ADMIN): %w", err), unix.Close(fd))
	}
	s.wrapped[f] = fd
	return fd, nil
}

// sender returns the socket that VXLAN datagrams leave from: bound to the
// node's own address, since receivers accept no other source.
func (s *Sockets) sender(src netip.Addr) (net.PacketConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, net.ErrClosed
	}
	if conn := s.senders[src]; conn != nil {
		return conn, nil
	}
	conn, err := net.ListenPacket("udp", netip.AddrPortFrom(src, 0).String())
	if err != nil {
		return nil, fmt.Errorf("opening a socket on the node's address %s: %w", src, err)
	}
	s.senders[src] = conn
	return conn, nil
}

func (s *Sockets) forget(src netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conn := s.senders[src]; conn != nil {
		_ = conn.Close()
		delete(s.senders, src)
	}
}

// Close closes every socket.
func (s *Sockets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	errs := []error{unix.Close(s.raw)}
	for _, fd := range s.wrapped {
		errs = append(errs, unix.Close(fd))
	}
	for _, conn := range s.listeners {
		errs = append(errs, conn.Close())
	}
	for _, conn := range s.senders {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
