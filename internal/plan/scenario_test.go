package plan_test

import (
	"cmp"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/plan"
)

var rewrite = flag.Bool("rewrite", false, "write the scenarios' output as it is now into testdata")

// TestScenarios plays testdata/*.txt. A line changes the snapshot or asks
// something; the lines behind a question that begin with "|" are its answer.
//
//	network pods=CIDR,.. transports=T,.. nodecidr mtu=N|MODE masquerade port=N vni=N
//	network shared=CIDR,..  leased address by address
//	network diverted=A,..   that the fabric may lead elsewhere
//	network fabric=CIDR,..  where the fabric's routes hold
//	network metadata=A,.. exempt=NAMESPACE,..
//	pod NAMESPACE|- LINK    a pod of every node that is planned for
//	node NAME uid=U created=N addr=A,.. blocks=CIDR,.. cidrs=CIDR,.. holds=CIDR,.. singles=A,.. asked=A,.. sources=A,.. ready silent refuses=T:WHY fault=F:WHY
//	probe FROM TO FAMILY TRANSPORT[@ADDRESS] ok|fail|FAULT|PATHMTU REASON   a fault is a failure, a path MTU an answer
//	forget node NAME | forget probes | forget pod LINK
//	hold NODE | hold     from now on, the routes that NODE was last planned are in its kernel (nobody's are)
//	plan NODE            the node's State
//	diff NODE            what changed since its State was last asked for
//	at SECONDS           the time, for passes
//	pass NODE            what NODE's agent does: its routes, in short, when it next has something to do, and hold NODE
//	reachable            the verdict on each node
//	faults               what the nodes found, put together by fault
//	provers              who proves whom
//	ranges               where each node gives addresses from
//
// A node line changes only what it names. Rewrite the answers with
// go test ./internal/plan -rewrite, and read the difference.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want) {
				t.Errorf("%s: the answers differ: run with -rewrite and look at the difference\n%s", file, firstDifference(string(want), got))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d:\nwant %s\ngot  %s", i+1, a, b)
		}
	}
	return ""
}

// scenario is the snapshot that a file has built so far.
type scenario struct {
	t    *testing.T
	snap plan.Snapshot
	last map[string]plan.State // node -> its State when last asked for

	now   time.Time
	moves map[string]*plan.Moves // node -> what its agent remembers
}

// play returns the file with the answers as they are now.
func play(t *testing.T, text string) string {
	s := &scenario{t: t, last: map[string]plan.State{}, moves: map[string]*plan.Moves{}}
	var out strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "|") {
			continue
		}
		out.WriteString(line)
		command, _, _ := strings.Cut(line, "#")
		words := strings.Fields(command)
		if len(words) == 0 {
			continue
		}
		if answer, asked := s.run(words); asked {
			for l := range strings.Lines(strings.TrimRight(answer, "\n") + "\n") {
				out.WriteString(strings.TrimRight("| "+l, " \n") + "\n")
			}
		}
	}
	return out.String()
}

func (s *scenario) run(words []string) (answer string, asked bool) {
	s.t.Helper()
	switch words[0] {
	case "network":
		s.network(words[1:])
	case "node":
		s.node(words[1], words[2:])
	case "pod":
		s.snap.Pods = append(s.snap.Pods, plan.LocalPod{Namespace: strings.Trim(words[1], "-"), Link: words[2]})
	case "probe":
		s.probe(words[1:])
	case "forget":
		s.forget(words[1:])
	case "hold":
		s.snap.Now = nil
		if len(words) > 1 {
			s.snap.Now = s.last[words[1]].Routes
		}
	case "plan":
		return s.compute(words[1]).String(), true
	case "diff":
		before := s.last[words[1]]
		return lines(plan.Diff(before, s.compute(words[1]))), true
	case "at":
		s.now = time.Unix(1_000_000+int64(s.number(words[1])), 0)
	case "pass":
		return s.pass(words[1]), true
	case "reachable":
		return s.ask(func(n plan.Node) string {
			ok, why := plan.Reachable(s.snap, n.Name)
			return fmt.Sprintf("%t: %s", ok, why)
		}), true
	case "faults":
		return faults(s.snap), true
	case "provers":
		return s.ask(func(n plan.Node) string { return strings.Join(plan.Provers(s.snap.Nodes, n.Name), " ") }), true
	case "ranges":
		return s.ask(func(n plan.Node) string { return ranges(plan.RangesOf(s.snap.Network, n, s.snap.Nodes)) }), true
	default:
		s.t.Fatalf("unknown command %q", words)
	}
	return "", false
}

func (s *scenario) compute(self string) plan.State {
	s.snap.Self = self
	state := plan.Compute(s.snap)
	s.last[self] = state
	return state
}

// pass does with a node's plan what its agent does.
func (s *scenario) pass(node string) string {
	if s.moves[node] == nil {
		s.moves[node] = &plan.Moves{}
	}
	m := s.moves[node]
	s.snap.Self, s.snap.Now = node, s.last[node].Routes
	s.snap.HeldBack = m.Hold(s.now, s.snap)
	state := s.compute(node)
	m.Note(s.now, s.snap, state)
	s.snap.HeldBack, s.snap.Now = nil, state.Routes
	var b strings.Builder
	for _, r := range state.Routes {
		fmt.Fprintf(&b, "%s %s %s\n", r.Dst, r.Transport, r.Reason)
	}
	if next := m.Next(); !next.IsZero() {
		fmt.Fprintf(&b, "again in %s\n", next.Sub(s.now).Round(time.Second))
	}
	return b.String()
}

func (s *scenario) ask(about func(plan.Node) string) string {
	var b strings.Builder
	for _, n := range s.snap.Nodes {
		fmt.Fprintf(&b, "%s: %s\n", n.Name, about(n))
	}
	return b.String()
}

func lines(changes []plan.Change) string {
	if len(changes) == 0 {
		return "nothing"
	}
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}

func faults(snap plan.Snapshot) string {
	var b strings.Builder
	for _, r := range plan.Summarize(plan.Defects(snap)) {
		fmt.Fprintf(&b, "%s", r)
		if r.Degraded {
			b.WriteString(" (and there is no other way)")
		}
		b.WriteString("\n")
	}
	return cmp.Or(b.String(), "nothing")
}

func ranges(rs []plan.Range) string {
	var out []string
	for _, r := range rs {
		text := r.CIDR.String()
		if r.NodeCIDR {
			text += " (node CIDR)"
		}
		if len(r.Except) > 0 {
			text += fmt.Sprintf(" except %v", r.Except)
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func (s *scenario) network(words []string) {
	n := &s.snap.Network
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "pods":
			n.PodCIDRs = each(value, s.prefix)
		case "transports":
			n.Transports = each(value, func(v string) plan.Transport { return plan.Transport(v) })
		case "shared":
			n.Shared = each(value, s.prefix)
		case "diverted":
			n.Diverted = each(value, s.addr)
		case "nodecidr":
			n.NodeCIDR = true
		case "blocks":
			n.NodeCIDR = false
		case "fabric":
			n.FabricCIDRs = each(value, s.prefix)
		case "metadata":
			n.Metadata.Addresses = each(value, s.addr)
		case "exempt":
			n.Metadata.Namespaces = strings.FieldsFunc(value, func(r rune) bool { return r == ',' })
		case "masquerade":
			n.Masquerade = true
		case "port":
			n.VXLANPort = uint16(s.number(value))
		case "vni":
			n.VXLANVNI = uint32(s.number(value))
		case "mtu":
			n.MTU = plan.MTUPolicy{Mode: value}
			if bytes, err := strconv.Atoi(value); err == nil {
				n.MTU = plan.MTUPolicy{Mode: plan.MTUFixed, Bytes: bytes}
			}
		default:
			s.t.Fatalf("network: unknown %q", w)
		}
	}
}

func (s *scenario) node(name string, words []string) {
	at := slices.IndexFunc(s.snap.Nodes, func(n plan.Node) bool { return n.Name == name })
	if at < 0 {
		at = len(s.snap.Nodes)
		s.snap.Nodes = append(s.snap.Nodes, plan.Node{Name: name, UID: "uid-" + name, Created: int64(at)})
	}
	n := &s.snap.Nodes[at]
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "uid":
			n.UID = value
		case "created":
			n.Created = int64(s.number(value))
		case "addr":
			n.Addresses = each(value, s.addr)
		case "blocks":
			n.Blocks = each(value, s.prefix)
		case "cidrs":
			n.NodeCIDRs = each(value, s.prefix)
		case "singles":
			n.Singles = each(value, s.addr)
		case "asked":
			n.Asked = each(value, s.addr)
		case "holds":
			n.Holds = each(value, s.prefix)
		case "sources":
			n.Sources = each(value, s.addr)
		case "ready":
			n.Ready = true
		case "silent":
			n.Silent = true
		case "heard":
			n.Silent = false
		case "unready":
			n.Ready = false
		case "refuses":
			transport, why, _ := strings.Cut(value, ":")
			n.Refuses = map[plan.Transport]string{plan.Transport(transport): why}
		case "fault":
			fault, why, _ := strings.Cut(value, ":")
			n.Faults = map[plan.Fault]string{plan.Fault(fault): why}
		case "sound":
			n.Faults = nil
		case "accepts":
			n.Refuses = nil
		default:
			s.t.Fatalf("node: unknown %q", w)
		}
	}
}

func (s *scenario) probe(words []string) {
	transport, address, named := strings.Cut(words[3], "@")
	p := plan.Probe{From: words[0], To: words[1], Family: plan.Family(words[2]), Transport: plan.Transport(transport),
		Reachable: words[4] == "ok", Reason: strings.Join(words[5:], " ")}
	if bytes, err := strconv.Atoi(words[4]); err == nil {
		p.Reachable, p.PathMTU, p.Fault = true, bytes, plan.MTUBlackHole
	} else if plan.Fault(words[4]).Remedy() != "" {
		p.Fault = plan.Fault(words[4])
	}
	if named {
		p.Address = s.addr(address)
	}
	for _, n := range s.snap.Nodes {
		if n.Name == p.To {
			p.ToUID = n.UID
		}
	}
	same := func(q plan.Probe) bool {
		return q.From == p.From && q.To == p.To && q.Family == p.Family && q.Transport == p.Transport && q.Address == p.Address
	}
	others := slices.DeleteFunc(slices.Collect(plan.ProbesOf(s.snap.Probes)), same)
	s.snap.Probes = plan.PublishAll(append(others, p))
}

func (s *scenario) forget(words []string) {
	if words[0] == "probes" {
		s.snap.Probes = nil
		return
	}
	if words[0] == "pod" {
		s.snap.Pods = slices.DeleteFunc(s.snap.Pods, func(p plan.LocalPod) bool { return p.Link == words[1] })
		return
	}
	s.snap.Nodes = slices.DeleteFunc(s.snap.Nodes, func(n plan.Node) bool { return n.Name == words[1] })
}

func each[T any](list string, parse func(string) T) []T {
	var out []T
	for word := range strings.SplitSeq(list, ",") {
		if word != "" {
			out = append(out, parse(word))
		}
	}
	return out
}

// prefix and addr give the invalid value for the word "bad".
func (s *scenario) prefix(v string) netip.Prefix {
	p, err := netip.ParsePrefix(v)
	if err != nil && v != "bad" {
		s.t.Fatal(err)
	}
	return p
}

func (s *scenario) addr(v string) netip.Addr {
	a, err := netip.ParseAddr(v)
	if err != nil && v != "bad" {
		s.t.Fatal(err)
	}
	return a
}

func (s *scenario) number(v string) int {
	n, err := strconv.Atoi(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}
