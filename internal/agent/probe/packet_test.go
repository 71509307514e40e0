package probe

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/plan"
)

// unspace removes the blanks and line breaks that make bytes readable.
func unspace(s string) string { return strings.Join(strings.Fields(s), "") }

func testPath(transport plan.Transport) Path {
	p := Path{Transport: transport, Port: 4789, VNI: 4096,
		InnerSrc: netip.MustParseAddr("10.244.0.1"), InnerDst: netip.MustParseAddr("10.244.1.1"),
		OuterSrc: netip.MustParseAddr("192.168.0.10"), OuterDst: netip.MustParseAddr("192.168.1.10")}
	p.SrcMAC, p.DstMAC = plan.MAC{2, 0, 0, 0, 0, 1}, plan.MAC{2, 0, 0, 0, 0, 2}
	return p
}

// The packets were checked by hand against the RFCs: every byte has a reason.
func TestPacketBytes(t *testing.T) {
	innerV4 := `
		45 00 00 20  00 00 40 00  40 11 23 e4  0a f4 00 01  0a f4 01 01
		26 46 26 46  00 0c bd 8f  70 69 6e 67`
	tests := []struct {
		name string
		path Path
		want string
	}{
		{"ipip, RFC 2003", testPath(plan.IPIP), `
			45 00 00 34  00 00 40 00  40 04 b8 61  c0 a8 00 0a  c0 a8 01 0a` + innerV4},
		{"vxlan, RFC 7348", testPath(plan.VXLAN), `
			08 00 00 00  00 10 00 00
			02 00 00 00 00 02  02 00 00 00 00 01  08 00` + innerV4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := hex.EncodeToString(tt.path.Packet([]byte("ping")))
			if want := unspace(tt.want); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestPacketBytesIPv6(t *testing.T) {
	p := testPath(plan.VXLAN)
	p.InnerSrc, p.InnerDst = netip.MustParseAddr("fd00:10:244::1"), netip.MustParseAddr("fd00:10:244:1::1")
	want := unspace(`
		08 00 00 00  00 10 00 00
		02 00 00 00 00 02  02 00 00 00 00 01  86 dd
		60 00 00 00  00 0c 11 40
		fd 00 00 10 02 44 00 00 00 00 00 00 00 00 00 01
		fd 00 00 10 02 44 00 01 00 00 00 00 00 00 00 01
		26 46 26 46  00 0c`)
	got := p.Packet([]byte("ping"))
	if s := hex.EncodeToString(got); !strings.HasPrefix(s, want) {
		t.Errorf("got  %s\nwant %s...", s, want)
	}
	// The receiver's own check: the sum over everything, checksum included, is
	// all ones (RFC 1071).
	datagram := got[8+14+40:]
	if sum := fold(sumOf(datagram, pseudoSum(p.InnerSrc, p.InnerDst, len(datagram)))); sum != 0 {
		t.Errorf("the UDP checksum does not verify: %#x", sum)
	}
}

func TestChecksumsVerify(t *testing.T) {
	for length := range 64 {
		for _, addrs := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
			src, dst := netip.MustParseAddr(addrs[0]), netip.MustParseAddr(addrs[1])
			payload := make([]byte, length)
			for i := range payload {
				payload[i] = byte(i * 37)
			}
			p := udpPacket(netip.AddrPortFrom(src, Port), netip.AddrPortFrom(dst, Port), fullHops, payload)
			header := ipv6Header
			if src.Is4() {
				header = ipv4Header
				if sum := fold(sumOf(p[:header], 0)); sum != 0 {
					t.Errorf("%d bytes: the IPv4 header's checksum does not verify", length)
				}
			}
			if sum := fold(sumOf(p[header:], pseudoSum(src, dst, len(p)-header))); sum != 0 {
				t.Errorf("%d bytes of %v: the UDP checksum does not verify", length, addrs)
			}
			if p[header+6] == 0 && p[header+7] == 0 {
				t.Errorf("%d bytes: a checksum of zero means none (RFC 768)", length)
			}
		}
	}
}

func TestMessageRoundTrip(t *testing.T) {
	m := message{kind: answer, transport: plan.VXLAN, cluster: digest("c"), target: digest("t"), nonce: Nonce{1, 2, 3}}
	b := m.marshal()
	if len(b) != messageSize {
		t.Fatalf("a message has %d bytes, want %d", len(b), messageSize)
	}
	got, err := parseMessage(append(b, "of a later version"...))
	if err != nil || got != m {
		t.Errorf("got %+v, %v, want %+v", got, err, m)
	}
	for name, change := range map[string]func([]byte) []byte{
		"short":     func(b []byte) []byte { return b[:leastMessage-1] },
		"magic":     func(b []byte) []byte { b[0]++; return b },
		"version":   func(b []byte) []byte { b[3]++; return b },
		"kind":      func(b []byte) []byte { b[4] = 3; return b },
		"transport": func(b []byte) []byte { b[5] = 0; return b },
	} {
		if _, err := parseMessage(change(m.marshal())); !errors.Is(err, errNotOurs) {
			t.Errorf("%s: got %v, want errNotOurs", name, err)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add(message{kind: request, transport: plan.IPIP}.marshal())
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		again, err := parseMessage(m.marshal())
		if err != nil || again != m {
			t.Errorf("%x: %+v became %+v, %v", b, m, again, err)
		}
	})
}
