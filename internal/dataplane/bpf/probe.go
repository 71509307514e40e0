package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Probe loads the programs without leaving anything behind, and reports whether
// the kernel has tcx. Where it has not, it attaches one by clsact to the current
// network namespace's loopback device, which goes with the namespace.
func Probe() (tcx bool, err error) {
	spec, err := loadRopeway()
	if err != nil {
		return false, fmt.Errorf("read eBPF object: %w", err)
	}
	var objects ropewayObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return false, fmt.Errorf("load eBPF programs: %w", err)
	}
	t := &Tunnel{maps: objects.ropewayMaps, progs: objects.ropewayPrograms}
	defer t.Close()
	if _, err := t.Destinations(); err != nil {
		return false, err
	}
	loopback := Uplink{Name: "lo", Index: 1}
	if !haveTCX(t.progs.RwIngress) {
		_, err := t.attachClsact(loopback, directions()[0])
		return false, err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: loopback.Index, Program: t.progs.RwIngress, Attach: ebpf.AttachTCXIngress,
	})
	if err != nil {
		return true, fmt.Errorf("attach eBPF program: %w", err)
	}
	return true, l.Close()
}
