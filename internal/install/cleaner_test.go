package install

import (
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// TestInstallEndsAnInterruptedCleaner: the cleaner that an uninstall left is gone,
// with its pods, before anything is applied.
func TestInstallEndsAnInterruptedCleaner(t *testing.T) {
	c := connect(t)
	addNode(t, c, "left-a", "192.0.2.1")
	puppet{c: c}.start(t)
	ctx := limited(t, 2*time.Minute)
	cleaner, err := Cleaner(settingsOf(t, Options{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := applyOne(ctx, c, cleaner, (&lines{}).say); err != nil {
		t.Fatal(err)
	}
	pod := client.ObjectKey{Namespace: Namespace, Name: CleanerName + "-left-a"}
	for c.Get(ctx, pod, &corev1.Pod{}) != nil {
		if pause(ctx, poll) != nil {
			t.Fatal("the puppet made no pod of the cleaner")
		}
	}
	out := installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}})
	if err := c.Get(ctx, client.ObjectKeyFromObject(cleaner), &appsv1.DaemonSet{}); !absent(err) {
		t.Errorf("the cleaner: %v, want it gone", err)
	}
	if err := c.Get(ctx, pod, &corev1.Pod{}); !absent(err) {
		t.Errorf("the cleaner's pod: %v, want it gone", err)
	}
	if first, _, _ := strings.Cut(out.text.String(), "\n"); first != "deleted DaemonSet kube-system/ropeway-clean" {
		t.Errorf("the first that was done: %q", first)
	}
	// On the way out: what persons wrote is named before it goes with its CRD.
	create := &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "by-hand"},
		Spec: v1alpha1.AddressPoolSpec{Subnets: []string{"10.244.0.0/16"}, Ranges: []string{"10.244.0.19-10.244.0.29"}}}
	if err := c.Create(ctx, create); err != nil {
		t.Fatal(err)
	}
	removal, err := PlanRemoval(ctx, c, "x:y")
	if err != nil || !slices.Equal(removal.Pools, []string{"AddressPool/by-hand"}) {
		t.Errorf("pools that would go: %v, %v", removal.Pools, err)
	}
	uninstallFrom(t, c)
}

// TestAnothersCRDsAreNotPrinted: those of Spiderpool's that are there stay as they are.
func TestAnothersCRDsAreNotPrinted(t *testing.T) {
	m, err := Render(settingsOf(t, Options{}))
	if err != nil {
		t.Fatal(err)
	}
	const name = "spiderippools.spiderpool.spidernet.io"
	has := func(m Manifest) bool {
		return slices.ContainsFunc(m.CRDs, func(o *unstructured.Unstructured) bool { return o.GetName() == name })
	}
	if !has(m) || has(m.Without([]string{name})) || len(m.Without([]string{name}).CRDs) != len(m.CRDs)-1 || !has(m) {
		t.Errorf("without %s: %v", name, m.Without([]string{name}).CRDs)
	}
}

// TestCleanerLeft is what stops a printed installation.
func TestCleanerLeft(t *testing.T) {
	s := healthy()
	if got := CleanerLeft(s); len(got) > 0 {
		t.Errorf("found %v in a cluster without one", got)
	}
	s.DaemonSets = append(s.DaemonSets, daemonSet(Namespace, CleanerName, "x:y"))
	if got := CleanerLeft(s); len(got) != 1 || !got[0].Stops || !strings.Contains(got[0].String(), "delete daemonset ropeway-clean") {
		t.Errorf("found %v", got)
	}
}

// TestUninstallAgainKnowsWhatWasInstalled: interrupted after any of its steps, and
// run again, it cleans with the image and in the directories of the installation.
func TestUninstallAgainKnowsWhatWasInstalled(t *testing.T) {
	c := connect(t)
	addNode(t, c, "again-a", "192.0.2.1")
	puppet{c: c}.start(t)
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}, Image: "registry.example/ropeway:v9", CNIBinDir: "/data/cni/bin", CNIConfDir: "/data/cni/net.d"})
	ctx := limited(t, 5*time.Minute)
	plan := func() *Removal {
		r, err := PlanRemoval(ctx, c, "docker.io/ropeway/ropeway:v1.2.3")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for i, step := range plan().steps() {
		s := plan().Settings
		if got := s.Image + " " + s.CNIBinDir + " " + s.CNIConfDir; got != "registry.example/ropeway:v9 /data/cni/bin /data/cni/net.d" {
			t.Errorf("run again before step %d it cleans with %s", i+1, got)
		}
		if err := step(ctx, c, (&lines{}).say); err != nil {
			t.Fatal(err)
		}
	}
	checkNothingLeft(t, c)
}
