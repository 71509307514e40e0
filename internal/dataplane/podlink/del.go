package podlink

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
)

// A link is removed in two steps. Retire takes it out of use, which is quick:
// the host end goes down, so that the kernel drops its routes and neighbours,
// and nothing passes in either direction. Removing the device itself makes the
// kernel wait until no processor can still be looking at it (two grace periods
// of RCU and a barrier: tens of milliseconds, most of them under the lock that
// all changes of links share); Reap does that once for all retired links. Most
// go before, with their namespace.
//
// That a link is retired is written on the link, as its group: it is removed
// by one message, however many there are, and no process has to remember it.

// retiredGroup is the group of links (IFLA_GROUP) that are out of use. Nobody
// else uses the number ("rwpd").
const retiredGroup = 0x72777064

// retired reports whether a link waits to be reaped.
func retired(l rtnl.Link) bool { return l.Group == retiredGroup && strings.HasPrefix(l.Name, Prefix) }

// calicoPrefix begins the names of the host ends that the calico plugin makes.
const calicoPrefix = "cali"

// Del removes what Add made for the attachment. It succeeds if nothing is
// there: a link, a namespace or its path that has vanished is what was asked
// for (CNI specification 1.1.0, DEL).
//
// A sandbox that the calico plugin made, before ropeway took its name over, is
// removed too: if netns is still there, and its interface is a veth whose other
// end is a cali* link of this node. Nothing else in netns is ever touched, as a
// stale path (/proc/<pid>/ns/net of a recycled pid) may lead to another pod.
func Del(a cniwire.Attachment, netns string) error {
	left, err := Retire(a, netns)
	if left && err == nil {
		err = Reap()
	}
	return err
}

// Retire is the quick part of Del: afterwards nothing reaches the pod, or comes
// from it, by this attachment. It reports whether a link is left, which Reap
// removes; and which Add removes, if it is in its way.
func Retire(a cniwire.Attachment, netns string) (left bool, err error) {
	host, err := rtnl.Open()
	if err != nil {
		return false, err
	}
	defer host.Close()
	left, err = retire(host, hostLinkName(a))
	if left || err != nil {
		return left, err
	}
	name, err := calicoLink(host, netns, a.IfName)
	if name == "" || err != nil {
		return false, err
	}
	link, err := host.Link(0, name)
	if err == nil {
		err = delLink(host, link.Index)
	}
	if err != nil && !notFound(err) {
		return false, fmt.Errorf("deleting %s: %w", name, err)
	}
	return false, nil
}

// retire takes a link of ours out of use; one that is not there is reported,
// not an error.
func retire(c *rtnl.Conn, name string) (found bool, err error) {
	var b rtnl.Batch
	b.Begin(unix.RTM_SETLINK, 0, rtnl.LinkHead(0, 0, unix.IFF_UP))
	b.String(unix.IFLA_IFNAME, name)
	b.Uint32(unix.IFLA_GROUP, retiredGroup)
	_, err = c.Do(&b)
	if notFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("setting %s down: %w", name, err)
	}
	return true, nil
}

// Reap removes all retired links of the node.
func Reap() error {
	host, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer host.Close()
	var b rtnl.Batch
	b.Begin(unix.RTM_DELLINK, 0, rtnl.LinkHead(0, 0, 0))
	b.Uint32(unix.IFLA_GROUP, retiredGroup)
	if _, err := host.Do(&b); err != nil && !notFound(err) {
		return fmt.Errorf("removing the links of pods that ended: %w", err)
	}
	return nil
}

// delLink removes a link at once; one that is not there is no error.
func delLink(c *rtnl.Conn, index int) error {
	var b rtnl.Batch
	b.Begin(unix.RTM_DELLINK, 0, rtnl.LinkHead(index, 0, 0))
	if _, err := c.Do(&b); err != nil && !notFound(err) {
		return err
	}
	return nil
}

func notFound(err error) bool { return errors.Is(err, unix.ENODEV) }

// calicoLink returns the name of the cali* link that is the other end of the
// interface in the namespace, or "".
func calicoLink(host *rtnl.Conn, path, ifName string) (string, error) {
	ns, err := openNetns(path)
	if errors.Is(err, ErrNoNetns) || errors.Is(err, ErrHostNetns) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer ns.Close()
	index, err := peerIndex(ns, ifName)
	if index == 0 || err != nil {
		return "", err
	}
	link, err := host.Link(index, "")
	if notFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking up link %d: %w", index, err)
	}
	if link.Kind != "veth" || !strings.HasPrefix(link.Name, calicoPrefix) {
		return "", nil
	}
	return link.Name, nil
}

// peerIndex returns the index of the other end of a veth in the namespace, 0
// if there is none of that name.
func peerIndex(ns *netns, ifName string) (int, error) {
	pod, err := ns.conn()
	if err != nil {
		return 0, err
	}
	defer pod.Close()
	link, err := pod.Link(0, ifName)
	if notFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking up %s in the pod: %w", ifName, err)
	}
	if link.Kind != "veth" {
		return 0, nil
	}
	return link.Peer, nil
}
