package podlink

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
)

// Check compares the kernel with what Add makes of cfg, and returns every
// difference, joined; MTU 0 is not compared (CNI specification 1.1.0, CHECK).
func Check(cfg Config) error {
	ns, err := openNetns(cfg.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	host, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer host.Close()
	c := checker{Config: cfg, hostMAC: mac(cfg.Attachment, "host"), podMAC: mac(cfg.Attachment, "pod")}
	hostErr := c.hostEnd(host)
	podErr := c.podEnd(ns)
	return errors.Join(hostErr, podErr)
}

// checker collects the differences of one attachment.
type checker struct {
	Config
	hostMAC, podMAC net.HardwareAddr
	errs            []error
}

func (c *checker) differ(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

// taken returns the differences so far, and forgets them.
func (c *checker) taken() error {
	err := errors.Join(c.errs...)
	c.errs = nil
	return err
}

func (c *checker) hostEnd(h *rtnl.Conn) error {
	name := hostLinkName(c.Attachment)
	link, err := h.Link(0, name)
	if err != nil {
		return fmt.Errorf("the host end %s: %w", name, err)
	}
	c.link(link, "the host end "+name, c.hostMAC)
	if a, _, err := ParseAlias(link.Alias); err != nil || a != c.Attachment {
		c.differ("the host end %s has the alias %q, which names another attachment", name, link.Alias)
	}
	c.neighbours(h, link, c.Addresses, c.podMAC)
	var want []rtnl.Route
	for _, a := range c.Addresses {
		want = append(want, rtnl.Route{Dst: alone(a), Link: link.Index, Protocol: RouteProtocol})
	}
	c.routes(h, RouteProtocol, want, "by "+name)
	return c.taken()
}

func (c *checker) podEnd(ns *netns) error {
	h, err := ns.conn()
	if err != nil {
		return err
	}
	defer h.Close()
	name := c.Attachment.IfName
	link, err := h.Link(0, name)
	if err != nil {
		return fmt.Errorf("the pod's interface %s: %w", name, err)
	}
	c.link(link, "the pod's interface "+name, c.podMAC)
	c.addresses(h, link)
	c.neighbours(h, link, c.gateways(), c.hostMAC)
	var want []rtnl.Route
	for _, dst := range c.Destinations() {
		want = append(want, rtnl.Route{Dst: dst, Via: Gateway(dst.Addr()), Link: link.Index})
	}
	c.routes(h, 0, want, "in the pod")
	return c.taken()
}

func (c *checker) link(link rtnl.Link, what string, mac net.HardwareAddr) {
	if link.Kind != "veth" {
		c.differ("%s is a %q, not a veth", what, link.Kind)
	}
	if link.Flags&unix.IFF_UP == 0 {
		c.differ("%s is down", what)
	}
	if c.MTU != 0 && link.MTU != c.MTU {
		c.differ("%s has an MTU of %d bytes, not %d", what, link.MTU, c.MTU)
	}
	if !bytes.Equal(link.MAC, mac) {
		c.differ("%s has the address %s, not %s", what, link.MAC, mac)
	}
}

func (c *checker) addresses(h *rtnl.Conn, link rtnl.Link) {
	have, err := h.Addresses(link.Index)
	if err != nil {
		c.differ("listing the addresses of %s: %w", link.Name, err)
		return
	}
	for _, a := range c.Addresses {
		if !slices.Contains(have, a) {
			c.differ("the pod's interface %s does not have the address %s", link.Name, a)
		}
	}
}

func (c *checker) neighbours(h *rtnl.Conn, link rtnl.Link, addrs []netip.Addr, mac net.HardwareAddr) {
	have, err := h.Neighbours(link.Index)
	if err != nil {
		c.differ("listing the neighbours of %s: %w", link.Name, err)
		return
	}
	for _, a := range addrs {
		n, ok := have[a]
		if !ok || n.State != unix.NUD_PERMANENT || !bytes.Equal(n.MAC, mac) {
			c.differ("the neighbour %s of %s is not permanent at %s", a, link.Name, mac)
		}
	}
}

// routes looks for those wanted among what the kernel has of a protocol (0: of
// all); a wanted one without a protocol may have any.
func (c *checker) routes(h *rtnl.Conn, protocol uint8, want []rtnl.Route, where string) {
	have, err := h.Routes(protocol, func(rtnl.Route) bool { return true })
	if err != nil {
		c.differ("listing the routes %s: %w", where, err)
		return
	}
	for _, w := range want {
		found := slices.ContainsFunc(have, func(r rtnl.Route) bool {
			return r.Dst == w.Dst && r.Link == w.Link && r.Via == w.Via && (w.Protocol == 0 || r.Protocol == w.Protocol)
		})
		if !found {
			c.differ("there is no route to %s %s", w.Dst, where)
		}
	}
}
