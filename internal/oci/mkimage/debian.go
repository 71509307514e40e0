package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"ropeway.dev/ropeway/internal/oci"
	"ropeway.dev/ropeway/internal/oci/elfdeps"
)

const (
	nftPath    = "/usr/sbin/nft"
	nftPackage = "nftables"
)

// nft returns the program nft of Debian with the libraries that it needs. The packages are fetched from the machine's
// own apt sources into a state directory of their own, so that the machine's dpkg and apt learn nothing of the other
// architecture.
func (b *builder) nft(ctx context.Context, arch string) ([]oci.Entry, error) {
	dir := filepath.Join(b.cache, "nft-"+arch)
	if _, err := os.Stat(dir); b.refresh || errors.Is(err, os.ErrNotExist) {
		slog.Info("fetching from Debian", "package", nftPackage, "architecture", arch)
		if err := whole(dir, func(unfinished string) error { return unpack(ctx, arch, unfinished) }); err != nil {
			return nil, err
		}
	}
	tree := elfdeps.Tree{Root: dir}
	program, err := tree.Resolve(nftPath)
	if err != nil {
		return nil, err
	}
	libraries, err := tree.Closure(nftPath)
	if err != nil {
		return nil, err
	}
	entries := []oci.Entry{{Path: nftPath, Mode: 0o755, Source: program}}
	for _, l := range libraries {
		entries = append(entries, oci.Entry{Path: l.Path, Mode: 0o755, Source: l.Source})
	}
	licences, err := copyrights(dir)
	return oci.MergedUsr(append(entries, licences...)), err
}

// copyrights are the licences of the unpacked packages, which have to go where the programs go.
func copyrights(dir string) ([]oci.Entry, error) {
	files, err := filepath.Glob(filepath.Join(dir, "usr/share/doc/*/copyright"))
	if err != nil {
		return nil, fmt.Errorf("look for licences: %w", err)
	}
	var entries []oci.Entry
	for _, f := range files {
		inside, err := filepath.Rel(dir, f)
		if err != nil {
			return nil, fmt.Errorf("look for licences: %w", err)
		}
		entries = append(entries, oci.Entry{Path: "/" + inside, Mode: 0o644, Source: f})
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("no licence in %s: delete the directory and try again", dir)
	}
	return entries, nil
}

// unpack fetches a package and all that it depends on and unpacks it into dir.
func unpack(ctx context.Context, arch, dir string) error {
	state, err := os.MkdirTemp("", "mkimage-apt-*")
	if err != nil {
		return fmt.Errorf("make a state directory for apt: %w", err)
	}
	defer os.RemoveAll(state)
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o755); err != nil {
			return fmt.Errorf("make a state directory for apt: %w", err)
		}
	}
	if _, err := output(ctx, state, "apt-get", aptArgs(state, arch, "update")...); err != nil {
		return fmt.Errorf("read Debian's package lists for %s: %w", arch, err)
	}
	install := aptArgs(state, arch, "install", "--yes", "--no-install-recommends", "--download-only", nftPackage)
	if _, err := output(ctx, state, "apt-get", install...); err != nil {
		return fmt.Errorf("fetch %s for %s from Debian: %w", nftPackage, arch, err)
	}
	debs, err := filepath.Glob(filepath.Join(state, "cache/archives/*.deb"))
	if err != nil || len(debs) == 0 {
		return fmt.Errorf("apt-get fetched no package for %s: %w", arch, errors.Join(err, os.ErrNotExist))
	}
	for _, deb := range debs {
		if _, err := output(ctx, state, "dpkg-deb", "--extract", deb, dir); err != nil {
			return err
		}
	}
	return nil
}

// aptArgs makes apt-get work on a state of its own, where no package is installed.
func aptArgs(state, arch string, command ...string) []string {
	return append([]string{
		"-q",
		"-o", "Dir::State=" + state,
		"-o", "Dir::State::Lists=" + filepath.Join(state, "lists"),
		"-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(state, "cache"),
		"-o", "APT::Architecture=" + arch,
		"-o", "APT::Architectures=" + arch,
		"-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	}, command...)
}
