package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Uplink is a device that the programs are attached to.
type Uplink struct {
	Name  string
	Index int
	// Bare is true if the device's packets have no Ethernet header.
	Bare bool
}

// direction is one of the two places at an uplink.
type direction struct {
	name   string // also the first part of the link's pin
	attach ebpf.AttachType
	parent uint32 // clsact's
}

// directions returns both, the guard first: nothing is sent before it is known
// who may answer.
func directions() []direction {
	return []direction{
		{"ingress", ebpf.AttachTCXIngress, clsactIngress},
		{"egress", ebpf.AttachTCXEgress, clsactEgress},
	}
}

func (t *Tunnel) program(d direction, u Uplink) *ebpf.Program {
	switch {
	case d.attach == ebpf.AttachTCXIngress && u.Bare:
		return t.progs.RwIngressL3
	case d.attach == ebpf.AttachTCXIngress:
		return t.progs.RwIngress
	case u.Bare:
		return t.progs.RwEgressL3
	default:
		return t.progs.RwEgress
	}
}

// Attach makes the programs of this Tunnel the ones at the uplink. A program of
// another release is replaced without a gap. It must be called on a thread of
// the network namespace that the uplink is in.
func (t *Tunnel) Attach(u Uplink) (changed bool, err error) {
	if changed, err = t.repin(); err != nil {
		return changed, err
	}
	for _, d := range directions() {
		attach := t.attachTCX
		if t.clsact {
			attach = t.attachClsact
		}
		ch, err := attach(u, d)
		changed = changed || ch
		if err != nil {
			return changed, fmt.Errorf("attach eBPF program to %s of %s: %w", d.name, u.Name, err)
		}
	}
	return changed, nil
}

func (t *Tunnel) linkPin(d direction, index int) string {
	return filepath.Join(t.dir, d.name+"_"+strconv.Itoa(index)) // bpffs allows no dots, so no names
}

func (t *Tunnel) attachTCX(u Uplink, d direction) (changed bool, err error) {
	path, program := t.linkPin(d, u.Index), t.program(d, u)
	old, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return true, newTCX(u, d, program, path)
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link: %w", err)
	}
	defer old.Close()
	info, err := old.Info()
	if err != nil {
		return false, fmt.Errorf("read pinned link: %w", err)
	}
	if x := info.TCX(); x == nil || int(x.Ifindex) != u.Index {
		// The device that it was made for is gone, and its number taken again.
		if err := os.Remove(path); err != nil {
			return false, fmt.Errorf("remove link of a former device: %w", err)
		}
		return true, newTCX(u, d, program, path)
	}
	same, err := sameProgram(info.Program, program)
	if err != nil || same {
		return false, err
	}
	if err := old.Update(program); err != nil {
		return false, fmt.Errorf("replace program: %w", err)
	}
	return true, nil
}

// haveTCX reports whether the kernel has tcx links (6.6), by asking for one at a
// device that cannot be.
func haveTCX(program *ebpf.Program) bool {
	_, err := link.AttachTCX(link.TCXOptions{
		Interface: math.MaxInt32, Program: program, Attach: ebpf.AttachTCXIngress,
	})
	return !errors.Is(err, ebpf.ErrNotSupported)
}

// A link whose last pin was removed lives on until the kernel's next grace
// period, and a program cannot be at a device twice.
const (
	attachAttempts = 100
	attachPause    = 20 * time.Millisecond
)

func newTCX(u Uplink, d direction, program *ebpf.Program, path string) error {
	var l link.Link
	var err error
	for range attachAttempts {
		// First of all: a program in front of ours could end the chain.
		l, err = link.AttachTCX(link.TCXOptions{
			Interface: u.Index, Program: program, Attach: d.attach, Anchor: link.Head(),
		})
		if !errors.Is(err, fs.ErrExist) {
			break
		}
		time.Sleep(attachPause)
	}
	if err != nil {
		return fmt.Errorf("tcx: %w", err)
	}
	defer l.Close()
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// sameProgram reports whether the attached program is the same code over the
// same maps.
func sameProgram(attached ebpf.ProgramID, ours *ebpf.Program) (bool, error) {
	theirs, err := ebpf.NewProgramFromID(attached)
	if err != nil {
		return false, fmt.Errorf("open attached program: %w", err)
	}
	defer theirs.Close()
	a, err := theirs.Info()
	if err != nil {
		return false, fmt.Errorf("read attached program: %w", err)
	}
	b, err := ours.Info()
	if err != nil {
		return false, fmt.Errorf("read own program: %w", err)
	}
	aMaps, _ := a.MapIDs()
	bMaps, _ := b.MapIDs()
	slices.Sort(aMaps)
	slices.Sort(bMaps)
	return a.Tag == b.Tag && slices.Equal(aMaps, bMaps), nil
}

// DetachOthers removes our programs from all devices but those, and what other
// releases left behind.
func (t *Tunnel) DetachOthers(keep []Uplink) (changed bool, err error) {
	var errs []error
	kept := map[string]bool{layout: true}
	for _, u := range keep {
		for _, d := range directions() {
			if !t.clsact {
				kept[filepath.Base(t.linkPin(d, u.Index))] = true
			}
		}
	}
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return false, fmt.Errorf("list eBPF pins: %w", err)
	}
	for _, e := range entries {
		if kept[e.Name()] {
			continue
		}
		errs = append(errs, os.RemoveAll(filepath.Join(t.dir, e.Name())))
		changed = true
	}
	if t.clsact {
		ch, err := detachClsactOthers(keep)
		changed = changed || ch
		errs = append(errs, err)
	}
	return changed, errors.Join(errs...)
}

// Attached returns the numbers of the devices that have a program of ours by a
// pinned link, in order.
func (t *Tunnel) Attached() ([]int, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, fmt.Errorf("list eBPF pins: %w", err)
	}
	var out []int
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "ingress_")
		if !ok {
			continue
		}
		if i, err := strconv.Atoi(number); err == nil {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Remove detaches everything of ours from the devices of the current network
// namespace and removes the pins. It needs no Tunnel and works also if what it
// removes was made by another release.
func Remove(pinDir string) error {
	_, err := detachClsactOthers(nil)
	if rmErr := os.RemoveAll(pinDir); rmErr != nil {
		err = errors.Join(err, fmt.Errorf("remove eBPF pins: %w", rmErr))
	}
	return err
}
