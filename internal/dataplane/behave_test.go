package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

// stream sends numbered datagrams until it is stopped, and counts those that
// arrive.
type stream struct {
	sent, received atomic.Uint64
	stop           chan struct{}
	done           chan struct{}
}

func (f *fabric) stream(from, to *testPod, size int) *stream {
	f.t.Helper()
	s := &stream{stop: make(chan struct{}), done: make(chan struct{})}
	var in net.PacketConn
	var out net.Conn
	target := net.JoinHostPort(to.v4.String(), "9000")
	err := errors.Join(
		to.ns.Do(func() (err error) { in, err = net.ListenPacket("udp", target); return err }),
		from.ns.Do(func() (err error) { out, err = net.Dial("udp", target); return err }))
	if err != nil {
		f.t.Fatalf("open stream: %v", err)
	}
	f.t.Cleanup(func() { in.Close(); out.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			if _, _, err := in.ReadFrom(b); err != nil {
				return
			}
			s.received.Add(1)
		}
	}()
	go func() {
		defer close(s.done)
		tick := time.NewTicker(500 * time.Microsecond)
		defer tick.Stop()
		b := make([]byte, size)
		for {
			select {
			case <-s.stop:
				return
			case <-tick.C:
				binary.BigEndian.PutUint64(b, s.sent.Load())
				if _, err := out.Write(b); err == nil {
					s.sent.Add(1)
				}
			}
		}
	}()
	return s
}

// end stops the stream and fails the test if a datagram was lost.
func (f *fabric) end(s *stream) {
	f.t.Helper()
	close(s.stop)
	<-s.done
	deadline := time.Now().Add(2 * time.Second)
	for s.received.Load() < s.sent.Load() && time.Now().Before(deadline) {
		f.run(f.router, "true") // gives the last ones time to arrive
	}
	if lost := s.sent.Load() - s.received.Load(); lost != 0 || s.sent.Load() == 0 {
		f.t.Errorf("%d of %d datagrams were lost", lost, s.sent.Load())
	}
}

// TestLiveChangeOfTransport holds invariant 4: a planned change loses no packet
// that fits the smallest allowed transport, and resets nothing. The nodes change
// one after another, so that for a while each direction has its own transport.
func TestLiveChangeOfTransport(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	a, b := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500)
	strict := "for d in all default eth0; do sysctl -qw net.ipv4.conf.$d.rp_filter=1; done"
	for _, n := range f.nodes {
		f.sh(n.ns, strict)
	}
	f.setAll()
	l := f.listen(b.ns, b.v4.String()+":80")
	client, err := f.dial(a.ns, b.v4.String()+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	there, back := f.stream(a, b, 1400), f.stream(b, a, 1400)
	for i := range 6 {
		f.network.Transports = []plan.Transport{plan.VXLAN, plan.IPIP}
		if i%2 == 1 {
			f.network.Transports = []plan.Transport{plan.IPIP, plan.VXLAN}
		}
		for _, n := range f.nodes {
			if _, err := n.set(); err != nil {
				t.Fatal(err)
			}
			echo(t, client, server)
			before := there.received.Load()
			eventually(t, "the stream goes on", func() bool { return there.received.Load() > before+50 })
		}
	}
	f.end(there)
	f.end(back)
}

func echo(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, c := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		c.to.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := c.from.Write([]byte("still here")); err != nil {
			t.Fatalf("connection: %v", err)
		}
		if _, err := c.to.Read(make([]byte, 10)); err != nil {
			t.Fatalf("connection: %v", err)
		}
	}
}

// TestSources says as whom packets arrive (SNAT).
func TestSources(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP)
	f.setAll()
	n1, n2 := f.nodes[0], f.nodes[1]
	a, b, local := n1.addPod(1500), n2.addPod(1500), n1.addPod(1500)
	check := func(what, want, seen string, err error) {
		t.Helper()
		if err != nil || seen != want {
			t.Errorf("%s arrives as %q, want %q (%v)", what, seen, want, err)
		}
	}
	_, seen, err := f.transfer(a.ns, f.outside, outsideAddress+":80", 1)
	check("pod to outside", n1.address(), seen, err)
	_, seen, err = f.transfer(a.ns, f.outside, "[2001:db8::1]:80", 1)
	check("pod to outside by IPv6", n1.address6(), seen, err)
	_, seen, err = f.transfer(a.ns, n2.ns, n2.address()+":80", 1)
	check("pod to another node", n1.address(), seen, err)
	_, seen, err = f.transfer(a.ns, n1.ns, n1.address()+":80", 1)
	check("pod to its own node", a.v4.String(), seen, err)
	_, seen, err = f.transfer(a.ns, local.ns, local.v4.String()+":80", 1)
	check("pod to pod on the node", a.v4.String(), seen, err)
	_, seen, err = f.transfer(a.ns, b.ns, b.v4.String()+":80", 1)
	check("pod to pod on another node", a.v4.String(), seen, err)
	_, seen, err = f.transfer(n1.ns, b.ns, b.v4.String()+":80", 1)
	check("node to pod", n1.source().String(), seen, err)
	_, seen, err = f.transfer(b.ns, n1.ns, n1.source().String()+":80", 1)
	check("pod to a node's pod-network address", b.v4.String(), seen, err)

	// A process that insists on the node's fabric address.
	out := f.sh(n1.ns, "ping -q -c 1 -W 2 -I "+n1.address()+" "+b.v4.String())
	if !strings.Contains(out, "1 received") {
		t.Errorf("node with its fabric address to pod: %s", out)
	}
	f.network.Masquerade = false
	f.setAll()
	if out := f.sh(n1.ns, "nft list chain inet ropeway nat"); strings.Contains(out, "masquerade") {
		t.Errorf("translation is off, and the rules say\n%s", out)
	}
}

// TestMarkedFlows: what kube-proxy marks for masquerading comes back to this
// node whatever the transport, and lives through a change of it.
func TestMarkedFlows(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	n1, n2 := f.nodes[0], f.nodes[1]
	b, local := n2.addPod(1500), n1.addPod(1500)
	// What kube-proxy does for two NodePorts, with its masquerade behind ours.
	f.sh(n1.ns, fmt.Sprintf(`nft -f - <<X
table ip kube-proxy {
	chain nat-prerouting { type nat hook prerouting priority dstnat;
		tcp dport 30080 meta mark set meta mark | 0x4000 dnat to %s:80
		tcp dport 30081 meta mark set meta mark | 0x4000 dnat to %s:80
	}
	chain masquerading { type nat hook postrouting priority srcnat;
		meta mark & 0x4000 == 0 return
		meta mark set meta mark xor 0x4000
		masquerade fully-random
	}
}
X`, b.v4, local.v4))
	l := f.listen(b.ns, b.v4.String()+":80")
	client, err := f.dial(f.outside, n1.address()+":30080")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if seen, _, _ := net.SplitHostPort(server.RemoteAddr().String()); seen != n1.source().String() {
		t.Errorf("the pod sees %s, want the node's pod-network address %s", seen, n1.source())
	}
	for range 3 {
		f.network.Transports[0], f.network.Transports[1] = f.network.Transports[1], f.network.Transports[0]
		f.setAll()
		echo(t, client, server)
		download(t, server, client)
	}
	onNode := f.listen(local.ns, local.v4.String()+":80")
	near, err := f.dial(f.outside, n1.address()+":30081")
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	c, err := onNode.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo(t, near, c)
}

// counter returns how many packets the rules with the comment have matched.
func (n *testNode) counter(t *testing.T, chain, comment string) int {
	t.Helper()
	sum, found := 0, false
	for _, line := range strings.Split(n.f.sh(n.ns, "nft list chain inet ropeway "+chain), "\n") {
		var packets int
		if i := strings.Index(line, "counter packets "); i >= 0 && strings.Contains(line, comment) {
			fmt.Sscanf(line[i:], "counter packets %d", &packets)
			sum, found = sum+packets, true
		}
	}
	if !found {
		t.Fatalf("no counter for %q in chain %s", comment, chain)
	}
	return sum
}

// TestPodsCannotPretend holds invariant 10: a pod sends only from its own
// addresses, and cannot inject into the overlay.
func TestPodsCannotPretend(t *testing.T) {
	b := newBench(t, Options{})
	other := b.node.addPod(1500)
	counted := func(chain, comment string) int { return b.node.counter(t, chain, comment) }
	say := func(src, dst netip.Addr, protocol byte, payload []byte) {
		b.sendFromPod(packet4{id: 1, ttl: 64, protocol: protocol, src: src, dst: dst, payload: payload})
	}
	hello := udp(1, 2, []byte("hello"))
	for i, src := range []string{other.v4.String(), "10.244.1.200", "10.244.2.10", "192.168.1.2", "10.244.1.1", outsideAddress, "127.0.0.1", "0.0.0.0"} {
		say(addr(src), addr("10.244.2.10"), unix.IPPROTO_UDP, hello)
		eventually(t, "a packet from "+src+" is dropped", func() bool {
			return counted("from_pods", "not the pod's address") == i+1
		})
	}
	node := addr("192.168.2.2")
	inject := b.inner().bytes()
	say(b.pod.v4, node, unix.IPPROTO_IPIP, inject)
	eventually(t, "ipip to a node is dropped", func() bool { return counted("tunnels", "ipip to a node") == 1 })
	say(b.pod.v4, node, unix.IPPROTO_UDP, udp(1, 4789, vxlanFrame(4096, unix.ETH_P_IP, inject)))
	eventually(t, "vxlan to a node is dropped", func() bool { return counted("tunnels", "vxlan to a node") == 1 })
	for i, own := range []netip.Addr{addr("192.168.1.2"), b.node.source()} {
		say(b.pod.v4, own, unix.IPPROTO_UDP, udp(1, 4789, vxlanFrame(4096, unix.ETH_P_IP, inject)))
		eventually(t, "vxlan to the pod's own node is dropped", func() bool { return counted("vxlan_guard", "no node") == i+1 })
		say(b.pod.v4, own, unix.IPPROTO_IPIP, inject)
		eventually(t, "ipip to the pod's own node is dropped", func() bool { return counted("in_ip", "into the node") == i+1 })
	}
	// From a pod of another node, too: its packet is taken out of our tunnel.
	far := b.inner()
	far.protocol, far.dst, far.payload = unix.IPPROTO_IPIP, b.node.source(), inject
	b.sendIn(b.ipip(far.bytes()))
	eventually(t, "ipip of another node's pod is dropped", func() bool { return counted("in_ip", "into the node") == 3 })
	say(b.pod.v4, addr("100.100.100.200"), unix.IPPROTO_UDP, hello)
	eventually(t, "the metadata service is out of reach", func() bool { return counted("forwarded", "metadata") == 1 })
	// By a Service that resolves to a node's address, too.
	b.sh(b.node.ns, "nft add table ip svc; nft add chain ip svc pre '{ type nat hook prerouting priority dstnat; }'; "+
		"nft add rule ip svc pre ip daddr 10.96.0.9 dnat to 192.168.2.2")
	say(b.pod.v4, addr("10.96.0.9"), unix.IPPROTO_UDP, udp(1, 4789, vxlanFrame(4096, unix.ETH_P_IP, inject)))
	eventually(t, "vxlan to a node by a Service is dropped", func() bool { return counted("tunnels", "vxlan to a node") == 2 })
	// And what is right still passes.
	say(b.pod.v4, addr("10.244.2.10"), unix.IPPROTO_UDP, hello)
	b.wire.receive(func(p []byte) bool { return p[0]>>4 == 4 && p[9] == unix.IPPROTO_IPIP })
	if n := b.count("ipip_received"); n != 1 {
		t.Errorf("%d ipip packets were decapsulated, want that of another node only", n)
	}
}

// TestSegmentsFitEveryTransport: TCP between pods, and from nodes to pods, is
// clamped to the smallest allowed transport although ipip, with more room, is in
// use.
func TestSegmentsFitEveryTransport(t *testing.T) {
	f := newFabric(t, 2, plan.IPIP, plan.VXLAN)
	f.setAll()
	a, b, near := f.nodes[0].addPod(1500), f.nodes[1].addPod(1500), f.nodes[0].addPod(1500)
	for _, c := range []struct {
		from *netnstest.NS
		to   *testPod
		want int
	}{{a.ns, b, 1450 - 40}, {a.ns, near, 1500 - 40}, {f.nodes[0].ns, b, 1450 - 40}} {
		f.segments(c.from, c.to.ns, c.to.v4, c.want)
	}
}

// segments fails the test unless both ends of a connection send segments of up to
// so many bytes, less options.
func (f *fabric) segments(from, to *netnstest.NS, address netip.Addr, want int) {
	f.t.Helper()
	target := netip.AddrPortFrom(address, 80).String()
	l := f.listen(to, target)
	defer l.Close() // the address is asked for again
	client, err := f.dial(from, target)
	if err != nil {
		f.t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	defer server.Close()
	for end, c := range map[string]net.Conn{"client": client, "server": server} {
		if got := maxSegment(f.t, c); got > want || got < want-20 {
			f.t.Errorf("the %s's segments to or from %s have up to %d bytes, want %d less options", end, address, got, want)
		}
	}
}

// TestTCPAcrossALimitedPath: where the fabric loses large packets without a word,
// and only one of two nodes knows how large they may be, TCP fits from the first
// segment, whoever sends; by other paths it keeps its size.
func TestTCPAcrossALimitedPath(t *testing.T) {
	f := newFabric(t, 3, plan.IPIP)
	// Received packets are not merged, or their length would not be the wire's.
	f.sh(f.router, `ethtool -K n1 gro off; ethtool -K n2 gro off; nft -f - <<X
table inet path {
	chain forward { type filter hook forward priority 0;
		iifname n2 meta length > 1400 counter drop
		oifname n2 meta length > 1400 counter drop
	}
}
X`)
	f.setAll()
	n := f.nodes[0]
	state := plan.Compute(f.snapshot(n))
	for i, r := range state.Routes {
		if r.Peer == f.nodes[1].name() {
			state.Routes[i].MTU = plan.RouteMTU(state.MTU, r.Transport, plan.IPv4, 1400)
		}
	}
	if err := n.ns.Do(func() error { _, err := n.dataplane.Set(t.Context(), state); return err }); err != nil {
		t.Fatal(err)
	}
	a, b, c := n.addPod(1500), f.nodes[1].addPod(1500), f.nodes[2].addPod(1500)
	for _, ends := range [][2]*testPod{{a, b}, {b, a}} {
		from, to := ends[0], ends[1]
		f.segments(from.ns, to.ns, to.v4, 1380-tcpIPv4)
		f.segments(from.ns, to.ns, to.v6, 1350-tcpIPv6)
		for _, address := range []netip.Addr{to.v4, to.v6} {
			if _, _, err := f.transfer(from.ns, to.ns, netip.AddrPortFrom(address, 80).String(), 1<<20); err != nil {
				t.Errorf("TCP from %s to %s: %v", from.v4, address, err)
			}
		}
	}
	f.segments(n.ns, b.ns, b.v4, 1380-tcpIPv4)
	f.segments(a.ns, c.ns, c.v4, 1450-tcpIPv4)
	if out := f.sh(f.router, "nft list chain inet path forward"); strings.Count(out, "counter packets 0 ") != 2 {
		t.Errorf("large packets got lost:\n%s", out)
	}
}

func maxSegment(t *testing.T, c net.Conn) (mss int) {
	t.Helper()
	err := control(c, func(fd int) (err error) {
		mss, err = unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mss
}

// download sends much over a connection: what the node decapsulates leaves it
// again as large packets.
func download(t *testing.T, from, to net.Conn) {
	t.Helper()
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(i * i >> 8)
	}
	from.SetDeadline(time.Now().Add(10 * time.Second))
	to.SetDeadline(time.Now().Add(10 * time.Second))
	go from.Write(data)
	got := make([]byte, len(data))
	if _, err := io.ReadFull(to, got); err != nil {
		t.Fatalf("download: %v", err)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("download: the data was not what was sent")
	}
}
