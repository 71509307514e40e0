//go:build ropeway_next

package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOlderVersionIsRewritten: what this release appends must not stand in a file
// that says it is the last one's, which would then take it for its own.
func TestOlderVersionIsRewritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	if err := j.Append(hold(1)); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	older := strings.Replace(string(data), header(), fmt.Sprintf("%s%d\n", magic, Version-1), 1)
	if err := os.WriteFile(path, []byte(older), 0o600); err != nil {
		t.Fatal(err)
	}
	j = open(t, path)
	if err := j.Append(hold(2)); err != nil {
		t.Fatal(err)
	}
	if data, err = os.ReadFile(path); err != nil || !strings.HasPrefix(string(data), header()) {
		t.Errorf("the file begins with %.30q (%v)", data, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if got := load(t, open(t, path)); len(got) != 2 {
		t.Errorf("read again: %v", got)
	}
}
