// Command mkimage writes Ropeway's container image, for several architectures, into one OCI archive: `make image`. It
// runs no daemon and needs no privilege beyond Go, apt-get and dpkg-deb.
//
// The image holds the two programs, the reference CNI plugins that conflists chain behind them, and nft, which the
// agent runs, with its libraries from Debian. Layers that seldom change lie below and are cached, so that a change of
// Ropeway costs one compilation and one layer.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ropeway.dev/ropeway/internal/oci"
)

// keep is how long a layer stays in the cache after it was last used.
const keep = 3 * 24 * time.Hour

// options are the command's flags.
type options struct {
	registry string   // prefix of the image's name
	version  string   // tag, and what the programs say they are
	tags     string   // Go's build tags for Ropeway's programs
	arches   []string // in Go's words
	out      string
	cache    string
	refresh  bool // ask Debian for nft again
}

func main() {
	opts, err := parseFlags(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err == nil {
		err = run(ctx, opts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string, getenv func(string) string) (options, error) {
	var o options
	f := flag.NewFlagSet("mkimage", flag.ContinueOnError)
	f.StringVar(&o.registry, "registry", "docker.io/ropeway", "registry and repository prefix of the image's name")
	f.StringVar(&o.version, "version", "", "version of Ropeway: the image's tag")
	f.StringVar(&o.tags, "tags", "", "build tags for Ropeway's programs, separated by commas")
	f.StringVar(&o.out, "out", "bin/ropeway-image.tar", "archive to write")
	f.StringVar(&o.cache, "cache", defaultCache(getenv), "directory to keep layers in")
	f.BoolVar(&o.refresh, "refresh", false, "fetch Debian's nft again instead of using the cached one")
	arches := f.String("arch", "amd64,arm64", "architectures, separated by commas")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	o.arches = strings.Split(*arches, ",")
	return o, o.validate()
}

func (o options) validate() error {
	var errs []error
	if o.version == "" {
		errs = append(errs, errors.New("--version is missing: give the version of Ropeway, such as v0.1.0"))
	} else if err := oci.CheckRef(o.ref()); err != nil {
		errs = append(errs, fmt.Errorf("--registry and --version: %w", err))
	}
	for _, a := range o.arches {
		if a != "amd64" && a != "arm64" {
			errs = append(errs, fmt.Errorf("--arch %q: choose amd64, arm64 or both (amd64,arm64)", a))
		}
	}
	return errors.Join(errs...)
}

// ref is the image's name.
func (o options) ref() string { return strings.TrimSuffix(o.registry, "/") + "/ropeway:" + o.version }

// defaultCache is the lab's cache: ROPEWAY_LAB_CACHE, else ropeway-lab below XDG_CACHE_HOME or ~/.cache.
func defaultCache(getenv func(string) string) string {
	if dir := getenv("ROPEWAY_LAB_CACHE"); dir != "" {
		return dir
	}
	if dir := getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "ropeway-lab")
	}
	return filepath.Join(getenv("HOME"), ".cache", "ropeway-lab")
}

func run(ctx context.Context, o options) error {
	root, err := repository(ctx)
	if err != nil {
		return err
	}
	b := &builder{root: root, cache: filepath.Join(o.cache, "image"), version: o.version, tags: o.tags, refresh: o.refresh}
	unlock, err := oci.Lock(ctx, b.cache)
	if err != nil {
		return err
	}
	defer unlock()
	images := make([]oci.Image, len(o.arches))
	for i, arch := range o.arches {
		if images[i], err = b.image(ctx, arch); err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
	}
	if err := oci.WriteArchive(o.out, o.ref(), images); err != nil {
		return err
	}
	info, err := os.Stat(o.out)
	if err != nil {
		return fmt.Errorf("look at the archive: %w", err)
	}
	if err := oci.Prune(b.layers(), keep); err != nil {
		return err
	}
	slog.Info("wrote the image", "file", o.out, "image", o.ref(), "architectures", strings.Join(o.arches, ","), "bytes", info.Size())
	return nil
}
