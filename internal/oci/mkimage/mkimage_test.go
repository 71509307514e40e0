package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ropeway.dev/ropeway/internal/oci/elfdeps"
)

func noEnv(string) string { return "" }

func TestFlags(t *testing.T) {
	home := func(key string) string {
		return map[string]string{"HOME": "/home/x"}[key]
	}
	o, err := parseFlags([]string{"--version", "v1"}, home)
	if err != nil {
		t.Fatal(err)
	}
	if o.ref() != "docker.io/ropeway/ropeway:v1" || !slices.Equal(o.arches, []string{"amd64", "arm64"}) ||
		o.out != "bin/ropeway-image.tar" || o.cache != "/home/x/.cache/ropeway-lab" {
		t.Errorf("defaults: %+v, %s", o, o.ref())
	}
	o, err = parseFlags([]string{"--version", "v1", "--registry", "mirror.example.com:5000/x/", "--arch", "arm64"}, noEnv)
	if err != nil || o.ref() != "mirror.example.com:5000/x/ropeway:v1" || !slices.Equal(o.arches, []string{"arm64"}) {
		t.Errorf("a mirror: %+v, %v", o, err)
	}
}

func TestWrongFlags(t *testing.T) {
	for want, args := range map[string][]string{
		"--version is missing":        {},
		"--arch \"riscv64\": choose":  {"--version", "v1", "--arch", "amd64,riscv64"},
		"--registry and --version: ":  {"--version", "v1", "--registry", "UPPER/x"},
		"want REGISTRY/NAME:TAG":      {"--version", "a b"},
		"flag provided but not defin": {"--nonsense"},
	} {
		if _, err := parseFlags(args, noEnv); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q", args, err, want)
		}
	}
}

func TestCacheFollowsTheEnvironment(t *testing.T) {
	env := map[string]string{"HOME": "/h", "XDG_CACHE_HOME": "/x", "ROPEWAY_LAB_CACHE": "/l"}
	getenv := func(key string) string { return env[key] }
	for _, want := range []string{"/l", "/x/ropeway-lab", "/h/.cache/ropeway-lab"} {
		if got := defaultCache(getenv); got != want {
			t.Errorf("cache %s, want %s", got, want)
		}
		delete(env, map[string]string{"/l": "ROPEWAY_LAB_CACHE", "/x/ropeway-lab": "XDG_CACHE_HOME"}[want])
	}
}

// TestWhole: a cache directory is there complete or not at all.
func TestWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	boom := errors.New("boom")
	err := whole(dir, func(d string) error {
		return errors.Join(os.WriteFile(filepath.Join(d, "half"), nil, 0o644), boom)
	})
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); len(left) > 0 {
		t.Errorf("a failure left %v", left)
	}
	for _, name := range []string{"first", "second"} {
		if err := whole(dir, func(d string) error { return os.WriteFile(filepath.Join(d, name), nil, 0o644) }); err != nil {
			t.Fatal(err)
		}
		if got, _ := filepath.Glob(filepath.Join(dir, "*")); len(got) != 1 || filepath.Base(got[0]) != name {
			t.Errorf("after %s: %v", name, got)
		}
	}
}

// TestAptLeavesTheMachineAlone: every directory that apt-get writes to is the private one.
func TestAptLeavesTheMachineAlone(t *testing.T) {
	args := strings.Join(aptArgs("/private", "arm64", "update"), " ")
	for _, want := range []string{"Dir::State=/private", "Dir::State::Lists=/private/", "Dir::State::status=/dev/null", "Dir::Cache=/private/", "APT::Architectures=arm64"} {
		if !strings.Contains(args, "-o "+want) {
			t.Errorf("no %s in %s", want, args)
		}
	}
	if !strings.HasSuffix(args, " update") {
		t.Errorf("the command is not last: %s", args)
	}
}

// TestPluginsOfTheScenario: what the document's conflists name must be in the image.
func TestPluginsOfTheScenario(t *testing.T) {
	var names []string
	for _, p := range referencePlugins() {
		names = append(names, filepath.Base(p))
	}
	for _, want := range []string{"host-local", "portmap", "bandwidth", "loopback"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s among %v", want, names)
		}
	}
}

// TestNftFromAnUnpackedTree: nft, its libraries and the licences come from the tree, laid out as the image has them.
func TestNftFromAnUnpackedTree(t *testing.T) {
	b := &builder{cache: t.TempDir()}
	tree := filepath.Join(b.cache, "nft-test")
	libraries, err := elfdeps.Tree{Root: "/"}.Closure(nftPath)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(libraries, elfdeps.File{Path: nftPath, Source: nftPath}) {
		data, err := os.ReadFile(f.Source)
		to := filepath.Join(tree, f.Path)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.nft(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), "no licence") {
		t.Errorf("a tree without licences: %v", err)
	}
	licence := "/usr/share/doc/nftables/copyright"
	to := filepath.Join(tree, licence)
	if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, []byte("GPL"), 0o644)); err != nil {
		t.Fatal(err)
	}
	entries, err := b.nft(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{} // path -> source
	for _, e := range entries {
		got[e.Path] = e.Source
	}
	want := []string{nftPath, licence, "/lib64"}
	for _, l := range libraries {
		want = append(want, filepath.Join("/usr", strings.TrimPrefix(l.Path, "/usr")))
	}
	for _, path := range want {
		if source, ok := got[path]; !ok || source != "" && !strings.HasPrefix(source, tree+"/") {
			t.Errorf("%s: there %v, from %q, want it from the tree", path, ok, source)
		}
	}
}
