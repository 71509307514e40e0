package agent

import (
	"net/netip"
	"slices"
	"strings"

	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/plan"
)

// self returns the snapshot's own node.
func self(s plan.Snapshot) plan.Node {
	for _, x := range s.Nodes {
		if x.Name == s.Self {
			return x
		}
	}
	return plan.Node{Name: s.Self}
}

// publishedBy returns the probes that a node has published.
func publishedBy(s plan.Snapshot, name string) []plan.Probe {
	var out []plan.Probe
	for _, p := range s.Probes {
		if p.From == name {
			out = slices.AppendSeq(out, p.Probes())
		}
	}
	return out
}

// rangesOf returns where addresses for pods may come from.
func rangesOf(s plan.Snapshot, sources []netip.Addr) []ipam.Range {
	return rangesFor(plan.RangesOf(s.Network, self(s), s.Nodes), sources)
}

// rangesFor says in the allocator's words which ranges the node owns.
func rangesFor(owned []plan.Range, sources []netip.Addr) []ipam.Range {
	var ranges []ipam.Range
	for _, r := range owned {
		kind := ipam.Block
		if r.NodeCIDR {
			kind = ipam.NodeCIDR
		}
		one := ipam.RangeFor(r.CIDR, kind, sources...)
		one.Reserved = append(one.Reserved, r.Except...)
		ranges = append(ranges, one)
	}
	return ranges
}

func prefixesOf(ranges []ipam.Range) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range ranges {
		out = append(out, r.Prefix)
	}
	return out
}

// problemsOf returns the problems with a node's own CIDRs.
func problemsOf(all []plan.Problem, name string) []plan.Problem {
	about := []string{plan.ReasonNoNodeCIDR, plan.ReasonInvalidCIDR, plan.ReasonOutsidePodNetwork, plan.ReasonOverlap}
	return slices.DeleteFunc(slices.Clone(all), func(p plan.Problem) bool {
		return p.Node != name || !slices.Contains(about, p.Reason)
	})
}

// probeView says in the prober's words whom to prove, and whom to answer.
func probeView(s plan.Snapshot, want plan.State, mtus map[netip.Addr]int) probe.View {
	v := probe.View{ClusterID: s.Network.ClusterID, Transports: plan.Allowed(s.Network, plan.IPv4),
		VXLANPort: want.VXLAN.Port, VXLANVNI: want.VXLAN.VNI, Targets: plan.ProvenBy(s.Nodes, s.Self),
		MTU: want.MTU, UplinkMTUs: mtus}
	uids := map[string]plan.Node{}
	for _, x := range s.Nodes {
		uids[x.Name] = x
	}
	for _, p := range want.Peers {
		v.Nodes = append(v.Nodes, probe.Node{Name: p.Name, UID: uids[p.Name].UID, Outer: p.Addresses, Sources: p.Sources, VTEP: p.VTEP, Refuses: uids[p.Name].Refuses})
	}
	own := uids[s.Self]
	v.Self = probe.Node{Name: s.Self, UID: own.UID, Outer: want.Addresses, Sources: want.Sources, VTEP: want.VXLAN.MAC, Refuses: own.Refuses}
	return v
}

// bareProbes is how the dataplane is told that a probe is to leave bare.
func bareProbes() probe.Bare {
	return probe.Bare{Protocol: dataplane.BareProtocol, Mark: dataplane.BareMark, Device: dataplane.VXLANDeviceName}
}

// joinMessages puts problems into one sentence.
func joinMessages(problems []plan.Problem) string {
	var all []string
	for _, p := range problems {
		all = append(all, p.Message)
	}
	return strings.Join(all, "; ")
}
