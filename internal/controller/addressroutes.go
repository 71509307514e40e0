package controller

import (
	"net/netip"
	"slices"
	"time"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// Routes of the cloud to single addresses (spec.cloud.fixedAddressRoutes): for what is
// in the VPC and no node, since nodes reach these addresses by tunnel. An address is
// written into the ClusterNetwork's status before it gets an entry, and taken out after
// a listing no longer has that entry: in between, nodes leave nothing for the address to
// the fabric, wherever it is (plan.Network.Diverted). So it can go back to the node
// whose range it is in before the cloud has done anything about it.

// fixedAddress is one that is for one pod, on a node whose ranges do not have it.
type fixedAddress struct {
	address netip.Addr
	node    string
}

// fixedAddresses returns those that are to have entries, at most as many as the
// configuration allows: those first that have them.
func fixedAddresses(o *kube.Objects, s plan.Snapshot, spec *v1alpha1.ClusterNetworkSpec) []fixedAddress {
	if spec == nil || !spec.Cloud.PublishesRoutes() || spec.Cloud.FixedAddressRoutes <= 0 {
		return nil
	}
	holders := plan.SingleHolders(s.Network, s.Nodes)
	var out []fixedAddress
	for _, l := range o.Leases() {
		if l.IsSingle() && !l.ForAnyone() && l.Node != "" && holders[l.Address()] == l.Node {
			out = append(out, fixedAddress{l.Address(), l.Node})
		}
	}
	has := make(map[netip.Addr]int, len(s.Network.Diverted))
	for _, a := range s.Network.Diverted {
		has[a] = 1
	}
	slices.SortStableFunc(out, func(a, b fixedAddress) int { return has[b.address] - has[a.address] })
	return out[:min(len(out), int(spec.Cloud.FixedAddressRoutes))]
}

// addressWants are the entries of those addresses that the status has.
func addressWants(o *kube.Objects, s plan.Snapshot, fixed []fixedAddress) []routes.Want {
	if len(fixed) == 0 {
		return nil
	}
	var out []routes.Want
	provider := providerIDs(o)
	for _, f := range fixed {
		i := slices.IndexFunc(s.Nodes, func(n plan.Node) bool { return n.Name == f.node })
		if i < 0 || !slices.Contains(s.Network.Diverted, f.address) {
			continue
		}
		w := wantOf(s.Nodes[i], netip.PrefixFrom(f.address, f.address.BitLen()), provider)
		w.Single = true
		out = append(out, w)
	}
	return out
}

// addressRoutes returns what the ClusterNetwork's status is to say of addresses with
// entries of their own: those that are to have one, those that have, whoever has
// forgotten it, and those that may still have. An entry is gone once a listing does not
// show it that was begun so long after it was last wanted that no call for it is under
// way.
func (m *memory) addressRoutes(had []netip.Addr, fixed []fixedAddress, s *routes.Status, patience time.Duration, now time.Time) []string {
	var keep, fresh []netip.Addr
	unwanted := map[netip.Addr]time.Time{}
	isWanted := func(a netip.Addr) bool {
		return slices.ContainsFunc(fixed, func(f fixedAddress) bool { return f.address == a })
	}
	for _, a := range had {
		if isWanted(a) {
			keep = append(keep, a)
			continue
		}
		since, known := m.unwanted[a]
		if !known {
			since = now
		}
		unwanted[a] = since
		if s.Begun.Before(since.Add(patience)) || slices.Contains(s.Diverted, a) {
			keep = append(keep, a)
		}
	}
	m.unwanted = unwanted
	for _, a := range s.Diverted {
		if !slices.Contains(had, a) {
			fresh = append(fresh, a)
		}
	}
	for _, f := range fixed {
		if s.Mode == routes.Write && !slices.Contains(had, f.address) && !slices.Contains(fresh, f.address) {
			fresh = append(fresh, f.address)
		}
	}
	keep = append(keep, fresh[:min(len(fresh), max(0, v1alpha1.MaxAddressRoutes-len(keep)))]...)
	slices.SortFunc(keep, netip.Addr.Compare)
	var out []string
	for _, a := range keep {
		out = append(out, a.String())
	}
	return out
}
