package podlink

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/dataplane/podlink/rtnl"
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
// kernel only. Those that wait to be reaped are not among them.
func List() ([]Link, error) {
	host, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	defer host.Close()
	return list(host, nil)
}

// list reads routes before links: routes come last when a pod is wired, so that
// each that was seen leads to a link that says whose it is. The other way round, a
// link that was not marked yet would have them, and its addresses would seem to be
// nobody's. between, if set, is called between the two, for tests.
func list(host *rtnl.Conn, between func()) ([]Link, error) {
	routed, err := routedAddresses(host)
	if err != nil {
		return nil, err
	}
	if between != nil {
		between()
	}
	links, err := host.Links()
	if err != nil {
		return nil, fmt.Errorf("listing the node's links: %w", err)
	}
	var out []Link
	for _, l := range links {
		if l.Kind != "veth" || !strings.HasPrefix(l.Name, Prefix) || retired(l) {
			continue
		}
		out = append(out, Link{Name: l.Name, Index: l.Index, Addresses: routed[l.Index], Alias: l.Alias})
	}
	slices.SortFunc(out, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// routedAddresses maps index of a link -> addresses that host routes of ours
// lead to by it, sorted.
func routedAddresses(c *rtnl.Conn) (map[int][]netip.Addr, error) {
	routes, err := c.Routes(RouteProtocol, func(r rtnl.Route) bool { return r.Dst.IsSingleIP() && !r.Via.IsValid() })
	if err != nil {
		return nil, fmt.Errorf("listing the node's routes to pods: %w", err)
	}
	out := map[int][]netip.Addr{}
	for _, r := range routes {
		out[r.Link] = append(out[r.Link], r.Dst.Addr())
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
		if _, err := Retire(a, ""); err != nil {
			errs = append(errs, err)
			continue
		}
		gone = append(gone, a)
	}
	if len(gone) > 0 {
		errs = append(errs, Reap())
	}
	return gone, errors.Join(errs...)
}
