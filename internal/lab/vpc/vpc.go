// Package vpc is the lab's cloud network: one network namespace that forwards between hosts, each on a wire of its
// own, by its own route table only, and an outside world behind it.
//
// What a host sees is what it would see in a cloud's virtual private network. Every address is answered with one MAC,
// so that a host route to a neighbour goes nowhere but through the VPC's own table; packets to destinations that the
// table does not know and from sources that it does not route to that host are dropped and counted; the TTL stays as
// it is; security-group switches stop a protocol; frames on a wire are never larger than its MTU.
//
// For comparison the hosts can be put on a plain switch instead; see switch.go.
//
// A lab's VPC lives in the kernel alone: in namespaces named rwlab-LAB-*. Down needs nothing but the lab's name, and
// any process may change routes and read counters.
package vpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// ErrExists is returned by Up for a lab whose VPC is already there.
var ErrExists = errors.New("the VPC already exists")

// ErrNotUp is returned by what needs a VPC that is not there.
var ErrNotUp = errors.New("the VPC is not up")

// Host is a machine on the VPC: a named network namespace with a wire into it.
type Host struct {
	// Name is the host's name in routes and messages, such as a node's name.
	Name string
	// Netns is the name of the namespace, /run/netns/Netns; it begins with rwlab-LAB-.
	Netns string
	// Addresses are the addresses of the host's eth0 with the length of their subnet. Hosts may share a subnet.
	Addresses []netip.Prefix
}

// Spec says what a lab's VPC looks like.
type Spec struct {
	// Lab is the lab's name: lower-case letters, digits and hyphens, at most 32.
	Lab string
	// Hosts are the machines on the VPC, at least one.
	Hosts []Host
	// PodCIDRs are the pod networks; the block "pod-cidr" and the counter "pod-cidr-bare" are about them.
	PodCIDRs []netip.Prefix
	// Switch puts the hosts on an ordinary layer-2 network instead of a VPC; they then share one subnet per family.
	Switch bool
	// MTU is the MTU of every wire in bytes; 0 means 1500.
	MTU int
}

// DefaultMTU is the MTU of wires, in bytes, when Spec.MTU is 0.
const DefaultMTU = 1500

// Up makes the namespaces, wires, addresses and routes of a lab's VPC. Each host's namespace gets lo and eth0 up,
// its addresses, and default routes through the VPC; forwarding in it is left to the host. Up of a lab that is up
// fails with ErrExists; an Up that fails otherwise leaves nothing behind.
func Up(ctx context.Context, spec Spec) error {
	if err := spec.validate(); err != nil {
		return fmt.Errorf("VPC of lab %q: %w", spec.Lab, err)
	}
	if err := checkFree(spec); err != nil {
		return err
	}
	if err := createNetns(vpcNetns(spec.Lab)); err != nil {
		if errors.Is(err, os.ErrExist) {
			err = fmt.Errorf("%w: take lab %q down first", ErrExists, spec.Lab)
		}
		return err
	}
	if err := build(ctx, spec); err != nil {
		err = fmt.Errorf("VPC of lab %q: %w", spec.Lab, err)
		return errors.Join(err, Down(context.WithoutCancel(ctx), spec.Lab))
	}
	return nil
}

// checkFree makes sure that Up takes over no namespace that it did not make.
func checkFree(spec Spec) error {
	if netnsExists(vpcNetns(spec.Lab)) {
		return fmt.Errorf("%w: take lab %q down first", ErrExists, spec.Lab)
	}
	names := []string{OutsideNetns(spec.Lab)}
	for _, h := range spec.Hosts {
		names = append(names, h.Netns)
	}
	for _, name := range names {
		if netnsExists(name) {
			return fmt.Errorf("VPC of lab %q: network namespace %s is already there and not this VPC's: remove it (ip netns del %s)",
				spec.Lab, name, name)
		}
	}
	return nil
}

// build fills the VPC's namespace, which exists and is empty.
func build(ctx context.Context, spec Spec) error {
	wires, err := plan(spec)
	if err != nil {
		return err
	}
	if err := inNetns(vpcNetns(spec.Lab), configureFabricNetns); err != nil {
		return err
	}
	for _, w := range wires {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.lay(spec.Lab); err != nil {
			return fmt.Errorf("host %s: %w", w.Host, err)
		}
	}
	if err := fenceOutside(ctx, spec.Lab); err != nil {
		return err
	}
	if spec.Switch {
		return startSwitch(ctx, spec)
	}
	return startFabric(spec)
}

// Down removes all that Up made, whole or in part. A lab that is not up is no error. Processes in the namespaces are
// the caller's to end: while one runs, its namespace lives on without a name and without a wire.
func Down(_ context.Context, lab string) error {
	if err := validateLab(lab); err != nil {
		return err
	}
	if !netnsExists(vpcNetns(lab)) {
		return nil
	}
	// The record of what was made lies on the wires' ends in the VPC's own namespace, which therefore goes last.
	// When Up was killed before that namespace came alive, there is nothing to read and nothing else was made.
	wires, err := listWires(lab)
	if err != nil && !errors.Is(err, ErrNotUp) {
		return err
	}
	var errs []error
	for _, w := range wires {
		if w.Netns != "" {
			errs = append(errs, removeNetns(w.Netns))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return removeNetns(vpcNetns(lab))
}
