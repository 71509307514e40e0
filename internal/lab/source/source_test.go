package source

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRootPassesOverNestedModules(t *testing.T) {
	base := t.TempDir()
	write(t, filepath.Join(base, "clone", "go.mod"), "// a comment\nmodule "+Module+"\n\ngo 1.26.0\n")
	write(t, filepath.Join(base, "clone", "internal", "parts", "go.mod"), "module "+Module+"/internal/parts\n")
	start := filepath.Join(base, "clone", "internal", "parts", "deeper")
	if err := os.MkdirAll(start, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := Root(start)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(base, "clone"); got != want {
		t.Errorf("Root(%s) = %s, want %s", start, got, want)
	}
}

func TestRootTriesEveryStart(t *testing.T) {
	base := t.TempDir()
	write(t, filepath.Join(base, "clone", "go.mod"), "module "+Module+"\n")
	elsewhere := t.TempDir()
	got, err := Root(elsewhere, filepath.Join(base, "clone"))
	if err != nil || got != filepath.Join(base, "clone") {
		t.Errorf("Root = %q, %v; want the clone", got, err)
	}
}

func TestRootSaysWhatToDo(t *testing.T) {
	_, err := Root(t.TempDir())
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v is not os.ErrNotExist", err)
	}
	if !strings.Contains(err.Error(), "inside a clone of the repository") {
		t.Errorf("error does not say what to do: %v", err)
	}
}

func TestHereFindsThisCheckout(t *testing.T) {
	root, err := Here()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "internal", "lab", "source")); err != nil {
		t.Errorf("Here() = %s, which does not hold this package: %v", root, err)
	}
}
