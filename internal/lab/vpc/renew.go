package vpc

import (
	"context"
	"fmt"
	"os"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
)

// Renew gives a host a network namespace without a past, under the same name, as a boot does: links, routes, addresses,
// rules and programs that the host made in the old one are not in it. The wire stays plugged in, and the VPC's routes
// to the host stay. What still runs in the old namespace stays there, without a name and without a wire; it is the
// caller's to end before.
func Renew(_ context.Context, lab, host string) error {
	wires, err := listWires(lab)
	if err != nil {
		return err
	}
	w, err := wireOf(wires, host)
	if err != nil {
		return err
	}
	if err := w.renew(lab); err != nil {
		return fmt.Errorf("host %s in lab %q: %w", host, lab, err)
	}
	return nil
}

// renew takes the host's end of the wire back, and lays it again.
func (w *wire) renew(lab string) error {
	takeBack := func() error { return moveHostEnd(vpcNetns(lab)) }
	if err := inNetns(w.Netns, takeBack); err != nil {
		return err
	}
	if err := removeNetns(w.Netns); err != nil {
		return err
	}
	return w.settle(lab)
}

// settle makes the host's namespace and moves the host's end of the wire there from the VPC's.
func (w *wire) settle(lab string) error {
	if err := createNetns(w.Netns); err != nil {
		return err
	}
	if err := inNetns(vpcNetns(lab), func() error { return moveHostEnd(w.Netns) }); err != nil {
		return err
	}
	return inNetns(w.Netns, w.configureHost)
}

// moveHostEnd moves the host's end of a wire from the thread's namespace into another.
func moveHostEnd(netns string) error {
	end, err := netlinksafe.LinkByName(hostLink)
	if err != nil {
		return fmt.Errorf("find the host's end of the wire: %w", err)
	}
	into, err := os.Open(netnsPath(netns))
	if err != nil {
		return fmt.Errorf("open the namespace: %w", err)
	}
	defer into.Close()
	if err := netlink.LinkSetNsFd(end, int(into.Fd())); err != nil {
		return fmt.Errorf("move the wire's end into %s: %w", netns, err)
	}
	return nil
}
