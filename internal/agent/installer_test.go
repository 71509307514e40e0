package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConflistThatHidesOurs: the node says so for as long as the runtime uses another
// product's conflist, by which no pod comes to Ropeway.
func TestConflistThatHidesOurs(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{NodeName: "a", BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), PluginSource: filepath.Join(dir, "image"), Log: testLog(t)}
	cfg.Defaults()
	write := func(path, content string) {
		t.Helper()
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, plugin := range []string{"ropeway-cni", "host-local", "portmap", "bandwidth"} {
		write("image/"+plugin, plugin)
	}
	var events []string
	in := newInstaller(&cfg, func(_ bool, reason, _ string) { events = append(events, reason) })
	write("net.d/10-calico.conflist", `{"cniVersion": "0.3.1", "name": "k8s-pod-network", "plugins": [{"type": "calico"}]}`)
	for range 2 {
		if err := in.step(true); err != nil {
			t.Fatal(err)
		}
		if c := in.condition(); c.Status || c.Reason != reasonForeign || !strings.Contains(c.Message, "10-calico.conflist") {
			t.Errorf("beside Calico's: %+v", c)
		}
	}
	if len(events) != 1 {
		t.Errorf("events: %v", events)
	}
	if err := os.Remove(filepath.Join(dir, "net.d/10-calico.conflist")); err != nil {
		t.Fatal(err)
	}
	if err := in.step(true); err != nil {
		t.Fatal(err)
	}
	if c := in.condition(); !c.Status {
		t.Errorf("alone: %+v", c)
	}
}
