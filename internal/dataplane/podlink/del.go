package podlink

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
)

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
	host, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink on the node: %w", err)
	}
	defer host.Close()
	found, err := delByName(host, hostLinkName(a))
	if found || err != nil {
		return err
	}
	name, err := calicoLink(host, netns, a.IfName)
	if name == "" || err != nil {
		return err
	}
	_, err = delByName(host, name)
	return err
}

// delByName removes a link; one that is not there is reported, not an error.
func delByName(h netlinksafe.Handle, name string) (found bool, err error) {
	link, err := h.LinkByName(name)
	if notFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking up %s: %w", name, err)
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return true, fmt.Errorf("deleting %s: %w", name, err)
	}
	return true, nil
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// calicoLink returns the name of the cali* link that is the other end of the
// interface in the namespace, or "".
func calicoLink(host netlinksafe.Handle, netns, ifName string) (string, error) {
	ns, err := openNetns(netns)
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
	link, err := host.LinkByIndex(index)
	if notFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("looking up link %d: %w", index, err)
	}
	if link.Type() != "veth" || !strings.HasPrefix(link.Attrs().Name, calicoPrefix) {
		return "", nil
	}
	return link.Attrs().Name, nil
}

// peerIndex returns the index of the other end of a veth in the namespace, 0
// if there is none of that name.
func peerIndex(ns *os.File, ifName string) (int, error) {
	pod, err := handleIn(ns)
	if err != nil {
		return 0, err
	}
	defer pod.Close()
	link, err := pod.LinkByName(ifName)
	if notFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking up %s in the pod: %w", ifName, err)
	}
	if link.Type() != "veth" {
		return 0, nil
	}
	return link.Attrs().ParentIndex, nil
}
