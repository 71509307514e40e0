//go:build e2e

// Package e2e tests Ropeway end to end on real clusters in the lab: what a user
// sees, and those invariants of docs/design/invariants.md that only a whole
// cluster can show.
package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/product"
	"ropeway.dev/ropeway/internal/lab/scenario"
	"ropeway.dev/ropeway/internal/lab/source"
)

const (
	version = "v0.0.0-e2e"
	mirror  = "docker.m.daocloud.io/ropeway" // the scenario's registry mirror
)

// cluster is the lab that most tests share: nodes with podCIDRs, addresses
// from blocks, kube-proxy in nftables mode.
var cluster *lab.Lab

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	ctx := context.Background()
	o, err := options("e2e", os.Stdout)
	if err != nil {
		return 1, err
	}
	if cluster, err = bootLab(ctx, o); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, takeDown(ctx, cluster, code != 0)) }()
	return m.Run(), nil
}

// bootLab boots a lab. One of that name that a run left which was interrupted goes
// first; one that belongs to a run beside this one does not.
func bootLab(ctx context.Context, o lab.Options) (*lab.Lab, error) {
	if left, err := lab.Open(o.Name); err == nil && left.Orphaned() {
		if err := left.Down(ctx); err != nil {
			return nil, fmt.Errorf("take down what an interrupted run left: %w", err)
		}
	}
	return lab.Up(ctx, o)
}

// takeDown takes a lab down and keeps its logs if something failed.
func takeDown(ctx context.Context, l *lab.Lab, failed bool) error {
	if failed {
		dir, err := l.KeepLogs(ctx)
		fmt.Printf("the logs of lab %s are in %s (%v)\n", l.Name(), dir, err)
	}
	return l.Down(ctx)
}

// options are a default lab with Ropeway on it.
func options(name string, out io.Writer) (lab.Options, error) {
	o := lab.DefaultOptions()
	o.Name, o.Cache = name, lab.DefaultCache(os.Getenv)
	began := time.Now()
	o.Progress = func(line string) { fmt.Fprintf(out, "%6.1fs %s: %s\n", time.Since(began).Seconds(), name, line) }
	p, err := installation(o.Cache, o.Progress)
	if err != nil {
		return o, err
	}
	o.Install = product.Installer(p)
	return o, nil
}

// installation installs the ropeway program that `make build` made.
func installation(cache string, progress func(string)) (product.Config, error) {
	program, err := programPath("ropeway")
	return product.Config{Program: program, Version: version, Cache: filepath.Join(cache, "image"), Progress: progress}, err
}

func programPath(name string) (string, error) {
	root, err := source.Here()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "bin", name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: run `make build` first", err)
	}
	return path, nil
}

// play plays a scenario and fails the test if a step failed.
func play(t *testing.T, l *lab.Lab, names ...string) {
	t.Helper()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			s, err := scenario.Find(name)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			p, err := installation(lab.DefaultCache(os.Getenv), func(line string) { t.Log(line) })
			if err != nil {
				t.Fatal(err)
			}
			if err := scenario.Play(t.Context(), s, scenario.Bed{Lab: l, Product: p}, scenario.NewReport(&out)); err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
		})
	}
}

// kubectl runs kubectl and fails the test if that fails.
func kubectl(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	out, err := l.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// apply applies YAML.
func apply(t *testing.T, l *lab.Lab, yaml string) {
	t.Helper()
	if _, err := l.KubectlInput(t.Context(), strings.NewReader(yaml), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// ropeway runs the ropeway program where the API server is reachable.
func ropeway(t *testing.T, l *lab.Lab, args ...string) (string, error) {
	t.Helper()
	program, err := programPath("ropeway")
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := l.HostCommand(t.Context(), "control-plane", append(append([]string{program}, args...), "--kubeconfig", l.Kubeconfig())...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// onNode runs a command on a node and fails the test if that fails.
func onNode(t *testing.T, l *lab.Lab, node string, argv ...string) string {
	t.Helper()
	out, err := l.NodeExec(t.Context(), node, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// eventually waits until check returns nil, and fails the test with its last
// reason if that takes longer than limit.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.After(limit)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("not within %s: %v", limit, err)
		case <-tick.C:
		}
	}
}

// throughout checks that something stays true for a while.
func throughout(t *testing.T, span time.Duration, check func() error) {
	t.Helper()
	end := time.After(span)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := check(); err != nil {
			t.Fatalf("within %s: %v", span, err)
		}
		select {
		case <-end:
			return
		case <-tick.C:
		}
	}
}

// node is the part of a Node that the tests look at.
type node struct {
	Metadata struct{ Name, UID, CreationTimestamp string }
	Spec     struct{ PodCIDR string }
	Status   struct {
		Conditions []struct{ Type, Status, Reason, Message string }
	}
}

// condition returns the status of a node's condition, "" if it is absent.
func (n node) condition(kind string) (status, reason string) {
	for _, c := range n.Status.Conditions {
		if c.Type == kind {
			return c.Status, c.Reason
		}
	}
	return "", ""
}

// youngest is the node that was registered last.
func youngest(nodes []node) node {
	return slices.MaxFunc(nodes, func(a, b node) int {
		return cmp.Or(strings.Compare(a.Metadata.CreationTimestamp, b.Metadata.CreationTimestamp), strings.Compare(a.Metadata.UID, b.Metadata.UID))
	})
}

func nodes(t *testing.T, l *lab.Lab) []node {
	t.Helper()
	var list struct{ Items []node }
	if err := json.Unmarshal([]byte(kubectl(t, l, "get", "nodes", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}
