// Package ropeway holds no code: its test keeps the rules of the repository,
// so that a reader can rely on the layout that docs/development.md describes.
package ropeway

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "ropeway.dev/ropeway"

// goPackage is what the rules look at.
type goPackage struct {
	dir     string // slash-separated, relative to the root
	name    string
	doc     string
	imports map[string]string // import path -> first file that imports it, tests apart
	lines   map[string]int    // file -> lines
}

// packages parses every package of the repository's own module.
func packages(t *testing.T) map[string]*goPackage {
	t.Helper()
	found := map[string]*goPackage{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if skipDir(path, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		return addFile(found, path)
	})
	if err != nil {
		t.Fatalf("reading the repository: %v", err)
	}
	if len(found) == 0 {
		t.Fatal("no package found: the test does not run in the repository's root")
	}
	return found
}

func skipDir(path, name string) bool {
	if path != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
		return true
	}
	_, err := os.Stat(filepath.Join(path, "go.mod"))
	return path != "." && err == nil
}

func addFile(found map[string]*goPackage, path string) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return err
	}
	dir := filepath.ToSlash(filepath.Dir(path))
	pkg := found[dir]
	if pkg == nil {
		pkg = &goPackage{dir: dir, name: file.Name.Name, imports: map[string]string{}, lines: map[string]int{}}
		found[dir] = pkg
	}
	if file.Doc != nil {
		pkg.doc += file.Doc.Text()
	}
	for _, spec := range file.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return err
		}
		if _, seen := pkg.imports[p]; !seen {
			pkg.imports[p] = path
		}
	}
	if !generated(path) {
		pkg.lines[path] = strings.Count(string(src), "\n")
	}
	return nil
}

func generated(path string) bool {
	base := filepath.Base(path)
	return strings.HasPrefix(base, "zz_generated") || strings.Contains(base, "_bpfel") || strings.Contains(base, "_bpfeb")
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	for dir, pkg := range packages(t) {
		want := "Package " + pkg.name + " "
		if pkg.name == "main" {
			want = "Command "
		}
		if !strings.Contains(pkg.doc, want) {
			t.Errorf("%s: no package comment that begins with %q", dir, want)
		}
	}
}

func TestNoPackageNamedAfterNothing(t *testing.T) {
	banned := []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "shared"}
	for dir, pkg := range packages(t) {
		if slices.Contains(banned, pkg.name) {
			t.Errorf("%s: a package named %s says nothing; name it after what it provides", dir, pkg.name)
		}
	}
}

func TestFilesStayReadable(t *testing.T) {
	const most = 600
	for _, pkg := range packages(t) {
		for file, lines := range pkg.lines {
			if lines > most {
				t.Errorf("%s: %d lines; split it by concern (at most %d)", file, lines, most)
			}
		}
	}
}

// ban is a direction of imports that must not be.
type ban struct {
	in     string   // directory prefix that the rule is for
	not    []string // import prefixes that are banned there
	except []string // import prefixes, or directories, that are allowed all the same
	why    string
}

var bans = []ban{
	{in: "cmd/ropeway-cni", not: []string{"k8s.io/", "sigs.k8s.io/", "net/http", "github.com/spf13", module + "/internal/kube", module + "/internal/agent"},
		why: "the plugin starts for every pod: it must stay small, and it holds no API credentials"},
	{in: "internal/cniwire", not: []string{module, "k8s.io/", "sigs.k8s.io/", "github.com/"},
		why: "messages on the socket: standard library only"},
	{in: "internal/dataplane", not: []string{"k8s.io/", "sigs.k8s.io/", module + "/internal/kube", module + "/internal/agent", module + "/internal/controller", module + "/internal/ipam", module + "/api"},
		except: []string{"sigs.k8s.io/knftables"},
		why:    "adapters never import each other; the kernel does not know Kubernetes"},
	{in: "internal/agent", not: []string{"k8s.io/", "sigs.k8s.io/"},
		why: "internal/kube is the only importer of client-go (with the controller and the installer)"},
	{in: "internal/kube", not: []string{module + "/internal/dataplane", module + "/internal/agent", module + "/internal/controller"},
		why: "adapters never import each other"},
	{in: "internal/controller", not: []string{module + "/internal/dataplane", module + "/internal/agent", "github.com/vishvananda/netlink", "github.com/cilium/ebpf"},
		why: "the controller has no node"},
	{in: "internal/calico", not: []string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime"},
		why: "reading another product's manifest needs no cluster"},
	{in: "internal/lab", not: []string{module + "/internal/agent", module + "/internal/controller"},
		why: "the lab runs what users run: the image, not the code"},
	{in: "internal", not: []string{module + "/internal/lab"}, except: []string{"internal/lab"},
		why: "the lab is never shipped to nodes"},
}

func TestDirectionOfImports(t *testing.T) {
	for dir, pkg := range packages(t) {
		for _, b := range bans {
			if within(dir, b.in) && !slices.ContainsFunc(b.except, func(e string) bool { return within(dir, e) }) {
				b.check(t, pkg)
			}
		}
	}
}

func (b ban) check(t *testing.T, pkg *goPackage) {
	t.Helper()
	for path, file := range pkg.imports {
		if slices.ContainsFunc(b.except, func(e string) bool { return within(path, e) }) {
			continue
		}
		for _, not := range b.not {
			if path == strings.TrimSuffix(not, "/") || strings.HasPrefix(path, strings.TrimSuffix(not, "/")+"/") {
				t.Errorf("%s imports %s: %s", file, path, b.why)
			}
		}
	}
}

// TestPureCore: plan and ipam decide; they do no I/O. The journal below ipam is
// the one adapter that stands beside its interface.
func TestPureCore(t *testing.T) {
	io := []string{"os", "net", "net/http", "os/exec", "syscall", "log", "log/slog", "io/fs"}
	for dir, pkg := range packages(t) {
		if !slices.Contains([]string{"internal/plan", "internal/plan/cidr", "internal/ipam", "internal/ipam/pool", "internal/ipam/share"}, dir) {
			continue
		}
		for path, file := range pkg.imports {
			if slices.Contains(io, path) {
				t.Errorf("%s imports %s: this package is pure: it decides, and others observe and set", file, path)
			}
			if strings.Contains(strings.SplitN(path, "/", 2)[0], ".") && !within(path, module+"/internal/plan") && !within(path, module+"/internal/ipam") {
				t.Errorf("%s imports %s: the pure core imports the standard library only", file, path)
			}
		}
	}
}

func within(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// TestMetricsAreDocumented: docs/monitoring.md lists each metric, and none that is not.
func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`ropeway_[a-z0-9_]+`)
	documented := map[string]bool{}
	for _, m := range name.FindAllString(string(page), -1) {
		documented[strings.TrimSuffix(m, "_count")] = true // of a histogram
	}
	made := map[string]bool{}
	for _, dir := range []string{"internal/agent", "internal/controller", "internal/controller/nodes", "internal/controller/routes"} {
		src, err := os.ReadFile(filepath.Join(dir, "metrics.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`"ropeway_[a-z0-9_]+"`).FindAllString(string(src), -1) {
			m = strings.Trim(m, `"`)
			if made[m] = true; !documented[m] {
				t.Errorf("%s makes the metric %s, which docs/monitoring.md does not list", dir, m)
			}
		}
	}
	for m := range documented {
		if !made[m] {
			t.Errorf("docs/monitoring.md speaks of %s, which nothing makes", m)
		}
	}
}
