package vpc

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write what the scenarios in testdata print into them")

// TestScenarios plays testdata/*.txt, each on a VPC of threeHosts: a command on a line of its own, and behind it, indented,
// what it must print.
//
//	route CIDR HOST | unroute CIDR | routes | block WHAT on|off | check HOST on|off | off HOST on|off
//	bind HOST TABLE | table-route TABLE CIDR HOST | table-unroute TABLE CIDR
//	send HOST SRC > DST PROTO [from N] [port N] [type N] [id N] [ttl N] [fragment N]
//	                   a hand-made packet on the host's wire, from and to ports, or of an ICMP type and id; prints who
//	                   got it, with which MACs and TTL, and which counters moved
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := newStage(t).play(string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("%s: got\n%s", file, got)
			}
		})
	}
}

// stage is a VPC whose hosts hear everything and answer nothing.
type stage struct {
	t     *testing.T
	spec  Spec
	hosts []string
	taps  map[string]*tap // host -> its end of the wire
	sent  uint32
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, spec: threeHosts(newLab()), hosts: []string{"a", "b", "c", OutsideHost}, taps: map[string]*tap{}}
	bringLabUp(t, s.spec)
	for _, h := range s.hosts {
		s.taps[h] = s.spec.tap(t, s.spec.netnsOf(t, h), hostLink)
		// Taps come first, so they see what the host's own stack then does not.
		s.spec.in(t, h, func() error {
			_, err := runNft(t.Context(), `table netdev deaf { chain in { type filter hook ingress device "eth0" priority 0; policy drop; } ; }`, "-f", "-")
			return err
		})
	}
	return s
}

func (s *stage) play(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "  ") {
			continue // what it printed last time
		}
		fmt.Fprintln(&out, line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		for _, l := range s.do(strings.Fields(line)) {
			fmt.Fprintln(&out, "  "+l)
		}
	}
	return out.String()
}

func (s *stage) do(words []string) []string {
	ctx, lab := s.t.Context(), s.spec.Lab
	var err error
	switch words[0] {
	case "route":
		err = SetRoute(ctx, lab, Route{Dst: netip.MustParsePrefix(words[1]), Host: words[2]})
	case "table-route":
		table, _ := strconv.Atoi(words[1])
		err = SetRoute(ctx, lab, Route{netip.MustParsePrefix(words[2]), words[3], table})
	case "table-unroute":
		table, _ := strconv.Atoi(words[1])
		err = DeleteTableRoute(ctx, lab, table, netip.MustParsePrefix(words[2]))
	case "bind":
		table, _ := strconv.Atoi(words[2])
		err = Bind(ctx, lab, words[1], table)
	case "check":
		err = SetSourceCheck(ctx, lab, words[1], words[2] == "on")
	case "off":
		err = SetOff(ctx, lab, words[1], words[2] == "on")
	case "unroute":
		err = DeleteRoute(ctx, lab, netip.MustParsePrefix(words[1]))
	case "block":
		err = Block(ctx, lab, words[1], words[2] == "on")
	case "routes":
		var routes []Route
		var out []string
		routes, err = Routes(ctx, lab)
		for _, r := range routes {
			text := r.Dst.String() + " " + r.Host
			if r.Table != 0 {
				text += fmt.Sprintf(" table %d", r.Table)
			}
			out = append(out, text)
		}
		if err == nil {
			return out
		}
	case "send":
		return s.send(words[1:])
	default:
		s.t.Fatalf("no command %q", words[0])
	}
	if err != nil {
		return []string{"error: " + strings.ReplaceAll(err.Error(), lab, "LAB")}
	}
	return nil
}

// send puts a packet on a host's wire and tells what became of it.
func (s *stage) send(words []string) []string {
	s.sent++
	p := parsePacket(s.t, words[1:])
	p.mark = binary.BigEndian.AppendUint32([]byte("ropeway test "), s.sent)
	before := s.spec.counters(s.t)
	if err := s.taps[words[0]].send(p.frame()); err != nil {
		s.t.Fatal(err)
	}
	var moved []string
	waitFor(s.t, "a counter moves", func() bool {
		moved = movedCounters(before, s.spec.counters(s.t))
		return len(moved) > 0
	})
	out := []string{strings.Join(moved, " ")}
	look := func() bool {
		for _, h := range s.hosts {
			if seen := s.seen(h, p); seen != "" {
				out = append(out, seen)
			}
		}
		return len(out) > 1
	}
	if look(); strings.Contains(out[0], "forwarded") && len(out) == 1 {
		waitFor(s.t, "a host gets the packet", look)
	}
	return out
}

// movedCounters says what a packet did to the counters. Hosts of their own accord send multicast only.
func movedCounters(before, after map[string]uint64) []string {
	var moved []string
	for name, n := range after {
		if d := n - before[name]; d > 0 && name != "multicast" {
			moved = append(moved, fmt.Sprintf("%s+%d", name, d))
		}
	}
	slices.Sort(moved)
	return moved
}

// seen looks for the packet among what a host received.
func (s *stage) seen(host string, p packet) string {
	buffer := make([]byte, 2048)
	for {
		frame, _, kind := s.taps[host].receive(buffer)
		if frame == nil {
			return ""
		}
		if kind == 4 || !bytes.Contains(frame, p.mark) { // PACKET_OUTGOING: the host's own
			continue
		}
		mac := "own"
		if want := (&wire{Host: host}).mac(); !bytes.Equal(frame[:6], want) {
			mac = fmt.Sprintf("% x", frame[:6])
		}
		ttl := frame[14+8]
		if p.src.Is6() {
			ttl = frame[14+7]
		}
		return fmt.Sprintf("%s got it: from %x to its %s MAC, ttl %d", host, frame[6:12], mac, ttl)
	}
}

// packet is a packet of a scenario.
type packet struct {
	src, dst netip.Addr
	proto    byte
	from     uint16 // source port of UDP and TCP
	port     uint16 // destination port
	kind     byte   // type of ICMP
	id       uint16 // of an ICMP echo
	ttl      byte
	fragment uint16 // offset in units of 8 bytes
	mark     []byte
}

func parsePacket(t *testing.T, words []string) packet {
	t.Helper()
	protos := map[string]byte{"icmp": 1, "icmpv6": 58, "tcp": 6, "udp": 17, "ipip": 4, "6in4": 41}
	p := packet{src: netip.MustParseAddr(words[0]), dst: netip.MustParseAddr(words[2]), proto: protos[words[3]], ttl: 64, from: 40000}
	if p.proto == 0 || words[1] != ">" {
		t.Fatalf("packet %v: want SRC > DST PROTO", words)
	}
	for i := 4; i+1 < len(words); i += 2 {
		n, err := strconv.ParseUint(words[i+1], 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		switch words[i] {
		case "from":
			p.from = uint16(n)
		case "port":
			p.port = uint16(n)
		case "type":
			p.kind = byte(n)
		case "id":
			p.id = uint16(n)
		case "ttl":
			p.ttl = byte(n)
		case "fragment":
			p.fragment = uint16(n)
		default:
			t.Fatalf("packet: no %q", words[i])
		}
	}
	return p
}

// frame is the packet with an Ethernet header; its transport checksum is of no matter here.
func (p packet) frame() []byte {
	transport := make([]byte, 20)
	if p.proto == 1 || p.proto == 58 {
		transport[0] = p.kind
		binary.BigEndian.PutUint16(transport[4:], p.id)
	} else {
		binary.BigEndian.PutUint16(transport, p.from)
		binary.BigEndian.PutUint16(transport[2:], p.port)
		binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)+len(p.mark)))
	}
	payload := append(transport, p.mark...)
	eth := append([]byte(everybody()), 0, 0x16, 0x3e, 0, 0, 1)
	if p.src.Is6() {
		return slices.Concat(eth, []byte{0x86, 0xdd}, p.ipv6(payload))
	}
	return slices.Concat(eth, []byte{0x08, 0x00}, p.ipv4(payload))
}

func (p packet) ipv4(payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, p.ttl, p.proto
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(payload)))
	binary.BigEndian.PutUint16(h[6:], p.fragment)
	copy(h[12:], p.src.AsSlice())
	copy(h[16:], p.dst.AsSlice())
	sum := uint32(0)
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return append(h, payload...)
}

func (p packet) ipv6(payload []byte) []byte {
	next := p.proto
	if p.fragment != 0 {
		header := binary.BigEndian.AppendUint16([]byte{p.proto, 0}, p.fragment<<3)
		payload, next = slices.Concat(header, []byte{0, 0, 0, 1}, payload), 44
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, next, p.ttl
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], p.src.AsSlice())
	copy(h[24:], p.dst.AsSlice())
	return append(h, payload...)
}
