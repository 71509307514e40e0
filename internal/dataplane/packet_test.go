package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// packet4 is an IPv4 packet (RFC 791), written by hand.
type packet4 struct {
	tos      byte
	id       uint16
	fragment uint16 // flags and offset
	ttl      byte
	protocol byte
	src, dst netip.Addr
	options  []byte // a multiple of four
	payload  []byte
	badSum   bool
}

const dontFragment, moreFragments = 0x4000, 0x2000

func (p packet4) bytes() []byte {
	length := 20 + len(p.options)
	b := make([]byte, length, length+len(p.payload))
	b[0] = 0x40 | byte(length/4)
	b[1] = p.tos
	binary.BigEndian.PutUint16(b[2:], uint16(length+len(p.payload)))
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], p.fragment)
	b[8], b[9] = p.ttl, p.protocol
	copy(b[12:], p.src.AsSlice())
	copy(b[16:], p.dst.AsSlice())
	copy(b[20:], p.options)
	sum := internetChecksum(b)
	if p.badSum {
		sum ^= 0x0101
	}
	binary.BigEndian.PutUint16(b[10:], sum)
	return append(b, p.payload...)
}

// internetChecksum is RFC 1071's.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// udp is a datagram without a checksum (RFC 768 allows that for IPv4).
func udp(sport, dport uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b[0:], sport)
	binary.BigEndian.PutUint16(b[2:], dport)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return append(b, payload...)
}

// ipv6 is an IPv6 packet (RFC 8200).
func ipv6(src, dst string, next byte, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = next, 64
	copy(b[8:], netip.MustParseAddr(src).AsSlice())
	copy(b[24:], netip.MustParseAddr(dst).AsSlice())
	return append(b, payload...)
}

// vxlanFrame is a VXLAN header (RFC 7348) and an inner frame.
func vxlanFrame(vni uint32, ethertype uint16, inner []byte) []byte {
	b := make([]byte, 8+14, 8+14+len(inner))
	b[0] = 0x08
	binary.BigEndian.PutUint32(b[4:], vni<<8)
	copy(b[8:], []byte{2, 2, 2, 2, 2, 2})
	copy(b[14:], []byte{2, 3, 3, 3, 3, 3})
	binary.BigEndian.PutUint16(b[20:], ethertype)
	return append(b, inner...)
}

// forwarded returns the packet as a router leaves it: one hop older, and nothing
// else.
func forwarded(ip []byte) []byte {
	out := bytes.Clone(ip)
	out[8]--
	out[10], out[11] = 0, 0
	binary.BigEndian.PutUint16(out[10:], internetChecksum(out[:int(out[0]&0xf)*4]))
	return out
}

// wireTap is a packet socket at a device.
type wireTap struct {
	t     *testing.T
	fd    int
	index int
}

// tap opens a packet socket in a namespace.
func tap(t *testing.T, ns *netnstest.NS, device string) *wireTap {
	t.Helper()
	w := &wireTap{t: t}
	err := ns.Do(func() error {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		w.index = i.Index
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		all := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	if err != nil {
		t.Fatalf("tap %s: %v", device, err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// send puts an Ethernet frame on the device.
func (w *wireTap) send(dst net.HardwareAddr, ethertype uint16, payload []byte) {
	w.t.Helper()
	frame := make([]byte, 14, 14+len(payload))
	copy(frame, dst)
	copy(frame[6:], []byte{2, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(frame[12:], ethertype)
	if err := unix.Sendto(w.fd, append(frame, payload...), 0, &unix.SockaddrLinklayer{Ifindex: w.index}); err != nil {
		w.t.Fatalf("send frame: %v", err)
	}
}

// receive returns the payload of the next frame that arrives at the device and
// that the filter accepts.
func (w *wireTap) receive(accept func(payload []byte) bool) []byte {
	w.t.Helper()
	deadline := time.Now().Add(3 * time.Second)
	buffer := make([]byte, 70000)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			w.t.Fatal("no such packet within 3 s")
		}
		tv := unix.NsecToTimeval(left.Nanoseconds())
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			w.t.Fatal(err)
		}
		n, from, err := unix.Recvfrom(w.fd, buffer, 0)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if err != nil {
			w.t.Fatalf("receive: %v", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); !ok || ll.Pkttype == unix.PACKET_OUTGOING || n < 14 {
			continue
		}
		if payload := bytes.Clone(buffer[14:n]); accept(payload) {
			return payload
		}
	}
}

func hexDump(b []byte) string { return fmt.Sprintf("% x", b) }
