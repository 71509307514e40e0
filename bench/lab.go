package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab"
)

// labRepetitions is how often the lab is booted and taken down, after once for
// the caches.
const labRepetitions = 5

// attempt runs a section unless it is left out.
type attempt func(section string, do func(context.Context) error)

// onLab measures what needs a lab, and leaves none.
func (b *bench) onLab(ctx context.Context, attempt attempt) (err error) {
	if _, err := lab.Open(b.name); err == nil {
		return fmt.Errorf("a lab %q is up: take it down, or give the bench another -name", b.name)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if _, open := lab.Open(b.name); open == nil {
			_, downErr := b.ropewayLab(ctx, "down")
			err = errors.Join(err, downErr)
		}
	}()
	attempt("lab", b.boots)
	l, err := lab.Open(b.name)
	if errors.Is(err, lab.ErrNotFound) {
		if _, err = b.ropewayLab(ctx, "up"); err == nil {
			l, err = lab.Open(b.name)
		}
	}
	if err != nil {
		for _, s := range onALab() {
			b.whyNot[s] = "no lab: " + err.Error()
		}
		return err
	}
	attempt("footprint", func(ctx context.Context) error { return b.footprint(ctx, l) })
	attempt("plugin", func(ctx context.Context) error { return b.plugin(ctx, l) })
	attempt("addresses", func(ctx context.Context) error { return b.addresses(ctx, l) })
	attempt("pods", func(ctx context.Context) error { return b.pods(ctx, l) })
	attempt("faults", func(ctx context.Context) error { return b.faults(ctx, l) }) // the last: it changes the mode
	return nil
}

// boots boots the lab and takes it down, again and again; the last one stays up.
func (b *bench) boots(ctx context.Context) error {
	var ups, downs, left []float64
	var leftovers []string
	loaded := false
	for i := range labRepetitions + 1 {
		load := loadAverage()
		up, err := b.ropewayLab(ctx, "up")
		if err != nil {
			return err
		}
		if i == 0 {
			b.say("lab: booted once, for the caches, in %.1f s", up.Seconds())
		} else {
			b.say("lab: up in %.1f s", up.Seconds())
			ups = append(ups, up.Seconds())
			loaded = loaded || load > 1.5
		}
		if i == labRepetitions {
			break
		}
		down, err := b.ropewayLab(ctx, "down")
		if err != nil {
			return err
		}
		downs = append(downs, down.Seconds())
		found := traces(b.name)
		leftovers = append(leftovers, found...)
		left = append(left, float64(len(found)))
	}
	b.samples["lab.up"] = sample{values: ups, loaded: loaded}
	b.samples["lab.left"] = sample{values: left, value: sum(left), loaded: loaded,
		detail: fmt.Sprintf("down takes %s s (median of %d); left: %s", number(median(downs)), len(downs), orNothing(leftovers))}
	return nil
}

func sum(values []float64) *float64 {
	total := 0.0
	for _, v := range values {
		total += v
	}
	return &total
}

func orNothing(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// ropewayLab runs the program that users run, and returns how long it took.
func (b *bench) ropewayLab(ctx context.Context, command string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.programs, "ropeway-lab"), "--name", b.name, command)
	cmd.Dir = b.root
	// It takes down on Ctrl-C what it made.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("ropeway-lab %s: %w:\n%s", command, err, strings.TrimSpace(out.String()))
	}
	return time.Since(began), nil
}

// traces are what of a lab is on the machine: network namespaces, links, mounts,
// cgroups, directories, processes.
func traces(name string) []string {
	prefix := "rwlab-" + name
	var found []string
	for _, pattern := range []string{
		"/run/netns/" + prefix + "-*", "/sys/class/net/" + prefix + "-*", "/var/lib/ropeway-lab/" + name,
		"/sys/fs/cgroup/" + prefix, "/sys/fs/cgroup/*/" + prefix, "/sys/fs/bpf/" + prefix,
	} {
		paths, err := filepath.Glob(pattern)
		if err == nil { // the patterns are good
			found = append(found, paths...)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if mentions(line, name) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		line, _ := os.ReadFile(path)
		if text := string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})); mentions(text, name) {
			found = append(found, "process "+strings.TrimSpace(text))
		}
	}
	return found
}

// mentions says whether a line of the machine's speaks of a lab's own things.
func mentions(line, name string) bool {
	// Names of labs have no dash.
	for _, own := range []string{"rwlab-" + name + "-", "rwlab-" + name + "/", "/ropeway-lab/" + name + "/"} {
		if strings.Contains(line, own) {
			return true
		}
	}
	return false
}

// loadAverage is the machine's, over the last minute; 0 if it is not known.
func loadAverage() float64 {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	var one float64
	if _, err := fmt.Sscan(string(data), &one); err != nil {
		return 0
	}
	return one
}
