package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// addressCommand is the hidden command of the addresses' part; it is run on a node.
const addressCommand = "__addresses"

const (
	// controlPlugin makes a link and gives no address.
	controlPlugin = "bridge without addresses"

	addressTurns     = 6
	addressSandboxes = 50 // all of them have addresses at once: less than a block
	// addressRest is for what they had to be free again: an address rests for a second,
	// a block has no room for two rounds, and what a node does that has run out of
	// addresses while the API server is away is not what is asked here.
	addressRest = 1200 * time.Millisecond
)

func parallels() []int { return []int{1, 10, 50} }

// addressRun is what was found while one source of addresses served, with the
// API server in one state.
type addressRun struct {
	// Took maps plugin -> how many at a time -> a list for each round of what
	// each ADD took, in ms.
	Took map[string]map[int][][]float64
	// AgentP99 is the agent's own share of them, in ms: the upper end of a
	// bucket of its histogram.
	AgentP99 float64
	Adds     float64 // of our plugin
	Loaded   bool
}

// all are the times of all rounds.
func (r addressRun) all(plugin string, parallel int) (all []float64) {
	for _, round := range r.Took[plugin][parallel] {
		all = append(all, round...)
	}
	return all
}

func (r addressRun) p50s(plugin string, parallel int) []float64 { return r.each(plugin, parallel, 50) }
func (r addressRun) p99s(plugin string, parallel int) []float64 { return r.each(plugin, parallel, 99) }

func (r addressRun) each(plugin string, parallel, p int) (out []float64) {
	for _, round := range r.Took[plugin][parallel] {
		out = append(out, percentile(round, p))
	}
	return out
}

func (r addressRun) text() string {
	var parts []string
	for _, plugin := range []string{ownPlugin, peerPlugin, controlPlugin} {
		for _, parallel := range parallels() {
			if all := r.all(plugin, parallel); len(all) > 0 {
				parts = append(parts, fmt.Sprintf("%s at %d: %s/%s/%s", plugin, parallel,
					number(percentile(all, 50)), number(percentile(all, 99)), number(perMille(all, 999))))
			}
		}
	}
	return strings.Join(parts, ", ")
}

// runAddresses is the command addressCommand: confDir has the node's conflist,
// dir the reference plugins, podCIDR is the node's; who is "all" or "own".
func runAddresses(ctx context.Context, confDir, dir, podCIDR, who string) error {
	lists, err := contenders(confDir, podCIDR)
	if err != nil {
		return err
	}
	control, err := libcni.NetworkConfFromBytes([]byte(`{"cniVersion": "1.0.0", "name": "rwbenchl2", "plugins": [{"type": "bridge", "bridge": "rwbenchl2", "mtu": 1500, "ipam": {}}]}`))
	if err != nil {
		return err
	}
	lists = []contender{lists[0], lists[2], {controlPlugin, control}}
	if who == "own" {
		lists = lists[:1]
	}
	defer os.RemoveAll(pluginState)
	d := &driver{cni: libcni.NewCNIConfigWithCacheDir([]string{"/opt/cni/bin", dir}, filepath.Join(pluginState, "cache"), nil)}
	defer d.dropSandboxes()
	if err := d.makeSandboxes(addressSandboxes); err != nil {
		return err
	}
	r := addressRun{Took: map[string]map[int][][]float64{}}
	var before histogram
	for turn := range addressTurns + 1 {
		if turn == 1 { // the first is for caches and leases
			if before, err = agentHistogram(ctx); err != nil {
				return err
			}
		}
		for i := range len(lists) * len(parallels()) {
			at := (i + turn) % (len(lists) * len(parallels()))
			c, parallel := lists[at%len(lists)], parallels()[at/len(lists)]
			took, err := d.addresses(ctx, c.list, parallel)
			if err != nil {
				return fmt.Errorf("%s, %d at a time: %w", c.name, parallel, err)
			}
			if turn > 0 {
				if r.Took[c.name] == nil {
					r.Took[c.name] = map[int][][]float64{}
				}
				r.Took[c.name][parallel] = append(r.Took[c.name][parallel], took)
			}
		}
	}
	after, err := agentHistogram(ctx)
	if err != nil {
		return err
	}
	r.AgentP99, r.Adds = after.since(before).quantile(0.99)*1000, after.count()-before.count()
	r.Loaded = loadAverage() > 3
	return json.NewEncoder(os.Stdout).Encode(r)
}

// addresses adds all sandboxes, parallel at a time, and deletes them.
func (d *driver) addresses(ctx context.Context, list *libcni.NetworkConfigList, parallel int) ([]float64, error) {
	n := len(d.sandboxes)
	took, _, err := timed(n, parallel, func(i int) error {
		_, err := d.cni.AddNetworkList(ctx, list, d.runtimeConf("rwbench-addresses", i))
		return err
	})
	if err != nil {
		return nil, err
	}
	_, _, err = timed(n, atOnce, func(i int) error { return d.cni.DelNetworkList(ctx, list, d.runtimeConf("rwbench-addresses", i)) })
	if err != nil {
		return nil, err
	}
	if err := d.awaitEmpty(ctx); err != nil {
		return nil, err
	}
	return took, sleep(ctx, addressRest)
}

// histogram maps a bucket's upper end, in seconds, -> how many were at most that
// (the exposition format of Prometheus).
type histogram map[float64]float64

// agentHistogram reads what the agent has noted of successful ADDs.
func agentHistogram(ctx context.Context) (histogram, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:9797/metrics", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the agent for its metrics: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	h := parseHistogram(string(text))
	if len(h) == 0 && response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the agent's metrics: %s", response.Status)
	}
	return h, nil
}

func parseHistogram(text string) histogram {
	h := histogram{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "ropeway_agent_cni_request_duration_seconds_bucket{") || !strings.Contains(line, `code="0"`) || !strings.Contains(line, `verb="ADD"`) {
			continue
		}
		_, rest, _ := strings.Cut(line, `le="`)
		end, _, _ := strings.Cut(rest, `"`)
		upper, errUpper := strconv.ParseFloat(end, 64)
		count, errCount := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, '}')+1:]), 64)
		if errUpper == nil && errCount == nil {
			h[upper] = count
		}
	}
	return h
}

func (h histogram) since(before histogram) histogram {
	out := histogram{}
	for upper, count := range h {
		out[upper] = count - before[upper]
	}
	return out
}

func (h histogram) count() float64 { return h[math.Inf(1)] }

// quantile is the upper end of the bucket that holds it.
func (h histogram) quantile(q float64) float64 {
	best := math.Inf(1)
	for upper, count := range h {
		if count >= q*h.count() {
			best = min(best, upper)
		}
	}
	return best
}

// perMille is percentile in tenths, by nearest rank.
func perMille(values []float64, p int) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, (len(sorted)*p+999)/1000-1)]
}
