package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/bench/traffic"
)

func TestTargetsAreJudgedByTheirSense(t *testing.T) {
	all := []target{
		{"lab.low", "low", atMost, 5, "ms"}, {"lab.high", "high", atLeast, 1.5, "x"},
		{"lab.missed", "missed", atMost, 5, "ms"}, {"add.none", "none", atMost, 5, "ms"},
	}
	five := 5.0
	rows := judge(all, map[string]sample{
		"lab.low":    {values: []float64{9, 1, 9}, value: &five},
		"lab.high":   {values: []float64{1, 2, 3}},
		"lab.missed": {values: []float64{5.001}, loaded: true},
	}, map[string]string{"plugin": "no lab"})
	if len(rows) != 4 || !rows[0].Met || !rows[1].Met || rows[2].Met || rows[3].Met {
		t.Fatalf("rows are %+v", rows)
	}
	if *rows[0].Value != 5 || *rows[0].Min != 1 || *rows[0].Max != 9 || rows[0].N != 3 || *rows[1].Value != 2 {
		t.Errorf("values or spreads are wrong: %+v", rows[:2])
	}
	if rows[3].Value != nil || !strings.Contains(rows[3].Detail, "no lab") || !rows[2].Loaded {
		t.Errorf("what was not measured, or loaded, does not say so: %+v", rows[2:])
	}
	var table bytes.Buffer
	if err := printTable(&table, rows); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"MISSED  missed", "met     low", "2 of 4 targets met, 2 missed", "at least 1.5", "(loaded machine)"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, table.String())
		}
	}
}

func TestRowsForPrograms(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results", "latest.json")
	rows := judge(targets(), map[string]sample{"rss.agent": {values: []float64{39}}}, nil)
	if err := writeRows(path, rows); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var read []map[string]any
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	if len(read) != len(targets()) {
		t.Errorf("%d rows for %d targets", len(read), len(targets()))
	}
	for _, r := range read {
		for _, key := range []string{"claim", "value", "target", "unit", "met"} {
			if _, there := r[key]; !there {
				t.Errorf("a row without %q: %v", key, r)
			}
		}
	}
}

func TestEveryTargetBelongsToASection(t *testing.T) {
	for _, x := range targets() {
		if !slices.Contains(sections(), section(x.key)) {
			t.Errorf("%s is of section %q, which there is not", x.key, section(x.key))
		}
	}
}

func TestPercentiles(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[99-i] = float64(i + 1)
	}
	for _, c := range []struct {
		values []float64
		p      int
		want   float64
	}{
		{hundred, 99, 99}, {hundred, 50, 50.5}, {[]float64{3}, 99, 3}, {[]float64{3, 1}, 50, 2}, {[]float64{3, 1, 2}, 50, 2}, {[]float64{3, 1}, 99, 3},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile %d of %d values is %v, want %v", c.p, len(c.values), got, c.want)
		}
	}
}

func TestClaimsOfTheDataplane(t *testing.T) {
	rr := trialOf(traffic.RR, false)
	m := measured{Peer: "flannel vxlan", Values: map[trial]map[string][]float64{}, Loaded: map[trial]bool{trialOf(traffic.CRR, false): true}}
	for _, t := range append(trials(), trialOf(cpuPerGbit, false), trialOf(cpuPerGbit, true)) {
		m.Values[t] = map[string][]float64{}
		for _, way := range wayNames() {
			if way != wayBare || !t.service() {
				m.Values[t][way] = []float64{2, 2, 2}
			}
		}
	}
	m.Values[rr][wayIPIP] = []float64{4, 3, 4}
	m.Values[rr][wayBare] = []float64{4, 4, 4}
	m.Values[trialOf(traffic.RR, true)][wayDirect] = []float64{6, 6, 6}
	m.Values[trialOf(cpuPerGbit, false)][wayVXLAN] = []float64{1, 1, 1} // half of flannel's: twice as good
	m.Values[trialOf(traffic.UDP, false)][wayVXLAN] = []float64{2.5, 2.5, 2.5}
	b := &bench{samples: map[string]sample{}}
	if err := b.claimDataplane(m); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]float64{"vxlan.TCP_RR": 1, "vxlan.TCP_CRR": 1, "vxlan.TCP_STREAM": 1, "vxlan.CPU": 2, "vxlan.UDP": 50, "ipip.TCP_RR": 2, "direct.TCP_RR": 1, "direct.UDP": 0,
		"bare.TCP_RR": 0.5, "direct.TCP_RR.service": 3, "vxlan.CPU.service": 1} {
		s, there := b.samples[key]
		if !there || median(s.values) != want || !strings.Contains(s.detail, "flannel vxlan 2 ") {
			t.Errorf("%s is %+v, want %v", key, s, want)
		}
	}
	for _, asked := range targets() {
		if _, there := b.samples[asked.key]; section(asked.key) == "dataplane" && !there {
			t.Errorf("nothing is said of %s", asked.claim)
		}
	}
	if !b.samples["vxlan.TCP_CRR"].loaded || b.samples["vxlan.TCP_RR"].loaded {
		t.Error("load is not told of the test that it was there in")
	}
	delete(m.Values[rr], wayFlannel)
	if err := b.claimDataplane(m); err == nil {
		t.Error("a way that was not measured is no error")
	}
}

// TestRowsOfBefore: what -only leaves out stays, and says so; what failed now
// does not.
func TestRowsOfBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "latest.json")
	value := 3.0
	if err := writeRows(path, []row{{Claim: "a", Value: &value, Met: true}, {Claim: "b", Value: &value}, {Claim: "c", Target: 2, Value: &value}}); err != nil {
		t.Fatal(err)
	}
	rows := []row{{Claim: "a"}, {Claim: "b"}, {Claim: "c", Target: 1}}
	if err := keepEarlier(rows, path, func(claim string) bool { return claim != "b" }); err != nil {
		t.Fatal(err)
	}
	if !rows[0].Earlier || !rows[0].Met || rows[1].Value != nil || rows[2].Value != nil {
		t.Errorf("%+v", rows)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keepEarlier(rows, path, func(string) bool { return true }); err == nil {
		t.Error("a broken file is no error")
	}
	if err := keepEarlier(rows, path+".not", func(string) bool { return true }); err != nil {
		t.Error(err)
	}
}

func TestWrongFlags(t *testing.T) {
	for _, line := range []string{"-repetitions 4", "-only nothing", "more", "-no"} {
		if _, err := newBench(strings.Fields(line)); err == nil {
			t.Errorf("%q was accepted", line)
		}
	}
}
