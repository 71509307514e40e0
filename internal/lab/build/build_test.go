package build

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// checkout is a fake repository with one parts module, and a fake go command
// that writes its arguments into the output file and counts its runs.
type checkout struct {
	dir    string
	runs   string // file with one line for each run of the go command
	script string
}

const goodGo = `
echo "$*" >> RUNS
out=
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
echo "CGO_ENABLED=$CGO_ENABLED in $(basename "$PWD")" > "$out"; chmod +x "$out"
`

func newCheckout(t *testing.T, script string) checkout {
	t.Helper()
	c := checkout{dir: t.TempDir()}
	c.runs = filepath.Join(c.dir, "runs")
	c.script = filepath.Join(c.dir, "go")
	c.write(t, "go", "#!/bin/sh\n"+strings.ReplaceAll(script, "RUNS", c.runs))
	if err := os.Chmod(c.script, 0o755); err != nil {
		t.Fatal(err)
	}
	c.write(t, "parts/go.mod", "module parts\n\nrequire (\n\texample.org/tool/v2 v2.3.4 // indirect\n\texample.org/tool v1.0.0\n)\n")
	c.write(t, "parts/go.sum", "checksums\n")
	return c
}

func (c checkout) write(t *testing.T, path, content string) {
	t.Helper()
	full := filepath.Join(c.dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (c checkout) count(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(c.runs)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "\n")
}

func (c checkout) builder(cache string, progress func(string)) *Builder {
	return &Builder{
		Source: c.dir, Cache: cache, Go: c.script, Progress: progress,
		Programs: []Program{
			{Name: "tool", Package: "example.org/tool/v2/cmd/tool", Module: "example.org/tool/v2", Dir: "parts"},
			{Name: "tool-extra", Package: "example.org/tool/v2/cmd/extra", Module: "example.org/tool/v2", Dir: "parts", CGO: true, Tags: "seccomp"},
		},
	}
}

// lines collects progress lines.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, line)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, "\n")
}

func TestInstallBuildsOnce(t *testing.T) {
	c := newCheckout(t, goodGo)
	cache, said := t.TempDir(), &lines{}
	b := c.builder(cache, said.add)
	if missing, err := b.Missing(); err != nil || !slices.Equal(missing, []string{"tool", "tool-extra"}) {
		t.Fatalf("missing are %v, %v", missing, err)
	}
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		if err := b.Install(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if c.count(t) != 2 {
		t.Errorf("the go command ran %d times for two programs", c.count(t))
	}
	if missing, err := b.Missing(); err != nil || missing != nil {
		t.Errorf("missing afterwards: %v, %v", missing, err)
	}
	for name, want := range map[string]string{"tool": "CGO_ENABLED=0 in parts\n", "tool-extra": "CGO_ENABLED=1 in parts\n"} {
		if got, err := os.ReadFile(filepath.Join(second, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	for _, want := range []string{"building tool v2.3.4 (1/2) ...", "building tool-extra v2.3.4 (2/2) ... done in"} {
		if !strings.Contains(said.text(), want) {
			t.Errorf("progress %q has no line %q", said.text(), want)
		}
	}
}

func TestAnotherVersionIsBuiltAndReplacesTheOld(t *testing.T) {
	c := newCheckout(t, goodGo)
	cache, lab := t.TempDir(), t.TempDir()
	if err := c.builder(cache, nil).Install(t.Context(), lab); err != nil {
		t.Fatal(err)
	}
	c.write(t, "parts/go.sum", "other checksums\n")
	if err := c.builder(cache, nil).Install(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if c.count(t) != 4 {
		t.Errorf("the go command ran %d times, want 4", c.count(t))
	}
	if entries, _ := filepath.Glob(filepath.Join(cache, "tool*")); len(entries) != 2 {
		t.Errorf("the cache holds %v, want one build of each program", entries)
	}
	if _, err := os.Stat(filepath.Join(lab, "tool")); err != nil {
		t.Errorf("a running lab lost its program to the clean-up: %v", err)
	}
}

func TestCacheKeyCoversWhatDecidesTheBinary(t *testing.T) {
	base := Program{Name: "tool", Package: "p", Module: "m", Dir: "d"}
	key := func(p Program, version, mod, sum string) string {
		return cacheKey(p, version, []byte(mod), []byte(sum))
	}
	seen := map[string]string{}
	tagged, kube, test := base, base, base
	tagged.Tags, test.Test = "seccomp", true
	kube.Module = kubernetes
	for what, k := range map[string]string{
		"plain":   key(base, "v1.2.3", "mod", "sum"),
		"version": key(base, "v1.2.4", "mod", "sum"),
		"go.mod":  key(base, "v1.2.3", "mod2", "sum"),
		"go.sum":  key(base, "v1.2.3", "mod", "sum2"),
		"border":  key(base, "v1.2.3", "mods", "um"),
		"tags":    key(tagged, "v1.2.3", "mod", "sum"),
		"flags":   key(kube, "v1.2.3", "mod", "sum"),
		"test":    key(test, "v1.2.3", "mod", "sum"),
	} {
		if other, taken := seen[k]; taken {
			t.Errorf("%s and %s have the key %s", what, other, k)
		}
		seen[k] = what
	}
	if k := key(base, "v1.2.3", "mod", "sum"); !strings.HasPrefix(k, "tool-v1.2.3-") {
		t.Errorf("key %s does not tell the program and its version", k)
	}
}

func TestRequiredVersion(t *testing.T) {
	const gomod = "module x\nrequire a.b/c v1.2.3 // indirect\nrequire (\n\ta.b/c/v2 v2.0.0\n\ta.b/cd v9.9.9\n)\nreplace k8s.io/api => k8s.io/api v0.35.4\n"
	for module, want := range map[string]string{"a.b/c": "v1.2.3", "a.b/c/v2": "v2.0.0", "a.b/cd": "v9.9.9", "k8s.io/api": "", "a.b": ""} {
		got, err := requiredVersion([]byte(gomod), module)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("requiredVersion(%s) = %q, %v; want %q", module, got, err, want)
		}
	}
}

func TestKubernetesReportsItsVersion(t *testing.T) {
	flags := linkerFlags(Program{Module: kubernetes}, "v1.35.4")
	for _, want := range []string{"version.gitVersion=v1.35.4", "gitMajor=1", "gitMinor=35"} {
		if !strings.Contains(flags, want) {
			t.Errorf("linker flags %q have no %s", flags, want)
		}
	}
}

// Every program that this repository's parts modules pin can be resolved.
func TestThisRepositorysPrograms(t *testing.T) {
	pins, err := resolve("../../..", append(Programs(), Conformance()...))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pins {
		if !strings.HasPrefix(p.Version, "v") {
			t.Errorf("%s has version %q", p.Name, p.Version)
		}
	}
}

func TestTestBinariesAreBuiltAsSuch(t *testing.T) {
	line := strings.Join(buildArgs(Program{Package: "p", Test: true}, "v1.0.0", "out"), " ")
	if !strings.HasPrefix(line, "test -c ") || !strings.HasSuffix(line, " -o out p") {
		t.Errorf("the command line is go %s", line)
	}
}

func TestFailedBuildShowsItsEndAndWhatToDo(t *testing.T) {
	for _, c := range []struct{ output, want string }{
		{"seccomp.h: No such file or directory", "apt-get install libseccomp-dev"},
		{`cgo: C compiler "gcc" not found`, "apt-get install gcc"},
		{"write x: no space left on device", "free some disk space"},
		{"compile: signal: killed", "memory"},
		{"Get x: dial tcp: lookup proxy", "GOPROXY"},
		{"undefined: foo", "go build example.org/tool/v2/cmd/tool"},
	} {
		script := "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); done; echo '" + c.output + "' >&2; exit 1"
		cache := t.TempDir()
		err := newCheckout(t, script).builder(cache, nil).Install(t.Context(), t.TempDir())
		if err == nil {
			t.Fatal("a failed build passed")
		}
		text := err.Error()
		for _, want := range []string{"building tool v2.3.4 (1/2)", c.output, c.want, "lines before"} {
			if !strings.Contains(text, want) {
				t.Errorf("error %q does not say %q", text, want)
			}
		}
		if strings.Contains(text, "line 3\n") {
			t.Errorf("error shows the whole output: %q", text)
		}
		if left, _ := filepath.Glob(filepath.Join(cache, "*tool*")); len(left) > 0 {
			t.Errorf("a failed build left %v in the cache", left)
		}
	}
}

func TestLongBuildsReportTheirTime(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	c := newCheckout(t, "until [ -e "+gate+" ]; do sleep 0.01; done\n"+goodGo)
	var once sync.Once
	reports := 0
	b := c.builder(t.TempDir(), func(line string) {
		// Two reports at intervals, then the build may end.
		if strings.HasPrefix(line, "building tool v2.3.4 (1/2) ... ") && !strings.Contains(line, "done") {
			if reports++; reports == 2 {
				once.Do(func() { os.WriteFile(gate, nil, 0o600) })
			}
		}
	})
	b.Interval = 20 * time.Millisecond
	if err := b.Install(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if reports < 2 {
		t.Errorf("%d reports while the build ran", reports)
	}
}

func TestInterruptedBuildLeavesNothing(t *testing.T) {
	cache := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	c := newCheckout(t, "exec sleep 300")
	b := c.builder(cache, func(line string) {
		if strings.HasSuffix(line, " 0s") {
			cancel()
		}
	})
	b.Interval = 20 * time.Millisecond
	err := b.Install(ctx, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("error is %v, want interrupted", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, temporaryPrefix+"*")); len(left) > 0 {
		t.Errorf("left in the cache: %v", left)
	}
}

func TestRemainsOfAKilledBuildAreCleared(t *testing.T) {
	cache := t.TempDir()
	remains := filepath.Join(cache, temporaryPrefix+"tool-1")
	if err := os.Mkdir(remains, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := newCheckout(t, goodGo).builder(cache, nil).Install(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(remains); !os.IsNotExist(err) {
		t.Errorf("%s: %v", remains, err)
	}
}

func TestTwoLabsBuildOnce(t *testing.T) {
	c := newCheckout(t, "sleep 0.05\n"+goodGo)
	cache := t.TempDir()
	errs := make(chan error, 2)
	for range 2 {
		dir := t.TempDir()
		go func() { errs <- c.builder(cache, nil).Install(t.Context(), dir) }()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if c.count(t) != 2 {
		t.Errorf("the go command ran %d times for two programs in two labs", c.count(t))
	}
}
