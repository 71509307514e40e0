package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"ropeway.dev/ropeway/internal/lab"
)

// nodeDir is where the bench's programs lie on the node: on its scratch disk.
const nodeDir = "/opt/rwbench"

// plugin has a node of the lab, as it is installed, add and delete sandboxes by
// libcni, beside the reference plugins ptp and host-local.
func (b *bench) plugin(ctx context.Context, l *lab.Lab) error {
	dir, err := os.MkdirTemp("", "rwbench-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	const reference = "github.com/containernetworking/plugins/plugins/"
	if err := goBuild(ctx, b.root, dir+"/", reference+"main/ptp", reference+"ipam/host-local", "./bench/empty"); err != nil {
		return err
	}
	node := l.Nodes()[0].Name
	files := map[string]string{"bench": b.self}
	for _, name := range []string{"ptp", "host-local", "empty"} {
		files[name] = filepath.Join(dir, name)
	}
	for name, from := range files {
		if err := l.CopyToNode(ctx, node, from, filepath.Join(nodeDir, name)); err != nil {
			return err
		}
	}
	cmd, err := l.HostCommand(ctx, node, filepath.Join(nodeDir, "bench"), pluginCommand, "/etc/cni/net.d", nodeDir)
	if err != nil {
		return err
	}
	cmd.Stderr = b.out
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("drive the plugins on node %s: %w", node, err)
	}
	var r pluginRounds
	if err := json.Unmarshal(out, &r); err != nil {
		return fmt.Errorf("read what was found on node %s: %w", node, err)
	}
	b.claimPlugin(r)
	return nil
}

// claimPlugin turns figures into claims.
func (b *bench) claimPlugin(r pluginRounds) {
	own, peer := r.Rounds[ownPlugin], r.Rounds[peerPlugin]
	each := func(rounds []pluginRound, of func(pluginRound) float64) []float64 {
		var out []float64
		for _, round := range rounds {
			out = append(out, of(round))
		}
		return out
	}
	addP50 := func(p pluginRound) float64 { return percentile(p.Add, 50) }
	addP99 := func(p pluginRound) float64 { return percentile(p.Add, 99) }
	delP99 := func(p pluginRound) float64 { return percentile(p.Del, 99) }
	perSecond := func(p pluginRound) float64 { return p.AddPerSecond }
	pooled := func(rounds []pluginRound, of func(pluginRound) []float64, p int) *float64 {
		var all []float64
		for _, round := range rounds {
			all = append(all, of(round)...)
		}
		v := percentile(all, p)
		return &v
	}
	adds := func(p pluginRound) []float64 { return p.Add }
	dels := func(p pluginRound) []float64 { return p.Del }
	put := func(key string, s sample) { s.loaded = r.Loaded; b.samples[key] = s }
	detail := func(what string, of func(pluginRound) []float64) string {
		return fmt.Sprintf("%s p50/p99: ropeway %s/%s ms, ptp + host-local %s/%s ms; an empty program %s ms, the wiring alone %s ms", what,
			number(*pooled(own, of, 50)), number(*pooled(own, of, 99)), number(*pooled(peer, of, 50)), number(*pooled(peer, of, 99)),
			number(median(r.Empty)), number(median(r.Wiring)))
	}
	put("add.p50", sample{values: each(own, addP50), value: pooled(own, adds, 50), detail: detail("ADD", adds)})
	put("add.p99", sample{values: each(own, addP99), value: pooled(own, adds, 99)})
	put("add.ratio", sample{values: ratios(each(own, addP50), each(peer, addP50))})
	put("del.p99", sample{values: each(own, delP99), value: pooled(own, dels, 99), detail: detail("DEL", dels)})
	put("add.parallel", sample{values: ratios(each(own, perSecond), each(peer, perSecond)),
		detail: fmt.Sprintf("ADD per second, 10 in parallel: ropeway %s, ptp + host-local %s; DEL: %s, %s",
			number(median(each(own, perSecond))), number(median(each(peer, perSecond))),
			number(median(each(own, func(p pluginRound) float64 { return p.DelPerSecond }))),
			number(median(each(peer, func(p pluginRound) float64 { return p.DelPerSecond }))))})
}
