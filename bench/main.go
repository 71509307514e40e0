// Command bench measures what Ropeway claims, in one run: a table on standard
// output, and results/latest.json with a row for each target, missed ones
// included. Everything that is compared is measured interleaved, on one CPU, as
// ratios with their spread. It needs root, and `make build` before.
//
// It runs itself for its parts: see the commands that begin with two underscores.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ropeway.dev/ropeway/bench/traffic"
	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/source"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := start(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// start is one of the hidden commands, or all.
func start(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch rest := args[1:]; {
		case args[0] == serverCommand && len(rest) == 1:
			at, err := netip.ParseAddrPort(rest[0])
			if err != nil {
				return err
			}
			return traffic.Serve(at, func() { fmt.Println(serverReady) })
		case args[0] == clientCommand && len(rest) == 3:
			return runClient(rest[0], rest[1], rest[2])
		case args[0] == fabricCommand && len(rest) == 3:
			repetitions, err := strconv.Atoi(rest[2])
			if err != nil {
				return err
			}
			return runFabric(ctx, rest[0], rest[1], repetitions)
		case args[0] == pluginCommand && len(rest) == 3:
			return runPlugins(ctx, rest[0], rest[1], rest[2])
		case args[0] == addressCommand && len(rest) == 4:
			return runAddresses(ctx, rest[0], rest[1], rest[2], rest[3])
		case args[0] == paceCommand && len(rest) == 2:
			return runPace(ctx, rest[0], rest[1])
		}
	}
	b, err := newBench(args)
	if err != nil {
		return err
	}
	return b.run(ctx)
}

// bench is one run.
type bench struct {
	repetitions int
	results     string // where the rows go
	programs    string // the directory of what `make build` made
	name        string // of the lab
	only        []string
	nodes       []int // of the two clusters of section scale
	sharedPods  int   // of section shared
	sharedNodes int
	cache       string // the lab's

	root    string // of the repository
	self    string // this program
	out     io.Writer
	began   time.Time
	samples map[string]sample // key of a target -> what was measured
	whyNot  map[string]string // section -> why it could not be measured
}

// sections are the parts in the order in which they are run. The lab that the
// last repetition of lab boots is there for those behind it.
func sections() []string {
	return []string{"dataplane", "scale", "shared", "pools", "blocks", "lab", "footprint", "plugin", "addresses", "pods", "faults"}
}

// onALab are the sections that need a lab that is up.
func onALab() []string { return []string{"footprint", "plugin", "addresses", "pods", "faults"} }

func newBench(args []string) (*bench, error) {
	b := &bench{out: os.Stdout, began: time.Now(), samples: map[string]sample{}, whyNot: map[string]string{}}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&b.repetitions, "repetitions", 7, "rounds of what is compared, at least 5")
	flags.StringVar(&b.results, "results", "", "file for the rows (default bench/results/latest.json)")
	flags.StringVar(&b.programs, "programs", "", "directory of ropeway, ropeway-cni and ropeway-lab (default bin)")
	flags.StringVar(&b.name, "name", "bench", "name of the lab that is booted")
	only := flags.String("only", "", "sections to run, separated by commas: "+strings.Join(sections(), ", "))
	nodes := flags.String("nodes", fmt.Sprintf("%d,%d", smallNodes, largeNodes), "nodes of the two clusters of section scale; the claims are about the default, less is for a look")
	flags.IntVar(&b.sharedPods, "shared-pods", 1000, "pods of section shared; the claims are about the default, less is for a look")
	flags.IntVar(&b.sharedNodes, "shared-nodes", 10, "nodes of section shared, each with an agent")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if b.sharedPods < 10 || b.sharedPods > 10000 || b.sharedNodes < 2 || b.sharedNodes > 100 {
		return nil, fmt.Errorf("-shared-pods %d -shared-nodes %d: give from 10 to 10000, and from 2 to 100", b.sharedPods, b.sharedNodes)
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag", flags.Arg(0))
	}
	if b.repetitions < 5 {
		return nil, fmt.Errorf("-repetitions %d: give at least 5", b.repetitions)
	}
	var err error
	if b.nodes, err = parseSizes(*nodes); err != nil {
		return nil, err
	}
	b.only = sections()
	if *only != "" {
		b.only = strings.Split(*only, ",")
	}
	for _, s := range b.only {
		if !slices.Contains(sections(), s) {
			return nil, fmt.Errorf("-only %s: there are %s", s, strings.Join(sections(), ", "))
		}
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("the bench makes network namespaces: run it as root (sudo)")
	}
	return b, b.find()
}

// parseSizes reads two sizes of cluster.
func parseSizes(text string) ([]int, error) {
	var small, large int
	if n, err := fmt.Sscanf(text, "%d,%d", &small, &large); n != 2 || err != nil || small < 10 || large <= small || large > 50000 {
		return nil, fmt.Errorf("-nodes %s: give two sizes, such as %d,%d: the first at least 10, the second larger, at most 50000", text, smallNodes, largeNodes)
	}
	return []int{small, large}, nil
}

// find fills in where things are.
func (b *bench) find() (err error) {
	if b.root, err = source.Here(); err != nil {
		return err
	}
	if b.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if b.results == "" {
		b.results = filepath.Join(b.root, "bench", "results", "latest.json")
	}
	if b.programs == "" {
		b.programs = filepath.Join(b.root, "bin")
	}
	b.cache = lab.DefaultCache(os.Getenv)
	for _, name := range []string{"ropeway", "ropeway-cni", "ropeway-lab"} {
		if _, err := os.Stat(filepath.Join(b.programs, name)); err != nil {
			return fmt.Errorf("%w: run `make build` first", err)
		}
	}
	return nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.out, "%6.0fs  %s\n", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

// stamp notes when and of what the rows were measured.
func stamp(ctx context.Context, rows []row, root string) {
	version := "unknown"
	if out, err := exec.CommandContext(ctx, "git", "-C", root, "describe", "--tags", "--always", "--dirty").Output(); err == nil {
		version = strings.TrimSpace(string(out))
	}
	for i := range rows {
		if rows[i].Value != nil {
			rows[i].Measured, rows[i].Version = time.Now().UTC().Format(time.DateOnly), version
		}
	}
}

// leftOut says whether a claim's section was left out by -only.
func (b *bench) leftOut(claim string) bool {
	return slices.ContainsFunc(targets(), func(t target) bool { return t.claim == claim && !b.wants(section(t.key)) })
}

func (b *bench) wants(section string) bool { return slices.Contains(b.only, section) }

// run runs the sections. One that fails does not keep the others from running; its
// targets count as missed. Where the run is interrupted, the sections until then
// count, and the others' rows stay as they are.
func (b *bench) run(ctx context.Context) error {
	for _, s := range sections() {
		b.whyNot[s] = "left out by -only"
	}
	var ended []string
	attempt := func(section string, do func(context.Context) error) {
		if ctx.Err() != nil || !b.wants(section) {
			return
		}
		defer func() {
			if ctx.Err() == nil {
				ended = append(ended, section)
			}
		}()
		b.say("%s ...", section)
		b.whyNot[section] = ""
		if err := do(ctx); err != nil {
			b.whyNot[section] = err.Error()
			b.say("%s FAILED: %v", section, err)
		}
	}
	attempt("dataplane", b.dataplane)
	attempt("scale", b.scale)
	attempt("shared", b.shared)
	attempt("pools", b.pools)
	attempt("blocks", b.blocks)
	if slices.ContainsFunc(append(onALab(), "lab"), b.wants) {
		if err := b.onLab(ctx, attempt); err != nil {
			b.say("FAILED: %v", err)
		}
	}
	interrupted := ctx.Err()
	if ctx = context.WithoutCancel(ctx); interrupted != nil {
		b.only = ended
		maps.DeleteFunc(b.samples, func(key string, _ sample) bool { return !b.wants(section(key)) })
	}
	rows := judge(targets(), b.samples, b.whyNot)
	stamp(ctx, rows, b.root)
	if err := keepEarlier(rows, b.results, b.leftOut); err != nil {
		return err
	}
	if err := writeRows(b.results, rows); err != nil {
		return err
	}
	rows = slices.DeleteFunc(rows, func(r row) bool { return r.Value == nil && b.leftOut(r.Claim) })
	fmt.Fprintln(b.out)
	if err := printTable(b.out, rows); err != nil {
		return err
	}
	b.say("the rows are in %s", b.results)
	if interrupted != nil {
		return fmt.Errorf("interrupted (%w): sections %s were not measured to the end", interrupted, strings.Join(slices.DeleteFunc(sections(), b.wants), ", "))
	}
	for _, r := range rows {
		if r.Value == nil {
			return fmt.Errorf("not everything could be measured: %s: %s", r.Claim, r.Detail)
		}
	}
	return nil
}
