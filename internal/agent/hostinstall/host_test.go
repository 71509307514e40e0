package hostinstall

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// testHost is a host in a directory of the test, with an image beside it.
func testHost(t *testing.T, takeOver ...string) Host {
	t.Helper()
	root := t.TempDir()
	h := Host{BinDir: root + "/bin", ConfDir: root + "/net.d", ConfName: "10-ropeway.conflist", PluginSource: root + "/image", TakeOver: takeOver}
	for path, content := range map[string]string{
		"image/ropeway-cni": "ropeway 1", "image/host-local": "host-local 1", "image/portmap": "portmap 1",
		"image/bandwidth": "bandwidth 1", "net.d/keep": "", "bin/keep": "",
	} {
		write(t, filepath.Join(root, path), content)
	}
	return h
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// tree returns the files of a directory: name -> content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(content)
	}
	return files
}

func install(t *testing.T, h Host) []string {
	t.Helper()
	wrote, err := h.InstallPlugins()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(wrote)
	return wrote
}

func TestInstallPlugins(t *testing.T) {
	h := testHost(t)
	write(t, h.BinDir+"/portmap", "portmap of the distribution")
	write(t, h.BinDir+"/calico", "calico of calico")
	if got := strings.Join(install(t, h), " "); got != "bandwidth host-local ropeway ropeway-ipam" {
		t.Errorf("wrote %s", got)
	}
	files := tree(t, h.BinDir)
	for name, want := range map[string]string{"ropeway": "ropeway 1", "ropeway-ipam": "ropeway 1", "host-local": "host-local 1",
		"portmap": "portmap of the distribution", "calico": "calico of calico"} {
		if files[name] != want {
			t.Errorf("%s is %q, want %q", name, files[name], want)
		}
	}
	if info, err := os.Stat(h.BinDir + "/ropeway"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v, want 0755", info.Mode(), err)
	}
	if again := install(t, h); len(again) != 0 {
		t.Errorf("the second time it wrote %v", again)
	}
	for name := range tree(t, h.BinDir) {
		if strings.HasPrefix(name, tempPrefix) {
			t.Errorf("%s was left behind", name)
		}
	}
}

func TestUpgradeReplacesOurs(t *testing.T) {
	h := testHost(t)
	install(t, h)
	write(t, h.PluginSource+"/ropeway-cni", "ropeway 2")
	write(t, h.PluginSource+"/host-local", "host-local 2")
	write(t, h.BinDir+"/bandwidth", "a person's own") // replaced behind our back
	write(t, h.PluginSource+"/bandwidth", "bandwidth 2")
	if got := strings.Join(install(t, h), " "); got != "host-local ropeway ropeway-ipam" {
		t.Errorf("wrote %s", got)
	}
	files := tree(t, h.BinDir)
	if files["ropeway"] != "ropeway 2" || files["host-local"] != "host-local 2" || files["bandwidth"] != "a person's own" {
		t.Errorf("got %v", files)
	}
	for name := range files {
		if strings.HasSuffix(name, savedSuffix) {
			t.Errorf("our own file was kept as %s", name)
		}
	}
}

func TestTakeOverAndRemove(t *testing.T) {
	h := testHost(t, "calico", "calico-ipam")
	write(t, h.BinDir+"/calico", "calico of calico")
	write(t, h.BinDir+"/flannel", "flannel")
	before := tree(t, h.BinDir)
	install(t, h)
	write(t, h.PluginSource+"/ropeway-cni", "ropeway 2")
	install(t, h) // an upgrade must not keep our own file as the saved one
	files := tree(t, h.BinDir)
	if files["calico"] != "ropeway 2" || files["calico-ipam"] != "ropeway 2" || files["calico"+savedSuffix] != "calico of calico" {
		t.Fatalf("got %v", files)
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	after := tree(t, h.BinDir)
	if len(after) != len(before) || after["calico"] != "calico of calico" || after["flannel"] != "flannel" {
		t.Errorf("after removal: %v, want %v", after, before)
	}
	if err := h.Remove(); err != nil {
		t.Errorf("a second removal: %v", err)
	}
}

func TestRemoveWithoutLedgerOrImage(t *testing.T) {
	h := testHost(t)
	install(t, h)
	for _, path := range []string{h.ledgerPath(), h.PluginSource} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	files := tree(t, h.BinDir)
	if _, there := files["ropeway"]; there {
		t.Errorf("ropeway is still there: %v", files)
	}
}

func TestWrongImage(t *testing.T) {
	h := testHost(t)
	if err := os.Remove(h.PluginSource + "/ropeway-cni"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.InstallPlugins(); err == nil || !strings.Contains(err.Error(), "missing in the image") {
		t.Errorf("got %v", err)
	}
}

func TestLeftoversOfAKilledAgent(t *testing.T) {
	h := testHost(t)
	write(t, h.BinDir+"/"+tempPrefix+"ropeway-123", "half")
	install(t, h)
	if _, err := os.Stat(h.BinDir + "/" + tempPrefix + "ropeway-123"); !os.IsNotExist(err) {
		t.Errorf("the half-written file is still there: %v", err)
	}
}

const conf = `{"name": "x", "cniVersion": "1.0.0", "plugins": [{"type": "ropeway", "ipam": {"type": "ropeway-ipam"}}, {"type": "portmap"}]}`

func TestInstallConflist(t *testing.T) {
	h := testHost(t)
	if _, err := h.InstallConflist([]byte(conf)); err == nil || !strings.Contains(err.Error(), `"ropeway"`) || !strings.Contains(err.Error(), `"portmap"`) {
		t.Errorf("without plugins: got %v, want both named", err)
	}
	if h.ConflistInstalled() {
		t.Fatal("a conflist was installed without its plugins")
	}
	install(t, h)
	changed, err := h.InstallConflist([]byte(conf))
	if err != nil || !changed || !h.ConflistInstalled() {
		t.Fatalf("changed %v, %v", changed, err)
	}
	info, err := os.Stat(h.confPath())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if changed, err := h.InstallConflist([]byte(conf)); changed || err != nil {
		t.Errorf("the second time: changed %v, %v", changed, err)
	}
	if err := h.Remove(); err != nil || h.ConflistInstalled() {
		t.Errorf("removal: %v, still there: %v", err, h.ConflistInstalled())
	}
}

func TestConflistOfTheNameCalico(t *testing.T) {
	calico := strings.Replace(conf, `"ropeway"`, `"calico"`, 1)
	h := testHost(t)
	install(t, h)
	if _, err := h.InstallConflist([]byte(calico)); err == nil || !strings.Contains(err.Error(), "--take-over") {
		t.Errorf("got %v, want the way to take over", err)
	}
	h = testHost(t, "calico", "calico-ipam")
	install(t, h)
	if _, err := h.InstallConflist([]byte(calico)); err != nil {
		t.Error(err)
	}
}

func TestForeignConflists(t *testing.T) {
	files := map[string]string{
		"05-flannel.conflist": strings.Replace(conf, `"ropeway"`, `"flannel"`, 1),
		"10-calico.conflist":  strings.Replace(conf, `"ropeway"`, `"calico"`, 1),
		"10-broken.conf":      "{",
		"00-multus.conf":      strings.Replace(conf, `"ropeway"`, `"multus"`, 1), // which runs ours
		"00-readme.txt":       "not a conflist",
		"99-later.conflist":   conf,
		"calico-kubeconfig":   "not a conflist",
	}
	setup := func(h Host) Host {
		for name, content := range files {
			write(t, h.ConfDir+"/"+name, content)
		}
		install(t, h)
		return h
	}
	h := setup(testHost(t))
	if _, err := h.InstallConflist([]byte(conf)); err != nil {
		t.Fatal(err)
	}
	found, err := h.Foreign()
	if err != nil || len(found) != 3 || found[0].Name != "05-flannel.conflist" || !strings.Contains(found[2].String(), "calico") {
		t.Errorf("got %v, %v", found, err)
	}
	h = setup(testHost(t, "calico"))
	if changed, err := h.InstallConflist([]byte(conf)); err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	after := tree(t, h.ConfDir)
	if after["10-calico.conflist"+savedSuffix] != files["10-calico.conflist"] || after["05-flannel.conflist"] == "" || after["10-calico.conflist"] != "" {
		t.Errorf("only what was asked for is put aside: %v", after)
	}
	if err := h.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, h.ConfDir); got["10-calico.conflist"] != files["10-calico.conflist"] || got["10-ropeway.conflist"] != "" {
		t.Errorf("after removal: %v", got)
	}
}
