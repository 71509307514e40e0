package probe

import (
	"encoding/binary"
	"net/netip"

	"ropeway.dev/ropeway/internal/plan"
)

// Protocol numbers and types that the packets are made with.
const (
	protocolIPIP = 4
	protocolUDP  = 17

	etherTypeIPv4 = 0x0800
	etherTypeIPv6 = 0x86dd

	fullHops       = 64 // the hop limit of what is to arrive wherever the node is
	dontFrag       = 0x4000
	ipv4Header     = 20
	ethernetHeader = 14
	ipv6Header     = 40
	udpHeader      = 8
)

// udpPacket returns an IP packet of the addresses' family (RFC 791, RFC 8200)
// that holds one UDP datagram (RFC 768). Both checksums are valid: the packet
// may pass devices that have no offload to hide a wrong one.
func udpPacket(src, dst netip.AddrPort, hops byte, payload []byte) []byte {
	header := ipv4Header
	if src.Addr().Is6() {
		header = ipv6Header
	}
	p := make([]byte, header+udpHeader+len(payload))
	datagram := p[header:]
	binary.BigEndian.PutUint16(datagram[0:], src.Port())
	binary.BigEndian.PutUint16(datagram[2:], dst.Port())
	binary.BigEndian.PutUint16(datagram[4:], uint16(len(datagram)))
	copy(datagram[udpHeader:], payload)
	sum := fold(sumOf(datagram, pseudoSum(src.Addr(), dst.Addr(), len(datagram))))
	if sum == 0 {
		sum = 0xffff // RFC 768: zero on the wire means that there is no checksum
	}
	binary.BigEndian.PutUint16(datagram[6:], sum)
	if header == ipv6Header {
		putIPv6(p, src.Addr(), dst.Addr(), hops)
	} else {
		putIPv4(p, src.Addr(), dst.Addr(), protocolUDP, hops)
	}
	return p
}

// leaveChecksum makes the UDP checksum of a packet as the kernel hands it to a
// device that is to compute it: the sum over the pseudo header alone. It returns
// where the checksum's range begins.
func leaveChecksum(packet []byte, src, dst netip.Addr) (start int) {
	start = ipv4Header
	if src.Is6() {
		start = ipv6Header
	}
	binary.BigEndian.PutUint16(packet[start+6:], ^fold(pseudoSum(src, dst, len(packet)-start)))
	return start
}

// encapsulate returns inner behind an IPv4 header of protocol 4 (RFC 2003).
func encapsulate(src, dst netip.Addr, inner []byte) []byte {
	p := make([]byte, ipv4Header+len(inner))
	copy(p[ipv4Header:], inner)
	putIPv4(p, src, dst, protocolIPIP, fullHops)
	return p
}

// vxlanFrame returns the payload of a VXLAN datagram (RFC 7348, section 5): the
// VXLAN header, an Ethernet header and the inner packet.
func vxlanFrame(vni uint32, src, dst plan.MAC, inner []byte) []byte {
	p := make([]byte, 8, 8+ethernetHeader+len(inner))
	p[0] = 0x08 // the I flag: the VNI is valid
	binary.BigEndian.PutUint32(p[4:], vni<<8)
	return append(p, ethernetFrame(src, dst, inner)...)
}

// ethernetFrame returns a packet behind its Ethernet header.
func ethernetFrame(src, dst plan.MAC, packet []byte) []byte {
	f := make([]byte, ethernetHeader+len(packet))
	copy(f, dst[:])
	copy(f[6:], src[:])
	etherType := uint16(etherTypeIPv4)
	if packet[0]>>4 == 6 {
		etherType = etherTypeIPv6
	}
	binary.BigEndian.PutUint16(f[12:], etherType)
	copy(f[ethernetHeader:], packet)
	return f
}

// putIPv4 writes the header of the packet that p is the whole of. The
// identification stays zero: an atomic datagram needs none (RFC 6864, section 4).
func putIPv4(p []byte, src, dst netip.Addr, protocol, hops byte) {
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[6:], dontFrag)
	p[8] = hops
	p[9] = protocol
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(p[10:], fold(sumOf(p[:ipv4Header], 0)))
}

func putIPv6(p []byte, src, dst netip.Addr, hops byte) {
	p[0] = 0x60
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ipv6Header))
	p[6] = protocolUDP
	p[7] = hops
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
}

// pseudoSum is the sum over the pseudo header (RFC 768; RFC 8200, section 8.1).
func pseudoSum(src, dst netip.Addr, length int) uint32 {
	return sumOf(dst.AsSlice(), sumOf(src.AsSlice(), protocolUDP+uint32(length)))
}

// sumOf adds b to a running sum of 16-bit words (RFC 1071). Messages are far
// too short to overflow it.
func sumOf(b []byte, sum uint32) uint32 {
	for len(b) > 1 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
