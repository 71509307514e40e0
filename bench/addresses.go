package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ropeway.dev/ropeway/internal/lab"
)

// States of the API server while addresses are given.
const (
	apiUp      = "up"
	apiSlow    = "slow"
	apiStopped = "stopped"
)

// Sources of addresses (spec.addressSource of ClusterNetwork).
const (
	fromBlocks   = "Blocks"
	fromNodeCIDR = "NodeCIDR"
)

// addressRuns maps source -> state of the API server -> what was found.
type addressRuns map[string]map[string]addressRun

// addresses measures ADD for each source of addresses and state of the API server.
func (b *bench) addresses(ctx context.Context, l *lab.Lab) (err error) {
	if err := b.takePlugins(ctx, l); err != nil {
		return err
	}
	runs := addressRuns{}
	requests := map[string]float64{}
	defer func() { err = errors.Join(err, useSource(context.WithoutCancel(ctx), l, fromBlocks)) }()
	for _, source := range []string{fromNodeCIDR, fromBlocks} {
		if err := useSource(ctx, l, source); err != nil {
			return err
		}
		runs[source] = map[string]addressRun{}
		for _, state := range []string{apiUp, apiSlow, apiStopped} {
			before, err := apiRequests(ctx, l)
			if err != nil {
				return err
			}
			run, err := b.addressRun(ctx, l, state)
			if err != nil {
				return fmt.Errorf("addresses from %s with the API server %s: %w", source, state, err)
			}
			after, err := apiRequests(ctx, l)
			if err != nil {
				return err
			}
			runs[source][state] = run
			requests[source+" "+state] = (after - before) / run.Adds
			b.say("addresses: from %s, API server %s: ADD p50 %s ms one at a time, p99 %s ms %d at a time; the agent's share p99 %s ms", source, state,
				number(percentile(run.all(ownPlugin, 1), 50)), number(percentile(run.all(ownPlugin, 50), 99)), 50, number(run.AgentP99))
		}
	}
	b.claimAddresses(runs, requests)
	return nil
}

// addressRun runs the command addressCommand on a node while the API server is in
// a state.
func (b *bench) addressRun(ctx context.Context, l *lab.Lab, state string) (run addressRun, err error) {
	node := l.Nodes()[0].Name
	who := "own" // the others do not know of an API server
	if state == apiUp {
		who = "all"
	}
	podCIDR, err := podCIDROf(ctx, l, node)
	if err != nil {
		return run, err
	}
	release, err := holdAPI(ctx, l, state)
	if err != nil {
		return run, err
	}
	defer release()
	cmd, err := l.HostCommand(ctx, node, filepath.Join(nodeDir, "bench"), addressCommand, "/etc/cni/net.d", nodeDir, podCIDR, who)
	if err != nil {
		return run, err
	}
	cmd.Stderr = b.out
	out, err := cmd.Output()
	if err != nil {
		return run, fmt.Errorf("give addresses on node %s: %w", node, err)
	}
	return run, json.Unmarshal(out, &run)
}

// useSource has the cluster take its addresses from there, and waits until each
// node does.
func useSource(ctx context.Context, l *lab.Lab, source string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := l.Kubectl(ctx, "patch", "clusternetwork", "default", "--type", "merge", "-p", `{"spec":{"addressSource":"`+source+`"}}`); err != nil {
		return err
	}
	for {
		want, err := l.Kubectl(ctx, "get", "clusternetwork", "default", "-o", "jsonpath={.metadata.generation}")
		if err != nil {
			return err
		}
		have, err := l.Kubectl(ctx, "get", "nodenetworks", "-o", "jsonpath={.items[*].status.networkGeneration}")
		if err != nil {
			return err
		}
		behind := slices.DeleteFunc(strings.Fields(string(have)), func(s string) bool { return s == string(want) })
		if len(behind) == 0 {
			return nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return fmt.Errorf("not all nodes go by addresses from %s: %w", source, err)
		}
	}
}

// Of a slow API server every request waits, for half of slowTurn on average.
const (
	slowTurn = 400 * time.Millisecond
	slowOpen = 20 * time.Millisecond
)

// holdAPI stops the lab's API server, or lets it run for a moment now and then,
// until release is called.
func holdAPI(ctx context.Context, l *lab.Lab, state string) (release func(), err error) {
	if state == apiUp {
		return func() {}, nil
	}
	pid, err := apiServer(l)
	if err != nil {
		return nil, err
	}
	signal := func(s syscall.Signal) { _ = syscall.Kill(pid, s) }
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer signal(syscall.SIGCONT)
		signal(syscall.SIGSTOP)
		for state == apiSlow && sleep(ctx, slowTurn) == nil {
			signal(syscall.SIGCONT)
			_ = sleep(ctx, slowOpen) // the loop asks
			signal(syscall.SIGSTOP)
		}
		<-ctx.Done()
	}()
	return func() { cancel(); <-ended }, nil
}

// apiServer finds the process of the lab's API server.
func apiServer(l *lab.Lab) (int, error) {
	found, err := processesOf(l.Name(), func(argv []byte) bool {
		program, _, _ := bytes.Cut(argv, []byte{0})
		return filepath.Base(string(program)) == "kube-apiserver"
	})
	if err != nil {
		return 0, err
	}
	if len(found) == 0 {
		return 0, fmt.Errorf("lab %s has no process kube-apiserver", l.Name())
	}
	return strconv.Atoi(filepath.Base(found[0]))
}

// apiRequests is how many requests the API server has answered about Ropeway's
// objects, about pods and about events, whoever asked, without watches, which go on.
func apiRequests(ctx context.Context, l *lab.Lab) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	text, err := l.Kubectl(ctx, "get", "--raw", "/metrics")
	if err != nil {
		return 0, err
	}
	return countRequests(string(text)), nil
}

// aboutPods are labels of requests that an ADD might cause.
func aboutPods() []string {
	return []string{`group="ropeway.dev"`, `group="",resource="pods"`, `resource="events"`}
}

func countRequests(metrics string) float64 {
	total := 0.0
	for line := range strings.Lines(metrics) {
		if !strings.HasPrefix(line, "apiserver_request_total{") || strings.Contains(line, `verb="WATCH"`) || !slices.ContainsFunc(aboutPods(), func(label string) bool { return strings.Contains(line, label) }) {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, '}')+1:]), 64)
		if err == nil {
			total += value
		}
	}
	return total
}

// claimAddresses turns figures into claims.
func (b *bench) claimAddresses(runs addressRuns, requests map[string]float64) {
	var shares, perAdd []float64
	var all []string
	for _, source := range []string{fromNodeCIDR, fromBlocks} {
		up := runs[source][apiUp]
		for _, state := range []string{apiUp, apiSlow, apiStopped} {
			run := runs[source][state]
			shares = append(shares, run.AgentP99)
			all = append(all, fmt.Sprintf("from %s, API server %s: %s", source, state, run.text()))
			if state != apiUp {
				b.samples["addresses."+state+"."+source] = sample{values: ratios(run.p50s(ownPlugin, 1), up.p50s(ownPlugin, 1)), loaded: run.Loaded}
			}
		}
		perAdd = append(perAdd, requests[source+" "+apiUp])
		b.samples["addresses.parallel."+source] = sample{values: ratios(up.p99s(ownPlugin, 50), up.p99s(controlPlugin, 50)), loaded: up.Loaded}
	}
	worst := slices.Max(shares)
	b.samples["addresses.agent"] = sample{values: shares, value: &worst, detail: "p50/p99/p99.9 in ms: " + strings.Join(all, "; ")}
	most := slices.Max(perAdd)
	b.samples["addresses.requests"] = sample{values: perAdd, value: &most, detail: "all requests about objects of ropeway.dev, pods and events, of whomever in the cluster, over the ADDs of one node"}
}
