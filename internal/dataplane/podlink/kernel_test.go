package podlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
)

// node puts the test into a namespace that forwards, as a node does.
func node(t testing.TB) *netnstest.NS {
	t.Helper()
	ns := netnstest.New(t)
	ns.Enter(t)
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := writeSysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"10.88.0.1/32", "fd88::1/128"} {
		addr, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
	}
	h, err := rtnl.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := waitLocal(h, netip.MustParseAddr("fd88::1"), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	return ns
}

func config(pod *netnstest.NS, id string, addrs ...string) Config {
	c := Config{
		Attachment: cniwire.Attachment{Network: "rwt", ContainerID: id, IfName: "eth0"},
		Pod:        cniwire.Pod{Namespace: "default", Name: "pod-" + id, UID: "uid-" + id},
		Netns:      pod.Path(), MTU: 1450,
	}
	for _, a := range addrs {
		c.Addresses = append(c.Addresses, netip.MustParseAddr(a))
	}
	return c
}

// snapshot is everything that a wiring could leave in the current namespace.
func snapshot(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, args := range [][]string{
		{"-br", "link"}, {"-br", "addr"}, {"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"neigh"}, {"-6", "neigh"},
	} {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		fmt.Fprintf(&b, "# ip %s\n", strings.Join(args, " "))
		for line := range strings.Lines(string(out)) {
			b.WriteString(settled(args, line))
		}
	}
	return b.String()
}

// settled drops what the kernel changes a moment later by itself: a link's
// operational state, and the multicast route that follows it.
func settled(args []string, line string) string {
	if strings.HasPrefix(line, "multicast ff00::/8") {
		return ""
	}
	if f := strings.Fields(line); args[0] == "-br" && len(f) > 1 {
		f[1] = ""
		if args[1] == "link" {
			f = f[:min(len(f), 3)]
		}
		return strings.Join(f, " ") + "\n"
	}
	return line
}

func snapshotIn(t testing.TB, ns *netnstest.NS) string {
	t.Helper()
	var s string
	if err := ns.Do(func() error { s = snapshot(t); return nil }); err != nil {
		t.Fatal(err)
	}
	return s
}

func ping(from *netnstest.NS, to string, args ...string) error {
	return from.Do(func() error {
		out, err := exec.Command("ping", append([]string{"-c", "1", "-W", "2", to}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ping %s: %w: %s", to, err, out)
		}
		return nil
	})
}

func mustAdd(t testing.TB, c Config) Result {
	t.Helper()
	r, err := Add(c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// CNI specification 1.1.0, ADD and CHECK.
func TestAddIsWhatCheckExpects(t *testing.T) {
	for _, tt := range []struct {
		name  string
		addrs []string
	}{
		{"IPv4", []string{"10.88.0.2"}},
		{"IPv6", []string{"fd88::2"}},
		{"dual", []string{"10.88.0.2", "fd88::2"}},
		{"two of a family", []string{"10.88.0.2", "10.88.0.9"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := node(t)
			before := snapshot(t)
			pod := netnstest.New(t)
			c := config(pod, "a", tt.addrs...)
			r := mustAdd(t, c)
			if r.HostName != HostLinkName("rwt", "a", "eth0") {
				t.Errorf("host end %s", r.HostName)
			}
			if err := Check(c); err != nil {
				t.Errorf("Check after Add: %v", err)
			}
			for _, a := range tt.addrs {
				if err := ping(n, a); err != nil {
					t.Errorf("the node does not reach its pod: %v", err)
				}
			}
			for range 2 { // DEL is idempotent
				if err := Del(c.Attachment, c.Netns); err != nil {
					t.Fatal(err)
				}
			}
			if after := snapshot(t); after != before {
				t.Errorf("DEL left something on the node:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// Pods on one node reach one another, and nobody asks who is where: no proxy
// ARP, no broadcast, and nothing to forge.
func TestPodsTalkWithoutResolution(t *testing.T) {
	node(t)
	p1, p2 := netnstest.New(t), netnstest.New(t)
	r1 := mustAdd(t, config(p1, "a", "10.88.0.2", "fd88::2"))
	mustAdd(t, config(p2, "b", "10.88.0.3", "fd88::3"))
	frames := capture(t, r1.HostName)
	for _, to := range []string{"10.88.0.3", "fd88::3", "10.88.0.1", "fd88::1"} {
		if err := ping(p1, to); err != nil {
			t.Error(err)
		}
	}
	seen := frames()
	if seen.total == 0 {
		t.Error("the capture saw nothing: the test proves nothing")
	}
	if seen.arp != 0 || seen.solicitations != 0 {
		t.Errorf("%d ARP frames and %d neighbour solicitations; every neighbour is permanent", seen.arp, seen.solicitations)
	}
	if proxied, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + r1.HostName + "/proxy_arp"); err != nil || strings.TrimSpace(string(proxied)) != "0" {
		t.Errorf("proxy_arp = %s, %v", proxied, err)
	}
}

type seen struct{ total, arp, solicitations int }

// capture counts frames on a link of the current namespace until the returned
// function is called.
func capture(t *testing.T, link string) func() seen {
	t.Helper()
	l, err := netlinksafe.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return func() seen {
		var s seen
		buf := make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				return s
			}
			s.count(buf[:n])
		}
	}
}

func (s *seen) count(frame []byte) {
	if len(frame) < 14 {
		return
	}
	s.total++
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		s.arp++
	case unix.ETH_P_IPV6:
		// From ::, it is the duplicate address detection of the pod's own
		// link-local address (RFC 4862), which asks about nobody else.
		if ip := frame[14:]; len(ip) > 40 && ip[6] == unix.IPPROTO_ICMPV6 && ip[40] == 135 && netip.AddrFrom16([16]byte(ip[8:24])) != netip.IPv6Unspecified() {
			s.solicitations++
		}
	}
}

// CNI specification 1.1.0, ADD: all or nothing, whichever step fails.
func TestFailureAtEachStepLeavesNothing(t *testing.T) {
	for i, s := range (&wiring{}).steps() {
		t.Run(s.name, func(t *testing.T) {
			node(t)
			pod := netnstest.New(t)
			beforeNode, beforePod := snapshot(t), snapshotIn(t, pod)
			injected := errors.New("injected")
			c := config(pod, "a", "10.88.0.2", "fd88::2")
			sandbox, err := Open(c.Attachment, c.Netns)
			if err != nil {
				t.Fatal(err)
			}
			defer sandbox.Close()
			w := &wiring{Config: c, netns: sandbox.netns, host: sandbox.host, after: func(step string) error {
				if step == s.name {
					return injected
				}
				return nil
			}}
			_, err = w.add()
			if !errors.Is(err, injected) || !strings.Contains(err.Error(), s.name) {
				t.Fatalf("step %d: got %v", i, err)
			}
			if after := snapshot(t); after != beforeNode {
				t.Errorf("left on the node:\n%s\nbefore:\n%s", after, beforeNode)
			}
			if after := snapshotIn(t, pod); after != beforePod {
				t.Errorf("left in the pod:\n%s\nbefore:\n%s", after, beforePod)
			}
			mustAdd(t, config(pod, "a", "10.88.0.2", "fd88::2")) // and it can be tried again
		})
	}
}

func TestAddTwice(t *testing.T) {
	node(t)
	pod := netnstest.New(t)
	c := config(pod, "a", "10.88.0.2")
	mustAdd(t, c)
	if _, err := Add(c); !errors.Is(err, ErrExists) {
		t.Errorf("got %v, want ErrExists", err)
	}
	if err := Check(c); err != nil {
		t.Errorf("the first wiring was harmed: %v", err)
	}
}

// CNI specification 1.1.0, ADD: an interface of that name in the container is
// an error.
func TestInterfaceExists(t *testing.T) {
	node(t)
	pod := netnstest.New(t)
	mustAdd(t, config(pod, "a", "10.88.0.2"))
	before := snapshot(t)
	if _, err := Add(config(pod, "b", "10.88.0.3")); !errors.Is(err, ErrInterfaceExists) {
		t.Errorf("got %v, want ErrInterfaceExists", err)
	}
	if after := snapshot(t); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

// Invariant 1: no address is ever held by two running pods.
func TestAddressTaken(t *testing.T) {
	for _, addr := range []string{"10.88.0.2", "fd88::2"} {
		t.Run(addr, func(t *testing.T) {
			node(t)
			p1, p2 := netnstest.New(t), netnstest.New(t)
			first := config(p1, "a", addr)
			r := mustAdd(t, first)
			before := snapshot(t)
			_, err := Add(config(p2, "b", addr))
			var taken *TakenError
			if !errors.As(err, &taken) || taken.Link != r.HostName {
				t.Errorf("got %v, want a *TakenError that names %s", err, r.HostName)
			}
			if after := snapshot(t); after != before {
				t.Errorf("left:\n%s\nbefore:\n%s", after, before)
			}
			if err := Check(first); err != nil {
				t.Errorf("the holder was harmed: %v", err)
			}
		})
	}
}

func TestSecondInterface(t *testing.T) {
	node(t)
	pod := netnstest.New(t)
	mustAdd(t, config(pod, "a", "10.88.0.2"))
	second := config(pod, "a", "10.88.1.2")
	second.Attachment.IfName = "net1"
	if _, err := Add(second); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "ipam.routes") {
		t.Errorf("a second default route: got %v", err)
	}
	second.Routes = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}
	mustAdd(t, second)
	if err := Check(second); err != nil {
		t.Error(err)
	}
}

func TestNamespacesThatAreNone(t *testing.T) {
	self := node(t)
	file := filepath.Join(t.TempDir(), "left-behind")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	gone := netnstest.New(t)
	gone.Close()
	for _, tt := range []struct {
		name, path string
		want       error
	}{
		{"nothing there", filepath.Join(t.TempDir(), "none"), ErrNoNetns},
		{"empty", "", ErrNoNetns},
		{"a mount point left behind", file, ErrNoNetns},
		{"another kind of namespace", "/proc/self/ns/uts", ErrNoNetns},
		{"the node's own", "/proc/thread-self/ns/net", ErrHostNetns},
	} {
		t.Run(tt.name, func(t *testing.T) {
			self.Enter(t)
			c := config(gone, "a", "10.88.0.2")
			c.Netns = tt.path
			if _, err := Add(c); !errors.Is(err, tt.want) {
				t.Errorf("Add: got %v, want %v", err, tt.want)
			}
			if err := Del(c.Attachment, tt.path); err != nil {
				t.Errorf("Del: %v (CNI specification 1.1.0, DEL: success without the namespace)", err)
			}
		})
	}
}

// CNI specification 1.1.0, DEL: the namespace may have vanished.
func TestDelAfterTheNamespace(t *testing.T) {
	node(t)
	before := snapshot(t)
	pod := netnstest.New(t)
	c := config(pod, "a", "10.88.0.2")
	mustAdd(t, c)
	pod.Close()
	if err := Del(c.Attachment, c.Netns); err != nil {
		t.Fatal(err)
	}
	if after := snapshot(t); after != before {
		t.Errorf("left:\n%s", after)
	}
}

func TestNamespaceSettings(t *testing.T) {
	node(t)
	if err := writeSysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
		t.Fatal(err)
	}
	pod := netnstest.New(t)
	read := func(key string) string {
		var out []byte
		if err := pod.Do(func() (err error) { out, err = os.ReadFile("/proc/sys/" + key); return err }); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	if err := pod.Do(func() error { return writeSysctl("net/ipv6/conf/default/disable_ipv6", "1") }); err != nil {
		t.Fatal(err)
	}
	c := config(pod, "a", "10.88.0.2", "fd88::2")
	c.Queues = 2
	for _, forward := range []string{"1", "0"} {
		yes := forward == "1"
		c.Forwarding = &yes
		mustAdd(t, c)
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if got := read(key); got != forward {
				t.Errorf("%s = %s, want %s", key, got, forward)
			}
		}
		if got := read("net/ipv6/conf/eth0/disable_ipv6"); got != "0" {
			t.Errorf("IPv6 stays disabled in the pod (%s)", got)
		}
		if err := Check(c); err != nil {
			t.Error(err)
		}
		if err := Del(c.Attachment, c.Netns); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpen(t *testing.T) {
	node(t)
	pod := netnstest.New(t)
	c := config(pod, "a", "10.88.0.2")
	open := func(path string) error {
		s, err := Open(c.Attachment, path)
		if err == nil {
			s.Close()
		}
		return err
	}
	if err := open(c.Netns); err != nil {
		t.Error(err)
	}
	mustAdd(t, c)
	if err := open(c.Netns); !errors.Is(err, ErrExists) {
		t.Errorf("got %v, want ErrExists", err)
	}
	if err := open("/proc/thread-self/ns/net"); !errors.Is(err, ErrHostNetns) {
		t.Errorf("got %v, want ErrHostNetns", err)
	}
	if err := open("/run/netns/rwt-none"); !errors.Is(err, ErrNoNetns) {
		t.Errorf("got %v, want ErrNoNetns", err)
	}
}

// IPv4 needs less than IPv6 (RFC 791, RFC 8200): the kernel has no IPv6 at all
// on such a link, and says so to whoever asks.
func TestMTUBelowIPv6(t *testing.T) {
	n := node(t)
	pod := netnstest.New(t)
	c := config(pod, "a", "10.88.0.2")
	c.MTU = 1000
	mustAdd(t, c)
	if err := errors.Join(Check(c), ping(n, "10.88.0.2", "-M", "do", "-s", "972")); err != nil {
		t.Error(err)
	}
}

// Many pods start at once on a node.
func TestConcurrently(t *testing.T) {
	n := node(t)
	const pods = 12
	before := snapshot(t)
	configs := make([]Config, pods)
	for i := range configs {
		configs[i] = config(netnstest.New(t), fmt.Sprint("c", i), fmt.Sprintf("10.88.2.%d", i+2), fmt.Sprintf("fd88::2:%x", i+2))
	}
	each := func(do func(Config) error) {
		t.Helper()
		errs := make(chan error, pods)
		for _, c := range configs {
			go func() { errs <- n.Do(func() error { return do(c) }) }()
		}
		for range configs {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
	each(func(c Config) error { _, err := Add(c); return err })
	each(Check)
	if links, err := List(); err != nil || len(links) != pods {
		t.Errorf("%d links, %v", len(links), err)
	}
	start := time.Now()
	each(func(c Config) error { return Del(c.Attachment, c.Netns) })
	t.Logf("%d concurrent Dels took %s", pods, time.Since(start))
	if after := snapshot(t); after != before {
		t.Errorf("left:\n%s", after)
	}
}

func TestAliasThatDoesNotFitChangesNothing(t *testing.T) {
	node(t)
	before := snapshot(t)
	c := config(netnstest.New(t), "a", "10.88.0.2")
	c.Attachment.Network = strings.Repeat("n", 300)
	if _, err := Add(c); !errors.Is(err, ErrAliasTooLong) {
		t.Errorf("got %v, want ErrAliasTooLong", err)
	}
	if after := snapshot(t); after != before {
		t.Errorf("left:\n%s", after)
	}
}
