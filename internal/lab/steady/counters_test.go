package steady

import (
	"maps"
	"net"
	"os"
	"path"
	"strings"
	"testing"
)

// TestCountersOfAFile reads each file's form, and says which line has another.
func TestCountersOfAFile(t *testing.T) {
	for _, tt := range []struct {
		file, content string
		want          Counters
		wrong         string // part of the error
	}{
		{file: "snmp", content: "Ip: Forwarding InDiscards\nIp: 1 7\nTcp: MaxConn InErrs\nTcp: -1 3\n", want: Counters{"Ip.Forwarding": 1, "Ip.InDiscards": 7, "Tcp.InErrs": 3}},
		{file: "snmp", content: "Ip: Forwarding InDiscards\nIp: 1\n", wrong: "does not belong"},
		{file: "snmp6", content: "Ip6InNoRoutes    4\n", want: Counters{"Ip6InNoRoutes": 4}},
		{file: "snmp6", content: "Ip6InNoRoutes\n", wrong: "no name and value"},
		{file: "dev", content: "head\nhead\n eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", want: Counters{"eth0.rx.error": 3, "eth0.rx.drop": 4, "eth0.tx.error": 11, "eth0.tx.drop": 12}},
		{file: "dev", content: "head\nhead\n eth0: 1 2\n", wrong: "has 2 values"},
		{file: "stat/nf_conntrack", content: "entries found drop\n0000009a 1 a\n0000009a 2 1\n", want: Counters{"conntrack.found": 3, "conntrack.drop": 11}},
		{file: "softnet_stat", content: "00 0a 00\n00 01 00\n", want: Counters{"backlog.drop": 11}},
		{file: "softnet_stat", content: "00 xx 00\n", wrong: "backlog.drop"},
	} {
		proc := t.TempDir()
		if err := os.MkdirAll(path.Join(proc, "stat"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path.Join(proc, tt.file), []byte(tt.content), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := readCounters(proc)
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("%s %q: the error is %v, want one with %q", tt.file, tt.content, err, tt.wrong)
			}
			continue
		}
		if err != nil || !maps.Equal(got, tt.want) {
			t.Errorf("%s %q: %v, %v; want %v", tt.file, tt.content, got, err, tt.want)
		}
	}
}

// TestCountersTellOfALoss sends to a port of the loopback that nobody listens at.
func TestCountersTellOfALoss(t *testing.T) {
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := free.LocalAddr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := ReadCounters()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp4", nobody)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	after, err := ReadCounters()
	if err != nil {
		t.Fatal(err)
	}
	if lost := after.Lost(before); lost["Udp.NoPorts"] == 0 {
		t.Errorf("a datagram to %s, where nobody listens: %v, want Udp.NoPorts among them", nobody, lost)
	}
	if lost := before.Lost(after); len(lost) > 0 {
		t.Errorf("counters that did not grow are told of: %v", lost)
	}
}
