package preflight

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
)

func needs(t *testing.T) Needs {
	return Needs{Nodes: 2, ProxyMode: "iptables", StateDir: t.TempDir(), CacheDir: t.TempDir()}
}

// The machine that the tests run on can run a lab; that is what it is for.
func TestThisMachineIsGood(t *testing.T) {
	netnstest.NeedRoot(t)
	if err := Check(t.Context(), needs(t)); err != nil {
		t.Error(err)
	}
}

func TestTryingFeaturesLeavesNothing(t *testing.T) {
	netnstest.NeedRoot(t)
	if found := kernel(t.Context()); len(found) > 0 {
		t.Fatal(found)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "/rwt-overlay-") || strings.Contains(string(mounts), "/rwt-mount-") {
		t.Error("mounts are left")
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "rwt-overlay-*")); len(left) > 0 {
		t.Errorf("directories are left: %v", left)
	}
	for _, link := range []string{"rwt0", "rwt1", "rwt2"} {
		if _, err := os.Stat("/sys/class/net/" + link); err == nil {
			t.Errorf("link %s is left", link)
		}
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	netnstest.NeedRoot(t)
	t.Setenv("PATH", t.TempDir())
	n := needs(t)
	n.Nodes = 1 << 20
	n.Building, n.Compiler = true, true
	err := Check(t.Context(), n)
	if err == nil {
		t.Fatal("a machine without tools, memory and disk passes")
	}
	for _, want := range []string{
		"the program ip is not on PATH: apt-get install iproute2",
		"the program ip6tables is not on PATH: apt-get install iptables",
		"the program gcc is not on PATH: apt-get install gcc",
		"apt-get install libseccomp-dev",
		"1048576 nodes need", "MiB of memory are available", "ask for fewer nodes",
		"MiB are free on the disk of", "free some space",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("problems do not say %q:\n%v", want, err)
		}
	}
}

func TestToolsDependOnWhatIsAskedFor(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	plain := strings.Join(tools(Needs{ProxyMode: "nftables"}), "\n")
	for _, not := range []string{"ip6tables", "gcc", "program go "} {
		if strings.Contains(plain, not) {
			t.Errorf("a plain lab wants %s:\n%s", not, plain)
		}
	}
}

func TestMemoryGrowsWithNodes(t *testing.T) {
	two, eight := Needs{Nodes: 2}.Memory(), Needs{Nodes: 8}.Memory()
	if eight-two != 6*nodeMemory {
		t.Errorf("2 nodes need %d MiB, 8 need %d", two, eight)
	}
	if building := (Needs{Nodes: 2, Building: true}).Memory(); building != buildMemory {
		t.Errorf("building needs %d MiB, want %d", building, buildMemory)
	}
}

func TestFreeDiskAsksTheNearestDirectory(t *testing.T) {
	base := t.TempDir()
	_, at, err := freeDisk(filepath.Join(base, "not", "yet"))
	if err != nil || at != base {
		t.Errorf("asked %s, %v; want %s", at, err, base)
	}
}
