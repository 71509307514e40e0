package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"ropeway.dev/ropeway/internal/agent/lease"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/fakestore"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// A day of the cluster that section blocks plays: pods take four fifths of what the
// nodes have room for, live for an hour on average, and are replaced at once by
// others on any node.
const (
	blockNodes   = 100
	blockBits    = 26
	podsAtMost   = 110 // on a node: the kubelet's default
	podsInAll    = blockNodes * podsAtMost * 8 / 10
	podsLive     = time.Hour
	blockDay     = 24 * time.Hour
	blockLook    = time.Minute // how often a node looks at its leases
	blockRuns    = 3
	blockSettled = 2 * time.Hour // of filling up, and of the first changes, before the day
)

// blocks plays what the agents decide about blocks, with their allocator and without
// their calls, and counts the routes that lead to the nodes.
func (b *bench) blocks(ctx context.Context) error {
	var values []float64
	for run := range blockRuns {
		c := newBlockCluster(uint64(run))
		if err := c.live(ctx); err != nil {
			return err
		}
		values = append(values, c.routes/c.looks)
		b.samples["blocks.routes"] = sample{values: slices.Clone(values), detail: fmt.Sprintf(
			"%d nodes, %d of %d pods each on average, a pod lives for %s, blocks of /26 out of a /16; in the last run %.2f blocks a node, at most %d routes to one; %d times a block was leased, %d times one given back",
			blockNodes, podsInAll/blockNodes, podsAtMost, podsLive, c.blocks/c.looks, c.most, c.leased, c.released)}
	}
	return nil
}

type blockCluster struct {
	random *rand.Rand
	now    time.Time
	day    time.Duration
	nodes  []*blockNode
	leases []lease.Lease // all, in order
	pods   []*blockPod

	routes, blocks, looks  float64 // sums over nodes and looks
	most, leased, released int
}

type blockNode struct {
	name      string
	allocator *ipam.Allocator
	owned     []netip.Prefix
	pods      int
	held      map[netip.Prefix]int // pods in a block
	empty     map[netip.Prefix]time.Time
}

type blockPod struct {
	node  *blockNode
	key   ipam.Key
	block netip.Prefix
}

func newBlockCluster(seed uint64) *blockCluster {
	c := &blockCluster{random: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1<<30, 0), day: blockDay}
	for i := range blockNodes {
		c.nodes = append(c.nodes, &blockNode{name: "node-" + strconv.Itoa(i), held: map[netip.Prefix]int{}, empty: map[netip.Prefix]time.Time{}})
	}
	return c
}

// live fills the cluster, lets pods come and go for a while, and then counts for a
// day.
func (c *blockCluster) live(ctx context.Context) error {
	for _, n := range c.nodes {
		a, err := ipam.New(fakestore.New(), ipam.Options{})
		if err != nil {
			return err
		}
		n.allocator = a
	}
	began := c.now
	each := float64(podsInAll) * blockLook.Seconds() / podsLive.Seconds() // that end between two looks
	for c.now.Sub(began) < blockSettled+c.day {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, n := range c.nodes {
			if err := c.look(n); err != nil {
				return err
			}
		}
		if c.now.Sub(began) >= blockSettled {
			c.count()
		}
		ends := int(each)
		if c.random.Float64() < each-float64(ends) {
			ends++
		}
		for range min(ends, len(c.pods)) {
			if err := c.end(c.random.IntN(len(c.pods))); err != nil {
				return err
			}
		}
		for range min(podsInAll-len(c.pods), podsInAll/5) {
			if err := c.start(); err != nil {
				return err
			}
		}
		c.now = c.now.Add(blockLook)
	}
	return nil
}

// start makes a pod on some node with room for it. Where no address is free it waits
// for the next look.
func (c *blockCluster) start() error {
	n := c.nodes[c.random.IntN(len(c.nodes))]
	for n.pods >= podsAtMost {
		n = c.nodes[c.random.IntN(len(c.nodes))]
	}
	p := &blockPod{node: n, key: ipam.Key{Network: "pods", ContainerID: strconv.FormatUint(c.random.Uint64(), 16), IfName: "eth0"}}
	got, err := n.allocator.Allocate(p.key, ipam.Owner{Namespace: "default", Name: p.key.ContainerID}, []ipam.Family{ipam.IPv4}, c.now)
	if ipam.IsExhausted(err) {
		return nil
	}
	if err != nil {
		return err
	}
	p.block = netip.PrefixFrom(got[0], blockBits).Masked()
	n.held[p.block]++
	n.pods++
	c.pods = append(c.pods, p)
	return nil
}

func (c *blockCluster) end(i int) error {
	p := c.pods[i]
	c.pods[i] = c.pods[len(c.pods)-1]
	c.pods = c.pods[:len(c.pods)-1]
	p.node.pods--
	p.node.held[p.block]--
	_, err := p.node.allocator.Release(p.key, c.now)
	return err
}

// look has a node decide as its agent does, and does what it says.
func (c *blockCluster) look(n *blockNode) error {
	in := lease.Input{
		Network: plan.Network{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, BlockBits: map[plan.Family]int{plan.IPv4: blockBits}},
		Node:    n.name, Now: c.now, Usage: map[netip.Prefix]lease.Usage{},
	}
	in.Leases = slices.Clone(c.leases)
	for i := range in.Leases {
		in.Leases[i].Mine = slices.Contains(n.owned, in.Leases[i].Prefix)
	}
	for i, p := range n.owned {
		in.Usage[p] = n.usage(p, i == 0, c.now)
	}
	if len(n.owned) > 0 {
		in.Sources = []netip.Addr{n.owned[0].Addr().Next()} // the node's own, in its first block
	}
	d := lease.Decide(in)
	if len(d.Problems) > 0 {
		return errors.New(d.Problems[0])
	}
	if len(d.Claim)+len(d.Release) == 0 {
		return nil
	}
	for _, p := range d.Claim {
		c.leases = append(c.leases, lease.Lease{Prefix: p})
		n.owned = append(n.owned, p)
	}
	for _, p := range d.Release {
		c.leases = slices.DeleteFunc(c.leases, func(l lease.Lease) bool { return l.Prefix == p })
		n.owned = slices.DeleteFunc(n.owned, func(q netip.Prefix) bool { return q == p })
	}
	slices.SortFunc(c.leases, func(a, b lease.Lease) int { return a.Prefix.Compare(b.Prefix) })
	c.leased, c.released = c.leased+len(d.Claim), c.released+len(d.Release)
	var ranges []ipam.Range
	for _, p := range n.owned {
		ranges = append(ranges, ipam.RangeFor(p, ipam.Block, n.owned[0].Addr().Next()))
	}
	n.allocator.SetRanges(ranges)
	return nil
}

func (n *blockNode) usage(p netip.Prefix, first bool, now time.Time) lease.Usage {
	u := lease.Usage{Total: int(cidr.Size(p)) - 1, Held: n.held[p]}
	if first {
		u.Total-- // the node's own
	}
	if u.Free = u.Total - u.Held; u.Held > 0 {
		delete(n.empty, p)
		return u
	}
	if n.empty[p].IsZero() {
		n.empty[p] = now
	}
	u.EmptySince = n.empty[p]
	return u
}

func (c *blockCluster) count() {
	for _, n := range c.nodes {
		routes := len(cidr.Aggregate(n.owned))
		c.routes += float64(routes)
		c.blocks += float64(len(n.owned))
		c.most = max(c.most, routes)
		c.looks++
	}
}
