package dataplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/plan"
)

// fabric is a router namespace with nodes around it, each in a subnet of its
// own: node i has 192.168.i.2 and fd00:i::2, and the pod CIDRs 10.244.i.0/24
// and fd00:244:0:i::/64. Behind the router lies an outside with 203.0.113.1.
// The router forwards to nodes and the outside only, like a VPC.
type fabric struct {
	t       *testing.T
	router  *netnstest.NS
	outside *netnstest.NS
	nodes   []*testNode
	network plan.Network
	bpffs   string
	probes  []plan.Probe
	pods    []plan.LocalPod // of every node
	// onSwitch puts the nodes on one layer-2 network, with the router beside them.
	onSwitch bool
	// underlay6 gives nodes IPv6 addresses only.
	underlay6 bool
}

type testNode struct {
	f         *fabric
	index     int
	ns        *netnstest.NS
	dataplane *Linux
	state     string
	pods      []*testPod
	gone      bool
}

type testPod struct {
	node   *testNode
	ns     *netnstest.NS
	v4, v6 netip.Addr
	link   string // of the host's end
}

const outsideAddress = "203.0.113.1"

func (n *testNode) name() string     { return fmt.Sprintf("node-%d", n.index) }
func (n *testNode) address() string  { return fmt.Sprintf("192.168.%d.2", n.index) }
func (n *testNode) address6() string { return fmt.Sprintf("fd00:%d::2", n.index) }
func (n *testNode) cidr() netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n.index))
}
func (n *testNode) cidr6() netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("fd00:244:0:%d::/64", n.index))
}
func (n *testNode) source() netip.Addr { return plan.SourceOf(n.cidr()) }

func newFabric(t *testing.T, nodes int, transports ...plan.Transport) *fabric {
	t.Helper()
	f := emptyFabric(t, transports...)
	for i := 1; i <= nodes; i++ {
		f.addNode(i)
	}
	return f
}

// newSwitchFabric has the nodes of newFabric in one subnet, on a bridge.
func newSwitchFabric(t *testing.T, nodes int, transports ...plan.Transport) *fabric {
	t.Helper()
	f := emptyFabric(t, transports...)
	f.onSwitch = true
	f.sh(f.router, "ip link add switch type bridge; ip addr add 192.168.255.1/16 dev switch; "+
		"ip addr add fd00:f::1/28 dev switch nodad; ip link set switch up")
	for i := 1; i <= nodes; i++ {
		f.addNode(i)
	}
	return f
}

func emptyFabric(t *testing.T, transports ...plan.Transport) *fabric {
	t.Helper()
	f := &fabric{t: t, router: netnstest.New(t), outside: netnstest.New(t), bpffs: filepath.Join(t.TempDir(), "bpf")}
	f.network = plan.Network{
		PodCIDRs:   []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:244::/48")},
		NodeCIDR:   true,
		Transports: transports, VXLANPort: 4789, VXLANVNI: 4096,
		MTU: plan.MTUPolicy{Mode: plan.MTUPerRoute}, Masquerade: true,
	}
	t.Cleanup(func() { unix.Unmount(f.bpffs, unix.MNT_DETACH) })
	f.sh(f.router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	f.wire(f.outside, "out", "203.0.113.254/24", outsideAddress+"/24", "2001:db8::fe/64", "2001:db8::1/64")
	return f
}

// wire connects a namespace's eth0 with a device of the router. Packets on it
// are as large as on a real wire. Its ends are as those of machines that have been
// up for a while: the detection of duplicate addresses, during which nobody is
// asked for on behalf of forwarded packets, is over.
func (f *fabric) wire(ns *netnstest.NS, device, routerAddr, addr, routerAddr6, addr6 string) {
	f.t.Helper()
	f.sh(f.router, "ip link add "+device+" type veth peer name eth0 netns "+ns.Path())
	f.sh(f.router, "sysctl -qw net.ipv6.conf."+device+".accept_dad=0; ip addr add "+routerAddr+" dev "+device+"; ip addr add "+routerAddr6+" dev "+device+" nodad; ip link set "+device+" up")
	gw, _, _ := strings.Cut(routerAddr, "/")
	gw6, _, _ := strings.Cut(routerAddr6, "/")
	f.sh(ns, "sysctl -qw net.ipv6.conf.eth0.accept_dad=0; ip addr add "+addr+" dev eth0; ip addr add "+addr6+" dev eth0 nodad; ip link set eth0 up; "+
		"ip route add default via "+gw+"; ip -6 route add default via "+gw6)
	for _, end := range []struct {
		ns  *netnstest.NS
		dev string
	}{{f.router, device}, {ns, "eth0"}} {
		if err := end.ns.Do(func() error { return wireSized(end.dev) }); err != nil {
			f.t.Fatalf("switch segmentation offload off: %v", err)
		}
	}
}

func (f *fabric) addNode(i int) *testNode {
	f.t.Helper()
	n := &testNode{f: f, index: i, ns: netnstest.New(f.t), state: f.t.TempDir()}
	device := fmt.Sprintf("n%d", i)
	if f.onSwitch {
		f.wire(n.ns, device, "192.168.255.1/16", n.address()+"/16", "fd00:f::1/28", n.address6()+"/28")
		f.sh(f.router, "ip addr flush dev "+device+"; ip link set "+device+" master switch")
	} else {
		f.wire(n.ns, device, fmt.Sprintf("192.168.%d.1/24", i), n.address()+"/24",
			fmt.Sprintf("fd00:%d::1/64", i), n.address6()+"/64")
	}
	n.dataplane = n.open(Options{})
	f.t.Cleanup(func() { n.dataplane.Close() })
	f.nodes = append(f.nodes, n)
	return n
}

func (n *testNode) open(o Options) *Linux {
	n.f.t.Helper()
	o.BPFPinDir, o.StateDir = filepath.Join(n.f.bpffs, n.name()), n.state
	if testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(n.f.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", n.name())
	}
	l, err := New(o)
	if err != nil {
		n.f.t.Fatalf("New: %v", err)
	}
	return l
}

func (f *fabric) snapshot(self *testNode) plan.Snapshot {
	s := plan.Snapshot{Self: self.name(), Network: f.network, Probes: plan.PublishAll(f.probes), Pods: f.pods}
	for _, n := range f.nodes {
		if n.gone {
			continue
		}
		addresses := []netip.Addr{netip.MustParseAddr(n.address()), netip.MustParseAddr(n.address6())}
		if f.underlay6 {
			addresses = addresses[1:]
		}
		s.Nodes = append(s.Nodes, plan.Node{
			Name: n.name(), UID: "uid-" + n.name(), Ready: true,
			Addresses: addresses,
			NodeCIDRs: []netip.Prefix{n.cidr(), n.cidr6()},
			Sources:   []netip.Addr{plan.SourceOf(n.cidr()), plan.SourceOf(n.cidr6())},
			VTEP:      plan.VTEPMAC("uid-" + n.name()),
		})
	}
	return s
}

// set applies the plan on a node, and returns what Set said.
func (n *testNode) set() (report Report, err error) {
	n.f.t.Helper()
	want := plan.Compute(n.f.snapshot(n))
	inErr := n.ns.Do(func() error {
		report, err = n.dataplane.Set(context.Background(), want)
		return nil
	})
	if inErr != nil {
		n.f.t.Fatalf("enter %s: %v", n.name(), inErr)
	}
	return report, err
}

// setAll applies the plan on all nodes.
func (f *fabric) setAll() {
	f.t.Helper()
	for _, n := range f.nodes {
		if n.gone {
			continue
		}
		if r, err := n.set(); err != nil || len(r.Failed) > 0 {
			f.t.Fatalf("Set on %s: %v; report %+v", n.name(), err, r)
		}
	}
}

func (n *testNode) addPod(mtu int) *testPod {
	n.f.t.Helper()
	p := &testPod{node: n, ns: netnstest.New(n.f.t)}
	host := byte(10 + len(n.pods))
	v4, v6 := n.cidr().Addr().As4(), n.cidr6().Addr().As16()
	v4[3], v6[15] = host, host
	p.v4, p.v6 = netip.AddrFrom4(v4), netip.AddrFrom16(v6)
	err := n.ns.Do(func() error {
		r, err := podlink.Add(podlink.Config{
			Attachment: cniwire.Attachment{Network: "rwt", ContainerID: p.v4.String(), IfName: "eth0"},
			Netns:      p.ns.Path(), MTU: mtu, Addresses: []netip.Addr{p.v4, p.v6},
		})
		p.link = r.HostName
		return err
	})
	if err != nil {
		n.f.t.Fatalf("add pod %s: %v", p.v4, err)
	}
	n.pods = append(n.pods, p)
	// A veth drops what it gets until the kernel has told it that its other end
	// is up, which takes some milliseconds on a busy machine.
	for _, end := range []struct {
		ns   *netnstest.NS
		name string
	}{{n.ns, p.link}, {p.ns, "eth0"}} {
		eventually(n.f.t, end.name+" of "+p.v4.String()+" is up", func() bool {
			up := false
			end.ns.Do(func() error {
				l, err := netlink.LinkByName(end.name)
				up = err == nil && l.Attrs().OperState == netlink.OperUp
				return err
			})
			return up
		})
	}
	return p
}

// run executes a shell command in a namespace.
func (f *fabric) run(ns *netnstest.NS, script string) (string, error) {
	var out bytes.Buffer
	err := ns.Do(func() error {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd.Run()
	})
	return out.String(), err
}

// sh is run for what must work.
func (f *fabric) sh(ns *netnstest.NS, script string) string {
	f.t.Helper()
	out, err := f.run(ns, script)
	if err != nil {
		f.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// ping fails the test unless all of three echoes come back.
func (f *fabric) ping(from *netnstest.NS, to string, args ...string) {
	f.t.Helper()
	if out, err := f.run(from, "ping -q -c 3 -i 0.05 -W 2 "+strings.Join(args, " ")+" "+to); err != nil || !strings.Contains(out, "3 received") {
		f.t.Errorf("ping %s: %v\n%s", to, err, out)
	}
}

// noPing fails the test if an echo comes back.
func (f *fabric) noPing(from *netnstest.NS, to string, args ...string) {
	f.t.Helper()
	if out, err := f.run(from, "ping -q -c 2 -i 0.05 -W 1 "+strings.Join(args, " ")+" "+to); err == nil {
		f.t.Errorf("ping %s was answered:\n%s", to, out)
	}
}

// wireSized switches segmentation offload off and receive offload on, so that
// packets between nodes are as large as they would be on a wire.
func wireSized(device string) error {
	const (
		setTSO = 0x1f // ETHTOOL_STSO
		setGSO = 0x24
		setGRO = 0x2c
	)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, v := range [][2]uint32{{setTSO, 0}, {setGSO, 0}, {setGRO, 1}} {
		value := v
		var req struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(req.name[:], device)
		req.data = unsafe.Pointer(&value)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return fmt.Errorf("ethtool %#x of %s: %w", v[0], device, errno)
		}
	}
	return nil
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(5 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("not within 5 s: %s", what)
		case <-tick.C:
		}
	}
}

// listen opens a TCP listener in a namespace.
func (f *fabric) listen(ns *netnstest.NS, address string) net.Listener {
	f.t.Helper()
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		f.t.Fatalf("listen: %v", err)
	}
	f.t.Cleanup(func() { l.Close() })
	return l
}

// dial opens a TCP connection from a namespace.
func (f *fabric) dial(ns *netnstest.NS, address string) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", address, 3*time.Second)
		return err
	})
	return c, err
}

// transfer sends bytes over TCP from a namespace to a listener in another, which
// answers with what it got; it returns the time that it took, and the address
// that the listener saw.
func (f *fabric) transfer(from, to *netnstest.NS, address string, size int) (took time.Duration, seen string, err error) {
	f.t.Helper()
	l := f.listen(to, address)
	defer l.Close()
	got := make(chan []byte, 1)
	go func() {
		defer close(got)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		seen, _, _ = net.SplitHostPort(c.RemoteAddr().String())
		sum := sha256.New()
		io.Copy(sum, c)
		c.Write(sum.Sum(nil))
		got <- sum.Sum(nil)
	}()
	c, err := f.dial(from, address)
	if err != nil {
		return 0, "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	data := make([]byte, size)
	rand.Read(data)
	want := sha256.Sum256(data)
	start := time.Now()
	if _, err := c.Write(data); err != nil {
		return 0, "", err
	}
	c.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(c)
	if err != nil {
		return 0, "", err
	}
	<-got
	if !bytes.Equal(answer, want[:]) {
		return 0, seen, errors.New("the data was not what was sent")
	}
	return time.Since(start), seen, nil
}
