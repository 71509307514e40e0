package dataplane

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// Changes returns a channel that gets a value some time after devices,
// addresses or routes changed in a way that Set may have to answer: an uplink
// came back, a gateway moved, somebody deleted what is ours. Several changes
// may be one value; a change that Set made itself may be one too. Pods' links
// are not told. The channel is never closed, and falls silent when ctx ends. If
// the kernel does not tell, that is logged, and the channel stays silent: a
// caller calls Set now and then in any case.
func (l *Linux) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		l.log.Error("cannot subscribe to changes of the network", "error", err)
		return out
	}
	w := &watch{pods: map[uint32]bool{}}
	if err := w.learnPods(l); err != nil {
		l.log.Warn("cannot tell pods' links from others", "error", err)
	}
	stop := context.AfterFunc(ctx, socket.Close)
	go func() {
		defer func() {
			if stop() {
				socket.Close()
			}
		}()
		l.watch(ctx, socket, w, out)
	}()
	return out
}

// watch speaks to out until the socket is closed.
func (l *Linux) watch(ctx context.Context, socket *nl.NetlinkSocket, w *watch, out chan<- struct{}) {
	for {
		messages, _, err := socket.Receive()
		if err != nil && !lostMessages(err) {
			if ctx.Err() == nil {
				l.log.Error("changes of the network are not told any more", "error", err)
			}
			return
		}
		if err == nil && !w.matter(messages) {
			continue
		}
		select {
		case out <- struct{}{}:
		default:
		}
	}
}

// lostMessages reports whether the socket's buffer was too small for what
// happened: anything may have changed.
func lostMessages(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN)
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
