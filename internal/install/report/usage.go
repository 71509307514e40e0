package report

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Usage is how many pod addresses there are, and who has them.
type Usage struct {
	Nodes      []NodeUsage      `json:"nodes"`
	Pools      []PoolUsage      `json:"pools"`
	Namespaces []NamespaceUsage `json:"namespaces"`
}

// NodeUsage is one node's. Total leaves out what no pod gets; beside what is in
// CIDRs it has the addresses that the node holds by themselves.
type NodeUsage struct {
	Node  string   `json:"node"`
	CIDRs []string `json:"cidrs"`
	Used  uint64   `json:"used"`
	Total uint64   `json:"total"`
}

// NamespaceUsage counts the pods of a namespace that have addresses of the pod
// network, and those.
type NamespaceUsage struct {
	Namespace string `json:"namespace"`
	Pods      int    `json:"pods"`
	Addresses int    `json:"addresses"`
}

// PoolUsage is one pool's, whatever its kind.
type PoolUsage struct {
	Kind    string   `json:"kind"`
	Name    string   `json:"name"`
	Ranges  []string `json:"ranges"`
	Used    uint64   `json:"used"`
	Total   uint64   `json:"total"`
	Nodes   []string `json:"nodes,omitempty"` // on which addresses of it are in use
	Default bool     `json:"default"`
	Disable bool     `json:"disabled"`
	// Problem says why it gives no address, or not all of them.
	Problem string `json:"problem,omitempty"`
	refused bool   // it gives none
	// Underlay is true of a pool outside the pod network, which serves only interfaces
	// that another main plugin makes.
	Underlay bool   `json:"underlay,omitempty"`
	givable  uint64 // of Total: those that no SpiderReservedIP keeps from being given
	// Shared counts the addresses that lie in no node's range: pods on each node
	// that may use the pool get them.
	Shared uint64 `json:"shared"`
}

// UsageOf puts a Usage together; nodes names those to show, none means all.
func UsageOf(c *kube.Objects, pods []kube.PodAddress, nodes []string) (Usage, error) {
	if err := known(c, nodes); err != nil {
		return Usage{}, err
	}
	snapshot, problem := c.Snapshot("")
	if problem != "" {
		return Usage{}, fmt.Errorf("there are no pod addresses, since no pod network is in force: %s", problem)
	}
	u := Usage{Nodes: []NodeUsage{}, Pools: PoolsOf(c).Pools, Namespaces: namespaceUsage(snapshot, pods)}
	said := nodeNetworks(c)
	singles := map[string]uint64{} // node -> addresses that it holds by themselves
	for _, node := range plan.SingleHolders(snapshot.Network, snapshot.Nodes) {
		singles[node]++
	}
	for _, l := range c.Leases() {
		if l.IsSingle() && l.Usable() && !holds(snapshot.Network.PodCIDRs, l.Address()) {
			singles[l.Node]++
		}
	}
	for _, n := range snapshot.Nodes {
		if len(nodes) > 0 && !slices.Contains(nodes, n.Name) {
			continue
		}
		one := NodeUsage{Node: n.Name, CIDRs: []string{}}
		for _, r := range plan.RangesOf(snapshot.Network, n, snapshot.Nodes) {
			one.CIDRs = append(one.CIDRs, r.CIDR.String())
			one.Total = addCapped(one.Total, given(r, n.Sources))
		}
		one.Total = addCapped(one.Total, singles[n.Name])
		if nn := said[n.Name]; nn != nil && nn.Status.NodeUID == n.UID {
			one.Used = uint64(max(nn.Status.Pods, 0))
		}
		u.Nodes = append(u.Nodes, one)
	}
	return u, nil
}

// given counts the addresses of a node's range that pods may get.
func given(r plan.Range, sources []netip.Addr) uint64 {
	kind := ipam.Block
	if r.NodeCIDR {
		kind = ipam.NodeCIDR
	}
	one := ipam.RangeFor(r.CIDR, kind, sources...)
	var sum uint64
	for _, p := range cidr.Subtract([]netip.Prefix{one.Prefix}, append(one.Reserved, r.Except...)) {
		sum = addCapped(sum, cidr.Size(p))
	}
	return sum
}

func addCapped(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

func namespaceUsage(s plan.Snapshot, pods []kube.PodAddress) []NamespaceUsage {
	counts := map[string]*NamespaceUsage{}
	out := []NamespaceUsage{}
	for _, p := range pods {
		n := 0
		for _, a := range p.Addresses {
			if holds(s.Network.PodCIDRs, a) {
				n++
			}
		}
		if n == 0 || p.Ended {
			continue
		}
		one := counts[p.Namespace]
		if one == nil {
			one = &NamespaceUsage{Namespace: p.Namespace}
			counts[p.Namespace] = one
		}
		one.Pods++
		one.Addresses += n
	}
	for _, one := range counts {
		out = append(out, *one)
	}
	slices.SortFunc(out, func(a, b NamespaceUsage) int {
		return cmp.Or(-cmp.Compare(a.Addresses, b.Addresses), cmp.Compare(a.Namespace, b.Namespace))
	})
	return out
}

func holds(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Pools is every pool, of both kinds.
type Pools struct {
	Pools []PoolUsage `json:"pools"`
}

// PoolsOf looks at the pools as the agents do.
func PoolsOf(c *kube.Objects) Pools {
	snapshot, problem := c.Snapshot("")
	all, reserved := c.Pools()
	verdicts := pool.Judge(all, snapshot.Network.PodCIDRs)
	owned := plan.Apart(snapshot.Network, snapshot.Nodes)
	out := Pools{Pools: []PoolUsage{}}
	for _, p := range all {
		one := PoolUsage{Kind: p.Kind, Name: p.Name, Ranges: texts(p.Ranges), Total: p.Size(), Default: p.Default, Disable: p.Disabled, givable: pool.Outside(p, reserved)}
		for _, nn := range c.NodeNetworks {
			if n := nn.Status.Pools[string(p.ID())]; n > 0 {
				one.Used += uint64(n)
				one.Nodes = append(one.Nodes, nn.Name)
			}
		}
		v := verdicts[p.ID()]
		switch {
		case problem != "":
			one.Problem, one.refused = "no pod network is in force: "+problem, true
		case !v.Accepted:
			one.Problem, one.refused = v.Message, true
		default:
			one.Underlay, one.Shared = v.Underlay, pool.Outside(p, owned)
		}
		out.Pools = append(out.Pools, one)
	}
	return out
}

// Table writes the usage for a person.
func (u Usage) Table(w io.Writer, wide bool) error {
	var rows [][]string
	for _, n := range u.Nodes {
		rows = append(rows, []string{n.Node, strings.Join(n.CIDRs, ","), count(n.Used), count(n.Total), share(n.Used, n.Total)})
	}
	if err := columns(w, []string{"NODE", "CIDRS", "USED", "TOTAL", "SHARE"}, rows); err != nil {
		return err
	}
	if len(u.Pools) > 0 {
		fmt.Fprintln(w)
		if err := (Pools{u.Pools}).Table(w, wide); err != nil {
			return err
		}
	}
	rows = nil
	for _, n := range u.Namespaces {
		rows = append(rows, []string{n.Namespace, strconv.Itoa(n.Pods), strconv.Itoa(n.Addresses)})
	}
	fmt.Fprintln(w)
	return columns(w, []string{"NAMESPACE", "PODS", "ADDRESSES"}, rows)
}

// Table writes the pools for a person.
func (p Pools) Table(w io.Writer, wide bool) error {
	head := []string{"POOL", "USED", "TOTAL", "SHARE", "SHARED", "DEFAULT", "GIVES"}
	if wide {
		head = append(head, "NODES", "RANGES")
	}
	var rows [][]string
	for _, one := range p.Pools {
		row := []string{one.Kind + "/" + one.Name, count(one.Used), count(one.Total), share(one.Used, one.Total), count(one.Shared), yesNo(one.Default), one.gives()}
		if wide {
			row = append(row, strings.Join(one.Nodes, ","), strings.Join(one.Ranges, ","))
		}
		rows = append(rows, row)
	}
	if err := columns(w, head, rows); err != nil {
		return err
	}
	for _, one := range p.Pools {
		if one.Problem != "" {
			fmt.Fprintf(w, "! %s/%s: %s\n", one.Kind, one.Name, one.Problem)
		}
	}
	return nil
}

// gives says whether pods get addresses of it.
func (p PoolUsage) gives() string {
	if p.Underlay && !p.Disable {
		return "underlay"
	}
	return yesNo(!p.refused && !p.Disable)
}

// count writes a number of addresses; one that does not fit is as good as endless.
func count(n uint64) string {
	if n == math.MaxUint64 {
		return "2^64 or more"
	}
	return strconv.FormatUint(n, 10)
}

func share(used, total uint64) string {
	if total == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(used)/float64(total))
}

// Blocks is every lease.
type Blocks struct {
	Blocks []BlockUsage `json:"blocks"`
}

// BlockUsage is one lease: a block of a node's, a block that nodes share, or a
// single address.
type BlockUsage struct {
	CIDR string `json:"cidr"`
	Node string `json:"node,omitempty"`
	// For says whose a lease is that no node owns as a block: the sharing's state,
	// the pool of a single address, the pod that it is kept for.
	For        string `json:"for,omitempty"`
	Generation int64  `json:"generation"`
	// Used counts the addresses that pods have of it, by the API server.
	Used  int    `json:"used"`
	Total uint64 `json:"total"`
	// Problem says what is wrong with the lease.
	Problem string `json:"problem,omitempty"`
}

// BlocksOf goes through the leases.
func BlocksOf(c *kube.Objects, pods []kube.PodAddress) Blocks {
	out := Blocks{Blocks: []BlockUsage{}}
	leases := c.Leases()
	used := usedOf(leases, pods)
	said := map[string]string{} // node -> UID
	for i := range c.Nodes {
		said[c.Nodes[i].Name] = string(c.Nodes[i].UID)
	}
	last := -1 // the block of a node before this one
	for i, l := range leases {
		one := BlockUsage{CIDR: l.Prefix.String(), Node: l.Node, For: leaseFor(l), Generation: l.Generation, Used: used[l.Prefix], Total: cidr.Size(l.Prefix)}
		ofNode := l.Sharing == "" && !l.IsSingle()
		switch uid, there := said[l.Node]; {
		case l.Node == "": // shared, or kept for a pod that does not run
		case !there:
			one.Problem = fmt.Sprintf("its node %s is not there: the controller gives the lease back a minute after a node is gone", l.Node)
		case uid != l.NodeUID:
			one.Problem = fmt.Sprintf("node %s was registered anew, and its agent has not yet adopted the lease", l.Node)
		case ofNode && last >= 0 && leases[last].Prefix.Overlaps(l.Prefix):
			one.Problem = fmt.Sprintf("it overlaps %s of node %s", leases[last].Prefix, leases[last].Node)
		}
		if ofNode {
			last = i
		}
		out.Blocks = append(out.Blocks, one)
	}
	return out
}

// leaseFor says whose a lease is that is no node's block.
func leaseFor(l kube.Lease) string {
	switch {
	case l.Sharing != "":
		return "all nodes (" + string(l.Sharing) + ")"
	case l.KeptFor.Pod != "":
		return l.KeptFor.Namespace + "/" + l.KeptFor.Pod
	}
	return l.Pool
}

// usedOf counts pods' addresses for each lease that they lie in.
func usedOf(leases []kube.Lease, pods []kube.PodAddress) map[netip.Prefix]int {
	sizes := map[int]bool{} // prefix lengths that occur: few
	used := map[netip.Prefix]int{}
	for _, l := range leases {
		sizes[l.Prefix.Bits()] = true
		used[l.Prefix] = 0
	}
	for _, p := range pods {
		if p.Ended {
			continue
		}
		for _, a := range p.Addresses {
			for bits := range sizes {
				around, err := a.Prefix(bits)
				if _, leased := used[around]; err == nil && leased {
					used[around]++
				}
			}
		}
	}
	return used
}

// Table writes the leases for a person.
func (b Blocks) Table(w io.Writer, wide bool) error {
	head := []string{"BLOCK", "NODE", "USED", "ADDRESSES", "FOR"}
	if wide {
		head = append(head, "GENERATION")
	}
	var rows [][]string
	for _, one := range b.Blocks {
		row := []string{one.CIDR, orDash(one.Node), strconv.Itoa(one.Used), count(one.Total), orDash(one.For)}
		if wide {
			row = append(row, strconv.FormatInt(one.Generation, 10))
		}
		rows = append(rows, row)
	}
	if err := columns(w, head, rows); err != nil {
		return err
	}
	for _, one := range b.Blocks {
		if one.Problem != "" {
			fmt.Fprintf(w, "! %s: %s\n", one.CIDR, one.Problem)
		}
	}
	return nil
}
