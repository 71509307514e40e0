package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestLockKeepsOthersOut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	unlock, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second holder: %v, want to wait", err)
	}
	unlock()
	again, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// TestPrune: what is old goes, unless a layer that was asked for again lies in it.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	used := mustLayer(t, dir, entries(), Uncompressed)
	unused := mustLayer(t, dir, entries()[:1], Uncompressed)
	old := time.Now().Add(-time.Hour)
	for _, f := range []string{used.File, unused.File, used.File + ".json", unused.File + ".json", filepath.Join(dir, lockName)} {
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	mustLayer(t, dir, entries(), Uncompressed)
	if err := Prune(dir, time.Minute); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]bool{used.File: true, used.File + ".json": true, unused.File: false, unused.File + ".json": false, filepath.Join(dir, lockName): true} {
		if _, err := os.Stat(f); (err == nil) != want {
			t.Errorf("%s: there %v, want %v", filepath.Base(f), err == nil, want)
		}
	}
	if err := Prune(filepath.Join(dir, "none"), 0); err != nil {
		t.Error(err)
	}
}
