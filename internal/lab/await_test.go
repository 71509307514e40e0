package lab

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
)

// standIn is a lab whose hosts' first process is the test itself.
func standIn(t *testing.T) *Lab {
	t.Helper()
	store := ledger.Store(t.TempDir())
	m := drawn(options(func(o *Options) { o.Store = store }))
	self, err := ledger.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Hosts {
		m.Hosts[i].Init = self
		for _, dir := range []string{"run", "log"} {
			if err := os.MkdirAll(filepath.Join(m.Hosts[i].Dir, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &Lab{store: store, manifest: m}
}

func tell(t *testing.T, h ledger.Host, programs ...pidone.Status) {
	t.Helper()
	data, err := json.Marshal(pidone.State{Programs: programs})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(statePath(h), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLook(t *testing.T) {
	l := standIn(t)
	h := l.manifest.Hosts[1]
	names := []string{"containerd", "kubelet", "import x.tar"}
	if waiting, err := l.look(h, names); err != nil || !slices.Equal(waiting, names) {
		t.Errorf("before pid 1 says anything: %v, %v", waiting, err)
	}
	tell(t, h, pidone.Status{Name: "containerd", Phase: pidone.Ready}, pidone.Status{Name: "kubelet", Phase: pidone.Starting},
		pidone.Status{Name: "import x.tar", Phase: pidone.Waiting}, pidone.Status{Name: "stranger", Phase: pidone.Failed})
	if waiting, err := l.look(h, names); err != nil || !slices.Equal(waiting, []string{"kubelet", "import x.tar"}) {
		t.Errorf("half-way: %v, %v", waiting, err)
	}
	tell(t, h, pidone.Status{Name: "containerd", Phase: pidone.Ready}, pidone.Status{Name: "kubelet", Phase: pidone.Ready, Restarts: 2},
		pidone.Status{Name: "import x.tar", Phase: pidone.Done})
	if waiting, err := l.look(h, names); err != nil || len(waiting) > 0 {
		t.Errorf("when all is well: %v, %v", waiting, err)
	}
	if err := l.await(t.Context(), h, names...); err != nil {
		t.Errorf("await: %v", err)
	}
}

func TestLookSaysWhatFailed(t *testing.T) {
	for _, c := range []struct {
		name   string
		status pidone.Status
		log    string
		want   []string
	}{
		{"an import fails", pidone.Status{Name: "import x.tar", Phase: pidone.Failed, LastExit: "exit status 1"}, "import.log",
			[]string{"import x.tar", "exit status 1", "the reason"}},
		{"a program ends again and again", pidone.Status{Name: "kubelet", Phase: pidone.Ended, Restarts: hopeless, LastExit: "exit status 2"}, "kubelet.log",
			[]string{"kubelet", "exit status 2", "the reason", "cn-chengdu.i-2vcxxr"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := standIn(t)
			h := l.manifest.Hosts[1]
			if err := os.WriteFile(filepath.Join(h.Logs(), c.log), []byte(strings.Repeat("noise\n", 50)+"the reason\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			tell(t, h, c.status)
			_, err := l.look(h, []string{c.status.Name})
			if err == nil {
				t.Fatal("look passes")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if strings.Count(err.Error(), "noise") > 10 {
				t.Errorf("error shows the whole log: %q", err)
			}
			if complaint := l.complaints(); complaint == nil || !strings.Contains(complaint.Error(), c.status.Name) {
				t.Errorf("complaints: %v", complaint)
			}
		})
	}
}

func TestLookSeesAHostGoDown(t *testing.T) {
	l := standIn(t)
	l.manifest.Hosts[0].Init.Start++
	_, err := l.look(l.manifest.Hosts[0], []string{"etcd"})
	if err == nil || !strings.Contains(err.Error(), "host control-plane went down") {
		t.Errorf("look: %v", err)
	}
}

func TestStatusPrintsWhatRuns(t *testing.T) {
	l := standIn(t)
	l.manifest.Phase, l.manifest.Created = ledger.Running, time.Unix(0, 0)
	tell(t, l.manifest.Hosts[1], pidone.Status{Name: "kubelet", Phase: pidone.Ready, PID: 4711, Restarts: 3},
		pidone.Status{Name: "import x.tar", Phase: pidone.Done})
	s, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Nodes) != 2 || s.Nodes[0].Programs[0].Name != "kubelet" || s.Nodes[0].Init != os.Getpid() {
		t.Errorf("nodes are %+v", s.Nodes)
	}
	var out strings.Builder
	if err := s.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"lab lab: running", "https://192.168.0.10:6443", l.Kubeconfig(), "cn-chengdu.i-2vcxxr  192.168.1.11/24", "kubelet", "10.244.0.0/16",
		filepath.Join(l.manifest.Hosts[1].Dir, "log")} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("status does not show %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "import x.tar") {
		t.Errorf("status shows what is done:\n%s", out.String())
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var read map[string]any
	if err := json.Unmarshal(data, &read); err != nil || read["kubeconfig"] != l.Kubeconfig() || read["apiServer"] != l.APIServer() {
		t.Errorf("JSON is %s, %v", data, err)
	}
}
