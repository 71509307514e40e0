package vpc

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// patience is how long a test waits for something that should be there at once.
const patience = 5 * time.Second

var labs atomic.Int32

// newLab returns a lab name that no other test of this machine uses.
func newLab() string { return fmt.Sprintf("rwt%d-%d", os.Getpid(), labs.Add(1)) }

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// threeHosts has two hosts in one subnet and one in another, in both families.
func threeHosts(lab string) Spec {
	host := func(name string, addresses ...string) Host {
		return Host{Name: name, Netns: "rwlab-" + lab + "-" + name, Addresses: prefixes(addresses...)}
	}
	return Spec{
		Lab:      lab,
		PodCIDRs: prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		Hosts: []Host{
			host("a", "192.168.0.1/24", "fd00:1::1/64"),
			host("b", "192.168.1.1/24", "fd00:2::1/64"),
			host("c", "192.168.0.2/24", "fd00:1::2/64"),
		},
	}
}

// bringLabUp makes a VPC that the end of the test takes down, and sees that nothing is left.
func bringLabUp(t *testing.T, spec Spec) {
	t.Helper()
	netnstest.NeedRoot(t)
	if err := Up(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(context.Background(), spec.Lab); err != nil {
			t.Error(err)
		}
		wantNothingLeft(t, spec.Lab)
	})
}

// leftovers are the names in the directory of namespaces that belong to a lab.
func leftovers(t *testing.T, lab string) []string {
	t.Helper()
	names, err := filepath.Glob(netnsPath("rwlab-" + lab + "-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func wantNothingLeft(t *testing.T, lab string) {
	t.Helper()
	if left := leftovers(t, lab); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "rwlab-"+lab+"-") {
		t.Errorf("mounts of lab %s are left behind", lab)
	}
}

func (s Spec) netnsOf(t *testing.T, host string) string {
	t.Helper()
	for _, h := range s.Hosts {
		if h.Name == host {
			return h.Netns
		}
	}
	if host != OutsideHost {
		t.Fatalf("no host %q in the test's VPC", host)
	}
	return OutsideNetns(s.Lab)
}

// in runs f in a host's namespace.
func (s Spec) in(t *testing.T, host string, f func() error) {
	t.Helper()
	if err := inNetns(s.netnsOf(t, host), f); err != nil {
		t.Fatalf("in host %s: %v", host, err)
	}
}

// ping sends one echo request from a host and returns the program's output and whether an answer came.
func (s Spec) ping(t *testing.T, host, address string) (string, bool) {
	t.Helper()
	var out []byte
	answered := false
	s.in(t, host, func() error {
		var err error
		out, err = exec.Command("ping", "-n", "-c", "1", "-W", "2", address).CombinedOutput()
		answered = err == nil
		return nil
	})
	return string(out), answered
}

func (s Spec) counters(t *testing.T) map[string]uint64 {
	t.Helper()
	c, err := Counters(t.Context(), s.Lab)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// waitFor polls until ok, or fails the test.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
		<-tick.C
	}
}

// tap is a packet socket on one link of the namespace that it was opened in.
type tap struct {
	fd    int
	index int
}

// openTap opens a tap on a link of the thread's namespace.
func openTap(link string) (*tap, error) {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return nil, err
	}
	all := htons(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}); err != nil {
		return nil, err
	}
	timeout := unix.NsecToTimeval((5 * time.Millisecond).Nanoseconds())
	return &tap{fd, l.Attrs().Index}, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

func (s Spec) tap(t *testing.T, netns, link string) *tap {
	t.Helper()
	var out *tap
	err := inNetns(netns, func() error {
		var err error
		out, err = openTap(link)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(out.fd) })
	return out
}

func (p *tap) send(frame []byte) error {
	return unix.Sendto(p.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: p.index})
}

// receive returns a frame and its packet type (unix.PACKET_OUTGOING and so on); nil after 5 ms without one. The length
// is the whole frame's, even where the buffer holds less.
func (p *tap) receive(buffer []byte) (frame []byte, length int, kind uint8) {
	n, from, err := unix.Recvfrom(p.fd, buffer, unix.MSG_TRUNC)
	if err != nil {
		return nil, 0, 0
	}
	return buffer[:min(n, len(buffer))], n, from.(*unix.SockaddrLinklayer).Pkttype
}

// touch makes an empty file.
func touch(path string) error { return os.WriteFile(path, nil, 0) }

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
