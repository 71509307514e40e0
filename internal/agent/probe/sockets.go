package probe

import (
	"bytes"
	"context"
	"encoding/binary"
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
	listeners map[netip.Addr]*net.UDPConn   // own pod-network address -> socket
	senders   map[netip.Addr]net.PacketConn // own fabric address -> socket for VXLAN
	wrapped   map[plan.Family]int           // family -> socket for what is to leave bare
	headed    map[plan.Family]int           // family -> socket for what has a header already, and is to leave bare
	frames    int                           // sends whole frames; -1 before it is open
	closed    bool
}

// Bare says how a packet is made to leave an uplink bare, by the next hop of
// another address than its own: the kernel sends it behind a header of that
// address, with this IP protocol and mark, and the dataplane takes the header off.
type Bare struct {
	Protocol, Mark int
	Device         string // name of the vxlan device, for probes without their checksum
}

// NewSockets opens what probing needs. It needs CAP_NET_RAW, for protocol 4, and
// CAP_NET_ADMIN, for marks.
func NewSockets(bare Bare, log *slog.Logger) (*Sockets, error) {
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("opening a raw socket for probes by protocol 4 (it needs root, or the capability NET_RAW): %w", err)
	}
	return &Sockets{log: log, raw: raw, bare: bare, frames: -1, received: make(chan Datagram, 64), wrapped: map[plan.Family]int{}, headed: map[plan.Family]int{},
		listeners: map[netip.Addr]*net.UDPConn{}, senders: map[netip.Addr]net.PacketConn{}}, nil
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
// What arrives tells its hop limit, and routers' words are kept.
func listenOn(a netip.Addr) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = setListener(int(fd), a.Is4()) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := config.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, Port).String())
	if err != nil {
		return nil, fmt.Errorf("listening for probes on %s, UDP port %d (is another program bound to it?): %w", a, Port, err)
	}
	return conn.(*net.UDPConn), nil
}

func setListener(fd int, four bool) error {
	if four {
		return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1))
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
}

// read passes on what arrives until the socket is closed. What nobody takes in
// time is dropped: a probe that waits in a queue is late anyway.
func (s *Sockets) read(conn *net.UDPConn) {
	buf, control := make([]byte, 65536), make([]byte, 256)
	for {
		n, c, _, from, err := conn.ReadMsgUDPAddrPort(buf, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // what a router said makes a reading fail once
			s.readErrors(conn, buf, control)
			continue
		}
		s.pass(Datagram{From: from.Addr().Unmap(), Port: from.Port(), Message: bytes.Clone(buf[:n]), Hops: hopsOf(control[:c])})
	}
}

func (s *Sockets) pass(d Datagram) {
	select {
	case s.received <- d:
	default:
	}
}

// hopsOf reads a packet's hop limit from its control messages; 0 if it is not
// there.
func hopsOf(control []byte) byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		ttl := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL
		limit := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT
		if (ttl || limit) && len(m.Data) >= 4 {
			return byte(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// readErrors takes what routers said of packets from the socket's address.
func (s *Sockets) readErrors(conn *net.UDPConn, buf, control []byte) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	const most = 64 // at a time
	for range most {
		var n, c int
		e := raw.Control(func(fd uintptr) {
			n, c, _, _, err = unix.Recvmsg(int(fd), buf, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		})
		if e != nil || err != nil {
			return
		}
		if router, ok := routerOf(control[:c]); ok {
			s.pass(Datagram{From: router, Message: bytes.Clone(buf[:n]), Stray: true})
		}
	}
}

// ICMP types and codes that say: a packet was here, and went no further (RFC
// 792; RFC 4443, section 3.3).
const (
	icmpTimeExceeded   = 11
	icmpv6TimeExceeded = 3
)

// routerOf reads who says that a packet's hop limit was used up (struct
// sock_extended_err of the kernel, and the address behind it).
func routerOf(control []byte) (netip.Addr, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}, false
	}
	for _, m := range messages {
		const extended = 16
		four := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		six := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		switch {
		case four && len(m.Data) >= extended+8 && m.Data[4] == unix.SO_EE_ORIGIN_ICMP && m.Data[5] == icmpTimeExceeded:
			return netip.AddrFrom4([4]byte(m.Data[extended+4 : extended+8])), true
		case six && len(m.Data) >= extended+24 && m.Data[4] == unix.SO_EE_ORIGIN_ICMP6 && m.Data[5] == icmpv6TimeExceeded:
			return netip.AddrFrom16([16]byte(m.Data[extended+8 : extended+24])), true
		}
	}
	return netip.Addr{}, false
}

// Send implements Wire.
func (s *Sockets) Send(p Path, message []byte) error {
	packet := p.Packet(message)
	switch p.Transport {
	case plan.Direct:
		if len(message) > messageSize { // as large as the uplink takes: nothing fits around it
			return s.sendAsIs(p.OuterDst, packet)
		}
		return s.sendBare(p.OuterDst, packet)
	case plan.IPIP:
		return s.sendRaw(p.OuterDst, packet)
	}
	if p.Offload {
		return s.sendOffloaded(p, message)
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

// sendAsIs sends a packet with its own header by the next hop of another address,
// past the tunnel, as the mark tells the dataplane.
func (s *Sockets) sendAsIs(via netip.Addr, packet []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	fd, err := s.marked(&s.headed, plan.FamilyOf(via), unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	if err := unix.Sendto(fd, packet, unix.MSG_DONTWAIT, sockaddr(via)); err != nil {
		return fmt.Errorf("%d bytes bare by way of %s: %w", len(packet), via, err)
	}
	return nil
}

// virtioHeader is the length of what precedes a frame on a socket that says which
// checksum is to be computed (struct virtio_net_hdr of the kernel), and
// needsChecksum the flag for it there.
const (
	virtioHeader  = 10
	needsChecksum = 1
)

// sendOffloaded sends by the vxlan device a packet whose checksum is to be computed
// further down, where pods' packets get theirs.
func (s *Sockets) sendOffloaded(p Path, message []byte) error {
	device, err := net.InterfaceByName(s.bare.Device)
	if err != nil {
		return fmt.Errorf("looking for the vxlan device %s: %w", s.bare.Device, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.frames < 0 {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening a packet socket (it needs root, or the capability NET_RAW): %w", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return errors.Join(fmt.Errorf("preparing a packet socket: %w", err), unix.Close(fd))
		}
		s.frames = fd
	}
	packet := p.inner(message)
	start := leaveChecksum(packet, p.InnerSrc, p.InnerDst)
	header := make([]byte, virtioHeader)
	header[0] = needsChecksum
	binary.NativeEndian.PutUint16(header[6:], uint16(ethernetHeader+start))
	binary.NativeEndian.PutUint16(header[8:], 6) // of the checksum in a UDP header
	frame := ethernetFrame(p.SrcMAC, p.DstMAC, packet)
	to := &unix.SockaddrLinklayer{Ifindex: device.Index, Protocol: binary.NativeEndian.Uint16(frame[12:14])}
	if err := unix.Sendto(s.frames, append(header, frame...), unix.MSG_DONTWAIT, to); err != nil {
		return fmt.Errorf("by %s: %w", s.bare.Device, err)
	}
	return nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// sendBare sends a packet that travels as it is, by the next hop of via.
func (s *Sockets) sendBare(via netip.Addr, packet []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	fd, err := s.marked(&s.wrapped, plan.FamilyOf(via), s.bare.Protocol)
	if err != nil {
		return err
	}
	if err := unix.Sendto(fd, packet, unix.MSG_DONTWAIT, sockaddr(via)); err != nil {
		return fmt.Errorf("bare by way of %s: %w", via, err)
	}
	return nil
}

// marked returns the socket for what is to leave bare, in one of the maps family
// -> socket. The caller holds the lock.
func (s *Sockets) marked(sockets *map[plan.Family]int, f plan.Family, protocol int) (int, error) {
	if fd, known := (*sockets)[f]; known {
		return fd, nil
	}
	domain := unix.AF_INET
	if f == plan.IPv6 {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("opening a raw socket for bare %s probes (it needs root, or the capability NET_RAW): %w", f, err)
	}
	// What comes in by that protocol is nobody's: nothing is to queue up here.
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, s.bare.Mark),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0))
	if err != nil {
		return -1, errors.Join(fmt.Errorf("marking bare probes (it needs the capability NET_ADMIN): %w", err), unix.Close(fd))
	}
	(*sockets)[f] = fd
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
	// Never fragmented, whatever a router once said: sizes are to be found out.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = setUnfragmented(int(fd), src.Is4()) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := config.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(src, 0).String())
	if err != nil {
		return nil, fmt.Errorf("opening a socket on the node's address %s: %w", src, err)
	}
	s.senders[src] = conn
	return conn, nil
}

func setUnfragmented(fd int, four bool) error {
	if four {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
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
	if s.frames >= 0 {
		errs = append(errs, unix.Close(s.frames))
	}
	for _, sockets := range []map[plan.Family]int{s.wrapped, s.headed} {
		for _, fd := range sockets {
			errs = append(errs, unix.Close(fd))
		}
	}
	for _, conn := range s.listeners {
		errs = append(errs, conn.Close())
	}
	for _, conn := range s.senders {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
