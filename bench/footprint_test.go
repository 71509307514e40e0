package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCPUTicks(t *testing.T) {
	stat := filepath.Join(t.TempDir(), "stat")
	for text, want := range map[string]float64{
		"17 (a) b) S 1 17 17 0 -1 4194304 100 0 0 0 70 5 0 0 20 0 1 0 99": 75,
		"17 (ropeway) R 1": -1,
	} {
		if err := os.WriteFile(stat, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := cpuTicks(stat); want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
}
