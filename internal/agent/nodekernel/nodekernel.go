// Package nodekernel reads from the node's kernel which addresses pods have,
// ours and other products'. It changes nothing, but removes what a DEL has left.
package nodekernel

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
)

// Kernel implements addresses.Kernel for the network namespace that it is
// called in.
type Kernel struct{}

// PodLinks returns the host ends of our pods.
func (Kernel) PodLinks() ([]dataplane.PodLink, error) {
	links, err := podlink.List()
	if err != nil {
		return nil, err
	}
	out := make([]dataplane.PodLink, 0, len(links))
	for _, l := range links {
		out = append(out, dataplane.PodLink(l))
	}
	return out, nil
}

// ReapLinks removes the host ends that a DEL has taken out of use.
func (Kernel) ReapLinks() error { return podlink.Reap() }

// ForeignPods returns the addresses that host routes lead to by veth links that
// are not ours: how Calico, ptp and others wire pods. Addresses of pods behind a
// bridge are not seen in routes.
func (Kernel) ForeignPods() ([]addresses.ForeignPod, error) {
	h, err := netlinksafe.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink on the node: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing the node's links: %w", err)
	}
	foreign := map[int]string{} // index -> name
	for _, l := range links {
		if l.Type() == "veth" && !strings.HasPrefix(l.Attrs().Name, podlink.Prefix) {
			foreign[l.Attrs().Index] = l.Attrs().Name
		}
	}
	var pods []addresses.ForeignPod
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("listing the node's routes: %w", err)
		}
		for _, r := range routes {
			if a, ok := hostRoute(r); ok && foreign[r.LinkIndex] != "" {
				pods = append(pods, addresses.ForeignPod{Link: foreign[r.LinkIndex], Address: a})
			}
		}
	}
	return pods, nil
}

// hostRoute returns the one address that a route without next hop leads to.
func hostRoute(r netlink.Route) (netip.Addr, bool) {
	if r.Dst == nil || len(r.Gw) != 0 || r.Protocol == podlink.RouteProtocol {
		return netip.Addr{}, false
	}
	ones, bits := r.Dst.Mask.Size()
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	return a.Unmap(), ok && ones == bits && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}
