// Package build compiles the programs that the lab runs (Kubernetes, etcd,
// containerd, runc, CoreDNS, agnhost) from the modules that internal/lab/parts
// pins, once per version, and keeps them in a cache outside the work tree.
package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// Program is one program that can be compiled from the parts modules.
type Program struct {
	// Name is the file name that the program runs under.
	Name string
	// Package is the import path of its main package.
	Package string
	// Module is the module path whose version names the program.
	Module string
	// Dir is the directory of the Go module that pins it, relative to the
	// root of the repository.
	Dir string
	// Tags are Go build tags, comma separated.
	Tags string
	// CGO says that the program needs a C compiler.
	CGO bool
	// Test says that the program is the package's test binary (`go test -c`).
	Test bool
}

const (
	partsDir   = "internal/lab/parts"
	kubernetes = "k8s.io/kubernetes"
	containerd = "github.com/containerd/containerd/v2"
)

// Programs returns every program of the lab, in the order in which they are
// built: the small ones first, so that a missing compiler shows at once.
func Programs() []Program {
	kube := func(name string) Program {
		return Program{Name: name, Package: kubernetes + "/cmd/" + name, Module: kubernetes, Dir: partsDir}
	}
	runtime := func(name string) Program {
		return Program{Name: name, Package: containerd + "/cmd/" + name, Module: containerd, Dir: partsDir}
	}
	return []Program{
		{Name: "runc", Package: "github.com/opencontainers/runc", Module: "github.com/opencontainers/runc",
			Dir: partsDir + "/runc", Tags: "seccomp", CGO: true},
		{Name: "etcd", Package: "go.etcd.io/etcd/server/v3", Module: "go.etcd.io/etcd/server/v3", Dir: partsDir},
		runtime("containerd"),
		runtime("containerd-shim-runc-v2"),
		runtime("ctr"),
		kube("kube-apiserver"),
		kube("kube-controller-manager"),
		kube("kube-scheduler"),
		kube("kubelet"),
		kube("kube-proxy"),
		kube("kubectl"),
		{Name: "agnhost", Package: kubernetes + "/test/images/agnhost", Module: kubernetes, Dir: partsDir},
		{Name: "coredns", Package: "github.com/coredns/coredns", Module: "github.com/coredns/coredns", Dir: partsDir},
	}
}

// Conformance returns the programs that play Kubernetes' own end-to-end specs:
// the specs, and what runs several of them at once. A lab does without them.
func Conformance() []Program {
	const ginkgo = "github.com/onsi/ginkgo/v2"
	return []Program{
		{Name: "ginkgo", Package: ginkgo + "/ginkgo", Module: ginkgo, Dir: partsDir},
		{Name: "e2e.test", Package: kubernetes + "/test/e2e", Module: kubernetes, Dir: partsDir, Test: true},
	}
}

// pin is one program with the version that its module file pins and the key
// under which its binary is cached.
type pin struct {
	Program
	Version string
	Key     string
}

// resolve reads the module file of each program once and derives versions and
// cache keys from it.
func resolve(root string, programs []Program) ([]pin, error) {
	pins := make([]pin, 0, len(programs))
	for _, p := range programs {
		gomod, err := os.ReadFile(filepath.Join(root, p.Dir, "go.mod"))
		if err != nil {
			return nil, fmt.Errorf("read the module file that pins %s: %w", p.Name, err)
		}
		gosum, err := os.ReadFile(filepath.Join(root, p.Dir, "go.sum"))
		if err != nil {
			return nil, fmt.Errorf("read the checksums of the module that pins %s: %w", p.Name, err)
		}
		version, err := requiredVersion(gomod, p.Module)
		if err != nil {
			return nil, fmt.Errorf("%s/go.mod: program %s: %w", p.Dir, p.Name, err)
		}
		key := cacheKey(p, version, gomod, gosum)
		pins = append(pins, pin{Program: p, Version: version, Key: key})
	}
	return pins, nil
}

// requiredVersion finds the version of a module in the text of a go.mod file.
func requiredVersion(gomod []byte, module string) (string, error) {
	line := regexp.MustCompile(`(?m)^\s*(?:require\s+)?` + regexp.QuoteMeta(module) + `\s+(v\S+)`)
	found := line.FindSubmatch(gomod)
	if found == nil {
		return "", fmt.Errorf("no version of %s is required; add it with `go get -tool`", module)
	}
	return string(found[1]), nil
}

// cacheKey names the binary of a program: everything that decides its bytes,
// short of the Go release, is in it.
func cacheKey(p Program, version string, gomod, gosum []byte) string {
	h := sha256.New()
	for _, part := range [][]byte{gomod, gosum, []byte(strings.Join(buildArgs(p, version, ""), "\x00")), []byte(runtime.GOARCH)} {
		fmt.Fprintf(h, "%d\n", len(part))
		h.Write(part)
	}
	return fmt.Sprintf("%s-%s-%s", p.Name, version, hex.EncodeToString(h.Sum(nil))[:16])
}

// buildArgs is the command line of the go tool for one program. The linker
// flags give the Kubernetes programs the version that they report.
func buildArgs(p Program, version, output string) []string {
	args := []string{"build"}
	if p.Test {
		args = []string{"test", "-c", "-vet=off"}
	}
	args = append(args, "-trimpath", "-buildvcs=false", "-ldflags", linkerFlags(p, version))
	if p.Tags != "" {
		args = append(args, "-tags", p.Tags)
	}
	return append(args, "-o", output, p.Package)
}

func linkerFlags(p Program, version string) string {
	flags := []string{"-s", "-w"}
	if p.Module != kubernetes {
		return strings.Join(flags, " ")
	}
	numbers := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	const reported = "k8s.io/component-base/version"
	set := func(name, value string) { flags = append(flags, "-X", name+"="+value) }
	set(reported+".gitVersion", version)
	if len(numbers) > 1 {
		set(reported+".gitMajor", numbers[0])
		set(reported+".gitMinor", numbers[1])
	}
	set(reported+".gitTreeState", "clean")
	set("k8s.io/client-go/pkg/version.gitVersion", version)
	return strings.Join(flags, " ")
}
