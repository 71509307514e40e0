// Package images builds the container images that the lab's clusters run, from what is on the machine: Go programs of
// this repository, the lab's own parts, and programs of Debian with the libraries they need. No registry is asked.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/source"
	"ropeway.dev/ropeway/internal/oci"
)

// References of the images, as pods name them.
const (
	Pause   = "lab.ropeway.dev/pause:3.10"
	Web     = "lab.ropeway.dev/web:1"
	CoreDNS = "lab.ropeway.dev/coredns:1.12.4"
	Agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.59"
)

// keep is how long an image or a layer stays in the cache after it was last used.
const keep = 14 * 24 * time.Hour

// Image is an image in an archive that `ctr images import` reads.
type Image struct {
	Ref  string
	Path string
}

// Build makes the images, or finds them in cacheDir when nothing they are made of has changed; what has not been used for
// two weeks is deleted there. Several labs may build at once: they wait for one another. partsBin returns the
// path of a built part of the lab ("agnhost", "coredns"); progress gets a line per image. It needs the repository, Go,
// and the Debian packages iputils-ping, curl, busybox-static, dash and iproute2.
func Build(ctx context.Context, partsBin func(program string) (string, error), cacheDir string, progress func(string)) ([]Image, error) {
	root, err := source.Here()
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	b := &builder{root: root, cache: cacheDir, partsBin: partsBin}
	unlock, err := oci.Lock(ctx, cacheDir)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	defer unlock()
	var built []Image
	for _, r := range recipes() {
		start := time.Now()
		path, fresh, err := b.build(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", r.ref, err)
		}
		built = append(built, Image{Ref: r.ref, Path: path})
		if fresh {
			progress(fmt.Sprintf("built image %s in %s", r.ref, time.Since(start).Round(10*time.Millisecond)))
		} else {
			progress(fmt.Sprintf("image %s is up to date", r.ref))
		}
	}
	return built, errors.Join(oci.Prune(cacheDir, keep), oci.Prune(b.layers(), keep))
}

// recipe is how an image is made: the Debian base or nothing, and one program over it.
type recipe struct {
	ref    string
	base   bool   // over the programs of Debian
	source string // package of this repository that the program is built from, or
	part   string // the part of the lab that it is
	path   string // the program's place in the image
	config oci.Config
}

func recipes() []recipe {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return []recipe{
		{ref: Pause, source: "./internal/lab/images/pause", path: "/pause",
			config: oci.Config{Entrypoint: []string{"/pause"}, Env: env, User: "65535:65535"}},
		{ref: Web, base: true, source: "./internal/lab/images/web", path: "/usr/bin/web",
			config: oci.Config{Entrypoint: []string{"/usr/bin/web"}, Env: env, WorkingDir: "/"}},
		{ref: CoreDNS, part: "coredns", path: "/coredns",
			config: oci.Config{Entrypoint: []string{"/coredns"}, Env: env, WorkingDir: "/"}},
		{ref: Agnhost, base: true, part: "agnhost", path: "/agnhost",
			config: oci.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: env, WorkingDir: "/"}},
	}
}

type builder struct {
	root     string // of the repository
	cache    string
	partsBin func(string) (string, error)
}

func (b *builder) layers() string { return filepath.Join(b.cache, "layers") }

// build returns the archive of an image and whether it was written just now.
func (b *builder) build(ctx context.Context, r recipe) (path string, fresh bool, err error) {
	program, err := b.program(ctx, r)
	if err != nil {
		return "", false, err
	}
	parts := [][]oci.Entry{{{Path: r.path, Mode: 0o755, Source: program}}}
	if r.base {
		base, err := baseEntries()
		if err != nil {
			return "", false, err
		}
		parts = append([][]oci.Entry{base}, parts...)
	}
	img := oci.Image{Architecture: runtime.GOARCH, Config: r.config}
	for _, entries := range parts {
		layer, err := oci.BuildLayer(b.layers(), entries, oci.Uncompressed)
		if err != nil {
			return "", false, err
		}
		img.Layers = append(img.Layers, layer)
	}
	if path, err = b.archive(r.ref, img); err != nil {
		return "", false, err
	}
	if err := oci.MarkUsed(path); err == nil {
		return path, false, nil
	}
	return path, true, oci.WriteArchive(path, r.ref, []oci.Image{img})
}

// archive names the file of an image after all that is in it.
func (b *builder) archive(ref string, img oci.Image) (string, error) {
	config, err := json.Marshal(img)
	if err != nil {
		return "", fmt.Errorf("encode the image's configuration: %w", err)
	}
	sum := sha256.Sum256(append(config, ref...))
	name := strings.NewReplacer("/", "_", ":", "_").Replace(ref)
	return filepath.Join(b.cache, name+"-"+hex.EncodeToString(sum[:])[:16]+".tar"), nil
}

// program returns the path of the image's own program, built if it is of this repository.
func (b *builder) program(ctx context.Context, r recipe) (string, error) {
	if r.part != "" {
		return b.partsBin(r.part)
	}
	output := filepath.Join(b.cache, "bin", filepath.Base(r.source))
	return output, compile(ctx, b.root, r.source, output)
}
