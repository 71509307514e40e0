package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

// chained is the default conflist's order: what hangs behind us works on the
// host end that our result names.
func chained(t *testing.T, version string) *libcni.NetworkConfigList {
	t.Helper()
	return conflist(t, version, `{"type": "ropeway"}`, `{"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}`,
		`{"type": "bandwidth", "capabilities": {"bandwidth": true}}`)
}

// neighbour is another machine, beside the node: on 192.0.2.2 and 2001:db8::2,
// where the node is 192.0.2.1 and 2001:db8::1.
func (n *node) neighbour() *netnstest.NS {
	n.t.Helper()
	other := netnstest.New(n.t)
	ip := func(args ...string) error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
		return nil
	}
	err := errors.Join(
		ip("link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", other.Path()),
		ip("addr", "add", "192.0.2.1/24", "dev", "uplink"), ip("addr", "add", "2001:db8::1/64", "dev", "uplink", "nodad"), ip("link", "set", "uplink", "up"),
		other.Do(func() error {
			return errors.Join(ip("addr", "add", "192.0.2.2/24", "dev", "eth0"), ip("addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad"), ip("link", "set", "eth0", "up"))
		}),
	)
	if err != nil {
		n.t.Fatal(err)
	}
	return other
}

// serve listens in the pod on TCP port 80; each connection goes to handle.
func (p *pod) serve(t *testing.T, handle func(net.Conn)) {
	t.Helper()
	var ln net.Listener
	if err := p.Do(func() (err error) { ln, err = net.Listen("tcp", ":80"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
}

// dial connects from a namespace.
func dial(from *netnstest.NS, to string) (conn net.Conn, err error) {
	err = from.Do(func() error {
		conn, err = net.DialTimeout("tcp", to, 5*time.Second)
		return err
	})
	return conn, err
}

// Capabilities and runtimeConfig (CNI conventions): a host port on both
// families, by the chained portmap, from another machine and from the node
// itself; gone after DEL.
func TestHostPort(t *testing.T) {
	n := newNode(t, "10.88.0.0/24", "fd88::/64")
	other := n.neighbour()
	list, p := chained(t, "1.0.0"), n.pod("c1")
	p.rt.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}}
	n.mustAdd(list, p)
	p.serve(t, func(c net.Conn) { _, _ = io.WriteString(c, "the pod") })
	targets := []string{"192.0.2.1:8080", "[2001:db8::1]:8080"}
	for _, to := range targets {
		for name, from := range map[string]*netnstest.NS{"another machine": other, "the node": n.ns} {
			conn, err := dial(from, to)
			if err != nil {
				t.Errorf("from %s to %s: %v", name, to, err)
				continue
			}
			if said, err := io.ReadAll(conn); err != nil || string(said) != "the pod" {
				t.Errorf("from %s, %s says %q, %v", name, to, said, err)
			}
			conn.Close()
		}
	}
	n.mustDel(list, p)
	for _, to := range targets {
		if conn, err := dial(other, to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s after DEL: %v, %v", to, conn, err)
		}
	}
}

// The chained bandwidth plugin shapes what we made, in both directions. Only
// that it is not faster is tested: that holds on a loaded machine too.
func TestBandwidth(t *testing.T) {
	n := newNode(t, "10.88.0.0/24")
	n.neighbour() // so that the node has an address to send from
	list := chained(t, "1.0.0")
	const rate, burst, size = 8_000_000, 400_000, 1 << 20 // bits per second, bits, bytes
	least := time.Duration(float64(size*8-burst)/rate*float64(time.Second)) * 8 / 10
	limited, free := n.pod("c1"), n.pod("c2")
	limited.rt.CapabilityArgs = map[string]any{"bandwidth": map[string]any{"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst}}
	for _, p := range []*pod{limited, free} {
		address := netip.AddrPortFrom(addrs(t, n.mustAdd(list, p))[0], 80).String()
		p.serve(t, func(c net.Conn) { _, _ = io.Copy(c, c) }) // what comes goes back
		conn, err := dial(n.ns, address)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		go func() { _, _ = conn.Write(make([]byte, size)) }()
		_, err = io.CopyN(io.Discard, conn, size)
		took := time.Since(start)
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
		if p == limited && took < least {
			t.Errorf("%d bytes to the pod and back took %s, which %d bit/s do not allow before %s", size, took, rate, least)
		}
	}
	qdiscs, err := exec.Command("tc", "qdisc").CombinedOutput()
	if err != nil || strings.Count(string(qdiscs), "qdisc tbf") != 2 {
		t.Errorf("want one shaper for each direction: %v\n%s", err, qdiscs)
	}
	for _, p := range []*pod{limited, free} {
		n.mustDel(list, p)
	}
	out, err := exec.Command("ip", "-o", "link", "show", "type", "ifb").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "" {
		t.Errorf("left: %s, %v", out, err)
	}
}
