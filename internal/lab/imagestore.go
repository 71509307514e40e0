package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
	"ropeway.dev/ropeway/internal/lab/treelink"
)

// Importing the lab's images costs a node five seconds of CPU, most of what it
// costs to boot it. So it is done once: a host with nothing but containerd
// imports them, its data directory goes into the cache, and every node starts
// on a clone of it that shares all files but the databases. Containers only
// ever see those files as lower layers of an overlay and cannot change them.

// importHost is the name of that host.
const importHost = "image-import"

// containerdDir is where a host's containerd keeps its data, below the host's
// own directory.
const containerdDir = "lib/containerd"

// imageStores is the cache of such data directories.
func (b *boot) imageStores() string { return filepath.Join(b.options.Cache, "containerd") }

// storeKey names the data directory that the lab's images, whose archives are
// named by their content, and its containerd's configuration make.
func (b *boot) storeKey() string {
	h := sha256.New()
	fmt.Fprintln(h, config.Containerd())
	for _, name := range b.archives {
		fmt.Fprintln(h, name)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// imageStore gives every node a containerd with the lab's images in it.
func (b *boot) imageStore(ctx context.Context) error {
	store := filepath.Join(b.imageStores(), b.storeKey())
	if _, err := os.Stat(store); errors.Is(err, os.ErrNotExist) {
		if err := b.makeImageStore(ctx, store); err != nil {
			return fmt.Errorf("import the lab's images: %w", err)
		}
	}
	for _, h := range b.manifest().Hosts {
		if h.Role != ledger.Node {
			continue
		}
		if err := treelink.Clone(store, filepath.Join(h.Dir, containerdDir), changes); err != nil {
			return fmt.Errorf("give node %s the lab's images: %w", h.Name, err)
		}
	}
	return nil
}

// changes tells the files that a running containerd writes in place.
func changes(path string) bool { return strings.HasSuffix(path, ".db") }

// makeImageStore imports the images on a host of its own and moves its
// containerd's data into the cache.
func (b *boot) makeImageStore(ctx context.Context, store string) error {
	began := time.Now()
	h := ledger.Host{
		Name: importHost, Dir: filepath.Join(b.lab.Dir(), "hosts", importHost),
		// It needs no network; the outside's is there and nobody else is in it.
		Netns: b.manifest().Hosts[len(b.manifest().Hosts)-1].Netns,
	}
	if err := makeHostDirs(h); err != nil {
		return err
	}
	process, err := b.launch(ctx, h, b.describeImport(h))
	if err != nil {
		return err
	}
	h.Init = process
	err = b.lab.await(ctx, h, b.importNames()...)
	if err := errors.Join(err, b.end(ctx, h)); err != nil {
		return err
	}
	// Each containerd makes up a name for itself and keeps it there.
	if err := os.RemoveAll(filepath.Join(h.Dir, containerdDir, "io.containerd.grpc.v1.introspection")); err != nil {
		return err
	}
	if err := dropOldStores(b.imageStores()); err != nil {
		return err
	}
	if err := moveTree(filepath.Join(h.Dir, containerdDir), store); err != nil {
		return err
	}
	b.say("imported %d images in %s", len(b.archives), time.Since(began).Round(100*time.Millisecond))
	return os.RemoveAll(h.Dir)
}

// describeImport is the description of the host that imports images.
func (b *boot) describeImport(h ledger.Host) pidone.Spec {
	spec := describe(b.manifest(), h, b.lab.Dir(), b.layout)
	spec.Binds = append(spec.Binds, pidone.Bind{Source: imageDir(b.lab.Dir()), Target: config.ImageDir, ReadOnly: true})
	spec.Files = append(spec.Files, text(config.ContainerdConfig, config.Containerd()))
	spec.Programs = []pidone.Program{containerd()}
	for i, archive := range b.archives {
		p := program(importName(archive), config.ImportCommand(filepath.Join(config.ImageDir, archive)), spec.Programs[i].Name)
		p.Once = true
		p.Log = filepath.Join(config.LogDir, "import.log")
		spec.Programs = append(spec.Programs, p)
	}
	return spec
}

// importName is the name of the program that imports an archive.
func importName(archive string) string { return "import " + archive }

func (b *boot) importNames() []string {
	var names []string
	for _, archive := range b.archives {
		names = append(names, importName(archive))
	}
	return names
}

// endTimeout bounds the end of a host.
const endTimeout = 30 * time.Second

// end kills a host and removes its cgroup.
func (b *boot) end(ctx context.Context, h ledger.Host) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	group := ledger.HostCgroup(b.lab.Name(), h.Name)
	if err := b.layout.Kill(ctx, group); err != nil {
		return err
	}
	return b.layout.Remove(ctx, group)
}

// dropOldStores empties the cache of image stores, but for young ones, which
// other labs may be making or cloning at this moment: stores of earlier images
// are of no use any more.
func dropOldStores(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the cache of imported images: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clear the cache of imported images: %w", err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > time.Hour {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("clear the cache of imported images: %w", err)
			}
		}
	}
	return nil
}

// moveTree puts a directory into the cache under its final name in one step;
// another lab may have done the same meanwhile, and then its copy serves both.
func moveTree(from, to string) error {
	temporary, err := os.MkdirTemp(filepath.Dir(to), ".new-")
	if err != nil {
		return fmt.Errorf("keep the imported images: %w", err)
	}
	defer os.RemoveAll(temporary)
	copied := filepath.Join(temporary, "store")
	if err := treelink.Clone(from, copied, func(string) bool { return false }); err != nil {
		return err
	}
	if err := os.Rename(copied, to); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("keep the imported images: %w", err)
	}
	return nil
}
