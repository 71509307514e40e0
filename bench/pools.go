package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"runtime"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/ipam/journal"
	"ropeway.dev/ropeway/internal/ipam/pool"
)

const (
	fewPools, manyPools = 5, 5000
	poolTurns           = 15  // rounds that count
	poolPods            = 200 // that have addresses at once: less than a /24
)

// poolNode is what an agent has of addresses: an index of pools, an allocator and
// its journal.
type poolNode struct {
	index     *pool.Index
	allocator *ipam.Allocator
	journal   *journal.Journal
	pools     int
	family    ipam.Family
	now       time.Time
}

// pools measures what the number and the size of pools cost: the choice of a pool,
// an address of it, and the line in the journal, by the agent's own code.
func (b *bench) pools(ctx context.Context) error {
	return inDirectory("pools", func(dir string) error { return b.poolsIn(ctx, dir) })
}

func (b *bench) poolsIn(ctx context.Context, dir string) (err error) {
	names := []string{"few", "many", "small", "large", "ipv6"}
	nodes := map[string]*poolNode{}
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.journal.Close())
		}
	}()
	for _, name := range names {
		n, err := newPoolNode(filepath.Join(dir, name), poolsNamed(name))
		if err != nil {
			return err
		}
		nodes[name] = n
	}
	took := map[string][]float64{}
	loaded := loadAverage() > 1.5
	for turn := range poolTurns + 1 {
		for i := range names {
			name := names[(i+turn)%len(names)]
			us, err := nodes[name].round(ctx)
			if err != nil {
				return err
			}
			if turn > 0 {
				took[name] = append(took[name], us)
			}
		}
	}
	for key, pair := range map[string][2]string{"many": {"many", "few"}, "large": {"large", "small"}, "ipv6": {"ipv6", "small"}} {
		b.samples["pools."+key] = sample{values: differences(took[pair[0]], took[pair[1]]), loaded: loaded,
			detail: fmt.Sprintf("%s us and %s us for one ADD and its DEL in the agent, %d pods at once (medians of %d)", number(median(took[pair[0]])), number(median(took[pair[1]])), poolPods, poolTurns)}
	}
	sizes := map[string]float64{}
	for _, name := range names {
		with := heap()
		err = errors.Join(err, nodes[name].journal.Close())
		delete(nodes, name)
		sizes[name] = with - heap()
	}
	for _, key := range []string{"large", "ipv6"} {
		b.samples["pools.memory."+key] = sample{values: []float64{sizes[key] - sizes["small"]}, loaded: loaded,
			detail: fmt.Sprintf("%s MiB and %s MiB after %d ADDs and DELs", number(sizes[key]), number(sizes["small"]), poolPods*(poolTurns+1))}
	}
	return err
}

// differences subtracts pair by pair: both were measured next to each other.
func differences(a, b []float64) (out []float64) {
	for i := range min(len(a), len(b)) {
		out = append(out, a[i]-b[i])
	}
	return out
}

// poolsNamed are the pools of one of the things that are compared.
func poolsNamed(name string) []*pool.Pool {
	switch name {
	case "few":
		return smallPools(fewPools)
	case "many":
		return smallPools(manyPools)
	case "large":
		return []*pool.Pool{onePool(0, netip.MustParsePrefix("10.0.0.0/8"))}
	case "ipv6":
		return []*pool.Pool{onePool(0, netip.MustParsePrefix("fd00:10::/64"))}
	}
	return smallPools(1)
}

func smallPools(n int) (pools []*pool.Pool) {
	for i := range n {
		pools = append(pools, onePool(i, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)))
	}
	return pools
}

func onePool(i int, p netip.Prefix) *pool.Pool {
	return &pool.Pool{Kind: pool.KindAddressPool, Name: poolName(i), Subnets: []netip.Prefix{p}, Ranges: []netip.Prefix{p}}
}

func poolName(i int) string { return fmt.Sprintf("pool-%d", i) }

func newPoolNode(path string, pools []*pool.Pool) (*poolNode, error) {
	verdicts := map[pool.ID]pool.Verdict{}
	var ranges []ipam.Range
	for _, p := range pools {
		verdicts[p.ID()] = pool.Verdict{Accepted: true}
		ranges = append(ranges, ipam.Range{Prefix: p.Ranges[0], Pool: string(p.ID())})
	}
	j, err := journal.Open(path)
	if err != nil {
		return nil, err
	}
	n := &poolNode{index: pool.NewIndex(pools, verdicts, pool.Node{Name: "n"}), journal: j, pools: len(pools), family: ipam.FamilyOf(pools[0].Ranges[0].Addr()), now: time.Now()}
	if n.allocator, err = ipam.New(j, ipam.Options{}); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	n.allocator.SetRanges(ranges)
	return n, nil
}

// heap is what this program's heap has in use, in MiB.
func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / mib
}

// round gives addresses to poolPods pods and takes them back, and returns how many
// microseconds one of them took.
func (n *poolNode) round(ctx context.Context) (float64, error) {
	n.now = n.now.Add(time.Minute) // what was freed has rested
	began := time.Now()
	for i := range poolPods {
		if err := n.add(i); err != nil {
			return 0, err
		}
	}
	for i := range poolPods {
		if _, err := n.allocator.Release(poolKey(i), n.now); err != nil {
			return 0, err
		}
	}
	return float64(time.Since(began).Microseconds()) / poolPods, ctx.Err()
}

func poolKey(i int) ipam.Key {
	return ipam.Key{Network: "k8s-pod-network", ContainerID: fmt.Sprint(i), IfName: "eth0"}
}

func (n *poolNode) add(i int) error {
	choice, err := n.index.Choose(pool.Request{Namespace: "default", IfName: "eth0", Families: []ipam.Family{n.family},
		Annotations: map[string]string{pool.AnnotationPools: fmt.Sprintf(`[{"interface": "eth0", %q: [%q]}]`, map[ipam.Family]string{ipam.IPv4: "ipv4", ipam.IPv6: "ipv6"}[n.family], poolName(i%n.pools))}})
	if err != nil {
		return err
	}
	want := ipam.Want{Family: n.family, Pools: []string{string(choice.Pools[n.family][0].ID())}}
	_, err = n.allocator.AllocateFrom(poolKey(i), ipam.Owner{Namespace: "default", Name: poolKey(i).ContainerID}, []ipam.Want{want}, n.now)
	return err
}
