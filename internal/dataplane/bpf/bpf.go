// Package bpf loads, fills and attaches the eBPF programs at a node's uplinks:
// the ipip transport in both directions, and the guard of what the node
// decapsulates by ipip and vxlan. Programs and maps are pinned, so that they go
// on when the agent stops, and replaced without a gap when it is upgraded.
package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The object is little endian, which is what amd64 and arm64 are; it is
// committed, so that clang is needed only to change it.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -go-package bpf -no-global-types -target bpfel -cc clang -cflags "-O2 -g -Wall -Werror" ropeway ropeway.bpf.c

// A packet of this IP protocol and with this mark loses its outer header at the
// uplinks: a probe by the direct transport, sent to where its outer header says
// and travelling as what is inside. The mark has none of the bits that
// kube-proxy uses.
const (
	BareProtocol = 253
	BareMark     = 0x72770001
)

// Tunnel is the loaded programs and their maps.
type Tunnel struct {
	dir    string // of the pins
	maps   ropewayMaps
	progs  ropewayPrograms
	clsact bool // the kernel has no tcx, or the caller wants none
}

// Options say how to open a Tunnel.
type Options struct {
	// PinDir is the directory of our pins. Its parent is a bpffs, or becomes one.
	PinDir string
	// Clsact asks for a clsact filter even where the kernel has tcx (6.6).
	Clsact bool
}

// Open loads the programs, with the pinned maps if there are any and new ones
// otherwise. Nothing is attached or filled yet. The caller closes the Tunnel,
// which detaches nothing.
func Open(o Options) (*Tunnel, error) {
	if err := mountBPFFS(filepath.Dir(o.PinDir)); err != nil {
		return nil, err
	}
	t := &Tunnel{dir: o.PinDir}
	err := t.load()
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		// Pins that no release of ours made. New maps are filled before the
		// programs at the uplinks change over to them.
		if err := os.RemoveAll(t.mapDir()); err != nil {
			return nil, fmt.Errorf("remove unusable eBPF maps: %w", err)
		}
		err = t.load()
	}
	if err != nil {
		return nil, err
	}
	t.clsact = o.Clsact || !haveTCX(t.progs.RwIngress)
	return t, nil
}

// Clsact reports whether the programs are attached by clsact instead of tcx.
func (t *Tunnel) Clsact() bool { return t.clsact }

// Close gives back this process's references. What is attached goes on.
func (t *Tunnel) Close() error {
	return errors.Join(t.progs.Close(), t.maps.Close())
}

func (t *Tunnel) mapDir() string { return filepath.Join(t.dir, layout) }

func (t *Tunnel) load() error {
	if err := os.MkdirAll(t.mapDir(), 0o700); err != nil {
		return fmt.Errorf("create directory for eBPF maps: %w", err)
	}
	spec, err := loadRopeway()
	if err != nil {
		return fmt.Errorf("read eBPF object: %w", err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinByName
	}
	var objects ropewayObjects
	err = spec.LoadAndAssign(&objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: t.mapDir()}})
	if err != nil {
		return fmt.Errorf("load eBPF programs (they need CAP_BPF, CAP_NET_ADMIN and Linux 5.10): %w", err)
	}
	t.maps, t.progs = objects.ropewayMaps, objects.ropewayPrograms
	return nil
}

// byName returns the maps by the names of their pins.
func (t *Tunnel) byName() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		ropewayMapCounters:     t.maps.Counters,
		ropewayMapDestinations: t.maps.Destinations,
		ropewayMapNodes:        t.maps.Nodes,
		ropewayMapPodNetwork:   t.maps.PodNetwork,
		ropewayMapSettings:     t.maps.Settings,
		ropewayMapSources:      t.maps.Sources,
	}
}

// repin puts back the pins that somebody removed, so that the next process
// finds the maps that the attached programs use.
func (t *Tunnel) repin() (changed bool, err error) {
	for name, m := range t.byName() {
		path := filepath.Join(t.mapDir(), name)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.MkdirAll(t.mapDir(), 0o700); err != nil {
			return changed, fmt.Errorf("create directory for eBPF maps: %w", err)
		}
		clone, err := m.Clone() // Pin believes its own memory of former pins
		if err != nil {
			return changed, fmt.Errorf("pin eBPF map %s again: %w", name, err)
		}
		err = clone.Pin(path)
		clone.Close()
		if err != nil {
			return changed, fmt.Errorf("pin eBPF map %s again: %w", name, err)
		}
		changed = true
	}
	return changed, nil
}

// mountBPFFS mounts a bpffs on the directory unless it is one.
func mountBPFFS(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create mount point for bpffs: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at file system of %s: %w", dir, err)
	}
	if uint32(st.Type) == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s (mount it before, or run privileged): %w", dir, err)
	}
	return nil
}
