package oci

import (
	"io/fs"
	"path"
	"strings"
)

// MergedUsr returns the entries as Debian lays them out: what lies in /bin, /sbin, /lib or /lib64 moves below /usr, and
// the four names become links to there. The result can stand below other layers; only one layer of an image needs it.
func MergedUsr(entries []Entry) []Entry {
	var merged []Entry
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		merged = append(merged,
			Entry{Path: "/usr/" + name, Mode: fs.ModeDir | 0o755},
			Entry{Path: "/" + name, Mode: fs.ModeSymlink, Link: "usr/" + name})
	}
	for _, e := range entries {
		switch top, rest, below := strings.Cut(strings.TrimPrefix(e.Path, "/"), "/"); top {
		case "bin", "sbin", "lib", "lib64":
			if below {
				e.Path = path.Join("/usr", top, rest)
			}
		}
		merged = append(merged, e)
	}
	return merged
}
