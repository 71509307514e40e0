package openapi

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "write what the scenarios in testdata print into them")

// TestScenarios plays testdata/*.txt, each on a new cloud (testSpec) through
// the vendor's own client: a command on a line of its own and behind it,
// indented, what it must print.
//
//	vpc|ecs|sts ACTION NAME=VALUE... [| FIELD...]   a call; prints the answer, or of each element of its list the fields
//	set JSON        settings to be changed          fault JSON | faults-end
//	advance TIME    the clock                       entries | plane    what the cloud and its data plane hold
//
// "entries*N" as a parameter stands for N entries 10.244.0.0/24, 10.244.1.0/24, ... to i-a.
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
			got := play(t, newCloud(t), string(text))
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

func play(t *testing.T, c *cloudUnderTest, text string) string {
	t.Helper()
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
		for _, l := range c.command(t, line) {
			fmt.Fprintln(&out, "  "+strings.TrimRight(l, " "))
		}
	}
	return out.String()
}

func (c *cloudUnderTest) command(t *testing.T, line string) []string {
	t.Helper()
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "set":
		settings := c.snapshot(t.Context()).Settings
		if err := json.Unmarshal([]byte(rest), &settings); err != nil {
			t.Fatal(err)
		}
		if err := c.set(settings); err != nil {
			return []string{err.Error()}
		}
	case "fault":
		var f Fault
		if err := json.Unmarshal([]byte(rest), &f); err != nil {
			t.Fatal(err)
		}
		if _, err := c.inject(f); err != nil {
			return []string{err.Error()}
		}
	case "faults-end":
		c.door(t, "DELETE", "/faults", nil, nil)
	case "advance":
		d, err := time.ParseDuration(rest)
		if err != nil {
			t.Fatal(err)
		}
		c.clock.advance(d)
	case "entries":
		var out []string
		for _, e := range c.snapshot(t.Context()).Entries {
			out = append(out, fmt.Sprintf("%s %s %s %s %s", e.Table, e.Dst, e.NextHop, e.Status, e.Description))
		}
		return out
	case "plane":
		c.snapshot(t.Context())
		return c.fabric.plane.lines()
	default:
		return c.play(t, verb, rest)
	}
	return nil
}

// lines words a plane.
func (p Plane) lines() []string {
	var out []string
	for _, table := range p.Tables {
		for _, dst := range slices.SortedFunc(maps.Keys(table.Routes), netip.Prefix.Compare) {
			out = append(out, fmt.Sprintf("table %d: %s to %s", table.Number, dst, table.Routes[dst]))
		}
		if table.Number != 0 {
			out = append(out, fmt.Sprintf("table %d: hosts %v", table.Number, table.Hosts))
		}
	}
	for _, host := range slices.Sorted(maps.Keys(p.Checked)) {
		if p.Checked[host] {
			out = append(out, "checked "+host)
		}
	}
	for _, host := range slices.Sorted(maps.Keys(p.Off)) {
		if p.Off[host] {
			out = append(out, "off "+host)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(p.Blocked)) {
		if p.Blocked[what] {
			out = append(out, "blocked "+what)
		}
	}
	return out
}

// play makes one call.
func (c *cloudUnderTest) play(t *testing.T, product, rest string) []string {
	t.Helper()
	rest, fields, picked := strings.Cut(rest, " | ")
	words := strings.Fields(rest)
	parameters := map[string]string{}
	for _, w := range words[1:] {
		if number, found := strings.CutPrefix(w, "entries*"); found {
			maps.Copy(parameters, entries(t, number))
			continue
		}
		name, value, _ := strings.Cut(w, "=")
		parameters[name] = strings.ReplaceAll(value, "_", " ")
	}
	body, err := c.call(product, words[0], parameters)
	if err != nil {
		return []string{"error " + code(err)}
	}
	delete(body, "RequestId")
	if picked {
		out := rows(body, strings.Fields(fields))
		if next, _ := body["NextToken"].(string); next != "" {
			out = append(out, "next "+next)
		}
		return out
	}
	if len(body) == 0 {
		return []string{"ok"}
	}
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return []string{modified.ReplaceAllString(string(text), `"GmtModified":"TIME"`)}
}

// modified is what differs from run to run.
var modified = regexp.MustCompile(`"GmtModified":"[^"]*"`)

// entries are the parameters of a batch: N from 0, or FROM+N.
func entries(t *testing.T, number string) map[string]string {
	t.Helper()
	from, n := 0, 0
	if _, err := fmt.Sscanf(number, "%d+%d", &from, &n); err != nil {
		from = 0
		if _, err := fmt.Sscanf(number, "%d", &n); err != nil {
			t.Fatalf("entries*%s: %v", number, err)
		}
	}
	parameters := map[string]string{}
	for i := range n {
		key := fmt.Sprintf("RouteEntries.%d.", i+1)
		parameters[key+"RouteTableId"] = testTable
		parameters[key+"DstCidrBlock"] = fmt.Sprintf("10.244.%d.0/24", from+i)
		parameters[key+"NextHop"], parameters[key+"NextHopType"] = "i-a", "Instance"
		parameters[key+"Description"] = "ropeway cluster=x"
	}
	return parameters
}
