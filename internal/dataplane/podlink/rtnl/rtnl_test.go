package rtnl

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

func open(t *testing.T) *Conn {
	t.Helper()
	netnstest.New(t).Enter(t)
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// A batch goes on after a refusal, and each message has its own answer.
func TestBatch(t *testing.T) {
	c := open(t)
	var b Batch
	b.GetLink(1, "")
	b.GetLink(0, "nothing")
	b.AddAddress(1, netip.MustParseAddr("10.0.0.2"))
	b.AddAddress(1, netip.MustParseAddr("fd00::2"))
	b.SetNeighbour(1, netip.MustParseAddr("10.0.0.9"), []byte{2, 0, 0, 0, 0, 9})
	b.AddRoute(Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Link: 1, Protocol: 112})
	b.AddRoute(Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Link: 1, Protocol: 112})
	answers, err := c.Do(&b)
	if len(answers) != 7 || !errors.Is(err, unix.ENODEV) {
		t.Fatalf("%d answers, %v", len(answers), err)
	}
	for i, want := range []error{nil, unix.ENODEV, nil, nil, nil, nil, unix.EEXIST} {
		if got := answers[i].Err; !errors.Is(got, want) {
			t.Errorf("answer %d: %v, want %v", i, got, want)
		}
	}
	lo, err := ParseLink(answers[0].Body)
	if err != nil || lo.Name != "lo" || lo.Index != 1 || lo.Flags&unix.IFF_UP == 0 || lo.MTU != 65536 {
		t.Errorf("%+v, %v", lo, err)
	}
	addrs, err := c.Addresses(1)
	if err != nil || len(addrs) < 2 {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	routes, err := c.Routes(112, func(Route) bool { return true })
	if err != nil || len(routes) != 1 || routes[0].Dst.String() != "10.9.0.0/16" || routes[0].Link != 1 {
		t.Errorf("routes %v, %v", routes, err)
	}
	if r, err := c.Reach(netip.MustParseAddr("10.0.0.2")); err != nil || r.Kind != unix.RTN_LOCAL {
		t.Errorf("%+v, %v", r, err)
	}
	links, err := c.Links()
	if err != nil || len(links) == 0 {
		t.Errorf("%v, %v", links, err)
	}
}

// A family of generic netlink is found by its name, or is not there.
func TestGeneric(t *testing.T) {
	g, err := OpenGeneric("nlctrl", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if id, err := g.find("nlctrl"); err != nil || id != unix.GENL_ID_CTRL || g.family != id {
		t.Errorf("family %d, found %d, %v", g.family, id, err)
	}
	if _, err := OpenGeneric("no-such-family", 1); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "no-such-family") {
		t.Errorf("got %v", err)
	}
}

func TestTheKernelExplains(t *testing.T) {
	c := open(t)
	var b Batch
	b.AddRoute(Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.8.0.1"), Link: 4711})
	_, err := c.Do(&b)
	var refused *Error
	if !errors.As(err, &refused) || refused.Errno != unix.ENODEV {
		t.Fatal(err)
	}
	b = Batch{}
	b.Begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE, LinkHead(0, 0, 0))
	b.Nest(unix.IFLA_LINKINFO, nil, func() { b.String(unix.IFLA_INFO_KIND, "no-such-kind") })
	if _, err := c.Do(&b); !errors.As(err, &refused) || refused.Text == "" || !strings.Contains(err.Error(), refused.Text) {
		t.Errorf("no explanation: %v", err)
	}
}

func TestClosed(t *testing.T) {
	c := open(t)
	c.Close()
	c.Close()
	(*Conn)(nil).Close()
	if _, err := c.Link(1, ""); !errors.Is(err, unix.EBADF) {
		t.Errorf("got %v", err)
	}
	if answers, err := c.Do(&Batch{}); answers != nil || err != nil {
		t.Errorf("an empty batch: %v, %v", answers, err)
	}
}

// Whatever the kernel sends, reading it neither panics nor loops.
func FuzzAnswers(f *testing.F) {
	var b Batch
	b.GetLink(1, "lo")
	b.AddRoute(Route{Dst: netip.MustParsePrefix("10.9.0.0/16"), Via: netip.MustParseAddr("10.8.0.1"), Link: 1})
	b.SetNeighbour(1, netip.MustParseAddr("fd00::9"), []byte{2, 0, 0, 0, 0, 9})
	b.seal(1)
	f.Add(b.bytes)
	refusal := binary.NativeEndian.AppendUint32(nil, 36)
	refusal = append(refusal, 2, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0xed, 0xff, 0xff, 0xff)
	f.Add(append(refusal, make([]byte, 16)...))
	f.Add([]byte{16, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = collect(data, 1, make([]Answer, 3))
		for rest := data; len(rest) > 0; {
			m, next, err := next(rest)
			if err != nil {
				break
			}
			if len(next) >= len(rest) {
				t.Fatal("no progress")
			}
			_, _ = ParseLink(m.body)
			_, _ = parseNeighbour(m.body)
			_, _ = parseRoute(m.body)
			_, _ = parseError(m)
			_ = ended(m, false)
			rest = next
		}
	})
}
