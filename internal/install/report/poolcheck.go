package report

import (
	"fmt"

	"ropeway.dev/ropeway/internal/ipam/pool"
	"ropeway.dev/ropeway/internal/kube"
)

// pools: those that give nothing, or soon nothing.
func (d *Diagnosis) pools(c *kube.Objects) {
	const name = "pools"
	since := len(d.Checks)
	pools := PoolsOf(c).Pools
	for _, p := range pools {
		which := p.Kind + " " + p.Name
		switch {
		case p.refused:
			d.add(name, Fail, "correct or delete it; pods that run keep their addresses", "%s is not accepted, and gives no address: %s", which, p.Problem)
		case p.Total > 0 && p.givable == 0:
			d.add(name, Fail, "enlarge it, or take addresses out of the SpiderReservedIPs", "%s gives no address: all of its %s are reserved by SpiderReservedIPs", which, count(p.Total))
		case p.Total > 0 && p.Used >= p.givable:
			d.add(name, Fail, "enlarge it, or add another beside it; ropeway ipam check says whether addresses are leaked", "%s is used up: all of its %s addresses are in use", which, p.capacity())
		case p.Total > 0 && pool.Low(p.givable, p.Used):
			d.add(name, Warn, "enlarge it, or add another beside it", "%s runs low: %s of its %s addresses are in use", which, count(p.Used), p.capacity())
		}
	}
	for _, r := range c.Misreserved() {
		d.add(name, Fail, "correct it, or write another: its spec.ips say what no pod gets", "SpiderReservedIP %s does not reserve all that it says: %s", r.Object.GetName(), r.Why)
	}
	if len(pools) > 0 {
		d.okUnless(since, name, "every pool is accepted, and has addresses left")
	}
}

// capacity counts the addresses that a pool may give.
func (p PoolUsage) capacity() string {
	if p.givable == p.Total {
		return count(p.Total)
	}
	return fmt.Sprintf("%s (of %s; the others are reserved by SpiderReservedIPs)", count(p.givable), count(p.Total))
}
