package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"ropeway.dev/ropeway/internal/agent"
	"ropeway.dev/ropeway/internal/install"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ropeway": main})
}

// TestScripts are what a person types, and what is answered, where no cluster
// is needed. -update writes what is compared anew.
func TestScripts(t *testing.T) {
	scenario, err := filepath.Abs("../../test/scenario")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("ROPEWAY_UPDATE_SCRIPTS") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("SCENARIO", scenario)
			e.Setenv("KUBECONFIG", "")
			e.Setenv("KUBERNETES_SERVICE_HOST", "")
			return nil
		},
	})
}

func TestReadConfigDir(t *testing.T) {
	for _, test := range []struct {
		name     string
		files    map[string]string
		mtu      int
		template bool
		err      string
	}{
		{"nothing", nil, 0, false, ""},
		{"as rendered", map[string]string{"veth_mtu": "0", "cni_network_config": "{}"}, 0, true, ""},
		{"a number", map[string]string{"veth_mtu": "1400\n"}, 1400, false, ""},
		{"empty", map[string]string{"veth_mtu": ""}, 0, false, ""},
		{"words", map[string]string{"veth_mtu": "big"}, 0, false, `veth_mtu in the ConfigMap is "big"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range test.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var c agent.Config
			err := readConfigDir(dir, &c)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error %v, want %q", err, test.err)
				}
				return
			}
			if err != nil || c.VethMTU != test.mtu || (c.ConflistTemplateFile != "") != test.template {
				t.Errorf("%d, %q, %v", c.VethMTU, c.ConflistTemplateFile, err)
			}
		})
	}
}

// TestManifestArguments: what the manifests pass, the commands take.
func TestManifestArguments(t *testing.T) {
	var out bytes.Buffer
	root := newRoot(environment{nodeName: "a", podName: "b", stdin: strings.NewReader(""), stdout: &out, stderr: io.Discard})
	for _, line := range []string{
		"agent --listen=:9797 --log-level=info --config-dir=/etc/ropeway --cni-bin-dir=/a --cni-conf-dir=/b --take-over=calico --take-over=calico-ipam",
		"controller --listen=:9799 --log-level=info",
		"node-clean --cni-bin-dir=/a --cni-conf-dir=/b",
		"node-clean --wait-only",
	} {
		args := strings.Fields(line)
		cmd, rest, err := root.Find(args)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	// Waiting ends when it is told to.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	root.SetArgs([]string{"node-clean", "--wait-only"})
	if err := root.ExecuteContext(ctx); err != nil {
		t.Error(err)
	}
}

// TestConfirm: nothing is removed without a yes.
func TestConfirm(t *testing.T) {
	for _, test := range []struct {
		name     string
		yes      bool
		terminal bool
		answer   string
		want     string // of the error; empty: goes on
	}{
		{"told not to ask", true, false, "", ""},
		{"nobody to ask", false, false, "y\n", "say --yes"},
		{"yes", false, true, "Yes\n", ""},
		{"no", false, true, "n\n", "nothing was done"},
		{"nothing", false, true, "\n", "nothing was done"},
		{"end of input", false, true, "", "nothing was done"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			c := uninstallCommand{yes: test.yes, env: environment{stdin: strings.NewReader(test.answer), stdout: &out, terminal: test.terminal}}
			err := c.confirm(t.Context(), &install.Removal{Nodes: []string{"a", "b"}, Pods: 7})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if !strings.Contains(out.String(), "from 2 nodes") || !strings.Contains(out.String(), "7 running pods") {
				t.Errorf("what goes is not said: %s", out.String())
			}
		})
	}
}

// TestConfirmEndsWithItsContext: Ctrl-C at the question is an answer.
func TestConfirmEndsWithItsContext(t *testing.T) {
	silent, keyboard := io.Pipe()
	defer keyboard.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := uninstallCommand{env: environment{stdin: silent, stdout: io.Discard, terminal: true}}
	done := make(chan error, 1)
	go func() { done <- c.confirm(ctx, &install.Removal{}) }()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nothing was done") {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the question does not end with its context")
	}
}

// TestPoliciesStopOnlyTheFirstInstallation: an upgrade does not change that
// NetworkPolicies are not enforced, and a fix must not be held up by them.
func TestPoliciesStopOnlyTheFirstInstallation(t *testing.T) {
	for _, c := range []struct {
		flag  bool
		image string
		want  bool
	}{{false, "", false}, {true, "", true}, {false, "ropeway:v1", true}} {
		command := installCommand{options: install.Options{AcceptNoPolicy: c.flag}}
		if got := command.acceptsNoPolicy(&install.Survey{Installed: install.Installed{Image: c.image}}); got != c.want {
			t.Errorf("flag %t, installed %q: accepted %t", c.flag, c.image, got)
		}
	}
}
