package traffic

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestEachTestMeasuresSomething(t *testing.T) {
	at := free(t)
	ready := make(chan struct{})
	go Serve(at, func() { close(ready) })
	<-ready
	for _, test := range Tests() {
		r, err := Run(test, at, 100*time.Millisecond)
		if err != nil {
			t.Errorf("%s: %v", test, err)
			continue
		}
		switch test {
		case RR, CRR:
			if r.Value < 10 || r.P50 <= 0 || r.P99 < r.P50 {
				t.Errorf("%s: %+v", test, r)
			}
		case Stream:
			if r.Value <= 0 || r.Bits <= 0 {
				t.Errorf("%s: %+v", test, r)
			}
		case UDP:
			if r.Value < 0 || r.Value > 0.9 {
				t.Errorf("%s: %+v, want hardly any loss", test, r)
			}
		}
	}
	if _, err := Run("none", at, time.Second); err == nil {
		t.Error("a test that there is not was played")
	}
}

func TestNoServerIsAnError(t *testing.T) {
	at := free(t)
	for _, test := range Tests() {
		if _, err := Run(test, at, 10*time.Millisecond); err == nil {
			t.Errorf("%s without a server gave a result", test)
		}
	}
}

// free is an address that nobody listens at.
func free(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}
