package vpc

import (
	"bytes"
	"context"
	_ "embed" // fabric_bpfel.o
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

//go:generate sh -c "clang -O2 -g -Wall -Werror -target bpf -mcpu=v3 -fdebug-prefix-map=$(pwd)=. -I/usr/include/$(uname -m)-linux-gnu -c fabric.c -o fabric_bpfel.o"
//go:generate llvm-strip -g fabric_bpfel.o

//go:embed fabric_bpfel.o
var fabricObject []byte

const (
	fabricProgram  = "fabric"
	outsideIfindex = "outside_ifindex"
	mapCounters    = "counters"
	mapBlocks      = "blocks"
	mapPodCIDRs    = "pod_cidrs"
	mapChecks      = "source_checks"
	mapOff         = "off"
)

// counterNames are the counters in the order of enum counter in fabric.c.
func counterNames() []string {
	return []string{
		"unknown-destination", "spoofed-source", "blocked-ipip", "blocked-vxlan", "blocked-pod-cidr",
		"source-dest-check", "host-off", "multicast", "too-big", "malformed",
		"forwarded", "proto-4", "proto-41", "udp-4789", "pod-cidr-bare",
	}
}

// blockNames are what Block switches, in the order of enum block in fabric.c.
func blockNames() []string { return []string{"ipip", "vxlan", "pod-cidr"} }

// podKey is struct pod_key of fabric.c; IPv4 addresses lie behind ::ffff:0:0/96.
type podKey struct {
	Bits    uint32
	Address [16]byte
}

func newPodKey(p netip.Prefix) podKey {
	return podKey{Bits: uint32(p.Bits() + 128 - p.Addr().BitLen()), Address: p.Addr().As16()}
}

// startFabric loads the forwarding program, attaches it to every wire, and connects the wires. The kernel keeps the
// program as long as the wires live; nothing is pinned.
func startFabric(spec Spec) error {
	return inNetns(vpcNetns(spec.Lab), func() error {
		wires, err := listWiresHere()
		if err != nil {
			return err
		}
		objects, err := loadFabric(wires, spec.PodCIDRs)
		if err != nil {
			return err
		}
		defer objects.Close()
		for _, w := range wires {
			if err := attach(w.index, objects.Programs[fabricProgram].FD()); err != nil {
				return fmt.Errorf("wire of host %s: %w", w.Host, err)
			}
			if err := w.connect(); err != nil {
				return fmt.Errorf("wire of host %s: %w", w.Host, err)
			}
		}
		return nil
	})
}

func loadFabric(wires []*wire, podCIDRs []netip.Prefix) (*ebpf.Collection, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(fabricObject))
	if err != nil {
		return nil, fmt.Errorf("read the fabric's BPF program: %w", err)
	}
	for _, w := range wires {
		if w.Host != OutsideHost {
			continue
		}
		if err := spec.Variables[outsideIfindex].Set(uint32(w.index)); err != nil {
			return nil, fmt.Errorf("set the way out: %w", err)
		}
	}
	objects, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the fabric's BPF program (kernel 5.18 or later with CONFIG_BPF_SYSCALL, and root, are needed): %w", err)
	}
	for _, p := range podCIDRs {
		if err := objects.Maps[mapPodCIDRs].Put(newPodKey(p), uint8(1)); err != nil {
			objects.Close()
			return nil, fmt.Errorf("tell the fabric the pod CIDR %s: %w", p, err)
		}
	}
	return objects, nil
}

// attach puts the program on the ingress of a link; clsact, because tcx links end with their process unless pinned.
func attach(link, program int) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return fmt.Errorf("add clsact (CONFIG_NET_CLS_ACT is needed): %w", err)
	}
	filter := &netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: link, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:           program,
		Name:         fabricProgram,
		DirectAction: true,
	}
	if err := netlink.FilterAdd(filter); err != nil {
		return fmt.Errorf("attach the fabric (CONFIG_NET_CLS_BPF is needed): %w", err)
	}
	return nil
}

// withMap opens a map of the running fabric of a lab. All wires share one program, so the way out's will do.
func withMap(lab, name string, use func(*ebpf.Map) error) error {
	return inNetns(vpcNetns(lab), func() error {
		program, err := runningFabric()
		if err != nil {
			return err
		}
		defer program.Close()
		info, err := program.Info()
		if err != nil {
			return fmt.Errorf("inspect the fabric: %w", err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return fmt.Errorf("open a map of the fabric: %w", err)
			}
			defer m.Close()
			if info, err := m.Info(); err == nil && info.Name == name {
				return use(m)
			}
		}
		return fmt.Errorf("the fabric has no map %q: it was started by another version of the lab: take it down and up again", name)
	})
}

func runningFabric() (*ebpf.Program, error) {
	if isSwitch() {
		return nil, ErrSwitch
	}
	link, err := netlinksafe.LinkByName(OutsideHost)
	if err != nil {
		return nil, fmt.Errorf("%w: no wire to the outside: %w", ErrNotUp, err)
	}
	filters, err := netlinksafe.FilterList(link, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return nil, fmt.Errorf("look for the fabric: %w", err)
	}
	for _, f := range filters {
		if bpf, ok := f.(*netlink.BpfFilter); ok {
			return ebpf.NewProgramFromID(ebpf.ProgramID(bpf.Id))
		}
	}
	return nil, fmt.Errorf("%w: no fabric on the wire to the outside", ErrNotUp)
}

// Counters returns how many packets the VPC has seen since it came up. Dropped, by cause: unknown-destination,
// spoofed-source, security-group (new connections from the outside), blocked-ipip, blocked-vxlan, blocked-pod-cidr
// (see Block), source-dest-check (see SetSourceCheck), host-off (see SetOff), multicast, too-big, malformed. Forwarded:
// forwarded (all), and among them proto-4, proto-41, udp-4789 and pod-cidr-bare (from or to a pod CIDR without
// encapsulation). Packets are counted as they were on the wire, not as GRO put them together. A switch has the last five
// only, and counts packets as GRO put them together.
func Counters(ctx context.Context, lab string) (map[string]uint64, error) {
	count := countFabric
	if hasSwitch(lab) {
		count = countSwitch
	}
	counters, err := count(ctx, lab)
	if err == nil {
		counters[counterFence], err = fenceCount(ctx, lab)
	}
	if err != nil {
		return nil, fmt.Errorf("counters of lab %q: %w", lab, err)
	}
	return counters, nil
}

func countFabric(_ context.Context, lab string) (map[string]uint64, error) {
	counters := map[string]uint64{}
	err := withMap(lab, mapCounters, func(m *ebpf.Map) error {
		for i, name := range counterNames() {
			var perCPU []uint64
			if err := m.Lookup(uint32(i), &perCPU); err != nil {
				return fmt.Errorf("read the counter %s: %w", name, err)
			}
			for _, n := range perCPU {
				counters[name] += n
			}
		}
		return nil
	})
	return counters, err
}

// Block switches a rule of the security group that drops what one transport needs: "ipip" (IP protocols 4 and 41),
// "vxlan" (UDP port 4789) or "pod-cidr" (whatever is from a pod CIDR without encapsulation). The last is as in a cloud's
// groups, whose rules are about sources and stateful: what a host sends to a pod arrives, and so does the answer, for as
// long as the connection has had a packet within 910 s; connections from before the block go on.
func Block(_ context.Context, lab, what string, on bool) error {
	index := slices.Index(blockNames(), what)
	if index < 0 {
		return fmt.Errorf("block %q: unknown; choose one of %s", what, strings.Join(blockNames(), ", "))
	}
	value := uint32(0)
	if on {
		value = 1
	}
	err := withMap(lab, mapBlocks, func(m *ebpf.Map) error { return m.Put(uint32(index), value) })
	if err != nil {
		return fmt.Errorf("block %s in lab %q: %w", what, lab, err)
	}
	return nil
}

// SetSourceCheck makes a host's wire carry its own addresses only, both ways, or lets it carry what the route table
// sends there: SourceDestCheck of a cloud's network interfaces. It is off at first.
func SetSourceCheck(_ context.Context, lab, host string, on bool) error {
	if err := markWire(lab, mapChecks, host, on); err != nil {
		return fmt.Errorf("source and destination check of host %s in lab %q: %w", host, lab, err)
	}
	return nil
}

// SetOff makes a host's wire carry nothing, as that of a machine which is switched off, or all again. What runs on the
// host goes on.
func SetOff(_ context.Context, lab, host string, off bool) error {
	if err := markWire(lab, mapOff, host, off); err != nil {
		return fmt.Errorf("switch host %s in lab %q: %w", host, lab, err)
	}
	return nil
}

// markWire puts a host's wire into a set of the fabric's, or takes it out.
func markWire(lab, set, host string, on bool) error {
	return withMap(lab, set, func(m *ebpf.Map) error {
		wires, err := listWiresHere()
		if err != nil {
			return err
		}
		w, err := wireOf(wires, host)
		if err != nil {
			return err
		}
		if on {
			return m.Put(uint32(w.index), uint8(1))
		}
		if err := m.Delete(uint32(w.index)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		return nil
	})
}

var errNoCounter = errors.New("the counter is not there")
