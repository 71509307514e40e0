package report

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// Who is everything that is known of one address.
type Who struct {
	Address netip.Addr `json:"address"`
	// What is the address in the pod network, as a sentence.
	What string `json:"what"`
	// Node is the one that other nodes send the address to, CIDR by which
	// destination.
	Node string `json:"node,omitempty"`
	CIDR string `json:"cidr,omitempty"`
	// Pool is the pool that states it, as Kind/name.
	Pool string `json:"pool,omitempty"`
	// Pods are those that have it by the API server.
	Pods []WhoPod `json:"pods,omitempty"`
	// Holders are what nodes' journals say, Links what their kernels do.
	Holders []WhoHolder `json:"holders,omitempty"`
	Links   []WhoLink   `json:"links,omitempty"`
	// Files are containers that host-local has it for.
	Files []WhoFile `json:"hostLocal,omitempty"`
	// Silent are nodes that were asked and did not answer.
	Silent []string `json:"silent,omitempty"`
}

// WhoPod is a pod with the address.
type WhoPod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Node      string `json:"node"`
	State     string `json:"state"` // is there, is being deleted, has ended
}

// WhoHolder is an entry of a journal.
type WhoHolder struct {
	Node string `json:"node"`
	addresses.Holding
}

// WhoLink is a link that a node routes the address to.
type WhoLink struct {
	Node string `json:"node"`
	Link string `json:"link"`
}

// WhoFile is a file of host-local's.
type WhoFile struct {
	Node        string `json:"node"`
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
}

// WhoOf says what the API server's objects tell of an address.
func WhoOf(c *kube.Objects, pods []kube.PodAddress, a netip.Addr) Who {
	w := Who{Address: a}
	snapshot, _ := c.Snapshot("")
	w.Node, w.CIDR = sentTo(snapshot, a)
	all, reserved := c.Pools()
	verdicts := pool.Judge(all, snapshot.Network.PodCIDRs)
	for _, p := range all {
		if p.Contains(a) && verdicts[p.ID()].Accepted {
			w.Pool = string(p.ID())
		}
	}
	for i := range pods {
		p := &pods[i]
		if slices.Contains(p.Addresses, a) {
			state := "is there"
			if p.Ended {
				state = "has ended"
			} else if p.Deleting {
				state = "is being deleted"
			}
			w.Pods = append(w.Pods, WhoPod{p.Namespace, p.Name, p.UID, p.Node, state})
		}
	}
	w.What = whatIs(c, snapshot, w, holds(reserved, a))
	return w
}

// sentTo returns the node that others send an address to, and by which destination.
func sentTo(s plan.Snapshot, a netip.Addr) (to, by string) {
	if node, single := plan.SingleHolders(s.Network, s.Nodes)[a]; single {
		return node, netip.PrefixFrom(a, a.BitLen()).String()
	}
	longest := -1
	for node, dsts := range plan.DestinationsByNode(s.Network, s.Nodes) {
		for _, dst := range dsts {
			if dst.Contains(a) && dst.Bits() > longest {
				to, by, longest = node, dst.String(), dst.Bits()
			}
		}
	}
	return to, by
}

// whatIs says what an address is.
func whatIs(c *kube.Objects, s plan.Snapshot, w Who, reserved bool) string {
	for _, n := range s.Nodes {
		switch {
		case slices.Contains(n.Sources, w.Address):
			return "node " + n.Name + "'s own in the pod network: no pod gets it"
		case slices.Contains(n.Addresses, w.Address):
			return "the address of node " + n.Name + ", not of a pod"
		}
	}
	for _, n := range c.Nodes {
		if slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == w.Address.String() }) {
			return "an address of node " + n.Name + ", not of a pod"
		}
	}
	switch {
	case !holds(s.Network.PodCIDRs, w.Address) && w.Pool != "" && !reserved:
		return ofAnUnderlay(c, w)
	case !holds(s.Network.PodCIDRs, w.Address):
		return fmt.Sprintf("outside of the pod network %v: nothing here gives it", s.Network.PodCIDRs)
	case reserved:
		return "reserved by a SpiderReservedIP: no pod gets it"
	case w.Node == "":
		return ofNoNode(c, s, w)
	}
	return "a pod address of node " + w.Node
}

// ofAnUnderlay says what an address is that a pool outside the pod network states.
func ofAnUnderlay(c *kube.Objects, w Who) string {
	leases := c.Leases()
	what := "outside the pod network, for interfaces that another main plugin makes; "
	switch at := slices.IndexFunc(leases, func(l kube.Lease) bool { return l.IsSingle() && l.Address() == w.Address }); {
	case at < 0:
		return what + "leased to no node now"
	case leases[at].Node != "":
		return what + "leased to node " + leases[at].Node
	default:
		return what + "kept for pod " + leaseFor(leases[at]) + ", which does not run"
	}
}

// ofNoNode says what an address of the pod network is that is sent to no node.
func ofNoNode(c *kube.Objects, s plan.Snapshot, w Who) string {
	leases := c.Leases()
	at := slices.IndexFunc(leases, func(l kube.Lease) bool { return l.IsSingle() && l.Address() == w.Address })
	switch {
	case at >= 0 && leases[at].Node != "":
		return "leased to node " + leases[at].Node + ", which is not there or may not use it yet: no pod gets it meanwhile"
	case at >= 0 && leases[at].KeptFor.Pod != "":
		return "kept for pod " + leaseFor(leases[at]) + ", which does not run: no other pod gets it"
	case w.Pool != "" || holds(s.Network.Shared, w.Address):
		return "shared by nodes, and sent to none of them now"
	}
	return "in the pod network, and of no node: no pod gets it"
}

// Ask returns the nodes that may know more.
func (w Who) Ask() []string {
	var nodes []string
	for _, p := range w.Pods {
		nodes = append(nodes, p.Node)
	}
	if w.Node != "" {
		nodes = append(nodes, w.Node)
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// Add adds what a node's agent sees.
func (w *Who) Add(node string, v addresses.View) {
	for _, h := range v.Holdings {
		if slices.Contains(h.Addresses, w.Address) {
			w.Holders = append(w.Holders, WhoHolder{node, h})
		}
	}
	for _, l := range v.Links {
		if slices.Contains(l.Addresses, w.Address) {
			w.Links = append(w.Links, WhoLink{node, l.Name})
		}
	}
	for _, f := range v.HostLocal {
		if f.Address == w.Address {
			w.Files = append(w.Files, WhoFile{node, f.Key.Network, f.Key.ContainerID})
		}
	}
}

// Table writes it for a person.
func (w Who) Table(out io.Writer, _ bool) error {
	line := func(what, format string, args ...any) {
		fmt.Fprintf(out, "%-10s  %s\n", what, fmt.Sprintf(format, args...))
	}
	line("address", "%s, %s", w.Address, w.What)
	if w.CIDR != "" {
		line("sent to", "node %s, by %s", w.Node, w.CIDR)
	}
	line("pool", "%s", cmp.Or(w.Pool, "none: it serves by itself"))
	for _, p := range w.Pods {
		line("pod", "%s/%s on node %s %s", p.Namespace, p.Name, p.Node, p.State)
	}
	for _, h := range w.Holders {
		line("held", "by %s: interface %s of container %s in network %s on node %s; its sandbox: %s", holderOf(h.Holding), h.Key.IfName, h.Key.ContainerID, h.Key.Network, h.Node, h.Sandbox)
	}
	for _, l := range w.Links {
		line("routed", "to the link %s of node %s", l.Link, l.Node)
	}
	for _, f := range w.Files {
		line("host-local", "has a file for container %s in network %s on node %s", f.ContainerID, f.Network, f.Node)
	}
	if len(w.Pods)+len(w.Holders)+len(w.Links)+len(w.Files) == 0 {
		line("held", "by nobody")
	}
	return nil
}
