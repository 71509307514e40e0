package nodes

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/kube"
)

var rewrite = flag.Bool("rewrite", false, "write the scenarios' answers anew")

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// stage is a cluster and a cloud that a scenario plays with.
type stage struct {
	t     *testing.T
	now   time.Time
	cloud *cloud.Fake
	nodes map[string]*corev1.Node
	in    *instances
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, now: time.Unix(1000, 0), cloud: cloud.NewFake("cn-chengdu"), nodes: map[string]*corev1.Node{}}
	cfg := Config{Now: func() time.Time { return s.now }, Log: quiet()}
	cfg.Defaults()
	s.in = New(cfg).newInstances(s.cloud.Instances(), func() ([]*corev1.Node, error) {
		var all []*corev1.Node
		for _, n := range s.nodes {
			all = append(all, n)
		}
		return all, nil
	})
	return s
}

// TestEvidence plays testdata/evidence.txt: what must and what must not count
// as proof that an instance is gone.
func TestEvidence(t *testing.T) {
	path := filepath.Join("testdata", "evidence.txt")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var s *stage
	for line := range strings.Lines(string(text)) {
		command := strings.TrimRight(line, "\n")
		words := strings.Fields(command)
		switch {
		case len(words) == 0, strings.HasPrefix(command, "#"):
		case words[0] == "case":
			s = newStage(t)
		default:
			question, _, _ := strings.Cut(command, " -> ")
			command = question
			if answer := s.do(strings.Fields(question)); answer != "" {
				command += " -> " + answer
			}
		}
		fmt.Fprintln(&out, command)
	}
	if *rewrite {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := out.String(); got != string(text) {
		t.Errorf("other answers (go test -rewrite writes them):\n%s", diff(string(text), got))
	}
}

func diff(want, got string) string {
	var out strings.Builder
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		a, b := at(w, i), at(g, i)
		if a != b {
			fmt.Fprintf(&out, "line %d\n- %s\n+ %s\n", i+1, a, b)
		}
	}
	return out.String()
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return ""
}

// do plays one line and returns the answer to a question.
func (s *stage) do(words []string) string {
	ctx := context.Background()
	name := words[len(words)-1]
	switch words[0] {
	case "ready": // nodes that are there, seen before
		for _, n := range words[1:] {
			s.add(n)
		}
	case "silent", "notready", "speaks":
		s.setReady(name, map[string]corev1.ConditionStatus{"silent": "Unknown", "notready": "False", "speaks": "True"}[words[0]])
	case "unseen":
		s.nodes[name].Annotations = nil
	case "providerID":
		s.nodes[words[1]].Spec.ProviderID = strings.TrimPrefix(name, "none")
	case "again": // the Node is another object of the same name
		s.nodes[name].UID += "-again"
	case "release":
		s.cloud.Release(words[1:]...)
	case "hide":
		s.cloud.Hide(words[1:]...)
	case "stop":
		s.cloud.ChangeInstance(name, func(i *cloud.Instance) { i.Running, i.Stopped = false, true })
	case "fail":
		s.cloud.Fail(words[1], cloud.ErrInjected, false)
	case "wait":
		d, err := time.ParseDuration(name)
		if err != nil {
			s.t.Fatal(err)
		}
		s.now = s.now.Add(d)
	case "exists?":
		return answer(s.in.InstanceExists(ctx, s.nodes[name]))
	case "shutdown?":
		return answer(s.in.InstanceShutdown(ctx, s.nodes[name]))
	case "calls?":
		calls := map[string]int{}
		for _, c := range s.cloud.Calls() {
			calls[c.Action]++
		}
		return fmt.Sprint(calls)
	default:
		s.t.Fatalf("unknown command %q", words)
	}
	return ""
}

func answer(yes bool, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	if yes {
		return "yes"
	}
	return "no"
}

// add makes a node and its instance, both of which are well.
func (s *stage) add(name string) {
	id := "i-" + name
	s.cloud.AddInstances(cloud.Instance{ID: id, VPC: "vpc-1", Running: true})
	s.nodes[name] = &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{kube.SeenAnnotation: id}},
		Spec:       corev1.NodeSpec{ProviderID: "cn-chengdu." + id},
	}
	s.setReady(name, corev1.ConditionTrue)
}

// setReady changes a node, as the informer tells the tender's handler.
func (s *stage) setReady(name string, status corev1.ConditionStatus) {
	before := s.nodes[name].DeepCopy()
	s.nodes[name].Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	(&tender{instances: s.in}).handler().OnUpdate(before, s.nodes[name])
}

// TestLateVerdict: a question about a silent node that is answered after the node
// has spoken again leaves no doubt behind.
func TestLateVerdict(t *testing.T) {
	s := newStage(t)
	s.add("a")
	s.add("b")
	s.setReady("b", corev1.ConditionUnknown)
	s.cloud.Hide("i-a", "i-b")
	asked := s.nodes["b"].DeepCopy()
	if _, err := s.in.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.setReady("b", corev1.ConditionTrue)
	if _, err := s.in.InstanceExists(t.Context(), asked); err == nil || len(s.in.doubts()) != 1 {
		t.Fatalf("the late answer is %v, and leaves %v", err, s.in.doubts())
	}
	cfg := Config{Log: quiet(), Metrics: NewMetrics()}
	cfg.Defaults()
	if got := (&tender{cfg: cfg, instances: s.in}).status(); len(got.Problems) > 0 {
		t.Errorf("node b speaks, and it is said: %v", got.Problems)
	}
}
