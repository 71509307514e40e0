package conformance

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"ropeway.dev/ropeway/internal/lab"
	"ropeway.dev/ropeway/internal/lab/images"
	"ropeway.dev/ropeway/internal/oci"
)

// The specs' own image has a netcat that they depend on and that the lab's
// image of that name lacks. So it gets a layer more here, under the same name,
// on the nodes of the lab that the specs are played on.

// giveTools puts the image with the specs' tools on every node.
func giveTools(ctx context.Context, l *lab.Lab, source, dir string) error {
	found, err := filepath.Glob(filepath.Join(l.Dir(), "images", "*agnhost*.tar"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("find the archive of %s in %s: %d found (%w)", images.Agnhost, l.Dir(), len(found), err)
	}
	img, err := unpack(found[0], dir)
	if err != nil {
		return fmt.Errorf("read the image %s: %w", images.Agnhost, err)
	}
	nc := filepath.Join(dir, "nc")
	if err := compile(ctx, source, "./internal/lab/conformance/nc", nc); err != nil {
		return err
	}
	layer, err := oci.BuildLayer(dir, []oci.Entry{
		{Path: "/usr/bin/nc", Mode: 0o755, Source: nc},
		{Path: "/uploads", Mode: os.ModeDir | 0o755}, // netexec stores what it is sent there
	}, oci.Uncompressed)
	if err != nil {
		return err
	}
	img.Layers = append(img.Layers, layer)
	archive := filepath.Join(dir, "agnhost.tar")
	if err := oci.WriteArchive(archive, images.Agnhost, []oci.Image{img}); err != nil {
		return err
	}
	return l.ImportImage(ctx, archive)
}

func compile(ctx context.Context, source, pkg, output string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", output, pkg)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w: %s", pkg, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// blobDescriptor is what the OCI image format calls a descriptor.
type blobDescriptor struct {
	MediaType string
	Digest    string
	Size      int64
}

// unpack reads an archive of one image for one platform (OCI Image Format
// Specification, image layout), whose blobs go to files below dir.
func unpack(archive, dir string) (oci.Image, error) {
	if err := extract(archive, dir); err != nil {
		return oci.Image{}, err
	}
	var index struct{ Manifests []blobDescriptor }
	var manifest struct {
		Config blobDescriptor
		Layers []blobDescriptor
	}
	var config struct {
		Architecture string
		Config       oci.Config
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := read(filepath.Join(dir, "index.json"), &index); err != nil {
		return oci.Image{}, err
	}
	if len(index.Manifests) != 1 {
		return oci.Image{}, fmt.Errorf("%s has %d images, want one", archive, len(index.Manifests))
	}
	if err := read(blob(dir, index.Manifests[0]), &manifest); err != nil {
		return oci.Image{}, err
	}
	if err := read(blob(dir, manifest.Config), &config); err != nil {
		return oci.Image{}, err
	}
	if len(config.RootFS.DiffIDs) != len(manifest.Layers) {
		return oci.Image{}, fmt.Errorf("%s has %d layers and %d names for them", archive, len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	img := oci.Image{Architecture: config.Architecture, Config: config.Config}
	for i, l := range manifest.Layers {
		img.Layers = append(img.Layers, &oci.Layer{
			File: blob(dir, l), MediaType: l.MediaType, Digest: l.Digest, Size: l.Size, DiffID: config.RootFS.DiffIDs[i],
		})
	}
	return img, nil
}

func blob(dir string, d blobDescriptor) string {
	return filepath.Join(dir, "blobs", strings.ReplaceAll(d.Digest, ":", "/"))
}

func read(file string, into any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// extract writes the regular files of a tar below dir.
func extract(archive, dir string) error {
	in, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer in.Close()
	for files := tar.NewReader(in); ; {
		head, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
		if head.Typeflag != tar.TypeReg {
			continue
		}
		// Cleaned as below a root, so that no name leads out of dir.
		if err := write(filepath.Join(dir, path.Clean("/"+head.Name)), files); err != nil {
			return err
		}
	}
}

func write(file string, from io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, from)
	return err
}
