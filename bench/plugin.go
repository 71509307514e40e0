package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ropeway.dev/ropeway/internal/lab"
)

// nodeDir is where the bench's programs lie on the node: on its scratch disk.
const nodeDir = "/opt/rwbench"

// plugin has a node of the lab, as it is installed, add and delete sandboxes by
// libcni, beside the reference plugins.
func (b *bench) plugin(ctx context.Context, l *lab.Lab) (err error) {
	if err := b.takePlugins(ctx, l); err != nil {
		return err
	}
	node := l.Nodes()[0].Name
	// So that host-local may give addresses to our plugin as well.
	if err := useSource(ctx, l, fromNodeCIDR); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, useSource(context.WithoutCancel(ctx), l, fromBlocks)) }()
	podCIDR, err := podCIDROf(ctx, l, node)
	if err != nil {
		return err
	}
	cmd, err := l.HostCommand(ctx, node, filepath.Join(nodeDir, "bench"), pluginCommand, "/etc/cni/net.d", nodeDir, podCIDR)
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

// podCIDROf is a node's, of IPv4.
func podCIDROf(ctx context.Context, l *lab.Lab, node string) (string, error) {
	out, err := l.Kubectl(ctx, "get", "node", node, "-o", "jsonpath={.spec.podCIDR}")
	return string(out), err
}

// takePlugins puts this program and the reference plugins onto the first node.
func (b *bench) takePlugins(ctx context.Context, l *lab.Lab) error {
	dir, err := os.MkdirTemp("", "rwbench-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := goBuild(ctx, b.root, dir+"/", "./bench/empty"); err != nil {
		return err
	}
	const reference = "github.com/containernetworking/plugins/plugins/"
	if err := goBuild(ctx, filepath.Join(b.root, "bench", "peers"), dir+"/", reference+"main/ptp", reference+"main/bridge", reference+"ipam/host-local"); err != nil {
		return err
	}
	files := map[string]string{"bench": b.self}
	for _, name := range []string{"ptp", "bridge", "host-local", "empty"} {
		files[name] = filepath.Join(dir, name)
	}
	for name, from := range files {
		if err := l.CopyToNode(ctx, l.Nodes()[0].Name, from, filepath.Join(nodeDir, name)); err != nil {
			return err
		}
	}
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
		var parts []string
		for _, name := range []string{ownPlugin, ownHostLocal, peerPlugin, bridgePlugin, ownChained, peerChained} {
			rounds := r.Rounds[name]
			parts = append(parts, fmt.Sprintf("%s %s/%s/%s", name, number(*pooled(rounds, of, 50)), number(*pooled(rounds, of, 99)), number(*pooled(rounds, of, 100))))
		}
		return fmt.Sprintf("%s p50/p99/max in ms: %s; an empty program %s, the wiring alone %s", what, strings.Join(parts, ", "), number(median(r.Empty)), number(median(r.Wiring)))
	}
	rates := func(what string, of func(pluginRound) float64) string {
		var parts []string
		for _, name := range []string{ownPlugin, ownHostLocal, peerPlugin, bridgePlugin, ownChained, peerChained} {
			parts = append(parts, name+" "+number(median(each(r.Rounds[name], of))))
		}
		return fmt.Sprintf("%s per second, %d in parallel: %s", what, atOnce, strings.Join(parts, ", "))
	}
	put("add.p50", sample{values: each(own, addP50), value: pooled(own, adds, 50), detail: detail("ADD", adds)})
	put("add.p99", sample{values: each(own, addP99), value: pooled(own, adds, 99)})
	put("add.ratio", sample{values: ratios(each(own, addP50), each(peer, addP50))})
	put("del.p99", sample{values: each(own, delP99), value: pooled(own, dels, 99), detail: detail("DEL", dels)})
	put("add.parallel", sample{values: ratios(each(own, perSecond), each(peer, perSecond)),
		detail: rates("ADD", perSecond) + "; " + rates("DEL", func(p pluginRound) float64 { return p.DelPerSecond })})
}
