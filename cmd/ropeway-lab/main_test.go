package main

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/launch"
	"ropeway.dev/ropeway/internal/lab/scenario"
)

// run plays a command line and returns what it prints and its error.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := newRoot(t.TempDir())
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(io.Discard)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestHelpShowsWhatPeopleUse(t *testing.T) {
	out, err := run(t, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"up ", "down ", "status ", "kubectl ", "exec ", "reboot ", "restart ", "scenario ", "image ", "--name"} {
		if !strings.Contains(out, want) {
			t.Errorf("help does not show %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, launch.InitCommand) {
		t.Errorf("help shows the hidden commands:\n%s", out)
	}
}

func TestWrongInputSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"up --nodes 1", []string{"--nodes 1", "2 to 8"}},
		{"up --pod-cidr 10.0.0.0", []string{"--pod-cidr", "10.244.0.0/16"}},
		{"up --service-cidr x", []string{"--service-cidr"}},
		{"up --ip-family six", []string{"ipv4, ipv6 or dual"}},
		{"up --proxy-mode ipvs", []string{"nftables or iptables"}},
		{"up --name A", []string{"lab name"}},
		{"status --name nosuchlab", []string{`lab "nosuchlab"`, "ropeway-lab up"}},
		{"status -o yaml", []string{"json"}},
		{"kubectl --name nosuchlab get nodes", []string{`lab "nosuchlab"`}},
		{"--name nosuchlab kubectl get nodes", []string{`lab "nosuchlab"`}},
		{"kubectl --name", []string{"--name needs a value"}},
		{"exec --name nosuchlab node true", []string{`lab "nosuchlab"`}},
		{"exec node", []string{"at least 2 arg"}},
		{"reboot --name nosuchlab node", []string{`lab "nosuchlab"`}},
		{"reboot", []string{"accepts 1 arg"}},
		{"restart --name nosuchlab node containerd", []string{`lab "nosuchlab"`}},
		{"restart node", []string{"accepts 2 arg"}},
		{"scenario nosuchscenario", []string{"nosuchscenario", "bare"}},
		{"cloud --name nosuchlab", []string{`lab "nosuchlab"`}},
		{"cloud call slb X", []string{"vpc, ecs or sts"}},
		{"cloud call vpc X y", []string{"NAME=VALUE"}},
		{"cloud set speed=1", []string{"speed", "delay, key-disabled"}},
		{"cloud set quota=many", []string{"quota=many"}},
		{"cloud fault --kind no", []string{"commit-timeout"}},
		{"cloud fault", []string{"Throttling.User"}},
		{"cloud fault --cidr x --code y", []string{"--cidr", "10.244.1.0/24"}},
		{"demo --ip-family four", []string{"--ip-family", "ipv4, ipv6 or dual"}},
		{"conformance --focus (", []string{"--focus", "regular expression"}},
		{"conformance --processes 99", []string{"--processes 99", "1 to 32"}},
		{"image load", []string{"at least 1 arg"}},
		{"image load --name nosuchlab x.tar", []string{`lab "nosuchlab"`}},
	} {
		_, err := run(t, strings.Fields(c.line)...)
		if err == nil {
			t.Errorf("%s: no error", c.line)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %q does not say %q", c.line, err, want)
			}
		}
	}
}

// TestDemoPlaysWhatThereIs: for each family.
func TestDemoPlaysWhatThereIs(t *testing.T) {
	for _, f := range []lab.Family{lab.IPv4, lab.IPv6, lab.Dual} {
		for _, name := range demoScenarios(f) {
			if _, err := scenario.Find(name); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		}
	}
}

func TestKubectlKeepsItsOwnFlags(t *testing.T) {
	for _, c := range []struct {
		args     []string
		name     string
		passedOn []string
	}{
		{[]string{"get", "pods", "-A"}, "lab", []string{"get", "pods", "-A"}},
		{[]string{"--name", "two", "get", "pods", "-o", "name"}, "two", []string{"get", "pods", "-o", "name"}},
		{[]string{"--name=two", "--", "get", "pods"}, "two", []string{"get", "pods"}},
		{[]string{"logs", "--name", "x"}, "lab", []string{"logs", "--name", "x"}},
		{nil, "lab", nil},
	} {
		g := &global{name: "lab"}
		got, err := g.takeName(c.args)
		if err != nil || g.name != c.name || !slices.Equal(got, c.passedOn) {
			t.Errorf("takeName(%q) = %q for lab %s, %v; want %q for lab %s", c.args, got, g.name, err, c.passedOn, c.name)
		}
	}
}

func TestProgressTellsTheTime(t *testing.T) {
	now := time.Unix(0, 0)
	var out strings.Builder
	say := elapsed(&out, func() time.Time { now = now.Add(1500 * time.Millisecond); return now })
	say("first")
	say("second")
	if out.String() != "    1.5s  first\n    3.0s  second\n" {
		t.Errorf("progress is %q", out.String())
	}
}
