package addresses

import (
	"os"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/dataplane"
)

// TestSweep: what is freed, and on which evidence.
func TestSweep(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.write("netns/alive", "")
	b := be.open()
	defer b.Close()
	allocate(t, b, "alive", be.dir+"/netns/alive")
	allocate(t, b, "gone", be.dir+"/netns/gone")
	allocate(t, b, "unseen", be.dir+"/no-such-directory/gone") // perhaps we do not see the runtime's directory
	allocate(t, b, "unknown", "")
	wired := allocate(t, b, "wired", be.dir+"/netns/gone-too") // the link speaks for it
	be.kernel.links = append(be.kernel.links, link(t, "wired", wired))
	sweep := func() string {
		t.Helper()
		if err := b.Sweep(); err != nil {
			t.Fatal(err)
		}
		return held(b)
	}
	if got := sweep(); !strings.Contains(got, "gone[") {
		t.Errorf("freed at first sight: %s", got)
	}
	got := sweep()
	for name, want := range map[string]bool{"alive[": true, " gone[": false, "unseen[": true, "unknown[": true, "wired[": true} {
		if strings.Contains(" "+got, name) != want {
			t.Errorf("%s held: %v, want %v", name, !want, want)
		}
	}
	// A pod that comes back between two sweeps is not freed by the second.
	be.kernel.links = nil
	sweep()
	be.write("netns/gone-too", "")
	sweep()
	if got := sweep(); !strings.Contains(got, "wired[") {
		t.Errorf("a pod that was seen again was freed: %s", got)
	}
}

func TestSweepAfterRestart(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.write("netns/another", "")
	b := be.open()
	allocate(t, b, "gone", be.dir+"/netns/gone")
	b.Close()
	b = be.open()
	defer b.Close()
	sweep(t, b, 2)
	if got := held(b); got != "" {
		t.Errorf("still held, though the sandbox is gone: %s", got)
	}
	if files, err := os.ReadDir(be.options.SandboxDir); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

// sweep sweeps so many times: what ended is freed at second sight.
func sweep(t *testing.T, b *Book, times int) {
	t.Helper()
	for range times {
		if err := b.Sweep(); err != nil {
			t.Fatal(err)
		}
	}
}

// The node's state is lost, so that an address is held because a link leads to it;
// then its sandbox ends without a DEL. The link is gone with it, and speaks for it
// no more, also to a later agent; but what the runtime has noted goes first.
func TestSweepOfWhatWasFoundByItsLink(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.write("netns/alive", "")
	be.note("noted", "10.244.0.10", be.dir+"/netns/alive")
	for name, a := range map[string]string{"runs": "10.244.0.8", "lost": "10.244.0.9", "noted": "10.244.0.10"} {
		be.kernel.links = append(be.kernel.links, link(t, name, addrs(a)...))
	}
	b := be.open()
	be.kernel.links = slices.DeleteFunc(be.kernel.links, func(l dataplane.PodLink) bool { return l.Addresses[0] != addrs("10.244.0.8")[0] })
	sweep(t, b, 1)
	if got := held(b); !strings.Contains(got, "lost[") {
		t.Errorf("freed at first sight: %s", got)
	}
	b.Close()
	b = be.open()
	defer b.Close()
	sweep(t, b, 2)
	if got := held(b); got != "noted[10.244.0.10] runs[10.244.0.8]" {
		t.Errorf("holds %s", got)
	}
}

// TestSweepByACutOffNote: a note that was cut off before it was written is none: the
// runtime's word counts.
func TestSweepByACutOffNote(t *testing.T) {
	be := newBench(t, t.TempDir())
	b := be.open()
	defer b.Close()
	be.write("netns/alive", "")
	gone, lives := allocate(t, b, "gone", be.dir+"/netns/alive"), allocate(t, b, "lives", be.dir+"/netns/alive")
	for _, name := range []string{"gone", "lives"} {
		if err := os.WriteFile(b.sandboxFile(key(name)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	be.note("gone", gone.String(), be.dir+"/netns/gone")
	be.note("lives", lives.String(), be.dir+"/netns/alive")
	sweep(t, b, 3)
	if got := held(b); got != "lives["+lives.String()+"]" {
		t.Errorf("holds %s", got)
	}
}

// TestSweepOfHostLocal: a reservation is over when its file is, unless a route
// still leads to the address.
func TestSweepOfHostLocal(t *testing.T) {
	be := newBench(t, t.TempDir())
	be.write("host-local/net/10.244.0.8", "routed\r\neth0")
	be.write("host-local/net/10.244.0.9", "over\r\neth0")
	be.write("host-local/net/10.244.0.10", "stays\r\neth0")
	be.kernel.foreign = []ForeignPod{{Link: "veth8", Address: addrs("10.244.0.8")[0]}}
	b := be.open()
	defer b.Close()
	for _, f := range []string{"8", "9"} {
		if err := os.Remove(be.options.HostLocalDir + "/net/10.244.0." + f); err != nil {
			t.Fatal(err)
		}
	}
	sweep(t, b, 3)
	if got := held(b); got != "routed[10.244.0.8] stays[10.244.0.10]" {
		t.Errorf("holds %s", got)
	}
}
