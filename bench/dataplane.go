package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/bench/fabric"
	"ropeway.dev/ropeway/bench/traffic"
	"ropeway.dev/ropeway/internal/lab/cpus"
	"ropeway.dev/ropeway/internal/plan"
)

// The hidden commands of the dataplane's part.
const (
	fabricCommand = "__fabric" // all of it, in a mount namespace of its own
	serverCommand = "__server"
	clientCommand = "__client"
	serverReady   = "ready" // what the server says once clients may come
)

const (
	runLength = 600 * time.Millisecond
	// quiet is how busy the other CPUs may be before what was measured is
	// measured again, and patience for how long that is done.
	quiet    = 0.25
	patience = 90 * time.Second
)

// Names of the ways, in the order of the table.
const (
	wayNodes   = "nodes"
	wayBare    = "bare"
	wayPlain   = "plain"
	wayDirect  = "direct"
	wayIPIP    = "ipip"
	wayVXLAN   = "vxlan"
	wayFlannel = "flannel"
)

func wayNames() []string {
	return []string{wayNodes, wayBare, wayPlain, wayDirect, wayIPIP, wayVXLAN, wayFlannel}
}

// wayDocs say what each is.
func wayDocs(peer string) map[string]string {
	return map[string]string{
		wayNodes: "node to node", wayBare: "kernel routing without kube-proxy", wayPlain: "kernel routing", wayDirect: "ropeway direct",
		wayIPIP: "ropeway ipip", wayVXLAN: "ropeway vxlan", wayFlannel: peer,
	}
}

// cpuPerGbit stands beside traffic's tests: the stream's other figure.
const cpuPerGbit = traffic.Test("CPU")

// trial is a test of a server, or of the Service before it. Its text is the end
// of its claims' keys.
type trial string

const viaService = ".service"

func trialOf(test traffic.Test, service bool) trial {
	if service {
		return trial(test + viaService)
	}
	return trial(test)
}

func (t trial) service() bool { return strings.HasSuffix(string(t), viaService) }

func (t trial) test() traffic.Test { return traffic.Test(strings.TrimSuffix(string(t), viaService)) }

// trials lists what is played, in order.
func trials() []trial {
	var out []trial
	for _, test := range traffic.Tests() {
		out = append(out, trialOf(test, false), trialOf(test, true))
	}
	return out
}

// measured is what the dataplane's part found.
type measured struct {
	// Peer says what stands for flannel.
	Peer string
	// Values maps trial -> way -> a value for each repetition.
	Values map[trial]map[string][]float64
	// Loaded maps trial -> whether other work ran meanwhile.
	Loaded map[trial]bool
}

// dataplane runs the dataplane's part in a process of its own, whose mount
// namespace takes everything with it.
func (b *bench) dataplane(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "rwbench-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	flannel := filepath.Join(dir, "flannel-peer")
	if err := goBuild(ctx, filepath.Join(b.root, "bench", "peers"), flannel, "./flannel"); err != nil {
		b.say("flannel cannot be built, a plain vxlan device stands for it: %v", err)
		flannel = ""
	}
	cmd := exec.CommandContext(ctx, b.self, fabricCommand, dir, flannel, strconv.Itoa(b.repetitions))
	// A session of its own, for its weight: see takePrecedence.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Setsid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = b.out
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("measure the dataplane: %w", err)
	}
	var m measured
	if err := json.Unmarshal(out, &m); err != nil {
		return fmt.Errorf("read what the dataplane's part found: %w", err)
	}
	return b.claimDataplane(m)
}

// claimDataplane turns figures into claims.
func (b *bench) claimDataplane(m measured) error {
	for t, values := range m.Values {
		var parts []string
		for _, way := range wayNames() {
			switch {
			case len(values[way]) > 0:
				parts = append(parts, fmt.Sprintf("%s %s", wayDocs(m.Peer)[way], number(median(values[way]))))
			case way != wayBare || !t.service():
				return fmt.Errorf("%s was not measured for %s", t, way)
			}
		}
		detail := strings.Join(parts, ", ") + " " + unitOf(t.test())
		claim := func(key, own, peer string) {
			b.samples[key+"."+string(t)] = sample{
				values: compare(t.test(), values[own], values[peer]), detail: detail, loaded: m.Loaded[t],
			}
		}
		claim("vxlan", wayVXLAN, wayFlannel)
		claim("direct", wayDirect, wayPlain)
		claim("ipip", wayIPIP, wayVXLAN)
		if !t.service() {
			claim("bare", wayDirect, wayBare)
		}
	}
	return nil
}

// compare says, for each repetition, how many times as good own was as peer; of
// losses it gives the difference in percentage points.
func compare(test traffic.Test, own, peer []float64) []float64 {
	switch test {
	case traffic.UDP:
		var out []float64
		for i := range own {
			out = append(out, 100*(own[i]-peer[i]))
		}
		return out
	case cpuPerGbit: // less is better
		return ratios(peer, own)
	default:
		return ratios(own, peer)
	}
}

func unitOf(test traffic.Test) string {
	return map[traffic.Test]string{
		traffic.RR: "requests/s", traffic.CRR: "connections/s", traffic.Stream: "Gbit/s",
		traffic.UDP: "lost of 1", cpuPerGbit: "CPU seconds per Gbit",
	}[test]
}

// runFabric is the command fabricCommand.
func runFabric(ctx context.Context, dir, flannel string, repetitions int) error {
	takePrecedence()
	if err := fabric.Isolate(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ways, peer, err := lay(ctx, dir, flannel)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, w := range ways {
		if err := startServer(ctx, self, w); err != nil {
			return fmt.Errorf("start the server of %s: %w", w.Name, err)
		}
	}
	m := &measured{Peer: peer, Values: map[trial]map[string][]float64{}, Loaded: map[trial]bool{}}
	r := &rounds{self: self, ways: ways, found: m, until: time.Now().Add(patience)}
	for i := range repetitions {
		fmt.Fprintf(os.Stderr, "         round %d of %d\n", i+1, repetitions)
		for _, t := range trials() {
			if err := r.play(ctx, t, i); err != nil {
				return err
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(m)
}

// startServer starts a way's server, which ends with this process, and waits until
// clients may come.
func startServer(ctx context.Context, self string, w fabric.Way) error {
	server := inside(ctx, w.Server, self, serverCommand, netip.AddrPortFrom(w.At, fabric.Port).String())
	said, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	var wrong bytes.Buffer
	server.Stderr = &wrong
	if err := server.Start(); err != nil {
		return err
	}
	if line, err := bufio.NewReader(said).ReadString('\n'); strings.TrimSpace(line) != serverReady {
		return fmt.Errorf("it said %q and no more: %w: %s", line, errors.Join(err, server.Wait()), &wrong)
	}
	go server.Wait()
	return nil
}

// takePrecedence has the scheduler prefer this session to all others, so that
// other work on the machine widens the spread less (sched(7), autogroup). Where
// there are no autogroups, nothing changes.
func takePrecedence() { _ = os.WriteFile("/proc/self/autogroup", []byte("-20"), 0) }

// lay makes all ways.
func lay(ctx context.Context, dir, flannel string) (ways []fabric.Way, peer string, err error) {
	peer = "flannel vxlan"
	for _, name := range wayNames() {
		var w fabric.Way
		switch name {
		case wayNodes:
			w, err = fabric.NodeToNode(ctx, name, dir)
		case wayBare:
			w, err = fabric.Bare(ctx, name, dir)
		case wayPlain:
			w, err = fabric.Plain(ctx, name, dir)
		case wayDirect:
			w, err = fabric.Ropeway(ctx, name, dir, plan.Direct, "ip protocol icmp ip saddr 10.244.0.0/16")
		case wayIPIP:
			w, err = fabric.Ropeway(ctx, name, dir, plan.IPIP, "ip protocol 4")
		case wayVXLAN:
			w, err = fabric.Ropeway(ctx, name, dir, plan.VXLAN, "udp dport 4789")
		case wayFlannel:
			if flannel == "" {
				peer = "plain vxlan device (flannel's arrangement)"
				w, err = fabric.PlainVXLAN(ctx, name, dir)
			} else {
				w, err = fabric.Flannel(ctx, name, dir, flannel)
			}
		}
		if err != nil {
			return nil, "", err
		}
		fmt.Fprintf(os.Stderr, "         %s works\n", wayDocs(peer)[name])
		ways = append(ways, w)
	}
	return ways, peer, nil
}

// inside prepares a command in a network namespace, on the pinned CPU, that
// ends with this process.
func inside(ctx context.Context, netns string, argv ...string) *exec.Cmd {
	line := append([]string{"netns", "exec", netns, "taskset", "-c", strconv.Itoa(pinnedCPU())}, argv...)
	cmd := exec.CommandContext(ctx, "ip", line...)
	cmd.Env = append(os.Environ(), "GOGC=off", "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// rounds plays the tests.
type rounds struct {
	self  string
	ways  []fabric.Way
	found *measured
	until time.Time // when foreign work is put up with
}

// play plays a test once on each way, one right after the other, and again if
// other work was in the way. Each round begins with another way.
func (r *rounds) play(ctx context.Context, t trial, round int) error {
	for {
		before, err := cpus.Read()
		if err != nil {
			return err
		}
		got := map[trial]map[string]float64{t: {}, trialOf(cpuPerGbit, t.service()): {}}
		for i := range r.ways {
			w := r.ways[(i+round)%len(r.ways)]
			if t.service() && !w.Service.IsValid() {
				continue
			}
			if err := r.one(ctx, w, t, got); err != nil {
				return fmt.Errorf("%s on %s: %w", t, w.Name, err)
			}
		}
		after, err := cpus.Read()
		if err != nil {
			return err
		}
		loaded := foreign(before, after) > quiet
		if loaded && time.Now().Before(r.until) {
			continue
		}
		for t, values := range got {
			r.found.note(t, values, loaded)
		}
		return nil
	}
}

func (m *measured) note(t trial, values map[string]float64, loaded bool) {
	if len(values) == 0 {
		return
	}
	if m.Values[t] == nil {
		m.Values[t] = map[string][]float64{}
	}
	for way, v := range values {
		m.Values[t][way] = append(m.Values[t][way], v)
	}
	m.Loaded[t] = m.Loaded[t] || loaded
}

// one plays a test on one way.
func (r *rounds) one(ctx context.Context, w fabric.Way, t trial, got map[trial]map[string]float64) error {
	before, err := cpus.Read()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	at := w.At
	if t.service() {
		at = w.Service
	}
	client := inside(ctx, w.From, r.self, clientCommand, string(t.test()), netip.AddrPortFrom(at, fabric.Port).String(), runLength.String())
	var complaint bytes.Buffer
	client.Stderr = &complaint
	out, err := client.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(complaint.String()))
	}
	var result traffic.Result
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("read the client's result: %w", err)
	}
	got[t][w.Name] = result.Value
	if t.test() != traffic.Stream {
		return nil
	}
	after, err := cpus.Read()
	if err != nil {
		return err
	}
	const ticks = 100 // in a second, for user space (proc_stat(5))
	spent := (after[pinnedCPU()].Busy - before[pinnedCPU()].Busy) / ticks
	got[trialOf(cpuPerGbit, t.service())][w.Name] = spent / (result.Bits / 1e9)
	return nil
}

// runClient is the command clientCommand.
func runClient(test, server, length string) error {
	at, errAt := netip.ParseAddrPort(server)
	d, errLength := time.ParseDuration(length)
	if err := errors.Join(errAt, errLength); err != nil {
		return err
	}
	result, err := traffic.Run(traffic.Test(test), at, d)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// goBuild builds a static program.
func goBuild(ctx context.Context, dir, output string, packages ...string) error {
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", output}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		last := ""
		for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
			last = lines.Text()
		}
		return fmt.Errorf("go build %s: %w: %s", strings.Join(packages, " "), err, last)
	}
	return nil
}
