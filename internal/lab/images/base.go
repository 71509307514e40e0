package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path"
	"strings"

	"ropeway.dev/ropeway/internal/oci"
	"ropeway.dev/ropeway/internal/oci/elfdeps"
)

// debianProgram is a program of the machine that goes into images.
type debianProgram struct {
	path string // below /usr, on the machine and in the image
	deb  string // the Debian package it is from
}

const (
	busybox = "/usr/bin/busybox"
	dash    = "/usr/bin/dash"
)

func debianPrograms() []debianProgram {
	return []debianProgram{
		{busybox, "busybox-static"}, // nc, and what else a person in a container looks for
		{dash, "dash"},              // as sh: busybox's own would run its own ip in place of the real one
		{"/usr/bin/ping", "iputils-ping"},
		{"/usr/bin/curl", "curl"},
		{"/usr/sbin/ip", "iproute2"},
	}
}

// baseEntries is the layer of Debian's programs: they, their libraries, busybox's names, and a few files in /etc.
func baseEntries() ([]oci.Entry, error) {
	tree := elfdeps.Tree{Root: "/"}
	entries := etcFiles()
	var paths, missing []string
	entries = append(entries, oci.Entry{Path: "/usr/bin/sh", Mode: fs.ModeSymlink, Link: "dash"})
	taken := map[string]bool{"sh": true} // names in the search path that are not busybox's
	for _, p := range debianPrograms() {
		source, err := tree.Resolve(p.path)
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s (apt-get install %s)", p.path, p.deb))
			continue
		}
		entries = append(entries, oci.Entry{Path: p.path, Mode: 0o755, Source: source})
		paths = append(paths, p.path)
		taken[path.Base(p.path)] = true
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("programs missing on this machine: %s", strings.Join(missing, ", "))
	}
	libraries, err := tree.Closure(paths...)
	if err != nil {
		return nil, err
	}
	for _, l := range libraries {
		entries = append(entries, oci.Entry{Path: l.Path, Mode: 0o755, Source: l.Source})
	}
	applets, err := applets()
	if err != nil {
		return nil, err
	}
	for _, a := range applets {
		if !taken[a] {
			entries = append(entries, oci.Entry{Path: "/usr/bin/" + a, Mode: fs.ModeSymlink, Link: "busybox"})
		}
	}
	return oci.MergedUsr(entries), nil
}

// etcFiles are the few files that programs look for, and the directories that they write to.
func etcFiles() []oci.Entry {
	return []oci.Entry{
		{Path: "/etc/passwd", Mode: 0o644, Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")},
		{Path: "/etc/group", Mode: 0o644, Content: []byte("root:x:0:\nnobody:x:65534:\n")},
		{Path: "/etc/nsswitch.conf", Mode: 0o644, Content: []byte("hosts: files dns\n")},
		{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "/root", Mode: fs.ModeDir | 0o700},
	}
}

// applets are the names that busybox answers to.
func applets() ([]string, error) {
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the programs in %s: %w", busybox, err)
	}
	names := strings.Fields(string(out))
	if len(names) == 0 {
		return nil, errors.New("busybox lists no program: reinstall busybox-static")
	}
	applets := names[:0]
	for _, n := range names {
		if n != "busybox" {
			applets = append(applets, n)
		}
	}
	return applets, nil
}
