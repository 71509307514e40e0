package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/dataplane/podlink/netnstest"
	"ropeway.dev/ropeway/internal/oci"
)

// warm is a cache that tests share, where nothing but images that are up to date is of matter.
var warm string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "rwt-images-*")
	if err != nil {
		panic(err)
	}
	warm = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// standIn is a part of the lab that tests have at hand: any program does.
func standIn(string) (string, error) { return "/usr/bin/busybox", nil }

// buildAll builds the images into a cache that the test has to itself, or that an earlier call used.
func buildAll(t *testing.T, cache string) (map[string]string, []string) {
	t.Helper()
	var lines []string
	built, err := Build(t.Context(), standIn, cache, func(s string) { lines = append(lines, s) })
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{} // reference -> archive
	for _, i := range built {
		paths[i.Ref] = i.Path
	}
	return paths, lines
}

func TestBuild(t *testing.T) {
	cache := t.TempDir()
	first, lines := buildAll(t, cache)
	for _, ref := range []string{Pause, Web, CoreDNS, Agnhost} {
		if first[ref] == "" || !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "built image "+ref+" in ") }) {
			t.Errorf("no %s among %v, or no line about it among %v", ref, first, lines)
		}
	}
	second, lines := buildAll(t, cache)
	for ref, path := range second {
		if path != first[ref] || !slices.Contains(lines, "image "+ref+" is up to date") {
			t.Errorf("%s was built again: %v", ref, lines)
		}
	}
}

// TestPrune: what is old and unused goes, what is used stays however old.
func TestPrune(t *testing.T) {
	cache := t.TempDir()
	paths, _ := buildAll(t, cache)
	old := time.Now().Add(-2 * keep)
	stale := filepath.Join(cache, "stale.tar")
	if err := os.WriteFile(stale, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{stale, paths[Pause]} {
		if err := os.Chtimes(p, old, old); err != nil {
			t.Fatal(err)
		}
	}
	buildAll(t, cache)
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an unused file stays in the cache: %v", err)
	}
	if _, err := os.Stat(paths[Pause]); err != nil {
		t.Errorf("an image in use was deleted: %v", err)
	}
}

func TestBuildWaitsForAnother(t *testing.T) {
	cache := t.TempDir()
	unlock, err := oci.Lock(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Build(ctx, standIn, cache, func(string) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another builds: %v, want to wait", err)
	}
	unlock()
	buildAll(t, cache)
}

func TestMissingPart(t *testing.T) {
	none := errors.New("not built")
	_, err := Build(t.Context(), func(string) (string, error) { return "", none }, t.TempDir(), func(string) {})
	if !errors.Is(err, none) || !strings.Contains(err.Error(), CoreDNS) {
		t.Errorf("got %v, want the image's name and the cause", err)
	}
}

// unpack makes a root file system of an image and returns the command that it starts.
func unpack(t *testing.T, archive string) (root string, argv []string) {
	t.Helper()
	blobs := t.TempDir()
	extract(t, archive, blobs)
	type digest struct{ Digest string }
	read := func(name string, v any) {
		data, err := os.ReadFile(filepath.Join(blobs, name))
		if err == nil {
			err = json.Unmarshal(data, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d digest) string { return filepath.Join("blobs/sha256", strings.TrimPrefix(d.Digest, "sha256:")) }
	var index struct{ Manifests []digest }
	var manifest struct {
		Config digest
		Layers []digest
	}
	var config struct {
		Config struct{ Entrypoint, Cmd []string }
	}
	read("index.json", &index)
	read(blob(index.Manifests[0]), &manifest)
	read(blob(manifest.Config), &config)
	root = t.TempDir()
	for _, l := range manifest.Layers {
		extract(t, filepath.Join(blobs, blob(l)), root)
	}
	return root, append(config.Config.Entrypoint, config.Config.Cmd...)
}

func extract(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err == nil {
			err = extractOne(r, h, filepath.Join(dir, h.Name))
		}
		if err != nil {
			t.Fatalf("%s in %s: %v", h.Name, archive, err)
		}
	}
}

func extractOne(r io.Reader, h *tar.Header, to string) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return os.MkdirAll(to, 0o755)
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, to)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, os.FileMode(h.Mode))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// inRoot is a command inside an unpacked image.
func inRoot(ctx context.Context, root string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Looked up inside: the machine's own path says nothing.
	cmd.Path, cmd.Err = argv[0], nil
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// TestToolsWork runs each program inside the image's own tree, where only the libraries that are in it help.
func TestToolsWork(t *testing.T) {
	netnstest.NeedRoot(t)
	paths, _ := buildAll(t, warm)
	root, _ := unpack(t, paths[Web])
	for _, c := range []struct{ command, want string }{
		{"ping -V", "iputils"},
		{"curl --version", "libcurl"},
		{"ip -V", "iproute2"},
		{"nc --help 2>&1 || true", "BusyBox"},
		{"ls /bin/sh /tmp /etc/passwd", "/bin/sh"},
		{"id -un", "root"},
		{"which ping ip curl", "/usr/sbin/ip"},
	} {
		out, err := inRoot(t.Context(), root, "/bin/sh", "-c", c.command).CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, %q, want %q", c.command, err, out, c.want)
		}
	}
}

// TestWebAnswers runs the image's entrypoint in a namespace of its own and asks it with the curl beside it.
func TestWebAnswers(t *testing.T) {
	namespace := netnstest.New(t)
	paths, _ := buildAll(t, warm)
	root, argv := unpack(t, paths[Web])
	server := inRoot(t.Context(), root, argv...)
	if err := namespace.Do(server.Start); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"http://127.0.0.1/hello", "http://[::1]/hello"} {
		var out []byte
		ask := func() (err error) {
			out, err = inRoot(t.Context(), root, "/usr/bin/curl", "-sSi", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", url).Output()
			return err
		}
		if err := namespace.Do(ask); err != nil {
			t.Fatalf("curl %s: %v", url, err)
		}
		head, body, _ := strings.Cut(string(out), "\r\n\r\n")
		var a struct{ Host, Client, Server, Path, Time string }
		if err := json.Unmarshal([]byte(body), &a); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		address, _, err := net.SplitHostPort(strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/hello") + ":80")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(head, "HTTP/1.1 200") || !strings.Contains(head, http.CanonicalHeaderKey("content-type")+": application/json") ||
			a.Client != address || a.Server != address || a.Path != "/hello" || a.Host == "" {
			t.Errorf("%s: %s", url, out)
		}
	}
	wantEndsOnTerm(t, server)
}

// wantEndsOnTerm sends TERM to a process and waits for it to end with status 0.
func wantEndsOnTerm(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after TERM: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("TERM does not end it")
	}
}

// TestPauseReaps: as the first process of a pid namespace, pause inherits an orphan and must not leave it a zombie.
func TestPauseReaps(t *testing.T) {
	netnstest.NeedRoot(t)
	paths, _ := buildAll(t, warm)
	web, _ := unpack(t, paths[Web])
	pause, argv := unpack(t, paths[Pause])
	program, err := os.ReadFile(filepath.Join(pause, argv[0]))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(web, "pause"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	// Runtimes mount /dev; a shell wants /dev/null for what it starts in the background.
	if err := errors.Join(os.Mkdir(filepath.Join(web, "dev"), 0o755), os.WriteFile(filepath.Join(web, "dev/null"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	// The shell, the first process, becomes pause; of what it leaves, one ends before pause looks and one after.
	script := "sleep 0 & sleep 1 & exec /pause"
	cmd := inRoot(t.Context(), web, "/bin/sh", "-c", script)
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	children := func() string {
		data, err := os.ReadFile(filepath.Join("/proc", itoa(cmd.Process.Pid), "task", itoa(cmd.Process.Pid), "children"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	await(t, "the orphans are there", func() bool { return children() != "" })
	await(t, "the orphans are reaped", func() bool { return children() == "" })
	wantEndsOnTerm(t, cmd)
}
