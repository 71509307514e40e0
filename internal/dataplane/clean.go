package dataplane

import (
	"context"
	"errors"
	"fmt"

	"ropeway.dev/ropeway/internal/dataplane/bpf"
)

// Clean implements Dataplane. It goes by our marks on things, so it also removes
// what another release made, and what a Set that failed half-way left. What
// sends goes first, the guards last. Pods' links are the plugin's and stay.
func (l *Linux) Clean(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, err := openKernel(l.log)
	if err != nil {
		return err
	}
	defer k.close()
	l.firewalls.forget()
	errs := []error{cleanRoutes(k), cleanVXLAN(k)}
	addresses, err := k.addresses()
	errs = append(errs, err, k.removeSources(loopbackIndex, ownSources(addresses, loopbackIndex), nil))
	if l.tunnel != nil {
		errs = append(errs, l.tunnel.Close())
		l.tunnel = nil
	}
	errs = append(errs, bpf.Remove(l.options.BPFPinDir), l.cleanRules(ctx), cleanForward(ctx), l.restoreUplinks(k))
	return errors.Join(errs...)
}

func cleanRoutes(k *kernel) error {
	devices, err := k.links()
	if err != nil {
		return err
	}
	table, err := k.readRoutes(devices)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range table.ours {
		errs = append(errs, k.deleteRoute(r))
	}
	return errors.Join(errs...)
}

func cleanVXLAN(k *kernel) error {
	dev, err := k.link(VXLANDeviceName)
	if err != nil || dev == nil {
		return err
	}
	if err := k.h.LinkDel(dev); err != nil {
		return fmt.Errorf("remove device %s: %w", VXLANDeviceName, err)
	}
	k.wrote("device deleted", "device", VXLANDeviceName)
	return nil
}

func (l *Linux) cleanRules(ctx context.Context) error {
	n := l.nft
	if n == nil {
		var err error
		if n, err = newNFTables(l.options.StateDir, l.firewalls.transact); err != nil {
			return err
		}
	}
	return n.clean(ctx)
}
