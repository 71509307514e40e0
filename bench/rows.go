package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"ropeway.dev/ropeway/bench/traffic"
)

// Senses of a target.
const (
	atMost  = "at most"
	atLeast = "at least"
)

// target is one claim that the bench holds Ropeway to.
type target struct {
	key    string
	claim  string
	sense  string
	target float64
	unit   string
}

// targets are all claims, in the order of the table.
func targets() []target {
	out := []target{
		{"lab.up", "lab: `up` with warm caches until all nodes are Ready with Ropeway", atMost, 60, "s"},
		{"lab.left", "lab: what `down` leaves on the machine", atMost, 0, "things"},
	}
	for _, t := range append(trials(), trialOf(cpuPerGbit, false), trialOf(cpuPerGbit, true)) {
		out = append(out, trialTargets(t)...)
	}
	return append(out, otherTargets()...)
}

// trialTargets are the claims about one trial of the dataplane.
func trialTargets(t trial) []target {
	what := map[traffic.Test]string{
		traffic.RR: "TCP request/response", traffic.CRR: "TCP connect/request/response", traffic.Stream: "TCP stream",
		cpuPerGbit: "CPU per Gbit", traffic.UDP: "UDP loss at a fixed rate",
	}[t.test()]
	if t.service() {
		what += ", by a ClusterIP"
	}
	claim := func(key, own, peer string, least float64) target {
		key += "." + string(t)
		switch t.test() {
		case traffic.UDP:
			return target{key, fmt.Sprintf("%s: %s less %s", what, own, peer), atMost, 0, "percentage points"}
		case cpuPerGbit: // less is better
			own, peer = peer, own
		}
		return target{key, fmt.Sprintf("%s: %s / %s", what, own, peer), atLeast, least, "x"}
	}
	out := []target{
		claim("vxlan", "vxlan", "flannel's vxlan", 1),
		claim("direct", "direct", "plain kernel routing, both with kube-proxy", 0.98),
	}
	if !t.service() {
		out = append(out, claim("bare", "direct", "kernel routing on nodes without any rule", 0.98))
	}
	if t.test() == traffic.RR {
		out = append(out, claim("ipip", "ipip", "vxlan", 1.05))
	}
	return out
}

// otherTargets are the claims behind those about packets.
func otherTargets() []target {
	return []target{
		{"add.p50", "plugin: ADD one at a time, p50", atMost, 5, "ms"},
		{"add.ratio", "plugin: ADD one at a time, p50 / that of ptp + host-local", atMost, 0.45, "x"},
		{"add.p99", "plugin: ADD one at a time, p99", atMost, 12, "ms"},
		{"add.parallel", "plugin: ADD per second, 10 in parallel / that of ptp + host-local", atLeast, 1.5, "x"},
		{"del.p99", "plugin: DEL one at a time, p99", atMost, 10, "ms"},
		{"addresses.agent", "addresses: the agent's own share of ADD, p99, the worst of all sources and states of the API server", atMost, 5, "ms"},
		{"addresses.slow.NodeCIDR", "addresses from the node's CIDR: ADD p50, API server slow / up", atMost, 1.1, "x"},
		{"addresses.stopped.NodeCIDR", "addresses from the node's CIDR: ADD p50, API server stopped / up", atMost, 1.1, "x"},
		{"addresses.slow.Blocks", "addresses from blocks: ADD p50, API server slow / up", atMost, 1.1, "x"},
		{"addresses.stopped.Blocks", "addresses from blocks: ADD p50, API server stopped / up", atMost, 1.1, "x"},
		{"addresses.parallel.NodeCIDR", "addresses from the node's CIDR: ADD p99 at 50 in parallel / a plugin that gives none", atMost, 1.5, "x"},
		{"addresses.parallel.Blocks", "addresses from blocks: ADD p99 at 50 in parallel / a plugin that gives none", atMost, 1.5, "x"},
		{"addresses.requests", "addresses: requests to the API server per ADD, where the node holds addresses", atMost, 0.1, "requests"},
		{"shared.create.exact", "shared pool of as many addresses as pods (1,000): addresses per second, all pods created", atLeast, 500, "addresses/s"},
		{"shared.again.exact", "shared pool of as many addresses as pods (1,000): addresses per second, all pods made anew on other nodes", atLeast, 500, "addresses/s"},
		{"shared.delete.exact", "shared pool of as many addresses as pods (1,000): addresses given back per second, all pods deleted", atLeast, 500, "addresses/s"},
		{"shared.create.spare", "shared pool of a quarter more addresses than pods (1,000): addresses per second, all pods created", atLeast, 500, "addresses/s"},
		{"shared.again.spare", "shared pool of a quarter more addresses than pods (1,000): addresses per second, all pods made anew on other nodes", atLeast, 500, "addresses/s"},
		{"shared.delete.spare", "shared pool of a quarter more addresses than pods (1,000): addresses given back per second, all pods deleted", atLeast, 500, "addresses/s"},
		{"pools.many", "pools: what an ADD costs more with 5,000 pools than with 5 (1 % of 5 ms is 50 us)", atMost, 50, "us"},
		{"pools.large", "pools: what an ADD costs more from a 10.0.0.0/8 than from a /24", atMost, 50, "us"},
		{"pools.ipv6", "pools: what an ADD costs more from a /64 than from a /24", atMost, 50, "us"},
		{"pools.memory.large", "pools: what a 10.0.0.0/8 takes of the agent's memory more than a /24", atMost, 1, "MiB"},
		{"pools.memory.ipv6", "pools: what a /64 takes of the agent's memory more than a /24", atMost, 1, "MiB"},
		{"blocks.routes", "blocks: routes that lead to a node, on average over a day of churn at 80 % fill", atMost, 1.1, "routes"},
		{"pods.running", "a Deployment of 100 pods on a node to Running / the same with hostNetwork", atMost, 1.05, "x"},
		{"faults.named", "faults: from the first packet that a fault meets until the fault is named, the slowest of seven kinds", atMost, 5, "s"},
		{"rss.agent", "agent, idle: resident memory", atMost, 40, "MiB"},
		{"rss.controller", "controller, idle: resident memory", atMost, 60, "MiB"},
		{"scale.calls.1000", "scale: calls of the cloud until 1,000 routes are Available / the least possible", atMost, 1.2, "x"},
		{"scale.calls.5000", "scale: calls of the cloud until 5,000 routes are Available / the least possible", atMost, 1.2, "x"},
		{"scale.restart.cloud", "scale: restart of the controller of 5,000 nodes with nothing to do, writes to the cloud", atMost, 0, "calls"},
		{"scale.restart.api", "scale: restart of the controller of 5,000 nodes with nothing to do, writes to the API server", atMost, 0, "calls"},
		{"scale.rss.controller", "scale: controller of 5,000 nodes, resident memory", atMost, 150, "MiB"},
		{"scale.rss.agent", "scale: agent with 4,999 peers, resident memory", atMost, 60, "MiB"},
		{"scale.growth.routes", "scale: time until all routes are Available, 5,000 nodes / 1,000", atMost, 5.5, "x"},
		{"scale.growth.controller", "scale: resident memory of the controller, 5,000 nodes / 1,000", atMost, 5.5, "x"},
		{"scale.growth.converge", "scale: time of an agent to converge, 5,000 nodes / 1,000", atMost, 5.5, "x"},
		{"scale.growth.agent", "scale: resident memory of an agent, 5,000 nodes / 1,000", atMost, 5.5, "x"},
		{"scale.growth.bytes", "scale: bytes that an agent reads, 5,000 nodes / 1,000", atMost, 5.5, "x"},
		{"scale.growth.pods", "scale: bytes that an agent reads per pod, 5,000 nodes / 1,000", atMost, 1.1, "x"},
		{"scale.growth.kernel", "scale: kernel objects of an agent, 5,000 nodes / 1,000", atMost, 5.5, "x"},
		{"scale.growth.probes", "scale: probes of the whole cluster, 5,000 nodes / 1,000", atMost, 5.5, "x"},
		{"scale.join.tunnel", "scale: a node joins 1,000, reachable by tunnel after its agent's start", atMost, 1, "s"},
		{"scale.join.direct", "scale: a node joins 1,000, reached directly after the cloud's Available", atMost, 1, "s"},
		{"scale.deleted", "scale: a route deleted by hand among 1,000 nodes, the tunnel carries again", atMost, 3, "s"},
		{"scale.change", "scale: live changes of transport among 1,000 nodes, packets lost", atMost, 0, "packets"},
		{"size.plugin", "size of the plugin", atMost, 6, "MiB"},
		{"size.image", "size of the image, one architecture", atMost, 60, "MiB"},
	}
}

// sample is what was measured for one claim: a value for each repetition.
type sample struct {
	values []float64
	// value is what counts; the median of values unless set.
	value  *float64
	detail string
	loaded bool // other work was on the machine
}

// row is a line of results/latest.json.
type row struct {
	Claim  string   `json:"claim"`
	Value  *float64 `json:"value"` // null if it could not be measured
	Target float64  `json:"target"`
	Unit   string   `json:"unit"`
	Met    bool     `json:"met"`
	Sense  string   `json:"sense"` // how value is to stand to target
	Min    *float64 `json:"min,omitempty"`
	Max    *float64 `json:"max,omitempty"`
	N      int      `json:"n,omitempty"`
	Detail string   `json:"detail,omitempty"`
	// Loaded says that other work ran on the machine meanwhile.
	Loaded bool `json:"loaded,omitempty"`
	// Measured is the day, and Version the version of what was measured.
	Measured string `json:"measured,omitempty"`
	Version  string `json:"version,omitempty"`
	// Earlier says that this run left the row's section out: it is a former
	// run's.
	Earlier bool `json:"earlier,omitempty"`
}

// keepEarlier fills in rows of sections that were left out with what an earlier
// run had measured for the same claim and target.
func keepEarlier(rows []row, path string, leftOut func(claim string) bool) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the results of before: %w", err)
	}
	var before []row
	if err := json.Unmarshal(data, &before); err != nil {
		return fmt.Errorf("read the results of before in %s: %w; remove the file if it is of no use", path, err)
	}
	for i, r := range rows {
		for _, b := range before {
			if b.Claim == r.Claim && b.Target == r.Target && b.Value != nil && r.Value == nil && leftOut(r.Claim) {
				b.Earlier = true
				rows[i] = b
			}
		}
	}
	return nil
}

// judge holds what was measured against the targets. A claim without a sample
// is missed.
func judge(all []target, samples map[string]sample, whyNot map[string]string) []row {
	var rows []row
	for _, t := range all {
		r := row{Claim: t.claim, Target: t.target, Unit: t.unit, Sense: t.sense}
		s, measured := samples[t.key]
		if !measured || len(s.values) == 0 {
			r.Detail = "not measured: " + whyNot[section(t.key)]
			rows = append(rows, r)
			continue
		}
		value := median(s.values)
		if s.value != nil {
			value = *s.value
		}
		least, most := slices.Min(s.values), slices.Max(s.values)
		r.Value, r.Min, r.Max, r.N = &value, &least, &most, len(s.values)
		r.Met = value <= t.target
		if t.sense == atLeast {
			r.Met = value >= t.target
		}
		r.Detail, r.Loaded = s.detail, s.loaded
		rows = append(rows, r)
	}
	return rows
}

// section is the part of the bench that measures a claim.
func section(key string) string {
	head, _, _ := strings.Cut(key, ".")
	switch head {
	case "vxlan", "ipip", "direct", "bare":
		return "dataplane"
	case "add", "del":
		return "plugin"
	case "rss", "size":
		return "footprint"
	}
	return head
}

// printTable writes the rows for people.
func printTable(w io.Writer, rows []row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tCLAIM\tVALUE\tTARGET\tSPREAD\t")
	missed := 0
	for _, r := range rows {
		mark, value, spread := "met", "-", ""
		if !r.Met {
			mark = "MISSED"
			missed++
		}
		if r.Value != nil {
			value = number(*r.Value) + " " + r.Unit
			spread = fmt.Sprintf("%s .. %s, n=%d", number(*r.Min), number(*r.Max), r.N)
		}
		if r.Loaded {
			spread += " (loaded machine)"
		}
		if r.Earlier {
			spread += " (of an earlier run, " + r.Measured + ")"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s %s\t%s\t\n", mark, r.Claim, value, r.Sense, number(r.Target), spread)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, r := range rows {
		if r.Detail != "" {
			fmt.Fprintf(w, "%s:\n    %s\n", r.Claim, r.Detail)
		}
	}
	_, err := fmt.Fprintf(w, "\n%d of %d targets met, %d missed\n", len(rows)-missed, len(rows), missed)
	return err
}

// number writes three digits, and no zeros behind.
func number(v float64) string {
	text := fmt.Sprintf("%.3f", v)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// writeRows writes the rows for programs.
func writeRows(path string, rows []row) error {
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of the results: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}

// median of values, of which there is at least one.
func median(values []float64) float64 { return percentile(values, 50) }

// percentile by nearest rank; for 50, of an even count, the mean of the middle two.
func percentile(values []float64, p int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if p == 50 && n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[max(0, (n*p+99)/100-1)]
}

// ratios divides pair by pair: both were measured next to each other.
func ratios(a, b []float64) []float64 {
	var out []float64
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			out = append(out, a[i]/b[i])
		}
	}
	return out
}
