package lab

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/pidone"
)

func TestStoreKeyFollowsTheImages(t *testing.T) {
	seen := map[string][]string{}
	for _, archives := range [][]string{nil, {"a"}, {"a", "b"}, {"b", "a"}, {"ab"}} {
		key := (&boot{archives: archives}).storeKey()
		if other, taken := seen[key]; taken {
			t.Errorf("images %q and %q have the same store", archives, other)
		}
		seen[key] = archives
		if again := (&boot{archives: slices.Clone(archives)}).storeKey(); again != key {
			t.Errorf("images %q have the stores %s and %s", archives, key, again)
		}
	}
}

// One after the other: two imports at once would only take turns anyway.
func TestImagesAreImportedInTurn(t *testing.T) {
	l := standIn(t)
	b := &boot{lab: l, layout: cgroup.Layout{}, archives: []string{"x.tar", "y.tar"}}
	spec := b.describeImport(l.manifest.Hosts[1])
	if len(spec.Programs) != 3 || spec.Programs[0].Name != "containerd" || spec.Programs[0].Ready == nil {
		t.Fatalf("programs are %+v", spec.Programs)
	}
	for i, want := range []string{"containerd", "import x.tar"} {
		p := spec.Programs[i+1]
		if !p.Once || !slices.Equal(p.After, []string{want}) || p.Name != b.importNames()[i] {
			t.Errorf("import %d is %+v, want it once, after %s", i, p, want)
		}
	}
	if !slices.ContainsFunc(spec.Files, func(f pidone.File) bool { return f.Path == config.ContainerdConfig }) {
		t.Error("containerd has no configuration")
	}
}

func TestMoveTree(t *testing.T) {
	base := t.TempDir()
	containerd := func(content string) string {
		dir := filepath.Join(t.TempDir(), "containerd")
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "meta.db"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	store := filepath.Join(base, "key")
	for _, content := range []string{"first", "second"} {
		if err := moveTree(containerd(content), store); err != nil {
			t.Fatalf("%s: %v", content, err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(store, "meta.db")); err != nil || string(data) != "first" {
		t.Errorf("the store holds %q, %v; want that of the first lab", data, err)
	}
	if entries, err := os.ReadDir(base); err != nil || len(entries) != 1 {
		t.Errorf("the cache holds %v, %v; want the store only", entries, err)
	}
}

func TestOldStoresAreDropped(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "stores")
	for _, name := range []string{"old", "young"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ago := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "old"), ago, ago); err != nil {
		t.Fatal(err)
	}
	if err := dropOldStores(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); !slices.Equal(left, []string{filepath.Join(dir, "young")}) {
		t.Errorf("left are %v", left)
	}
}
