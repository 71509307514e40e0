package plan

import "net/netip"

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
