package cniwire

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTombstones(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tombstones")
	if got, err := ReadTombstones(dir); err != nil || len(got) != 0 {
		t.Errorf("no directory: %v, %v", got, err)
	}
	if err := RemoveTombstone(dir, Tombstone{Attachment: attachment}); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	other := attachment
	other.IfName = "net1"
	for _, a := range []Attachment{attachment, other, attachment} { // a DEL that is repeated leaves one
		if err := WriteTombstone(dir, Tombstone{Attachment: a, Pod: Pod{UID: "u"}, IPAM: "host-local"}); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"garbage.json": "{", "empty.json": "", "stranger.json": `{"version":1,"attachment":{"containerID":"x"}}`, ".new-1": "{", "readme": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadTombstones(dir)
	if len(got) != 2 {
		t.Fatalf("%d tombstones: %+v", len(got), got)
	}
	for _, want := range []string{"garbage.json", "empty.json", "stranger.json"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if err != nil && (strings.Contains(err.Error(), "readme") || strings.Contains(err.Error(), ".new-1")) {
		t.Errorf("what is no tombstone is an error: %v", err)
	}
	for _, stone := range got {
		if stone.Time.IsZero() || stone.Version != Version || stone.Pod.UID != "u" || stone.IPAM != "host-local" {
			t.Errorf("%+v", stone)
		}
		if err := RemoveTombstone(dir, stone); err != nil {
			t.Error(err)
		}
	}
	if got, _ := ReadTombstones(dir); len(got) != 0 {
		t.Errorf("after removal: %+v", got)
	}
}

func TestTombstoneCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteTombstone(file, Tombstone{Attachment: attachment}); err == nil {
		t.Error("no error")
	}
}

// An uninstall removed the directory while a DEL waited for the agent.
func TestTombstoneWithoutRunDirectory(t *testing.T) {
	run := filepath.Join(t.TempDir(), "gone")
	if err := WriteTombstone(filepath.Join(run, "tombstones"), Tombstone{Attachment: attachment}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the run directory is back: %v", err)
	}
}

// A tombstone frees an address: nothing is taken for one that is not, or for
// another attachment's.
func FuzzTombstone(f *testing.F) {
	whole := Tombstone{Version: 1, Attachment: attachment, Pod: Pod{Namespace: "ns", Name: "p", UID: "u"}, IPAM: "host-local"}
	line, err := json.Marshal(whole)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole.name(), line)
	f.Add(whole.name(), line[:len(line)-9])
	f.Add("other.json", line)
	f.Add("", []byte(`null`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		stone, err := parseTombstone(name, data)
		if err != nil {
			return
		}
		if stone.Attachment.ContainerID == "" || stone.name() != name {
			t.Fatalf("%q with %q is taken for %+v", name, data, stone)
		}
	})
}
