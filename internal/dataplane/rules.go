package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/plan"
)

// The node's nftables rules, as data. They are the same few on every node and
// for every size of cluster: what grows lies in sets, and no rule belongs to a
// single pod, so that a pod's start needs no transaction.
//
// The table is of family inet and ours alone; nobody else's is touched.
const tableName = "ropeway"

// masqueradeMark is the bit of the packet mark by which kube-proxy asks for
// masquerading (its default, --iptables-masquerade-bit=14).
const masqueradeMark = "0x4000"

// Names of the sets.
const (
	setPods4    = "pods4" // the CIDRs of the pod network
	setPods6    = "pods6"
	setNodes4   = "nodes4" // all nodes' addresses in the fabric
	setNodes6   = "nodes6"
	setOwn4     = "own4" // this node's
	setOwn6     = "own6"
	setDenied4  = "denied4" // what pods may not reach, but those of setExempt
	setDenied6  = "denied6"
	setExempt   = "exempt"
	setBare4    = "bare4" // this node's CIDRs that the fabric leads to by itself
	setBare6    = "bare6"
	setFabric4  = "fabric4" // where the fabric's routes hold
	setFabric6  = "fabric6"
	podLinks    = `"` + podlink.Prefix + `*"`
	priorityNAT = 90 // before kube-proxy's, which is srcnat (100)

	// refused ends rules whose packets are answered by ICMP (RFC 1812, section
	// 5.2.7.1; RFC 4443, section 3.1).
	refused = " counter reject with icmpx type admin-prohibited"

	// leaving matches what leaves the node.
	leaving = `oifname != "lo" oifname != ` + podLinks
)

// ruleset is the content of the table.
type ruleset struct {
	Sets   []ruleSet
	Chains []ruleChain
}

// ruleSet is a named set of addresses, of CIDRs, or of names of devices.
type ruleSet struct {
	Name     string
	Type     string // ipv4_addr, ipv6_addr or ifname
	CIDRs    bool
	Elements []string // in order
}

// ruleChain is a base chain if Hook is set. Others come before what jumps there.
type ruleChain struct {
	Name, Type, Hook string
	Priority         int
	Comment          string
	Rules            []rule
}

type rule struct{ Text, Comment string }

// clamps are the largest TCP segments in bytes for each family; 0 for none.
type clamps struct{ ipv4, ipv6 int }

// rulesFor computes the table for a State.
func rulesFor(want plan.State, clamp clamps) ruleset {
	nodes := slices.Clone(want.Addresses)
	for _, peer := range want.Peers {
		nodes = append(nodes, peer.Addresses...)
	}
	r := ruleset{Sets: slices.Concat(
		cidrSets(setPods4, setPods6, want.PodCIDRs),
		addressSets(setNodes4, setNodes6, nodes),
		addressSets(setOwn4, setOwn6, want.Addresses),
		addressSets(setDenied4, setDenied6, want.Metadata.Denied()),
		[]ruleSet{linkSet(setExempt, want.Metadata.Links)},
		cidrSets(setBare4, setBare6, want.Bare.Sources),
		cidrSets(setFabric4, setFabric6, want.Bare.Destinations),
	)}
	r.Chains = slices.Concat(clampChains(clamp), podChains(want.VXLAN.Port), vxlanChains(want.VXLAN.Port))
	r.Chains = append(r.Chains, natChain(want))
	return r
}

func cidrSets(name4, name6 string, list []netip.Prefix) []ruleSet {
	v4, v6 := ruleSet{Name: name4, Type: "ipv4_addr", CIDRs: true}, ruleSet{Name: name6, Type: "ipv6_addr", CIDRs: true}
	for _, p := range list {
		if p.Addr().Is4() {
			v4.Elements = append(v4.Elements, p.Masked().String())
		} else {
			v6.Elements = append(v6.Elements, p.Masked().String())
		}
	}
	return []ruleSet{v4.sorted(), v6.sorted()}
}

func addressSets(name4, name6 string, list []netip.Addr) []ruleSet {
	v4, v6 := ruleSet{Name: name4, Type: "ipv4_addr"}, ruleSet{Name: name6, Type: "ipv6_addr"}
	for _, a := range list {
		if a.Is4() {
			v4.Elements = append(v4.Elements, a.String())
		} else {
			v6.Elements = append(v6.Elements, a.String())
		}
	}
	return []ruleSet{v4.sorted(), v6.sorted()}
}

// linkSet is a set of names of pods' links.
func linkSet(name string, links []string) ruleSet {
	s := ruleSet{Name: name, Type: "ifname"}
	for _, l := range links {
		s.Elements = append(s.Elements, strconv.Quote(l))
	}
	return s.sorted()
}

func (s ruleSet) sorted() ruleSet {
	slices.Sort(s.Elements)
	s.Elements = slices.Compact(s.Elements)
	return s
}

// podChains hold what pods may not send. Sources are checked by the route back:
// it must lead to the very device that the packet came from, so an address is a
// pod's own exactly as long as its route is there. That is asked of every packet,
// established or not: a flow that is known belongs to addresses, not to a pod.
// Destinations are checked where services have been resolved already, since a
// Service may have any address as its endpoint.
//
// Nobody else speaks the nodes' tunnels either: what is masqueraded on its way out
// (pods of another main plugin, another program's containers) would arrive as if
// this node had sent it, and be believed. What comes from a node may be another
// node's that is only passed on.
//
// All chains are passed by every packet that is forwarded, so each asks first
// what most packets answer with no, and what costs a look-up last: TCP that is not
// a pod's passes two rules.
func podChains(port uint16) []ruleChain {
	return []ruleChain{
		{
			Name: "from_pods",
			Rules: []rule{
				{Text: "ip6 saddr { ::, fe80::/10 } icmpv6 type { 130-133, 135, 136, 143 } return", Comment: "neighbour and listener discovery"},
				{Text: "fib saddr . iif oif 0 counter drop", Comment: "not the pod's address"},
			},
		},
		{
			Name: "tunnels",
			Rules: []rule{
				{Text: fmt.Sprintf("ip protocol 4 ip daddr @%s ip saddr != @%s counter drop", setNodes4, setNodes4), Comment: "ipip to a node"},
				{Text: fmt.Sprintf("udp dport %d ip daddr @%s ip saddr != @%s counter drop", port, setNodes4, setNodes4), Comment: "vxlan to a node"},
				{Text: fmt.Sprintf("udp dport %d ip6 daddr @%s ip6 saddr != @%s counter drop", port, setNodes6, setNodes6), Comment: "vxlan to a node"},
			},
		},
		{
			Name: "forwarded", Type: "filter", Hook: "forward", Priority: -10,
			Comment: "nobody but nodes speaks their tunnels, nor pods to the cloud's metadata; TCP fits",
			Rules: []rule{
				toClamp,
				{Text: "iifname != " + podLinks + " meta l4proto 6 return"},
				{Text: "meta l4proto != 6 jump tunnels"},
				// An answer spares the many programs that ask it at their start, to
				// see where they are, from waiting for none.
				{Text: "ip daddr @" + setDenied4 + " iifname " + podLinks + " iifname != @" + setExempt + refused, Comment: "the cloud's metadata"},
				{Text: "ip6 daddr @" + setDenied6 + " iifname " + podLinks + " iifname != @" + setExempt + refused, Comment: "the cloud's metadata"},
			},
		},
	}
}

// vxlanChains accept vxlan packets from nodes only, and keep them out of
// connection tracking: every one of them has another source port. The device's
// socket listens on all addresses, the pod network's included. What comes from
// pods is told apart here too, which spares a hook. From them the node itself
// takes in no IP in IP: a device of the kernel's own that another program left up
// (Calico's tunl0) would let out what is inside, past the check of pods' sources.
func vxlanChains(port uint16) []ruleChain {
	untracked := func(from4, to4, from6, to6 string) []rule {
		return []rule{
			{Text: "meta l4proto != 17 return"},
			{Text: fmt.Sprintf("udp dport %d ip saddr @%s ip daddr @%s notrack", port, from4, to4)},
			{Text: fmt.Sprintf("udp dport %d ip6 saddr @%s ip6 daddr @%s notrack", port, from6, to6)},
		}
	}
	return []ruleChain{
		{
			Name: "arriving", Type: "filter", Hook: "prerouting", Priority: -300,
			Comment: "pods send from their own addresses only; nodes' vxlan is not tracked",
			Rules: append([]rule{{Text: "iifname " + podLinks + " goto from_pods"}},
				untracked(setNodes4, setOwn4, setNodes6, setOwn6)...),
		},
		{
			Name: "vxlan_out", Type: "filter", Hook: "output", Priority: -300,
			Rules: untracked(setOwn4, setNodes4, setOwn6, setNodes6),
		},
		{
			Name: "in_ip",
			Rules: []rule{
				{Text: "meta l4proto != { 4, 41 } return"},
				{Text: "iifname " + podLinks + " counter drop", Comment: "a pod's tunnel into the node"},
				{Text: "ip saddr @" + setPods4 + " counter drop", Comment: "a pod's tunnel into the node"},
				{Text: "ip6 saddr @" + setPods6 + " counter drop", Comment: "a pod's tunnel into the node"},
			},
		},
		{
			Name: "vxlan_guard", Type: "filter", Hook: "input", Priority: -10,
			Comment: "vxlan is accepted from nodes only, and no tunnel of pods",
			Rules: []rule{
				{Text: "meta l4proto 6 return"},
				{Text: "meta l4proto != 17 goto in_ip"},
				{Text: fmt.Sprintf("th dport != %d return", port)},
				{Text: "ip saddr @" + setNodes4 + " ip daddr @" + setOwn4 + " return"},
				{Text: "ip6 saddr @" + setNodes6 + " ip6 daddr @" + setOwn6 + " ip6 nexthdr 17 return"},
				{Text: "counter drop", Comment: "vxlan from something that is no node"},
			},
		},
	}
}

// toClamp is passed by the first packet of each direction of a connection.
var toClamp = rule{Text: "tcp flags & (syn | rst) == syn jump clamp"}

// clampChains keep TCP between pods of different nodes, and between nodes and
// pods, small enough for every allowed transport, so that a change of transport
// needs no path MTU discovery. A path that is found to carry less has a route that
// says so, and each connection by it is clamped to that: "rt mtu" is the smaller
// one of the routes there and back, and never makes a segment larger. It holds for
// what arrives from other nodes too, since only one end may know of the limit.
// What is forwarded is clamped where it is looked at anyway: a hook less for every
// packet.
func clampChains(c clamps) []ruleChain {
	clamp := ruleChain{Name: "clamp", Comment: "TCP fits the smallest allowed transport, and the path"}
	add := func(family, set string, size int) {
		if size > 0 {
			clamp.Rules = append(clamp.Rules, rule{Text: fmt.Sprintf("%s daddr @%s %s "+
				"tcp option maxseg size > %d tcp option maxseg size set %d", family, set, leaving, size, size)})
		}
		clamp.Rules = append(clamp.Rules, rule{Text: family + " daddr @" + set + " tcp option maxseg size set rt mtu"})
	}
	add("ip", setPods4, c.ipv4)
	add("ip6", setPods6, c.ipv6)
	// Behind kube-proxy's, which may have told it to go to a pod.
	own := ruleChain{
		Name: "sent", Type: "filter", Hook: "output", Priority: -10,
		Comment: "the node's own TCP fits",
		Rules:   []rule{toClamp},
	}
	return []ruleChain{clamp, own}
}

// natChain translates sources. It decides before kube-proxy does: kube-proxy's
// masquerading binds a flow to the device that it leaves by, and a change of
// transport would cut it.
func natChain(want plan.State) ruleChain {
	chain := ruleChain{
		Name: "nat", Type: "nat", Hook: "postrouting", Priority: priorityNAT,
		Comment: "what leaves as whom",
	}
	add := func(comment, text string) { chain.Rules = append(chain.Rules, rule{text, comment}) }
	for _, f := range []struct {
		word, pods, bare, fabric string
		family                   plan.Family
	}{{"ip", setPods4, setBare4, setFabric4, plan.IPv4}, {"ip6", setPods6, setBare6, setFabric6, plan.IPv6}} {
		if source := plan.OfFamily(want.Sources, f.family); source.IsValid() {
			snat := fmt.Sprintf("snat %s to %s fully-random", f.word, source)
			add("kube-proxy wants the answer to come back here", fmt.Sprintf("%s daddr @%s meta mark & %s == %s meta mark set meta mark & 0xffffbfff %s",
				f.word, f.pods, masqueradeMark, masqueradeMark, snat))
			add("no node accepts other sources", fmt.Sprintf("%s daddr @%s %s saddr != @%s %s %s",
				f.word, f.pods, f.word, f.pods, leaving, snat))
		}
		if want.Masquerade {
			add("the fabric leads back to these", fmt.Sprintf("%s saddr @%s %s daddr @%s return", f.word, f.bare, f.word, f.fabric))
			add("the fabric does not know pods", fmt.Sprintf("%s saddr @%s %s daddr != @%s %s masquerade fully-random",
				f.word, f.pods, f.word, f.pods, leaving))
		}
	}
	return chain
}
