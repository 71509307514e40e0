package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// Witnesses are what is known of addresses: the API server's objects, and what
// each node has in its journal, its kernel and host-local's files.
type Witnesses struct {
	Objects *kube.Objects
	Pods    []kube.PodAddress
	// Views maps node -> what its agent sees; Silent maps the others -> why
	// they could not be asked.
	Views  map[string]addresses.View
	Silent map[string]string
}

// Finding is one difference between the witnesses.
type Finding struct {
	Kind    string     `json:"kind"`
	Node    string     `json:"node,omitempty"`
	Address netip.Addr `json:"address,omitzero"`
	// Holder is the pod, or the container where no pod is known.
	Holder  string `json:"holder,omitempty"`
	Message string `json:"message"`
	Remedy  string `json:"remedy"`
}

// The kinds of differences.
const (
	HeldTwice    = "HeldTwice"    // two holders: the one thing that must never be
	NotInJournal = "NotInJournal" // a pod has it, and its node's journal does not
	OtherHolder  = "OtherHolder"  // a pod has it, and the journal says another
	NotWired     = "NotWired"     // held, and no route of the node leads to it
	NotHeld      = "NotHeld"      // a route leads to it, and nobody holds it
	OtherLink    = "OtherLink"    // a route leads to another's link
	PodGone      = "PodGone"      // held for a pod that the API server has not
	SandboxEnded = "SandboxEnded" // held for a sandbox that is gone
	Unreachable  = "Unreachable"  // held on a node that no other node sends it to
	StaleFile    = "StaleFile"    // a file of host-local's that nobody stands behind
	LeaseProblem = "LeaseProblem" // see BlockUsage
	NotAsked     = "NotAsked"     // the node's agent does not answer
)

// Comparison is what comparing the witnesses gave.
type Comparison struct {
	// Nodes, Holdings and Pods count what was compared.
	Nodes    int       `json:"nodes"`
	Holdings int       `json:"holdings"`
	Pods     int       `json:"pods"`
	Findings []Finding `json:"differences"`
}

// Failed says whether there is any difference.
func (c Comparison) Failed() bool { return len(c.Findings) > 0 }

// Both keeps the differences that were there before too. Pods come and go while
// the witnesses are asked one after another: what is a difference lasts.
func (c Comparison) Both(before Comparison) Comparison {
	c.Findings = slices.DeleteFunc(slices.Clone(c.Findings), func(f Finding) bool {
		return !slices.ContainsFunc(before.Findings, func(o Finding) bool {
			return o.Kind == f.Kind && o.Node == f.Node && o.Address == f.Address && o.Holder == f.Holder
		})
	})
	return c
}

// Compare compares the witnesses.
func Compare(w Witnesses) (Comparison, error) {
	snapshot, problem := w.Objects.Snapshot("")
	if problem != "" {
		return Comparison{}, fmt.Errorf("there are no pod addresses, since no pod network is in force: %s", problem)
	}
	c := &comparing{w: w, podCIDRs: snapshot.Network.PodCIDRs, owned: plan.DestinationsByNode(snapshot.Network, snapshot.Nodes),
		singles: plan.SingleHolders(snapshot.Network, snapshot.Nodes), byUID: map[string]*kube.PodAddress{}}
	for i := range w.Pods {
		p := &w.Pods[i]
		c.byUID[p.UID] = p
		if p.ConfigHash != "" {
			c.byUID[p.ConfigHash] = p // what the runtime calls a static pod
		}
	}
	c.silent()
	c.twice()
	for _, node := range slices.Sorted(maps.Keys(w.Views)) {
		c.node(node, w.Views[node])
	}
	c.pods()
	c.leases()
	c.out.Nodes = len(w.Views)
	slices.SortStableFunc(c.out.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), a.Address.Compare(b.Address), cmp.Compare(a.Kind, b.Kind))
	})
	return c.out, nil
}

type comparing struct {
	w        Witnesses
	podCIDRs []netip.Prefix
	owned    map[string][]netip.Prefix   // node -> the ranges that other nodes send to it
	singles  map[netip.Addr]string       // address -> the node that it is sent to by itself
	byUID    map[string]*kube.PodAddress // UID, or a static pod's hash -> pod
	out      Comparison
}

func (c *comparing) find(kind, node string, a netip.Addr, holder, remedy, format string, args ...any) {
	c.out.Findings = append(c.out.Findings, Finding{Kind: kind, Node: node, Address: a, Holder: holder, Remedy: remedy, Message: fmt.Sprintf(format, args...)})
}

func (c *comparing) silent() {
	for _, node := range slices.Sorted(maps.Keys(c.w.Silent)) {
		c.find(NotAsked, node, netip.Addr{}, "", "look at the agent there; its addresses were not compared", "node %s: %s", node, c.w.Silent[node])
	}
}

// holderOf names a holder for a person.
func holderOf(h addresses.Holding) string {
	if h.Owner != (ipam.Owner{}) {
		return h.Owner.String()
	}
	if h.StandIn {
		return "whoever is behind the link " + h.Key.ContainerID
	}
	return "container " + h.Key.ContainerID
}

// twice looks for addresses with two holders, on whichever nodes.
func (c *comparing) twice() {
	type place struct{ node, holder string }
	first := map[netip.Addr]place{}
	for _, node := range slices.Sorted(maps.Keys(c.w.Views)) {
		for _, h := range c.w.Views[node].Holdings {
			for _, a := range h.Addresses {
				here := place{node, holderOf(h)}
				if other, held := first[a]; held {
					c.find(HeldTwice, node, a, here.holder, "delete one of the two; and please report it: this must never be",
						"%s is held by %s on node %s and by %s on node %s", a, other.holder, other.node, here.holder, node)
					continue
				}
				first[a] = here
			}
		}
	}
	pods := map[netip.Addr]*kube.PodAddress{}
	for i := range c.w.Pods {
		p := &c.w.Pods[i]
		if p.Ended || p.Deleting {
			continue
		}
		for _, a := range p.Addresses {
			if other := pods[a]; other != nil && holds(c.podCIDRs, a) {
				c.find(HeldTwice, p.Node, a, podName(p), "delete one of the two; and please report it: this must never be",
					"the API server has %s for %s on node %s and for %s on node %s", a, podName(other), other.Node, podName(p), p.Node)
			}
			pods[a] = p
		}
	}
}

func podName(p *kube.PodAddress) string { return "pod " + p.Namespace + "/" + p.Name }

// node compares one node's journal with its kernel and with the pods.
func (c *comparing) node(node string, v addresses.View) {
	links := map[netip.Addr]addresses.Link{}
	for _, l := range v.Links {
		for _, a := range l.Addresses {
			links[a] = l
		}
	}
	held := map[netip.Addr]addresses.Holding{}
	keys := map[ipam.Key]bool{}
	for _, h := range v.Holdings {
		c.out.Holdings++
		keys[h.Key] = true
		for _, a := range h.Addresses {
			held[a] = h
			l, wired := links[a]
			c.holding(node, a, h, l, wired)
		}
	}
	for _, l := range v.Links {
		for _, a := range l.Addresses {
			if _, is := held[a]; !is && holds(c.podCIDRs, a) {
				c.find(NotHeld, node, a, l.Name, "restart the agent there, which finds what its kernel routes; then delete the pod if the address is another's too",
					"node %s routes %s to the link %s (%s), and nobody holds it in the journal", node, a, l.Name, l.Owner)
			}
		}
	}
	for _, f := range v.HostLocal {
		if !keys[f.Key] {
			c.find(StaleFile, node, f.Address, "container "+f.Key.ContainerID, "ropeway migrate addresses --node "+node+" looks whether its sandbox is gone, and then removes it",
				"host-local on node %s has a file of %s for container %s in network %s, which the journal does not know", node, f.Address, f.Key.ContainerID, f.Key.Network)
		}
	}
}

// holding compares what the journal has of one address with the rest.
func (c *comparing) holding(node string, a netip.Addr, h addresses.Holding, l addresses.Link, wired bool) {
	holder := holderOf(h)
	pod, podThere := c.byUID[h.Owner.UID]
	release := "ropeway ipam release " + a.String() + " frees it, once nothing speaks for it"
	switch {
	case wired && l.Ours && l.Key != h.Key && !h.StandIn:
		c.find(OtherLink, node, a, holder, "delete both pods", "node %s routes %s to the link %s of %s, and the journal has it for %s", node, a, l.Name, l.Owner, holder)
	case h.Sandbox == addresses.SandboxGone && !wired:
		c.find(SandboxEnded, node, a, holder, "the agent frees it within two looks, a minute; if not: "+release,
			"node %s holds %s for %s, whose sandbox is gone (container %s)", node, a, holder, h.Key.ContainerID)
	case h.Owner.UID != "" && !podThere && (wired || h.Sandbox == addresses.SandboxLives):
		c.find(PodGone, node, a, holder, "the runtime still has its sandbox: crictl rmp -f, container "+h.Key.ContainerID+"; until then the address stays held",
			"node %s holds %s for %s, which is not in the API server any more, and whose sandbox lives", node, a, holder)
	case h.Owner.UID != "" && !podThere:
		c.find(PodGone, node, a, holder, release, "node %s holds %s for %s, which is not in the API server any more (container %s)", node, a, holder, h.Key.ContainerID)
	case !wired && podThere && !pod.Ended && !pod.Deleting && slices.Contains(pod.Addresses, a) && holds(c.podCIDRs, a): // an underlay's is not for us to route
		c.find(NotWired, node, a, holder, "delete the pod, so that it is made anew", "%s has %s, and no route of node %s leads to it", holder, a, node)
	}
	if !c.sent(node, a) && holds(c.podCIDRs, a) {
		c.find(Unreachable, node, a, holder, "delete the pod, so that it gets an address of its node; ropeway plan shows who owns what",
			"%s on node %s has %s, which other nodes do not send there", holder, node, a)
	}
}

// sent says whether other nodes send an address to a node.
func (c *comparing) sent(node string, a netip.Addr) bool {
	if holder, single := c.singles[a]; single {
		return holder == node
	}
	return holds(c.owned[node], a)
}

// pods wants each pod's address in the journal of its node, for that pod.
func (c *comparing) pods() {
	for i := range c.w.Pods {
		p := &c.w.Pods[i]
		view, asked := c.w.Views[p.Node]
		if p.Ended || p.Deleting || !asked {
			continue
		}
		for _, a := range p.Addresses {
			if !holds(c.podCIDRs, a) {
				continue
			}
			c.out.Pods++
			at := slices.IndexFunc(view.Holdings, func(h addresses.Holding) bool { return slices.Contains(h.Addresses, a) })
			if at < 0 {
				c.find(NotInJournal, p.Node, a, podName(p), "delete the pod before another gets its address", "%s has %s, and the journal of its node %s does not", podName(p), a, p.Node)
				continue
			}
			if uid := view.Holdings[at].Owner.UID; uid != "" && c.byUID[uid] != p && c.byUID[uid] != nil {
				c.find(OtherHolder, p.Node, a, podName(p), "delete both pods", "%s has %s, and the journal of its node %s has it for %s", podName(p), a, p.Node, holderOf(view.Holdings[at]))
			}
		}
	}
}

func (c *comparing) leases() {
	for _, b := range BlocksOf(c.w.Objects, nil).Blocks {
		if b.Problem != "" {
			c.find(LeaseProblem, b.Node, netip.Addr{}, b.CIDR, "ropeway ipam blocks shows them all", "the block %s: %s", b.CIDR, b.Problem)
		}
	}
}

// Table writes the comparison for a person.
func (c Comparison) Table(w io.Writer, _ bool) error {
	for _, f := range c.Findings {
		fmt.Fprintf(w, "%-12s  %s\n%-12s  -> %s\n", f.Kind, f.Message, "", f.Remedy)
	}
	if len(c.Findings) > 0 {
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintf(w, "%d nodes, %d holdings, %d addresses of pods compared: %d differences\n", c.Nodes, c.Holdings, c.Pods, len(c.Findings))
	return err
}
