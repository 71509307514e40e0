package plan

import (
	"net/netip"
	"slices"
)

// AllNamespaces among MetadataAccess.Namespaces lets every pod through.
const AllNamespaces = "*"

// MetadataAccess says which pods may reach the cloud's metadata service. Where
// an instance has a role, the service gives the role's credentials to whoever
// asks: a pod that reaches it can take the node's rights.
type MetadataAccess struct {
	// Addresses are the service's, whatever the port; none means
	// DefaultMetadata.
	Addresses []netip.Addr
	// Namespaces are those whose pods may reach it all the same.
	Namespaces []string
}

// DefaultMetadata returns the addresses of the metadata services of the clouds:
// Alibaba Cloud's, the link-local one of most others, and the one that AWS has
// for IPv6. A cluster without one of them loses nothing by being kept from it.
func DefaultMetadata() []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{100, 100, 100, 200}),
		netip.AddrFrom4([4]byte{169, 254, 169, 254}),
		netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x0e, 3: 0xc2, 14: 0x02, 15: 0x54}), // fd00:ec2::254
	}
}

// LocalPod is a pod of the node that the plan is for.
type LocalPod struct {
	Namespace string
	Link      string // name of the host end of its link
}

// Metadata says which of the node's pods reach the metadata service. Pods are
// told apart by their links: a link's name is never used again, so what is
// still exempt when its pod is gone lets nobody through.
type Metadata struct {
	Addresses []netip.Addr // in order; none means DefaultMetadata
	Open      bool         // every pod may
	Links     []string     // of the pods that may, in order
}

// Denied returns what pods without exemption may not reach. Of a State that an
// agent saved which knew nothing of it, that is the default.
func (m Metadata) Denied() []netip.Addr {
	switch {
	case m.Open:
		return nil
	case len(m.Addresses) == 0:
		return DefaultMetadata()
	default:
		return m.Addresses
	}
}

// Exempt returns the links of the pods that may reach the service, in order.
func (a MetadataAccess) Exempt(pods []LocalPod) []string {
	var out []string
	for _, p := range pods {
		if p.Link != "" && p.Namespace != "" && slices.Contains(a.Namespaces, p.Namespace) {
			out = append(out, p.Link)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// metadata plans for the node's own pods.
func (c *cluster) metadata(pods []LocalPod) Metadata {
	access := c.net.Metadata
	if slices.Contains(access.Namespaces, AllNamespaces) {
		return Metadata{Addresses: access.Addresses, Open: true}
	}
	return Metadata{Addresses: access.Addresses, Links: access.Exempt(pods)}
}

// checkMetadata keeps the addresses that are some.
func (c *cluster) checkMetadata(in MetadataAccess) MetadataAccess {
	out := MetadataAccess{Namespaces: slices.Clone(in.Namespaces)}
	for _, a := range in.Addresses {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsUnspecified() {
			out.Addresses = append(out.Addresses, a)
		} else {
			c.problem("", ReasonInvalidMetadata, "the metadata service has the address %s, which is none; it is not closed to pods: correct ClusterNetwork's metadataAccess.addresses", a)
		}
	}
	if len(out.Addresses) == 0 {
		out.Addresses = DefaultMetadata()
	}
	slices.SortFunc(out.Addresses, netip.Addr.Compare)
	out.Addresses = slices.Compact(out.Addresses)
	return out
}
