package dataplane

import (
	"context"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// Changes returns a channel that gets a value some time after devices,
// addresses, routes or nftables' rules changed in a way that Set may have to
// answer: an uplink came back, a gateway moved, a firewall closed, somebody deleted
// what is ours. Several changes may be one value; a change that Set made itself may
// be one too. Pods' links are not told. The channel is never closed, and falls
// silent when ctx ends. While the kernel does not tell, that is logged, and the
// channel is silent: a caller calls Set now and then in any case.
func (l *Linux) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	tell := func() {
		select {
		case out <- struct{}{}:
		default:
		}
	}
	l.watchNetwork(ctx, tell)
	l.watchFirewalls(ctx, tell)
	return out
}

// watchNetwork tells of devices, addresses and routes.
func (l *Linux) watchNetwork(ctx context.Context, tell func()) {
	w := &watch{pods: map[uint32]bool{}}
	s := l.listener("devices, addresses and routes", unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
	s.lost = tell
	s.heard = func(messages []syscall.NetlinkMessage) {
		if w.matter(messages) {
			tell()
		}
	}
	s.start(ctx, func() {
		if err := w.learnPods(l); err != nil {
			l.log.Warn("cannot tell pods' links from others", "err", err)
		}
	})
}

// watch tells apart what matters.
type watch struct {
	pods map[uint32]bool // indexes of pods' links
}

func (w *watch) learnPods(l *Linux) error {
	k, err := openKernel(l.log)
	if err != nil {
		return err
	}
	defer k.close()
	links, err := k.links()
	if err != nil {
		return err
	}
	for index, d := range links {
		if isPodLink(d.Attrs().Name) {
			w.pods[uint32(index)] = true
		}
	}
	return nil
}

func (w *watch) matter(messages []syscall.NetlinkMessage) bool {
	any := false
	for _, m := range messages {
		if w.matters(m) {
			any = true
		}
	}
	return any
}

func (w *watch) matters(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.linkMatters(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return len(m.Data) >= unix.SizeofIfAddrmsg && !w.pods[nl.DeserializeIfAddrmsg(m.Data).Index]
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return w.routeMatters(m)
	case unix.RTM_NEWNETCONF:
		return filterMatters(m)
	}
	return false
}

// Attributes of the kernel's linux/netconf.h.
const (
	netconfForwarding  = 2
	netconfReversePath = 3
)

// filterMatters reports whether somebody set an rp_filter to strict. What a new
// device comes with, which tells its forwarding too, is none of that.
func filterMatters(m syscall.NetlinkMessage) bool {
	const header = 4 // struct netconfmsg, padded
	if len(m.Data) < header {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[header:])
	if err != nil {
		return true
	}
	strict := false
	for _, a := range attrs {
		switch a.Attr.Type {
		case netconfForwarding:
			return false
		case netconfReversePath:
			strict = len(a.Value) == 4 && nl.NativeEndian().Uint32(a.Value) == 1
		}
	}
	return strict
}

func (w *watch) linkMatters(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return false
	}
	index := uint32(nl.DeserializeIfInfomsg(m.Data).Index)
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type != unix.IFLA_IFNAME || !isPodLink(strings.TrimRight(string(a.Value), "\x00")) {
			continue
		}
		if m.Header.Type == unix.RTM_DELLINK {
			delete(w.pods, index)
		} else {
			w.pods[index] = true
		}
		return false
	}
	return true
}

func (w *watch) routeMatters(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofRtMsg {
		return false
	}
	msg := nl.DeserializeRtMsg(m.Data)
	ours := msg.Protocol == podlink.RouteProtocol
	// Of addresses, the local table only repeats what was told already.
	if msg.Table == unix.RT_TABLE_LOCAL || msg.Flags&unix.RTM_F_CLONED != 0 || ours && m.Header.Type == unix.RTM_NEWROUTE {
		return false
	}
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4 {
			return !w.pods[nl.NativeEndian().Uint32(a.Value)]
		}
	}
	return true
}
