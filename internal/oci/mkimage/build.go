package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/oci"
)

// Where things lie in the image. The agent copies what is in pluginDir to the node.
const (
	programPath = "/usr/bin/ropeway"
	pluginDir   = "/opt/ropeway/cni"
)

const (
	pluginModule = "github.com/containernetworking/plugins"
	// levelSmall and levelFast are compressions: small for layers that are kept, fast for the one that changes.
	levelSmall oci.Compression = 9
	levelFast  oci.Compression = 1
)

// referencePlugins are the plugins of the CNI project that the image carries, as packages below pluginModule. Those of
// the scenario's conflists (host-local, portmap, bandwidth), tuning as the one more that is commonly chained, and
// loopback, which older runtimes want beside any network.
func referencePlugins() []string {
	return []string{"plugins/ipam/host-local", "plugins/main/loopback", "plugins/meta/bandwidth", "plugins/meta/portmap", "plugins/meta/tuning"}
}

// builder builds the layers of the image.
type builder struct {
	root    string // of the repository
	cache   string
	version string
	tags    string
	refresh bool
}

func (b *builder) layers() string { return filepath.Join(b.cache, "layers") }

// image builds one architecture's image. What changes seldom lies below.
func (b *builder) image(ctx context.Context, arch string) (oci.Image, error) {
	img := oci.Image{
		Architecture: arch,
		Config: oci.Config{
			Entrypoint: []string{programPath},
			Env:        []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			WorkingDir: "/",
			Labels: map[string]string{
				"org.opencontainers.image.title":    "Ropeway",
				"org.opencontainers.image.version":  b.version,
				"org.opencontainers.image.licenses": "Apache-2.0",
			},
		},
	}
	layers := []struct {
		name    string
		entries func(context.Context, string) ([]oci.Entry, error)
		level   oci.Compression
	}{
		{"nft", b.nft, levelSmall},
		{"reference plugins", b.plugins, levelSmall},
		{"ropeway", b.programs, levelFast},
	}
	for _, l := range layers {
		entries, err := l.entries(ctx, arch)
		if err != nil {
			return oci.Image{}, fmt.Errorf("%s: %w", l.name, err)
		}
		layer, err := oci.BuildLayer(b.layers(), entries, l.level)
		if err != nil {
			return oci.Image{}, fmt.Errorf("%s: %w", l.name, err)
		}
		img.Layers = append(img.Layers, layer)
	}
	return img, nil
}

// programs builds Ropeway's own two programs.
func (b *builder) programs(ctx context.Context, arch string) ([]oci.Entry, error) {
	dir := filepath.Join(b.cache, "bin-"+arch)
	flags := []string{"-ldflags", "-s -w -X main.version=" + b.version, "-tags", b.tags}
	if err := b.compile(ctx, arch, dir, flags, "./cmd/ropeway", "./cmd/ropeway-cni"); err != nil {
		return nil, err
	}
	return []oci.Entry{
		{Path: programPath, Mode: 0o755, Source: filepath.Join(dir, "ropeway")},
		{Path: path.Join(pluginDir, "ropeway-cni"), Mode: 0o755, Source: filepath.Join(dir, "ropeway-cni")},
	}, nil
}

// plugins builds the reference plugins, once per version of them and of Go.
func (b *builder) plugins(ctx context.Context, arch string) ([]oci.Entry, error) {
	version, err := b.output(ctx, "go", "list", "-m", "-f", "{{.Version}}", pluginModule)
	if err != nil {
		return nil, err
	}
	sums, err := os.ReadFile(filepath.Join(b.root, "go.sum"))
	if err != nil {
		return nil, fmt.Errorf("read the versions of what plugins need: %w", err)
	}
	key := sha256.Sum256(append(sums, strings.Join(append(referencePlugins(), version, runtime.Version()), " ")...))
	dir := filepath.Join(b.cache, "plugins-"+arch+"-"+hex.EncodeToString(key[:8]))
	packages := make([]string, 0, len(referencePlugins()))
	entries := make([]oci.Entry, 0, len(referencePlugins()))
	for _, p := range referencePlugins() {
		packages = append(packages, path.Join(pluginModule, p))
		entries = append(entries, oci.Entry{Path: path.Join(pluginDir, path.Base(p)), Mode: 0o755, Source: filepath.Join(dir, path.Base(p))})
	}
	if _, err := os.Stat(dir); err == nil {
		return entries, nil
	}
	flags := []string{"-ldflags", "-s -w -X " + pluginModule + "/pkg/utils/buildversion.BuildVersion=" + version}
	return entries, whole(dir, func(unfinished string) error {
		return b.compile(ctx, arch, unfinished, flags, packages...)
	})
}

// whole makes a directory appear only when make has filled it.
func whole(dir string, fill func(unfinished string) error) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(dir), ".new-*")
	if err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	if err := fill(unfinished); err != nil {
		return errors.Join(err, os.RemoveAll(unfinished))
	}
	// Replaced, not merged: another mkimage may have been quicker, and a refresh brings other versions.
	if err := errors.Join(os.RemoveAll(dir), os.Rename(unfinished, dir)); err != nil {
		return errors.Join(fmt.Errorf("fill the cache: %w", err), os.RemoveAll(unfinished))
	}
	return nil
}

// compile builds static Go programs into a directory.
func (b *builder) compile(ctx context.Context, arch, dir string, flags []string, packages ...string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	args := slices.Concat([]string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "go", "build", "-trimpath", "-buildvcs=false"},
		flags, []string{"-o", dir + "/"}, packages)
	_, err := b.output(ctx, "env", args...)
	return err
}

// output runs a command in the repository and returns what it printed.
func (b *builder) output(ctx context.Context, name string, args ...string) (string, error) {
	return output(ctx, b.root, name, args...)
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

// repository is the root of the checkout that the command runs in.
func repository(ctx context.Context) (string, error) {
	gomod, err := output(ctx, ".", "go", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	if filepath.Base(gomod) != "go.mod" {
		return "", errors.New("not inside a checkout of Ropeway: run it through `make image` in the repository")
	}
	return filepath.Dir(gomod), nil
}
