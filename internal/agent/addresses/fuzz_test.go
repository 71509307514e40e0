package addresses

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParseResult: whatever the runtime's note of an attachment says, it is a
// sandbox's with addresses, or no note.
func FuzzParseResult(f *testing.F) {
	f.Fuzz(func(t *testing.T, text []byte) {
		a, ok := parseResult(text)
		if ok != (a.key.ContainerID != "") {
			t.Errorf("%q: %+v, %t", text, a, ok)
		}
		for _, address := range a.addresses {
			if !address.IsValid() {
				t.Errorf("%q: an address is none", text)
			}
		}
	})
}

// FuzzReadHostLocalFile: a file of host-local's, whatever its name and content, is a
// sandbox's reservation of the address that it is called by, or none.
func FuzzReadHostLocalFile(f *testing.F) {
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		if name != filepath.Base(name) || strings.ContainsAny(name, "\x00/") || name == ".." || name == "." {
			return
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return // no file can be called so
		}
		defer os.Remove(path)
		got, err := readHostLocalFile("net", path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			t.Errorf("%q: %v", name, err)
		case err == nil && (got.Key.ContainerID == "" || got.Key.IfName == "" || !got.Address.IsValid() || strings.TrimSpace(got.Key.ContainerID) != got.Key.ContainerID):
			t.Errorf("%q, %q: %+v", name, content, got)
		}
	})
}
