package dataplane

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

// TestTunnelInPods: an overlay of the pods' own travels in ours, bulk TCP
// included: a packet that says it is a tunnel's cannot say so twice, so pods'
// interfaces do not hold back segmentation of their own tunnels' packets.
func TestTunnelInPods(t *testing.T) {
	for _, tr := range []plan.Transport{plan.IPIP, plan.VXLAN} {
		t.Run(string(tr), func(t *testing.T) {
			f := newFabric(t, 2, tr)
			f.setAll()
			a, b := f.nodes[0].addPod(1400), f.nodes[1].addPod(1400)
			for i, p := range []*testPod{a, b} {
				remote := []*testPod{b, a}[i].v4.String()
				f.sh(p.ns, "ip link add x type vxlan id 7 dstport 8472 local "+p.v4.String()+" remote "+remote+" dev eth0; "+
					"ip addr add 172.16.0."+[]string{"1", "2"}[i]+"/24 dev x; ip link set x up")
			}
			f.ping(a.ns, "172.16.0.2")
			f.ping(a.ns, "172.16.0.2", "-s 1300", "-M do")
			if _, _, err := f.transfer(a.ns, b.ns, "172.16.0.2:80", 16<<20); err != nil {
				t.Errorf("TCP: %v", err)
			}
		})
	}
}

// TestNestedProtocol4: a pod's own protocol-4 packet to another pod arrives as it
// was sent (RFC 2003, section 3.1), by each transport.
func TestNestedProtocol4(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	inner := packet4{ttl: 9, protocol: unix.IPPROTO_UDP, src: addr("172.16.0.1"), dst: addr("172.16.0.2"), payload: udp(1, 2, []byte("nested"))}
	send := &bench{fabric: f, t: t, node: f.nodes[0], pod: a, eth0: tap(t, a.ns, "eth0")}
	in := tap(t, b.ns, "eth0")
	for i := range 2 {
		outer := packet4{id: uint16(i), ttl: 64, fragment: dontFragment, protocol: unix.IPPROTO_IPIP, src: a.v4, dst: b.v4, payload: inner.bytes()}
		send.sendFromPod(outer)
		want := forwarded(forwarded(outer.bytes())) // two nodes forward it
		got := in.receive(func(p []byte) bool { return p[0]>>4 == 4 && p[9] == unix.IPPROTO_IPIP })
		if !bytes.Equal(got, want) {
			t.Errorf("by %s the pod got\n%s\nwant\n%s", f.network.Transports[0], hexDump(got), hexDump(want))
		}
		f.network.Transports[0], f.network.Transports[1] = f.network.Transports[1], f.network.Transports[0]
		f.setAll()
	}
}

// TestSuperPackets: where the uplink takes packets of up to 64 KiB and segments
// them itself, they are encapsulated whole.
func TestSuperPackets(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	on := "ethtool -K eth0 tso on gso on gro on"
	for i, n := range f.nodes {
		f.sh(n.ns, on)
		f.sh(f.router, "ethtool -K n"+[]string{"1", "2"}[i]+" tso on gso on gro on")
	}
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	for range 2 {
		large := tap(t, f.router, "n1")
		if _, _, err := f.transfer(a.ns, b.ns, b.v4.String()+":80", 32<<20); err != nil {
			t.Errorf("TCP by %s: %v", f.network.Transports[0], err)
		}
		large.receive(func(p []byte) bool { return len(p) > 3000 }) // or the test shows nothing
		f.network.Transports[0], f.network.Transports[1] = f.network.Transports[1], f.network.Transports[0]
		f.setAll()
	}
}

// TestTransportsAreAlike: a pod cannot tell by a packet which transport it came by:
// hops, DF, DSCP, congestion marks, id and options are the sender's by both.
func TestTransportsAreAlike(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	send := &bench{fabric: f, t: t, node: f.nodes[0], pod: a, eth0: tap(t, a.ns, "eth0")}
	in := tap(t, b.ns, "eth0")
	for range 2 {
		for i, p := range []packet4{
			{ttl: 64, fragment: dontFragment}, {ttl: 3}, {ttl: 200, tos: 46 << 2, fragment: dontFragment},
			{ttl: 64, tos: 1}, {ttl: 64, tos: 10<<2 | 2, fragment: dontFragment}, {ttl: 64, tos: 3}, {ttl: 64, tos: 0xff},
			{ttl: 64, options: []byte{1, 1, 1, 0}},
		} {
			p.id, p.protocol, p.src, p.dst, p.payload = uint16(1000+i), unix.IPPROTO_UDP, a.v4, b.v4, udp(1, 2, []byte("which way?"))
			send.sendFromPod(p)
			got := in.receive(func(p []byte) bool { return p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP })
			if want := forwarded(forwarded(p.bytes())); !bytes.Equal(got, want) {
				t.Errorf("by %s the pod got\n%s\nwant\n%s", f.network.Transports[0], hexDump(got), hexDump(want))
			}
		}
		f.network.Transports[0], f.network.Transports[1] = f.network.Transports[1], f.network.Transports[0]
		f.setAll()
	}
}

// TestLargeDatagrams: those that are sent in fragments, and those that a pod leaves
// to the kernel to split (UDP_SEGMENT), arrive whole by each transport.
func TestLargeDatagrams(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	for range 2 {
		for _, to := range []netip.Addr{b.v4, b.v6} {
			for _, size := range []int{1472, 6000, 30000} {
				f.datagrams(a.ns, b.ns, to, size, size)
			}
			f.datagrams(a.ns, b.ns, to, 24000, 1200)
		}
		f.network.Transports[0], f.network.Transports[1] = f.network.Transports[1], f.network.Transports[0]
		f.setAll()
	}
}

// datagrams sends so many bytes at once, as datagrams of a size, until they arrive:
// by IPv6, the sender is told first how large fragments may be.
func (f *fabric) datagrams(from, to *netnstest.NS, address netip.Addr, total, size int) {
	f.t.Helper()
	data := make([]byte, total)
	rand.Read(data)
	eventually(f.t, fmt.Sprintf("%d bytes in datagrams of %d to %s by %s", total, size, address, f.network.Transports[0]), func() bool {
		got, err := f.sendAtOnce(from, to, netip.AddrPortFrom(address, 9001).String(), data, size)
		return err == nil && bytes.Equal(got, data)
	})
}

// sendAtOnce returns what arrives of data, which is written at once.
func (f *fabric) sendAtOnce(from, to *netnstest.NS, target string, data []byte, size int) (got []byte, err error) {
	var in net.PacketConn
	var out net.Conn
	if err := to.Do(func() (err error) { in, err = net.ListenPacket("udp", target); return err }); err != nil {
		return nil, err
	}
	defer in.Close()
	if err := from.Do(func() (err error) { out, err = net.Dial("udp", target); return err }); err != nil {
		return nil, err
	}
	defer out.Close()
	if len(data) > size {
		err := control(out, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
		if err != nil {
			return nil, err
		}
	}
	if _, err := out.Write(data); err != nil {
		return nil, err
	}
	buffer := make([]byte, 1<<16)
	in.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	for len(got) < len(data) {
		n, _, err := in.ReadFrom(buffer)
		if err != nil {
			return got, err
		}
		if n != size {
			return got, fmt.Errorf("a datagram of %d bytes", n)
		}
		got = append(got, buffer[:n]...)
	}
	return got, nil
}

// control runs f with a connection's file descriptor.
func control(c net.Conn, f func(fd int) error) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}
