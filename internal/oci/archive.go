// Package oci writes container images as OCI image layouts in one tar file, without a daemon and without a registry.
// The same input always gives the same bytes: entries are sorted, owners are root, and times are the epoch.
//
// What it writes follows the OCI Image Format Specification 1.0: `ctr images import FILE` and `podman load -i FILE` read it.
package oci

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"time"
)

// Media types of the OCI Image Format Specification.
const (
	mediaIndex     = "application/vnd.oci.image.index.v1+json"
	mediaManifest  = "application/vnd.oci.image.manifest.v1+json"
	mediaConfig    = "application/vnd.oci.image.config.v1+json"
	mediaLayer     = "application/vnd.oci.image.layer.v1.tar"
	mediaLayerGzip = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// Image is one image for one platform.
type Image struct {
	// Architecture in Go's words: amd64, arm64. The operating system is always linux.
	Architecture string
	Config       Config
	// Layers from the bottom to the top.
	Layers []*Layer
}

// Config is how a container of the image starts; the field names are those of the image configuration's "config".
type Config struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir,omitempty"`
	Labels     map[string]string `json:"Labels,omitempty"` // name -> value
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type imageConfig struct {
	Created string `json:"created"`
	platform
	Config Config `json:"config"`
	RootFS rootFS `json:"rootfs"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// epoch is the time of everything in an image.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// fullRef is a reference as containerd names images: with a registry and with a tag.
var fullRef = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+:([A-Za-z0-9_][A-Za-z0-9._-]{0,127})$`)

// CheckRef says whether ref is a complete image reference, such as docker.io/ropeway/ropeway:v1: with its registry and
// its tag, which nobody completes for an image that is imported from a file.
func CheckRef(ref string) error {
	if !fullRef.MatchString(ref) {
		return fmt.Errorf("image reference %q: want REGISTRY/NAME:TAG, such as docker.io/ropeway/ropeway:v1", ref)
	}
	return nil
}

// WriteArchive writes the images as one archive to path, atomically; importing it names it ref. More than one image
// becomes one multi-platform image: each must be for another architecture.
func WriteArchive(path, ref string, images []Image) error {
	layout, err := newLayout(ref, images)
	if err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	if err := writeFile(path, layout.writeTo); err != nil {
		return fmt.Errorf("image %s: write %s: %w", ref, path, err)
	}
	return nil
}

// layout is an image layout before it is written.
type layout struct {
	index []byte
	blobs map[string][]byte // digest -> content
	files map[string]*Layer // digest -> layer
}

func newLayout(ref string, images []Image) (*layout, error) {
	match := fullRef.FindStringSubmatch(ref)
	if match == nil {
		return nil, CheckRef(ref)
	}
	if len(images) == 0 {
		return nil, errors.New("no platform to write: give at least one")
	}
	l := &layout{blobs: map[string][]byte{}, files: map[string]*Layer{}}
	var manifests []descriptor
	seen := map[string]bool{}
	for _, img := range images {
		if seen[img.Architecture] || img.Architecture == "" {
			return nil, fmt.Errorf("architecture %q is there twice or empty: give each platform once", img.Architecture)
		}
		seen[img.Architecture] = true
		d, err := l.addImage(img)
		if err != nil {
			return nil, err
		}
		manifests = append(manifests, d)
	}
	top := manifests[0]
	if len(manifests) > 1 {
		var err error
		if top, err = l.addJSON(mediaIndex, index{2, mediaIndex, manifests}); err != nil {
			return nil, err
		}
	}
	top.Annotations = map[string]string{
		"io.containerd.image.name":          ref,
		"org.opencontainers.image.ref.name": match[len(match)-1],
	}
	var err error
	l.index, err = json.Marshal(index{2, mediaIndex, []descriptor{top}})
	return l, err
}

// addImage adds what one platform's image needs and returns its manifest's descriptor.
func (l *layout) addImage(img Image) (descriptor, error) {
	m := manifest{SchemaVersion: 2, MediaType: mediaManifest}
	p := platform{Architecture: img.Architecture, OS: "linux"}
	c := imageConfig{Created: epoch().Format(time.RFC3339), platform: p, Config: img.Config, RootFS: rootFS{Type: "layers"}}
	for _, layer := range img.Layers {
		m.Layers = append(m.Layers, descriptor{MediaType: layer.MediaType, Digest: layer.Digest, Size: layer.Size})
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, layer.DiffID)
		l.files[layer.Digest] = layer
	}
	var err error
	if m.Config, err = l.addJSON(mediaConfig, c); err != nil {
		return descriptor{}, err
	}
	d, err := l.addJSON(mediaManifest, m)
	d.Platform = &p
	return d, err
}

func (l *layout) addJSON(mediaType string, value any) (descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	l.blobs[digest] = data
	return descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(data))}, nil
}

func (l *layout) writeTo(w io.Writer) error {
	t := tar.NewWriter(w)
	if err := addBytes(t, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := addBytes(t, "index.json", l.index); err != nil {
		return err
	}
	var digests []string
	for d := range l.blobs {
		digests = append(digests, d)
	}
	for d := range l.files {
		digests = append(digests, d)
	}
	sort.Strings(digests)
	for _, d := range digests {
		name := "blobs/sha256/" + d[len("sha256:"):]
		var err error
		if layer, ok := l.files[d]; ok {
			err = addFile(t, name, layer.File, layer.Size)
		} else {
			err = addBytes(t, name, l.blobs[d])
		}
		if err != nil {
			return err
		}
	}
	return t.Close()
}

func addBytes(t *tar.Writer, name string, data []byte) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: epoch()}); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	_, err := io.Copy(t, bytes.NewReader(data))
	return err
}

func addFile(t *tar.Writer, name, file string, size int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: epoch()}); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	n, err := io.Copy(t, f)
	if err == nil && n != size {
		err = errChanged
	}
	if err != nil {
		return fmt.Errorf("add %s: %w", file, err)
	}
	return nil
}

var errChanged = errors.New("the file changed while it was read: try again")

// writeFile writes a file whole or not at all.
func writeFile(path string, write func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return f.Close()
}
