package cloud

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// TestTheSameFailureHasTheSameText: what has changed is written to all nodes'
// watches, so what differs from try to try must not be in a text.
func TestTheSameFailureHasTheSameText(t *testing.T) {
	dropped := func(port uint16) error {
		from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("172.16.0.1"), port))
		to := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("100.100.0.7:443"))
		return &net.OpError{Op: "read", Net: "tcp", Source: from, Addr: to, Err: errors.New("connection reset by peer")}
	}
	lookup := func(port int) error {
		return &net.DNSError{Err: fmt.Sprintf("read udp [fd00::1]:%d->[fd00::53]:53: i/o timeout", port), Name: "vpc.lab"}
	}
	for name, pair := range map[string][2]*Error{
		"a request's id":          {{Code: "Forbidden.RAM", Request: "R-1"}, {Code: "Forbidden.RAM", Request: "R-2"}},
		"a connection's port":     {{Err: dropped(40001)}, {Err: dropped(40002)}},
		"the name server's reply": {{Err: lookup(40001)}, {Err: lookup(40002)}},
	} {
		if a, b := pair[0].Error(), pair[1].Error(); a != b {
			t.Errorf("%s tells %q from %q", name, a, b)
		}
	}
	if text := (&Error{Err: dropped(40001)}).Error(); !strings.Contains(text, "read tcp 100.100.0.7:443: connection reset by peer") {
		t.Errorf("%q does not say where", text)
	}
	if id := RequestOf(fmt.Errorf("list: %w", &Error{Request: "R-7"})); id != "R-7" || RequestOf(errors.New("x")) != "" {
		t.Errorf("RequestOf is %q", id)
	}
}
