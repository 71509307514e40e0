package podlink

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/cniwire"
)

// Link is the host end of one pod as the kernel has it. Its fields are those of
// dataplane.PodLink, to which it converts.
type Link struct {
	Name      string
	Index     int
	Addresses []netip.Addr // that our routes lead to by it, sorted
	Alias     string       // see ParseAlias
}

// List returns the host ends on this node, sorted by name, read from the
// kernel only.
func List() ([]Link, error) {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink on the node: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing the node's links: %w", err)
	}
	routed, err := routedAddresses(h)
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, l := range links {
		attrs := l.Attrs()
		if l.Type() != "veth" || !strings.HasPrefix(attrs.Name, Prefix) {
			continue
		}
		out = append(out, Link{Name: attrs.Name, Index: attrs.Index, Addresses: routed[attrs.Index], Alias: attrs.Alias})
	}
	slices.SortFunc(out, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// routedAddresses maps index of a link -> addresses that host routes of ours
// lead to by it.
func routedAddresses(h netlinksafe.Handle) (map[int][]netip.Addr, error) {
	out := map[int][]netip.Addr{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Protocol: RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("listing the node's routes to pods: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil || len(r.Gw) != 0 {
				continue
			}
			ones, bits := r.Dst.Mask.Size()
			a, ok := netip.AddrFromSlice(r.Dst.IP)
			if ok && ones == bits {
				out[r.LinkIndex] = append(out[r.LinkIndex], a.Unmap())
			}
		}
	}
	for _, addrs := range out {
		slices.SortFunc(addrs, netip.Addr.Compare)
	}
	return out, nil
}

// DelStale removes the host ends of the network's attachments that valid does
// not hold, and returns the attachments that were removed (CNI specification
// 1.1.0, GC). It goes on after a failure.
func DelStale(network string, valid []cniwire.Attachment) ([]cniwire.Attachment, error) {
	links, err := List()
	if err != nil {
		return nil, err
	}
	var gone []cniwire.Attachment
	var errs []error
	for _, l := range links {
		a, _, err := ParseAlias(l.Alias)
		if err != nil || a.Network != network || slices.Contains(valid, a) {
			continue
		}
		if err := Del(a, ""); err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, a)
	}
	return gone, errors.Join(errs...)
}
