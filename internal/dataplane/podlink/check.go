package podlink

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check compares the kernel with what Add makes of cfg, and returns every
// difference, joined; MTU 0 is not compared (CNI specification 1.1.0, CHECK).
func Check(cfg Config) error {
	ns, err := openNetns(cfg.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	host, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink on the node: %w", err)
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

func (c *checker) hostEnd(h netlinksafe.Handle) error {
	name := hostLinkName(c.Attachment)
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("the host end %s: %w", name, err)
	}
	c.link(link, "the host end "+name, c.hostMAC)
	if a, _, err := ParseAlias(link.Attrs().Alias); err != nil || a != c.Attachment {
		c.differ("the host end %s has the alias %q, which names another attachment", name, link.Attrs().Alias)
	}
	c.neighbours(h, link, c.Addresses, c.podMAC)
	for _, a := range c.Addresses {
		want := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: hostPrefix(a), Protocol: RouteProtocol}
		c.route(h, familyOf(a), want, netlink.RT_FILTER_DST, fmt.Sprintf("%s to %s", a, name))
	}
	return c.taken()
}

func (c *checker) podEnd(ns *os.File) error {
	h, err := handleIn(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	name := c.Attachment.IfName
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("the pod's interface %s: %w", name, err)
	}
	c.link(link, "the pod's interface "+name, c.podMAC)
	if err := c.addresses(ns, link); err != nil {
		return err
	}
	c.neighbours(h, link, c.gateways(), c.hostMAC)
	for _, dst := range c.Destinations() {
		want := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Gw: Gateway(dst.Addr()).AsSlice()}
		c.route(h, familyOf(dst.Addr()), want, netlink.RT_FILTER_DST, fmt.Sprintf("%s in the pod", dst))
	}
	return c.taken()
}

func (c *checker) link(link netlink.Link, what string, mac net.HardwareAddr) {
	attrs := link.Attrs()
	if link.Type() != "veth" {
		c.differ("%s is a %s, not a veth", what, link.Type())
	}
	if attrs.Flags&net.FlagUp == 0 {
		c.differ("%s is down", what)
	}
	if c.MTU != 0 && attrs.MTU != c.MTU {
		c.differ("%s has an MTU of %d bytes, not %d", what, attrs.MTU, c.MTU)
	}
	if !bytes.Equal(attrs.HardwareAddr, mac) {
		c.differ("%s has the address %s, not %s", what, attrs.HardwareAddr, mac)
	}
}

func (c *checker) addresses(ns *os.File, link netlink.Link) error {
	var have []netlink.Addr
	err := inNetns(ns, func() error { // netlinksafe has no AddrList of a handle
		var err error
		have, err = netlinksafe.AddrList(link, netlink.FAMILY_ALL)
		return err
	})
	if err != nil {
		return fmt.Errorf("listing the addresses of %s: %w", c.Attachment.IfName, err)
	}
	found := map[netip.Addr]bool{}
	for _, addr := range have {
		if a, ok := netip.AddrFromSlice(addr.IP); ok {
			found[a.Unmap()] = true
		}
	}
	for _, a := range c.Addresses {
		if !found[a] {
			c.differ("the pod's interface %s does not have the address %s", c.Attachment.IfName, a)
		}
	}
	return nil
}

func (c *checker) neighbours(h netlinksafe.Handle, link netlink.Link, addrs []netip.Addr, mac net.HardwareAddr) {
	have, err := neighbours(h, link.Attrs().Index)
	if err != nil {
		c.differ("listing the neighbours of %s: %w", link.Attrs().Name, err)
		return
	}
	for _, a := range addrs {
		n, ok := have[a]
		if !ok || n.State != netlink.NUD_PERMANENT || !bytes.Equal(n.HardwareAddr, mac) {
			c.differ("the neighbour %s of %s is not permanent at %s", a, link.Attrs().Name, mac)
		}
	}
}

// neighbours maps address -> entry of one link.
func neighbours(h netlinksafe.Handle, link int) (map[netip.Addr]netlink.Neigh, error) {
	const attempts = 5 // an interrupted dump is incomplete
	var list []netlink.Neigh
	var err error
	for range attempts {
		list, err = h.NeighList(link, netlink.FAMILY_ALL)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	out := make(map[netip.Addr]netlink.Neigh, len(list))
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok {
			out[a.Unmap()] = n
		}
	}
	return out, nil
}

func (c *checker) route(h netlinksafe.Handle, family int, want *netlink.Route, mask uint64, what string) {
	have, err := h.RouteListFiltered(family, want, mask)
	if err != nil {
		c.differ("listing the routes to %s: %w", what, err)
		return
	}
	for _, r := range have {
		if r.LinkIndex == want.LinkIndex && r.Gw.Equal(want.Gw) && (want.Protocol == 0 || r.Protocol == want.Protocol) {
			return
		}
	}
	c.differ("there is no route to %s", what)
}
