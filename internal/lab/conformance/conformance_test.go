package conformance

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/oci"
)

func TestFocusChoosesThePodNetwork(t *testing.T) {
	focus, skip := regexp.MustCompile(DefaultFocus), regexp.MustCompile(skipped)
	for name, want := range map[string]bool{
		"[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: udp [NodeConformance] [Conformance]":     true,
		"[sig-network] Services should have session affinity work for NodePort service [LinuxOnly] [Conformance]":                             true,
		"[sig-network] HostPort validates that there is no conflict between pods with same hostPort":                                          true,
		"[sig-network] Networking Granular Checks: Services should update nodePort: udp [Slow]":                                               false,
		"[sig-network] Netpol NetworkPolicy between server and client should support a 'default-deny-ingress' policy [Feature:NetworkPolicy]": false,
		"[sig-network] DNS should provide DNS for the cluster [Conformance]":                                                                  false,
		"[sig-apps] Deployment should have a working scale subresource":                                                                       false,
	} {
		if got := focus.MatchString(name) && !skip.MatchString(name); got != want {
			t.Errorf("%s is played: %v, want %v", name, got, want)
		}
	}
}

func TestWrongOptions(t *testing.T) {
	for _, o := range []Options{{Focus: "("}, {Processes: -1}, {Processes: 33}} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "--") {
			t.Errorf("%+v: %v, want an error that names the flag", o, err)
		}
	}
}

func TestLayersOfAnArchiveStay(t *testing.T) {
	dir := t.TempDir()
	layer, err := oci.BuildLayer(dir, []oci.Entry{{Path: "/hello", Mode: 0o644, Content: []byte("hello")}}, oci.Uncompressed)
	if err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(dir, "first.tar")
	img := oci.Image{Architecture: "amd64", Config: oci.Config{Entrypoint: []string{"/hello"}}, Layers: []*oci.Layer{layer}}
	if err := oci.WriteArchive(first, "registry.example/a:1", []oci.Image{img}); err != nil {
		t.Fatal(err)
	}
	again, err := unpack(first, filepath.Join(dir, "unpacked"))
	if err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(dir, "second.tar")
	if err := oci.WriteArchive(second, "registry.example/a:1", []oci.Image{again}); err != nil {
		t.Fatal(err)
	}
	a, errA := os.ReadFile(first)
	b, errB := os.ReadFile(second)
	if err := errors.Join(errA, errB); err != nil || string(a) != string(b) {
		t.Errorf("an image that is read and written is another one (%v)", err)
	}
}

func TestWhatGinkgoSaysIsKept(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	r := &results{out: &strings.Builder{}}
	cmd := exec.CommandContext(context.Background(), "sh", "-c", "echo '• [1.0 seconds]'; echo 'a spec [label]'; exit 3")
	failed, err := follow(cmd, r, log)
	if err != nil || failed == nil || r.passed != 1 {
		t.Errorf("follow: %v, %v, %d passed", failed, err, r.passed)
	}
	if data, err := os.ReadFile(log); err != nil || !strings.Contains(string(data), "a spec [label]") {
		t.Errorf("the log holds %q, %v", data, err)
	}
}
