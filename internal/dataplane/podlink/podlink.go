// Package podlink wires one pod to its node: a veth whose one end is the pod's
// interface, addresses of /32 and /128, and a link-local gateway that the pod
// knows as a permanent neighbour. It reads and writes the kernel of the network
// namespace that it is called in, and of the pod's.
//
// No bridge and no proxy ARP: the pod resolves nobody, since its only neighbour
// is the gateway, whose link-layer address (the host end's) is written into the
// pod; and the node resolves no pod, since the pod's address and link-layer
// address are written into the node. So no broadcast leaves a pod, no answer can
// be forged, and nothing expires.
//
// Everything that is made hangs on the veth. Removing the link removes the
// addresses, routes and neighbours with it, which makes undoing a half-made
// attachment one step.
package podlink

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"ropeway.dev/ropeway/internal/cniwire"
)

// RouteProtocol is the number ("ropeway") that the kernel's routes of ours
// carry, in rtm_protocol.
const RouteProtocol = 112

// Prefix begins the names of the host ends.
const Prefix = "rwp"

// Limits of an interface's MTU in bytes: the least that IPv4 (RFC 791) and
// IPv6 (RFC 8200, section 5) allow, and the most that a packet can be.
const (
	minMTUv4 = 68
	minMTUv6 = 1280
	maxMTU   = 65535
)

// Errors that callers tell apart, by errors.Is.
var (
	// ErrExists: the attachment is wired already. Nothing was changed.
	ErrExists = errors.New("the attachment is wired already")
	// ErrInterfaceExists: the pod has an interface of that name that is not
	// this attachment's. Nothing was changed.
	ErrInterfaceExists = errors.New("the pod has another interface of that name")
	// ErrNoNetns: there is no network namespace at the path.
	ErrNoNetns = errors.New("no network namespace")
	// ErrHostNetns: the path is the node's own network namespace.
	ErrHostNetns = errors.New("the node's own network namespace")
	// ErrInvalid: the Config cannot be wired.
	ErrInvalid = errors.New("not a valid pod interface")
)

// Gateway returns the address that pods use as next hop for the family of a:
// link-local, the same in every pod.
func Gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{169, 254, 1, 1})
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
}

// Config says what one pod's interface is like.
type Config struct {
	Attachment cniwire.Attachment
	Pod        cniwire.Pod
	// Netns is the path of the pod's network namespace.
	Netns string
	// MTU of both ends, in bytes.
	MTU int
	// Addresses are the pod's, at least one.
	Addresses []netip.Addr
	// Routes are the destinations that the pod reaches through the interface;
	// empty means everything, for the families of Addresses.
	Routes []netip.Prefix
	// Queues is the number of transmit and of receive queues of both ends; 0
	// leaves it to the kernel.
	Queues int
	// Forwarding, if not nil, sets whether the pod's namespace forwards
	// packets; nil leaves it as it is.
	Forwarding *bool
}

// Destinations returns the destinations of the routes that Add makes in the pod.
func (c Config) Destinations() []netip.Prefix {
	if len(c.Routes) > 0 {
		return c.Routes
	}
	var out []netip.Prefix
	for _, family := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if c.has(family) {
			out = append(out, netip.PrefixFrom(family, 0))
		}
	}
	return out
}

// has reports whether there is an address of a's family.
func (c Config) has(a netip.Addr) bool {
	for _, mine := range c.Addresses {
		if mine.Is4() == a.Is4() {
			return true
		}
	}
	return false
}

func (c Config) validate() error {
	switch {
	case c.Attachment.Network == "" || c.Attachment.ContainerID == "" || c.Attachment.IfName == "":
		return fmt.Errorf("%w: network, container id and interface name are all needed, got %+v", ErrInvalid, c.Attachment)
	case len(c.Addresses) == 0:
		return fmt.Errorf("%w: no address was given for %s", ErrInvalid, c.Attachment.IfName)
	case c.MTU < minMTUv4 || c.MTU > maxMTU:
		return fmt.Errorf("%w: an MTU of %d bytes is not between %d and %d", ErrInvalid, c.MTU, minMTUv4, maxMTU)
	case c.has(netip.IPv6Unspecified()) && c.MTU < minMTUv6:
		return fmt.Errorf("%w: an MTU of %d bytes is less than the %d that IPv6 needs (RFC 8200, section 5)", ErrInvalid, c.MTU, minMTUv6)
	case c.Queues < 0 || c.Queues > 4096:
		return fmt.Errorf("%w: %d queues; use 1 to 4096, or 0 for the kernel's choice", ErrInvalid, c.Queues)
	}
	seen := map[netip.Addr]bool{}
	for _, a := range c.Addresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || seen[a] {
			return fmt.Errorf("%w: %s is no address for a pod, or is there twice", ErrInvalid, a)
		}
		seen[a] = true
	}
	for _, r := range c.Routes {
		if !r.IsValid() || r != r.Masked() || !c.has(r.Addr()) {
			return fmt.Errorf("%w: the route to %s has host bits set, or the pod has no address of its family", ErrInvalid, r)
		}
	}
	return nil
}

// Result is what Add made.
type Result struct {
	HostName string           // the host end's name
	HostMAC  net.HardwareAddr // which is the gateway's for the pod
	PodMAC   net.HardwareAddr
}

// HostLinkName returns the name of an attachment's host end. It depends on the
// attachment alone, so that DEL finds it when nothing else is known.
func HostLinkName(network, containerID, ifName string) string {
	sum := digest("", network, containerID, ifName)
	return Prefix + hex.EncodeToString(sum[:6])
}

func hostLinkName(a cniwire.Attachment) string {
	return HostLinkName(a.Network, a.ContainerID, a.IfName)
}

// mac returns a locally administered address for one end of an attachment.
// Fixed ones, rather than the kernel's random ones, spare a read after the
// creation, and are left alone by systemd-udevd (MACAddressPolicy=persistent
// replaces random ones behind our back).
func mac(a cniwire.Attachment, end string) net.HardwareAddr {
	sum := digest(end+" ", a.Network, a.ContainerID, a.IfName)
	out := net.HardwareAddr(sum[:6])
	out[0] = out[0]&^1 | 2 // unicast, locally administered
	return out
}

func digest(salt, network, containerID, ifName string) [sha256.Size]byte {
	return sha256.Sum256([]byte(salt + network + "/" + containerID + "/" + ifName))
}

// alone is the prefix that holds a only.
func alone(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
