package probe

import (
	"flag"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/plan"
)

var rewrite = flag.Bool("rewrite", false, "write the scenarios' output as it is now into testdata")

// TestDiagnose plays testdata/faults.txt: a line is an observation, and the lines
// behind it that begin with "|" are what follows from it.
//
//	TRANSPORT works|fails came settled badsum others=T,.. underlay=F source=F destination=F stray=NODE detour=HOPS mtu=BYTES
//
// where F is arrives or lost. Rewrite the answers with -rewrite, and read the
// difference.
func TestDiagnose(t *testing.T) {
	const file = "testdata/faults.txt"
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for line := range strings.Lines(string(want)) {
		if strings.HasPrefix(line, "|") {
			continue
		}
		got.WriteString(line)
		if words := strings.Fields(line); len(words) > 0 && words[0] != "#" {
			fault, said := observed(t, words).diagnose()
			got.WriteString(strings.TrimRight("| "+string(fault)+": "+said, " ") + "\n")
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got.String() != string(want) {
		t.Errorf("%s: the answers differ: run with -rewrite and look at the difference:\n%s", file, got.String())
	}
}

// observed reads one line of the scenario.
func observed(t *testing.T, words []string) observation {
	t.Helper()
	v := View{Self: testNode("a", "192.168.0.10", "10.244.0.1"), Transports: []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN}, VXLANPort: 4789,
		MTU: plan.MTUPolicy{Mode: plan.MTUPerRoute}, UplinkMTUs: map[netip.Addr]int{netip.MustParseAddr("192.168.1.10"): 1500}}
	path, ok := v.path(testNode("b", "192.168.1.10", "10.244.1.1"), plan.IPv4, plan.Transport(words[0]))
	if !ok {
		t.Fatalf("no path by %s", words[0])
	}
	o := observation{to: "b", path: path, known: true, reachable: words[1] == "works"}
	for _, word := range words[2:] {
		name, value, _ := strings.Cut(word, "=")
		number, _ := strconv.Atoi(value)
		found := map[string]finding{"arrives": arrives, "lost": lost}[value]
		switch name {
		case "badsum":
			o.badChecksum = true
		case "came":
			o.came = true
		case "settled":
			o.settled = true
		case "others":
			for other := range strings.SplitSeq(value, ",") {
				o.others = append(o.others, plan.Transport(other))
			}
		case "underlay":
			o.legs[legUnderlay] = found
		case "source":
			o.legs[legSource] = found
		case "destination":
			o.legs[legDestination] = found
		case "stray":
			o.stray = "node " + value + " (192.168.2.10)"
		case "detour":
			o.detour = number
		case "mtu":
			o.pathMTU = number
		default:
			t.Fatalf("unknown word %q", word)
		}
	}
	return o
}
