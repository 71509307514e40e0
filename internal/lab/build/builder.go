package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Builder compiles the missing programs and hands out the cached ones.
type Builder struct {
	// Source is the root of the Ropeway checkout.
	Source string
	// Cache is the directory that holds the binaries, one directory for each
	// program and version; it is made when missing.
	Cache string
	// Go is the go command; "go" when empty.
	Go string
	// Programs are the programs to build; Programs() when nil.
	Programs []Program
	// Progress receives one line per program, and one more every Interval
	// while a build runs. It may be nil.
	Progress func(line string)
	// Interval is the time between progress lines of one build; 10 s when 0.
	Interval time.Duration
}

// Missing returns the names of the programs that Install would have to build.
func (b *Builder) Missing() ([]string, error) {
	pins, err := resolve(b.Source, b.programs())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range pins {
		if !exists(b.binary(p)) {
			names = append(names, p.Name)
		}
	}
	return names, nil
}

// Install builds what the cache lacks and puts every program, by its plain
// name, into dir (hard links where the file system allows it, so that a later
// clean-up of the cache takes nothing from a running lab). Builders of other
// labs wait for one another.
func (b *Builder) Install(ctx context.Context, dir string) error {
	pins, err := resolve(b.Source, b.programs())
	if err != nil {
		return err
	}
	for _, d := range []string{b.Cache, dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make the directory for the lab's programs: %w", err)
		}
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	b.dropHalfBuilt()
	for i, p := range pins {
		if !exists(b.binary(p)) {
			if err := b.build(ctx, p, i+1, len(pins)); err != nil {
				return err
			}
			b.dropOlder(p)
		}
		if err := Place(b.binary(p), filepath.Join(dir, p.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (b *Builder) programs() []Program {
	if b.Programs != nil {
		return b.Programs
	}
	return Programs()
}

func (b *Builder) binary(p pin) string { return filepath.Join(b.Cache, p.Key, p.Name) }

func (b *Builder) say(format string, args ...any) {
	if b.Progress != nil {
		b.Progress(fmt.Sprintf(format, args...))
	}
}

// lock takes the cache's lock; it says so when another lab holds it.
func (b *Builder) lock(ctx context.Context) (func(), error) {
	path := filepath.Join(b.Cache, ".lock")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the lab's program cache: %w", err)
	}
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for said := false; ; {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !said {
			b.say("waiting for another lab that is building programs (%s)", path)
			said = true
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, fmt.Errorf("wait for the lock %s: %w", path, ctx.Err())
		case <-ticker.C:
		}
	}
}

// build compiles one program into a temporary file beside its place in the
// cache and renames it there, so that the cache never holds half a binary.
func (b *Builder) build(ctx context.Context, p pin, number, total int) error {
	label := fmt.Sprintf("building %s %s (%d/%d)", p.Name, p.Version, number, total)
	stop := b.report(label)
	defer stop()
	temporary, err := os.MkdirTemp(b.Cache, temporaryPrefix+p.Name+"-")
	if err != nil {
		return fmt.Errorf("%s: make a temporary directory in the cache: %w", label, err)
	}
	defer os.RemoveAll(temporary)

	started := time.Now()
	if err := b.compile(ctx, p, filepath.Join(temporary, p.Name)); err != nil {
		return fmt.Errorf("%s: %w", label, err)
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return fmt.Errorf("%s: %w", label, err)
	}
	if err := os.Rename(temporary, filepath.Join(b.Cache, p.Key)); err != nil {
		return fmt.Errorf("%s: move the binary into the cache: %w", label, err)
	}
	b.say("%s ... done in %s", label, time.Since(started).Round(time.Second))
	return nil
}

func (b *Builder) compile(ctx context.Context, p pin, output string) error {
	gotool := b.Go
	if gotool == "" {
		gotool = "go"
	}
	cmd := exec.CommandContext(ctx, gotool, buildArgs(p.Program, p.Version, output)...)
	cmd.Dir = filepath.Join(b.Source, p.Dir)
	cgo := "CGO_ENABLED=0"
	if p.CGO {
		cgo = "CGO_ENABLED=1"
	}
	cmd.Env = append(os.Environ(), cgo, "GOWORK=off", "GOOS=linux")
	// The go tool stops its compilers when it is interrupted, but not when it
	// is killed outright. It must not outlive this process either; that tie is
	// to the thread that starts it.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGINT}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted: %w", ctx.Err())
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("the go command is missing; install the Go release that go.mod names and put it on PATH: %w", err)
	}
	return fmt.Errorf("%w in %s:\n%s\n%s", err, cmd.Dir, tail(out, 15), advice(p.Program, out))
}

// advice turns the usual causes of a failed build into what to do.
func advice(p Program, out []byte) string {
	text := string(out)
	switch {
	case strings.Contains(text, "libseccomp") || strings.Contains(text, "seccomp.h"):
		return "runc needs the C headers of libseccomp: apt-get install libseccomp-dev"
	case strings.Contains(text, "C compiler") || strings.Contains(text, `exec: "gcc"`):
		return p.Name + " needs a C compiler: apt-get install gcc libc6-dev pkg-config"
	case strings.Contains(text, "pkg-config"):
		return p.Name + " needs pkg-config: apt-get install pkg-config"
	case strings.Contains(text, "no space left on device"):
		return "free some disk space: a first build needs about 6 GB for the Go build and module caches"
	case strings.Contains(text, "signal: killed"):
		return "the compiler was killed, most likely for want of memory: a first build needs about 2 GB"
	case strings.Contains(text, "dial tcp") || strings.Contains(text, "proxyconnect"):
		return "modules could not be fetched: check the network and `go env GOPROXY`"
	}
	return "run the same command by hand in that directory to look further: go build " + p.Package
}

// report prints the elapsed time of a build at intervals until stopped.
func (b *Builder) report(label string) (stop func()) {
	interval := b.Interval
	if interval == 0 {
		interval = 10 * time.Second
	}
	b.say("%s ...", label)
	done := make(chan struct{})
	finished := make(chan struct{})
	started := time.Now()
	go func() {
		defer close(finished)
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				b.say("%s ... %s", label, time.Since(started).Round(time.Second))
			}
		}
	}()
	return func() { close(done); <-finished }
}

// temporaryPrefix starts the names of directories that builds work in.
const temporaryPrefix = ".building-"

// dropHalfBuilt removes what killed builds left in the cache.
func (b *Builder) dropHalfBuilt() {
	left, err := filepath.Glob(filepath.Join(b.Cache, temporaryPrefix+"*"))
	if err != nil {
		return // The pattern is a constant; only the cache's path could spoil it.
	}
	for _, dir := range left {
		os.RemoveAll(dir)
	}
}

// dropOlder removes the cached binaries of other versions of a program; each
// is up to 100 MB, and running labs hold links of their own.
func (b *Builder) dropOlder(p pin) {
	entries, err := os.ReadDir(b.Cache)
	if err != nil {
		return
	}
	for _, e := range entries {
		// Keys are <name>-v<version>-<hash>: the v keeps "containerd" from
		// taking "containerd-shim-runc-v2" with it.
		if strings.HasPrefix(e.Name(), p.Name+"-v") && e.Name() != p.Key {
			os.RemoveAll(filepath.Join(b.Cache, e.Name()))
		}
	}
}

// Place puts a file under a second name: a hard link, or a copy across file
// systems.
func Place(from, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", to, err)
	}
	err := os.Link(from, to)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EMLINK) {
		return fmt.Errorf("link %s into the lab: %w", from, err)
	}
	return Copy(from, to)
}

// Copy copies an executable; the target must not exist.
func Copy(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy a program into the lab: %w", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("copy a program into the lab: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// tail returns the last lines of some output.
func tail(out []byte, lines int) string {
	all := strings.Split(string(bytes.TrimSpace(out)), "\n")
	if len(all) > lines {
		all = append([]string{fmt.Sprintf("(... %d lines before)", len(all)-lines)}, all[len(all)-lines:]...)
	}
	return strings.Join(all, "\n")
}
