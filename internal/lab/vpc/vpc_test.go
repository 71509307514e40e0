package vpc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/offload"
	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// TestReach: real stacks at both ends, so ARP and neighbour discovery are part of it.
func TestReach(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	for _, to := range []string{"192.168.1.1", "192.168.0.2", "8.8.8.8", "fd00:2::1", "fd00:1::2", "2001:4860:4860::8888"} {
		out, ok := spec.ping(t, "a", to)
		if !ok || !strings.Contains(out, " ttl=64 ") {
			t.Errorf("host a cannot ping %s with the TTL untouched:\n%s", to, out)
		}
	}
}

// TestOneMACForEverybody: neighbours, the gateway and addresses that nobody has all answer with the VPC's MAC.
func TestOneMACForEverybody(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	asked := []string{"192.168.0.2", "192.168.0.253", "192.168.0.77", "fd00:1::2", "fe80::1", "fd00:1::77"}
	spec.in(t, "a", func() error {
		for _, a := range asked {
			probe(t, netip.MustParseAddr(a))
		}
		return nil
	})
	waitFor(t, "the host knows all neighbours", func() bool {
		known := map[string]string{} // address -> MAC
		spec.in(t, "a", func() error {
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				neighs, err := netlink.NeighList(0, family)
				if err != nil {
					return err
				}
				for _, n := range neighs {
					known[n.IP.String()] = n.HardwareAddr.String()
				}
			}
			return nil
		})
		return !slices.ContainsFunc(asked, func(a string) bool { return known[a] != everybody().String() })
	})
}

// probe sends a datagram, for which the stack has to ask for the neighbour. The thread is in the host's namespace.
func probe(t *testing.T, to netip.Addr) {
	t.Helper()
	if to.IsLinkLocalUnicast() {
		to = to.WithZone(hostLink)
	}
	conn, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

// TestHostRouteToNeighbourIsDead: what works on a layer-2 network must not work here.
func TestHostRouteToNeighbourIsDead(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	spec.in(t, "c", func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.244.9.1/32"))})
	})
	spec.in(t, "a", func() error {
		link, err := netlink.LinkByName(hostLink)
		if err != nil {
			return err
		}
		via := netip.MustParseAddr("192.168.0.2").AsSlice()
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("10.244.9.0/24")), Gw: via})
	})
	if _, ok := spec.ping(t, "a", "10.244.9.1"); ok {
		t.Error("a host route to a neighbour carried a packet that the VPC's table has no entry for")
	}
	if n := spec.counters(t)["unknown-destination"]; n == 0 {
		t.Error("the packet was not counted as unknown-destination")
	}
	if err := SetRoute(t.Context(), spec.Lab, Route{Dst: netip.MustParsePrefix("10.244.9.0/24"), Host: "c"}); err != nil {
		t.Fatal(err)
	}
	if out, ok := spec.ping(t, "a", "10.244.9.1"); !ok {
		t.Errorf("the VPC's own entry does not carry: %s", out)
	}
}

func TestOutsideSeesHosts(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- inNetns(OutsideNetns(spec.Lab), func() error { return ServeOutside(ctx) }) }()

	for server, client := range map[string]string{"8.8.8.8": "192.168.1.1", "2001:4860:4860::8888": "fd00:2::1"} {
		var seen Seen
		waitFor(t, "the outside answers HTTP", func() bool {
			seen = Seen{}
			spec.in(t, "b", func() error {
				fetch(netip.AddrPortFrom(netip.MustParseAddr(server), 80), &seen)
				return nil
			})
			return seen.Client != ""
		})
		if seen.Client != client || seen.Path != "/hello" {
			t.Errorf("the outside saw %+v, want client %s and path /hello", seen, client)
		}
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// fetch gets a JSON answer over one connection, made on the thread's namespace. It leaves to as it is on any failure.
func fetch(server netip.AddrPort, to *Seen) {
	conn, err := net.DialTimeout("tcp", server.String(), time.Second)
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /hello HTTP/1.0\r\nHost: outside\r\n\r\n"); err != nil {
		return
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == "application/json" {
		_ = json.NewDecoder(resp.Body).Decode(to) // what does not decode leaves Client empty
	}
}

// TestNothingComesInUnasked: the security group lets the outside answer, not begin.
func TestNothingComesInUnasked(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	for _, to := range []string{"192.168.0.1", "fd00:1::1"} {
		before := spec.counters(t)["security-group"]
		if _, ok := spec.ping(t, OutsideHost, to); ok {
			t.Errorf("the outside reached %s unasked", to)
		}
		if after := spec.counters(t)["security-group"]; after == before {
			t.Errorf("the attempt on %s was not counted as security-group", to)
		}
	}
}

// TestNodePortsCanBeAdmitted: the outside reaches the range of NodePorts, and nothing else, while the rule is there.
func TestNodePortsCanBeAdmitted(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	refused := func(port string) bool {
		var said error
		spec.in(t, OutsideHost, func() error { // a host that hears refuses: nobody listens there
			_, said = net.DialTimeout("tcp", net.JoinHostPort("192.168.0.1", port), time.Second)
			return nil
		})
		return errors.Is(said, unix.ECONNREFUSED)
	}
	for _, step := range []struct {
		on         bool
		port       string
		wantPassed bool
	}{{false, "30080", false}, {true, "30080", true}, {true, "22", false}, {false, "30080", false}} {
		if err := AdmitNodePorts(t.Context(), spec.Lab, step.on); err != nil {
			t.Fatal(err)
		}
		if got := refused(step.port); got != step.wantPassed {
			t.Errorf("admitted %t: port %s was heard: %t, want %t", step.on, step.port, got, step.wantPassed)
		}
	}
}

// TestWireSized: a bulk transfer between sockets that are free to send large packets leaves both the host and the VPC
// in frames that fit the MTU, though the VPC and the receiver put them together on the way.
func TestWireSized(t *testing.T) {
	spec := threeHosts(newLab())
	spec.MTU = 1400
	bringLabUp(t, spec)
	const total = 8 << 20
	taps := map[string]*tap{
		"host a":       spec.tap(t, spec.netnsOf(t, "a"), hostLink),
		"the VPC to b": spec.tap(t, vpcNetns(spec.Lab), "wire1"),
	}
	largest := map[string]int{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		transfer(t, spec, total)
	}()
	buffer := make([]byte, 64)
	finished := false
	for seen := 0; !finished || seen > 0; {
		seen = 0
		for name, p := range taps {
			for {
				frame, length, kind := p.receive(buffer)
				if frame == nil {
					break
				}
				seen++
				if kind == unix.PACKET_OUTGOING {
					largest[name] = max(largest[name], length)
				}
			}
		}
		select {
		case <-done:
			finished = true
		default:
		}
	}
	for name := range taps {
		if got, want := largest[name], spec.MTU+14; got != want {
			t.Errorf("the largest frame that left %s has %d bytes, want full frames of %d", name, got, want)
		}
	}
	if n := spec.counters(t)["forwarded"]; n < total/uint64(spec.MTU) {
		t.Errorf("%d packets counted for %d bytes: GRO's aggregates were counted as one", n, total)
	}
}

// transfer sends bytes from host a to host b over TCP.
func transfer(t *testing.T, spec Spec, total int64) {
	var listener net.Listener
	spec.in(t, "b", func() (err error) {
		listener, err = net.Listen("tcp", "192.168.1.1:5001")
		return err
	})
	defer listener.Close()
	received := make(chan int64, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			received <- 0
			return
		}
		defer conn.Close()
		n, _ := io.Copy(io.Discard, conn) // a broken connection shows as too few bytes
		received <- n
	}()
	spec.in(t, "a", func() error {
		conn, err := net.DialTimeout("tcp", "192.168.1.1:5001", patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = io.CopyN(conn, zeros{}, total)
		return err
	})
	if n := <-received; n != total {
		t.Errorf("%d of %d bytes arrived", n, total)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestWireFeatures(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	for netns, link := range map[string]string{vpcNetns(spec.Lab): "wire0", spec.netnsOf(t, "a"): hostLink} {
		err := inNetns(netns, func() error {
			l, err := netlink.LinkByName(link)
			if err != nil {
				return err
			}
			active, err := offload.Features(l.Attrs().Index, unix.ETHTOOL_A_FEATURES_ACTIVE)
			if err != nil {
				return err
			}
			if !slices.Contains(active, "rx-gro") || !slices.Contains(active, "tx-checksum-ip-generic") {
				t.Errorf("%s %s: GRO or checksum offload is off: %v", netns, link, active)
			}
			if i := slices.IndexFunc(active, isSegmentation); i >= 0 {
				t.Errorf("%s %s: %s is on", netns, link, active[i])
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestUpTwice(t *testing.T) {
	spec := threeHosts(newLab())
	bringLabUp(t, spec)
	if err := Up(t.Context(), spec); !errors.Is(err, ErrExists) {
		t.Errorf("the second Up: %v, want ErrExists", err)
	}
	if out, ok := spec.ping(t, "a", "192.168.1.1"); !ok {
		t.Errorf("the second Up harmed the first: %s", out)
	}
}

// TestTwoLabs: one lab's name may begin with another's.
func TestTwoLabs(t *testing.T) {
	one := threeHosts(newLab())
	two := threeHosts(one.Lab + "-x")
	bringLabUp(t, one)
	bringLabUp(t, two)
	if err := Down(t.Context(), one.Lab); err != nil {
		t.Fatal(err)
	}
	if out, ok := two.ping(t, "a", "192.168.1.1"); !ok {
		t.Errorf("taking lab %s down harmed lab %s: %s", one.Lab, two.Lab, out)
	}
}

func TestDownIsIdempotent(t *testing.T) {
	netnstest.NeedRoot(t)
	spec := threeHosts(newLab())
	for range 2 {
		if err := Down(t.Context(), spec.Lab); err != nil {
			t.Fatalf("of a lab that is not there: %v", err)
		}
	}
	for range 2 { // and the name can be used again
		if err := Up(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		if err := Down(t.Context(), spec.Lab); err != nil {
			t.Fatal(err)
		}
		wantNothingLeft(t, spec.Lab)
	}
}

// hourglass is a context that is cancelled when it has been asked often enough.
type hourglass struct {
	context.Context
	left int
}

func (h *hourglass) Err() error {
	if h.left--; h.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestUpThatFailsLeavesNothing cancels Up at every point that it looks for cancellation.
func TestUpThatFailsLeavesNothing(t *testing.T) {
	netnstest.NeedRoot(t)
	spec := threeHosts(newLab())
	for after := range 4 {
		err := Up(&hourglass{t.Context(), after}, spec)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Up cancelled after %d steps: %v", after, err)
		}
		wantNothingLeft(t, spec.Lab)
	}
}

// TestUpTouchesNoForeignNamespace: a name that somebody else has is an error and stays.
func TestUpTouchesNoForeignNamespace(t *testing.T) {
	netnstest.NeedRoot(t)
	spec := threeHosts(newLab())
	foreign := spec.Hosts[1].Netns
	if err := createNetns(foreign); err != nil {
		t.Fatal(err)
	}
	defer removeNetns(foreign)
	if err := Up(t.Context(), spec); err == nil || !strings.Contains(err.Error(), foreign) {
		t.Errorf("Up over a foreign namespace: %v, want an error that names %s", err, foreign)
	}
	if left := leftovers(t, spec.Lab); len(left) != 1 {
		t.Errorf("left: %v, want %s alone", left, foreign)
	}
}

// TestDownAfterKill takes down what an Up that was killed at some step leaves: the steps are played one by one.
func TestDownAfterKill(t *testing.T) {
	netnstest.NeedRoot(t)
	spec := threeHosts(newLab())
	wires, err := plan(spec)
	if err != nil {
		t.Fatal(err)
	}
	vpc, first := vpcNetns(spec.Lab), wires[0]
	steps := map[string]func() error{ // the last step before the kill -> what was done
		"a name without a namespace": func() error { return touch(netnsPath(vpc)) },
		"an empty namespace":         func() error { return createNetns(vpc) },
		"a wire without a host": func() error {
			return errors.Join(createNetns(vpc), inNetns(vpc, first.create))
		},
		"a host's name without a namespace": func() error {
			return errors.Join(createNetns(vpc), inNetns(vpc, first.create), touch(netnsPath(first.Netns)))
		},
		"a host without its wire": func() error {
			return errors.Join(createNetns(vpc), inNetns(vpc, first.create), createNetns(first.Netns))
		},
		"half of the hosts": func() error {
			return errors.Join(createNetns(vpc), first.lay(spec.Lab), wires[1].lay(spec.Lab))
		},
		"a Down that was killed, too": func() error {
			return errors.Join(createNetns(vpc), first.lay(spec.Lab), wires[1].lay(spec.Lab), removeNetns(first.Netns))
		},
	}
	for name, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := Down(t.Context(), spec.Lab); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantNothingLeft(t, spec.Lab)
	}
}

func TestNotUp(t *testing.T) {
	lab := newLab()
	_, err := Counters(t.Context(), lab)
	_, err2 := Routes(t.Context(), lab)
	for what, err := range map[string]error{
		"Counters": err, "Routes": err2,
		"Block":       Block(t.Context(), lab, "ipip", true),
		"SetRoute":    SetRoute(t.Context(), lab, Route{Dst: netip.MustParsePrefix("10.244.0.0/24"), Host: "a"}),
		"DeleteRoute": DeleteRoute(t.Context(), lab, netip.MustParsePrefix("10.244.0.0/24")),
	} {
		if !errors.Is(err, ErrNotUp) || !strings.Contains(err.Error(), lab) {
			t.Errorf("%s: %v, want ErrNotUp with the lab's name", what, err)
		}
	}
}
