package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const ref = "docker.io/ropeway/ropeway:v0.1.0"

func entries() []Entry {
	return []Entry{
		{Path: "/usr/bin/tool", Mode: 0o755, Content: []byte("#!/bin/sh\n")},
		{Path: "/bin", Mode: fs.ModeSymlink, Link: "usr/bin"},
		{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "/etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0::/:\n")},
	}
}

func mustLayer(t *testing.T, dir string, e []Entry, c Compression) *Layer {
	t.Helper()
	layer, err := BuildLayer(dir, e, c)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// readTar returns the headers and contents of a tar.
func readTar(t *testing.T, data []byte) (headers []*tar.Header, contents map[string][]byte) {
	t.Helper()
	contents = map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, h)
		if contents[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func gunzip(t *testing.T, data []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// archive reads an archive back as a runtime does: every blob must be what its descriptor says.
type archive struct {
	t     *testing.T
	files map[string][]byte
	used  map[string]bool
}

func openArchive(t *testing.T, path string) *archive {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, files := readTar(t, data)
	if got := string(files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s", got)
	}
	return &archive{t: t, files: files, used: map[string]bool{"oci-layout": true, "index.json": true}}
}

func (a *archive) blob(d descriptor) []byte {
	a.t.Helper()
	name := "blobs/" + strings.Replace(d.Digest, ":", "/", 1)
	data, ok := a.files[name]
	if !ok || digestOf(data) != d.Digest || int64(len(data)) != d.Size {
		a.t.Fatalf("blob %s: there %v, digest %s, %d of %d bytes", name, ok, digestOf(data), len(data), d.Size)
	}
	a.used[name] = true
	return data
}

func decode[T any](t *testing.T, data []byte) T {
	t.Helper()
	var v T
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return v
}

// checkImage follows one platform's manifest down to its layers and returns the configuration.
func (a *archive) checkImage(d descriptor) imageConfig {
	a.t.Helper()
	m := decode[manifest](a.t, a.blob(d))
	c := decode[imageConfig](a.t, a.blob(m.Config))
	if d.MediaType != mediaManifest || m.MediaType != mediaManifest || m.Config.MediaType != mediaConfig || m.SchemaVersion != 2 {
		a.t.Errorf("media types of the manifest: %+v", m)
	}
	if len(m.Layers) != len(c.RootFS.DiffIDs) {
		a.t.Fatalf("%d layers, %d diff ids", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	for i, l := range m.Layers {
		data := a.blob(l)
		if l.MediaType == mediaLayerGzip {
			data = gunzip(a.t, data)
		}
		if digestOf(data) != c.RootFS.DiffIDs[i] {
			a.t.Errorf("layer %d is not what its diff id says", i)
		}
	}
	return c
}

func (a *archive) checkNothingElse() {
	a.t.Helper()
	for name := range a.files {
		if !a.used[name] {
			a.t.Errorf("%s is in the archive for nothing", name)
		}
	}
}

// TestArchive: OCI Image Layout and Image Manifest specifications 1.0, with the annotations that name what is imported.
func TestArchive(t *testing.T) {
	for _, arches := range [][]string{{"amd64"}, {"amd64", "arm64"}} {
		t.Run(strings.Join(arches, "+"), func(t *testing.T) {
			dir := t.TempDir()
			shared := mustLayer(t, dir, entries(), Uncompressed)
			var images []Image
			for _, arch := range arches {
				own := mustLayer(t, dir, []Entry{{Path: "/arch", Mode: 0o644, Content: []byte(arch)}}, 9)
				images = append(images, Image{Architecture: arch, Config: Config{Entrypoint: []string{"/" + arch}}, Layers: []*Layer{shared, own}})
			}
			out := filepath.Join(dir, "deep", "image.tar")
			if err := WriteArchive(out, ref, images); err != nil {
				t.Fatal(err)
			}
			a := openArchive(t, out)
			top := decode[index](t, a.files["index.json"])
			if len(top.Manifests) != 1 {
				t.Fatalf("index: %+v", top)
			}
			want := map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": "v0.1.0"}
			if got := top.Manifests[0].Annotations; len(got) != 2 || got["io.containerd.image.name"] != ref || got["org.opencontainers.image.ref.name"] != "v0.1.0" {
				t.Errorf("annotations %v, want %v", got, want)
			}
			manifests := top.Manifests
			if len(arches) > 1 {
				if top.Manifests[0].MediaType != mediaIndex {
					t.Errorf("several platforms under %s", top.Manifests[0].MediaType)
				}
				manifests = decode[index](t, a.blob(top.Manifests[0])).Manifests
			}
			for i, d := range manifests {
				c := a.checkImage(d)
				if d.Platform == nil || d.Platform.Architecture != arches[i] || c.Architecture != arches[i] || c.OS != "linux" {
					t.Errorf("platform %d: %+v, configuration %+v", i, d.Platform, c.platform)
				}
				if c.Config.Entrypoint[0] != "/"+arches[i] {
					t.Errorf("platform %d has the configuration of another: %+v", i, c.Config)
				}
			}
			a.checkNothingElse()
		})
	}
}

// TestSameBytes: neither the order of entries, nor the time, nor the cache changes what is written.
func TestSameBytes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		compression := rapid.SampledFrom([]Compression{Uncompressed, 1, 9}).Draw(rt, "compression")
		var written [][]byte
		for range 2 {
			dir, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				rt.Fatal(err)
			}
			layer, err := BuildLayer(dir, rapid.Permutation(entries()).Draw(rt, "entries"), compression)
			if err != nil {
				rt.Fatal(err)
			}
			out := filepath.Join(dir, "image.tar")
			if err := WriteArchive(out, ref, []Image{{Architecture: "amd64", Layers: []*Layer{layer}}}); err != nil {
				rt.Fatal(err)
			}
			data, err := os.ReadFile(out)
			if err != nil {
				rt.Fatal(err)
			}
			written = append(written, data)
		}
		if !bytes.Equal(written[0], written[1]) {
			rt.Error("two runs wrote different bytes")
		}
	})
}

func TestLayerContent(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	layer := mustLayer(t, dir, append(entries(), Entry{Path: "/opt/x/y", Mode: 0o500, Source: source}), 1)
	data, err := os.ReadFile(layer.File)
	if err != nil {
		t.Fatal(err)
	}
	headers, contents := readTar(t, gunzip(t, data))
	var got []string
	for _, h := range headers {
		got = append(got, fmt.Sprintf("%c %04o %s%s", h.Typeflag, h.Mode, h.Name, h.Linkname))
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(time.Unix(0, 0)) {
			t.Errorf("%s belongs to %d:%d %q, changed %v", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
	}
	want := []string{
		"2 0777 binusr/bin", "5 0755 etc/", "0 0644 etc/passwd", "5 0755 opt/", "5 0755 opt/x/", "0 0500 opt/x/y",
		"5 1777 tmp/", "5 0755 usr/", "5 0755 usr/bin/", "0 0755 usr/bin/tool",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if string(contents["opt/x/y"]) != "from a file" {
		t.Errorf("content: %q", contents["opt/x/y"])
	}
}

// TestLayerCache: a layer is written once, again when its content changed, and again when its file is damaged.
func TestLayerCache(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	build := func(content string) (*Layer, os.FileInfo) {
		t.Helper()
		if err := os.WriteFile(source, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		layer := mustLayer(t, dir, []Entry{{Path: "/x", Mode: 0o644, Source: source}}, Uncompressed)
		info, err := os.Stat(layer.File)
		if err != nil {
			t.Fatal(err)
		}
		return layer, info
	}
	first, written := build("one")
	second, again := build("one")
	if *first != *second || !os.SameFile(written, again) {
		t.Errorf("the same content was written twice: %+v, %+v", first, second)
	}
	if other, _ := build("two"); other.File == first.File || other.Digest == first.Digest {
		t.Errorf("other content, same layer: %+v", other)
	}
	if err := os.Truncate(first.File, 10); err != nil {
		t.Fatal(err)
	}
	if healed, _ := build("one"); *healed != *first {
		t.Errorf("after damage: %+v, want %+v", healed, first)
	}
	if info, err := os.Stat(first.File); err != nil || info.Size() != first.Size {
		t.Errorf("the damaged layer was kept: %v, %v", info, err)
	}
}

func TestEntriesAreChecked(t *testing.T) {
	for want, e := range map[string][]Entry{
		`"relative": want a clean absolute path`: {{Path: "relative"}},
		`"/a/../b": want a clean`:                {{Path: "/a/../b"}},
		`"/": want a clean`:                      {{Path: "/"}},
		"/a is there twice":                      {{Path: "/a"}, {Path: "/a"}},
		"/a/b lies below /a, which is no":        {{Path: "/a"}, {Path: "/a/b"}},
		"is neither file, directory nor":         {{Path: "/dev/null", Mode: fs.ModeDevice}},
		"/gone: open":                            {{Path: "/gone", Source: "/does/not/exist"}},
	} {
		if _, err := BuildLayer(t.TempDir(), e, Uncompressed); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want %q", e, err, want)
		}
	}
}

func TestArchiveIsChecked(t *testing.T) {
	dir := t.TempDir()
	layer := mustLayer(t, dir, entries(), Uncompressed)
	img := Image{Architecture: "amd64", Layers: []*Layer{layer}}
	gone := *layer
	gone.File, gone.Digest = filepath.Join(dir, "gone"), "sha256:00"
	for _, c := range []struct {
		ref    string
		images []Image
		want   string
	}{
		{"ropeway", []Image{img}, "want REGISTRY/NAME:TAG"},
		{"docker.io/ropeway/ropeway", []Image{img}, "want REGISTRY/NAME:TAG"},
		{"docker.io/Ropeway:1", []Image{img}, "want REGISTRY/NAME:TAG"},
		{ref, nil, "no platform"},
		{ref, []Image{img, img}, `architecture "amd64" is there twice`},
		{ref, []Image{{Layers: img.Layers}}, `architecture "" is there twice or empty`},
		{ref, []Image{{Architecture: "amd64", Layers: []*Layer{&gone}}}, "gone"},
	} {
		out := filepath.Join(dir, "out.tar")
		if err := WriteArchive(out, c.ref, c.images); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.ref, err, c.want)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*.tar")); len(left) > 0 {
			t.Errorf("a failure left %v", left)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
			t.Errorf("a failure left %v", left)
		}
	}
	for _, good := range []string{ref, "registry.example.com:5000/a/b-c:1", "localhost:5000/x:v1.2_3"} {
		if err := CheckRef(good); err != nil {
			t.Error(err)
		}
	}
}

func TestMergedUsr(t *testing.T) {
	in := []Entry{{Path: "/lib64/ld.so"}, {Path: "/sbin/nft"}, {Path: "/usr/bin/x"}, {Path: "/library/y"}}
	got := map[string]string{} // path -> link
	for _, e := range MergedUsr(in) {
		got[e.Path] = e.Link
	}
	for path, link := range map[string]string{
		"/usr/lib64/ld.so": "", "/usr/sbin/nft": "", "/usr/bin/x": "", "/library/y": "", "/usr/lib": "",
		"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64",
	} {
		if l, ok := got[path]; !ok || l != link {
			t.Errorf("%s: there %v, link %q, want %q", path, ok, l, link)
		}
	}
	if len(got) != 12 {
		t.Errorf("%d entries, want 12: %v", len(got), got)
	}
}
