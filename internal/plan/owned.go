package plan

import (
	"net/netip"

	"ropeway.dev/ropeway/internal/plan/cidr"
)

// DestinationsByNode is what Owned says of destinations, of all nodes at once: name -> the ranges
// that the node owns, as others route them. Nodes that own none are missing.
func DestinationsByNode(network Network, nodes []Node) map[string][]netip.Prefix {
	c := check("", network, nodes)
	out := make(map[string][]netip.Prefix, len(c.nodes))
	for i := range c.nodes {
		if own := c.destinations(i); len(own) > 0 {
			out[c.nodes[i].Name] = own
		}
	}
	return out
}

// SingleHolders is what DestinationsByNode is not told: address -> the node that holds it by
// itself (Node.Singles), and that others send it to. What lies in a range of that node is left
// out: it is reached as the range is.
func SingleHolders(network Network, nodes []Node) map[netip.Addr]string {
	c := check("", network, nodes)
	out := make(map[netip.Addr]string, len(c.singles))
	for i, own := range c.apart {
		for _, dst := range own {
			out[dst.Addr()] = c.nodes[i].Name
		}
	}
	return out
}

// Apart returns what is some node's alone, as cidr.Aggregate returns it: what nodes
// own, as others route it, and their podCIDRs, also where addresses do not come from
// these. Nothing of it is shared, so a pool's addresses there are given by that node.
func Apart(network Network, nodes []Node) []netip.Prefix {
	var all []netip.Prefix
	for _, own := range DestinationsByNode(network, nodes) {
		all = append(all, own...)
	}
	for _, n := range nodes {
		all = append(all, n.NodeCIDRs...)
	}
	return cidr.Aggregate(all)
}
