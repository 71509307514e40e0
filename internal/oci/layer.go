package oci

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

// Compression is how a layer is stored: Uncompressed, or a level of compress/gzip from 1 (fast) to 9 (small).
type Compression int

// Uncompressed layers are the quickest to write and to import; their size matters to nobody on one machine.
const Uncompressed Compression = 0

// Entry is a file, a directory or a symbolic link in a layer. Everything belongs to root.
type Entry struct {
	// Path is where it lies in the image, absolute. Missing parents are made, mode 0755.
	Path string
	// Mode holds the permission bits and, for a directory or a symbolic link, its type.
	Mode fs.FileMode
	// Link is a symbolic link's target.
	Link string
	// Source is the file on this machine to copy a regular file from. If empty, Content is the file's content.
	Source  string
	Content []byte
}

// Layer is a layer in a file of its own.
type Layer struct {
	File      string `json:"-"`
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"` // of the file
	DiffID    string `json:"diffID"` // of the uncompressed tar
	Size      int64  `json:"size"`   // of the file, in bytes
}

// BuildLayer writes a layer into dir, or finds it there when it was built from equal entries before. The files in dir
// belong to this package; deleting them only costs time (see Prune).
func BuildLayer(dir string, entries []Entry, compression Compression) (*Layer, error) {
	entries, err := normalize(entries)
	if err != nil {
		return nil, err
	}
	sums, err := contentSums(entries)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, layerKey(entries, sums, compression)+".layer")
	if layer, err := readLayer(file); err == nil {
		return layer, MarkUsed(file, file+".json")
	}
	layer := &Layer{File: file, MediaType: mediaLayerGzip}
	if compression == Uncompressed {
		layer.MediaType = mediaLayer
	}
	err = writeFile(file, func(w io.Writer) error { return layer.write(w, entries, sums, compression) })
	if err != nil {
		return nil, fmt.Errorf("write layer %s: %w", file, err)
	}
	// The description goes last: a layer counts as built once it is there.
	return layer, writeFile(file+".json", func(w io.Writer) error { return json.NewEncoder(w).Encode(layer) })
}

// readLayer finds a layer that was built before.
func readLayer(file string) (*Layer, error) {
	data, err := os.ReadFile(file + ".json")
	if err != nil {
		return nil, err
	}
	layer := &Layer{File: file}
	if err := json.Unmarshal(data, layer); err != nil {
		return nil, err
	}
	info, err := os.Stat(file)
	if err == nil && info.Size() != layer.Size {
		err = errors.New("truncated")
	}
	return layer, err
}

// normalize sorts the entries, adds the parents that are missing, and refuses what a tar cannot mean.
func normalize(entries []Entry) ([]Entry, error) {
	byPath := map[string]Entry{}
	for _, e := range entries {
		if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || e.Path == "/" {
			return nil, fmt.Errorf("layer entry %q: want a clean absolute path", e.Path)
		}
		if _, ok := byPath[e.Path]; ok {
			return nil, fmt.Errorf("layer entry %s is there twice", e.Path)
		}
		if t := e.Mode.Type(); t != 0 && t != fs.ModeDir && t != fs.ModeSymlink {
			return nil, fmt.Errorf("layer entry %s: %v is neither file, directory nor symbolic link", e.Path, t)
		}
		byPath[e.Path] = e
	}
	for _, e := range entries {
		for dir := path.Dir(e.Path); dir != "/"; dir = path.Dir(dir) {
			parent, ok := byPath[dir]
			if !ok {
				byPath[dir] = Entry{Path: dir, Mode: fs.ModeDir | 0o755}
			} else if !parent.Mode.IsDir() {
				return nil, fmt.Errorf("layer entry %s lies below %s, which is no directory", e.Path, dir)
			}
		}
	}
	sorted := make([]Entry, 0, len(byPath))
	for _, e := range byPath {
		sorted = append(sorted, e)
	}
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Path < sorted[j].Path })
	return sorted, nil
}

type contentSum struct {
	sum  [sha256.Size]byte
	size int64
}

// contentSums reads every regular file once, so that the layer's name says what is in it.
func contentSums(entries []Entry) ([]contentSum, error) {
	sums := make([]contentSum, len(entries))
	for i, e := range entries {
		if e.Source == "" {
			sums[i] = contentSum{sha256.Sum256(e.Content), int64(len(e.Content))}
			continue
		}
		f, err := os.Open(e.Source)
		if err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", e.Path, err)
		}
		h := sha256.New()
		sums[i].size, err = io.Copy(h, f)
		h.Sum(sums[i].sum[:0])
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("layer entry %s: read %s: %w", e.Path, e.Source, err)
		}
	}
	return sums, nil
}

func layerKey(entries []Entry, sums []contentSum, compression Compression) string {
	h := sha256.New()
	fmt.Fprintf(h, "layer 1 compression %d\n", compression)
	for i, e := range entries {
		fmt.Fprintf(h, "%q %o %q %d %x\n", e.Path, uint32(e.Mode), e.Link, sums[i].size, sums[i].sum)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// write writes the layer and fills in its digests and size.
func (l *Layer) write(w io.Writer, entries []Entry, sums []contentSum, compression Compression) error {
	outer := &hashWriter{w: w, hash: sha256.New()}
	buffered := bufio.NewWriterSize(outer, 1<<20)
	inner := &hashWriter{w: buffered, hash: sha256.New()}
	var zip *gzip.Writer
	if compression != Uncompressed {
		var err error
		if zip, err = gzip.NewWriterLevel(buffered, int(compression)); err != nil {
			return err
		}
		inner.w = zip
	}
	if err := writeTar(inner, entries, sums); err != nil {
		return err
	}
	if zip != nil {
		if err := zip.Close(); err != nil {
			return err
		}
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	l.Digest, l.DiffID, l.Size = outer.digest(), inner.digest(), outer.size
	return nil
}

func writeTar(w io.Writer, entries []Entry, sums []contentSum) error {
	t := tar.NewWriter(w)
	for i, e := range entries {
		h := &tar.Header{Name: strings.TrimPrefix(e.Path, "/"), ModTime: epoch(), Mode: int64(e.Mode.Perm()), Typeflag: tar.TypeReg}
		switch {
		case e.Mode.IsDir():
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		case e.Mode&fs.ModeSymlink != 0:
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Link, 0o777
		default:
			h.Size = sums[i].size
		}
		if e.Mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		if err := t.WriteHeader(h); err != nil {
			return fmt.Errorf("layer entry %s: %w", e.Path, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := copyContent(t, e, sums[i]); err != nil {
			return fmt.Errorf("layer entry %s: %w", e.Path, err)
		}
	}
	return t.Close()
}

// copyContent copies a regular file's content and makes sure that it is what was hashed before.
func copyContent(w io.Writer, e Entry, want contentSum) error {
	if e.Source == "" {
		_, err := w.Write(e.Content)
		return err
	}
	f, err := os.Open(e.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, h), f); err != nil {
		return err
	}
	if [sha256.Size]byte(h.Sum(nil)) != want.sum {
		return fmt.Errorf("%s: %w", e.Source, errChanged)
	}
	return nil
}

// hashWriter counts and hashes what passes through it.
type hashWriter struct {
	w    io.Writer
	hash hash.Hash
	size int64
}

func (h *hashWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.hash.Write(p[:n])
	h.size += int64(n)
	return n, err
}

func (h *hashWriter) digest() string { return "sha256:" + hex.EncodeToString(h.hash.Sum(nil)) }
