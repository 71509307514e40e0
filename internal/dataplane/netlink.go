package dataplane

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// kernel is the one way to the kernel's links, addresses, routes and
// neighbours. A dump that the kernel interrupted because something changed
// meanwhile is incomplete, and would make us delete what is right or add what is
// there: all reading goes by here, where it is tried again.
type kernel struct {
	h      netlinksafe.Handle
	log    *slog.Logger
	writes int // how often the kernel was changed
}

// openKernel opens sockets in the network namespace of the calling thread.
func openKernel(log *slog.Logger) (*kernel, error) {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &kernel{h: h, log: log}, nil
}

func (k *kernel) close() { k.h.Close() }

// wrote notes a change, and says which where somebody asks.
func (k *kernel) wrote(what string, args ...any) {
	k.writes++
	k.log.Debug(what, args...)
}

// links returns all devices: index -> device.
func (k *kernel) links() (map[int]netlink.Link, error) {
	list, err := k.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	out := make(map[int]netlink.Link, len(list))
	for _, l := range list {
		out[l.Attrs().Index] = l
	}
	return out, nil
}

// link returns the device of that name, or nil if there is none.
func (k *kernel) link(name string) (netlink.Link, error) {
	l, err := k.h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	return l, nil
}

// dumpAttempts bounds how often an interrupted dump is asked for again.
const dumpAttempts = 10

func retryDump[T any](dump func() (T, error)) (T, error) {
	var out T
	var err error
	for range dumpAttempts {
		out, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			return out, err
		}
	}
	return out, err
}

// neighbours returns key -> entry of a device: of unix.AF_INET, AF_INET6, or
// AF_BRIDGE (the forwarding database). They are read one by one: as the library's
// list, those of a large cluster are several MiB.
func (k *kernel) neighbours(index, family int) (map[entry]entry, error) {
	out, err := retryDump(func() (map[entry]entry, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddData(&netlink.Ndmsg{Family: uint8(family), Index: uint32(index)})
		out := map[entry]entry{}
		err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH, func(m []byte) bool {
			n, err := netlink.NeighDeserialize(m)
			if err == nil && n.LinkIndex == index && n.Family == family {
				addEntry(out, n)
			}
			return true
		})
		return out, err
	})
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	return out, nil
}

// assigned is an address of a device.
type assigned struct {
	Index    int
	Prefix   netip.Prefix
	Protocol uint8 // who assigned it; 0 if nobody said (kernels before 5.18 never do)
	Label    string
}

// attrAddressProtocol is IFA_PROTO, which says who assigned an address.
const attrAddressProtocol = 11

// addresses lists the addresses of all devices.
func (k *kernel) addresses() ([]assigned, error) {
	msgs, err := retryDump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := make([]assigned, 0, len(msgs))
	for _, m := range msgs {
		a, err := parseAssigned(m)
		if err != nil {
			return nil, err
		}
		if a.Prefix.IsValid() {
			out = append(out, a)
		}
	}
	return out, nil
}

func parseAssigned(m []byte) (assigned, error) {
	msg := nl.DeserializeIfAddrmsg(m)
	attrs, err := nl.ParseRouteAttr(m[msg.Len():])
	if err != nil {
		return assigned{}, fmt.Errorf("read address from kernel: %w", err)
	}
	a := assigned{Index: int(msg.Index)}
	for _, attr := range attrs {
		switch attr.Attr.Type {
		case unix.IFA_ADDRESS, unix.IFA_LOCAL: // the latter comes second and wins
			if ip, ok := netip.AddrFromSlice(attr.Value); ok {
				a.Prefix = netip.PrefixFrom(ip, int(msg.Prefixlen))
			}
		case unix.IFA_LABEL:
			a.Label = strings.TrimRight(string(attr.Value), "\x00")
		case attrAddressProtocol:
			a.Protocol = attr.Value[0]
		}
	}
	return a, nil
}

// changeAddress adds (unix.RTM_NEWADDR) or removes (unix.RTM_DELADDR) a host
// address, marked as ours.
func (k *kernel) changeAddress(verb int, index int, a netip.Addr, label string) error {
	flags := unix.NLM_F_ACK
	if verb == unix.RTM_NEWADDR {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	req := nl.NewNetlinkRequest(verb, flags)
	msg := nl.NewIfAddrmsg(familyNumber(a))
	msg.Index = uint32(index)
	msg.Prefixlen = uint8(a.BitLen())
	msg.Scope = unix.RT_SCOPE_UNIVERSE
	msg.Flags = unix.IFA_F_NODAD
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	if verb == unix.RTM_NEWADDR {
		req.AddData(nl.NewRtAttr(attrAddressProtocol, []byte{podlink.RouteProtocol}))
		if a.Is4() && label != "" {
			req.AddData(nl.NewRtAttr(unix.IFA_LABEL, nl.ZeroTerminated(label)))
		}
	}
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return err
	}
	k.wrote("address", "verb", verb, "address", a)
	return nil
}

// familyNumber returns the kernel's number of an address's family.
func familyNumber(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addrOf converts; the result is invalid if the kernel gave nothing.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, ones)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// isPodLink reports whether a device is the host's end of a pod's veth.
func isPodLink(name string) bool { return strings.HasPrefix(name, podlink.Prefix) }
