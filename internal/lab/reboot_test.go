package lab

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
)

func TestRebootAndRestartRefuse(t *testing.T) {
	l := standIn(t)
	node := l.manifest.Hosts[1]
	for _, c := range []struct {
		name  string
		phase ledger.Phase
		do    func() error
		want  []string
	}{
		{"a lab that is not up yet", ledger.Starting, func() error { return l.Reboot(t.Context(), node.Name) }, []string{"starting", "wait"}},
		{"no such node", ledger.Running, func() error { return l.Reboot(t.Context(), "nobody") }, []string{`"nobody"`, node.Name}},
		{"a host that is no node", ledger.Running, func() error { return l.Reboot(t.Context(), "control-plane") }, []string{`no node "control-plane"`, node.Name}},
		{"no such host", ledger.Running, func() error { return l.Restart(t.Context(), "nobody", "kubelet", unix.SIGTERM) }, []string{`"nobody"`, "control-plane"}},
		{"no such program", ledger.Running, func() error { return l.Restart(t.Context(), node.Name, "dockerd", unix.SIGTERM) }, []string{`"dockerd"`, "kubelet"}},
		{"a program that does not run", ledger.Running, func() error { return l.Restart(t.Context(), node.Name, "kubelet", unix.SIGTERM) }, []string{"kubelet", "ended", node.Logs()}},
	} {
		tell(t, node, pidone.Status{Name: "kubelet", Phase: pidone.Ended})
		l.manifest.Phase = c.phase
		err := c.do()
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q in it", c.name, err, want)
			}
		}
	}
}

// TestEachBootHasAnID: a kubelet sees by it that its node booted again.
func TestEachBootHasAnID(t *testing.T) {
	m := drawn(DefaultOptions())
	ids := map[string]bool{}
	for range 2 {
		spec, err := newBoot(describe(m, m.Hosts[1], "/lab", cgroup.Layout{}))
		if err != nil {
			t.Fatal(err)
		}
		ids[spec.Shadows["kernel/random/boot_id"]] = true
	}
	if len(ids) != 2 || ids[""] {
		t.Errorf("two boots have the ids %v", ids)
	}
}

// TestPowerOff: nothing of a host runs any more, and nobody takes what its programs
// did for what they do.
func TestPowerOff(t *testing.T) {
	r := makeRemains(t)
	l := standIn(t)
	l.manifest.Name = r.name
	h := l.manifest.Hosts[1]
	var err error
	if h.Init, err = ledger.Identify(r.start(t, "sleep", "300")); err != nil {
		t.Fatal(err)
	}
	h.Name = "x" // the host that has a process in its cgroup
	tell(t, h, pidone.Status{Name: "kubelet", Phase: pidone.Ready})
	b := &boot{lab: l, layout: r.layout}
	if err := b.powerOff(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first process, and the one in the cgroup
		select {
		case <-r.ended:
		case <-time.After(20 * time.Second):
			t.Fatal("a process of the host still runs")
		}
	}
	if waiting, err := l.look(l.manifest.Hosts[1], []string{"kubelet"}); err != nil || len(waiting) != 1 {
		t.Errorf("the programs of a host that is off: %v, %v", waiting, err)
	}
	if pids, err := r.layout.Processes(ledger.HostCgroup(r.name, "x")); err != nil || len(pids) > 0 {
		t.Errorf("its cgroup holds %v, %v", pids, err)
	}
}
