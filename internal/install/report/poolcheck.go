package report

import (
	"ropeway.dev/ropeway/internal/kube"
)

// pools: those that give nothing, or not all of their addresses, or soon none.
func (d *Diagnosis) pools(c *kube.Objects) {
	const name = "pools"
	since := len(d.Checks)
	pools := PoolsOf(c).Pools
	for _, p := range pools {
		which := p.Kind + " " + p.Name
		switch {
		case p.refused:
			d.add(name, Fail, "correct or delete it; pods that run keep their addresses", "%s is not accepted, and gives no address: %s", which, p.Problem)
			continue
		case p.Problem != "" && p.unserved == p.Total:
			d.add(name, Fail, "ropeway ipam show says which ranges the nodes have: a pool's addresses are given on the node whose range they lie in", "%s gives no address: none of its %d addresses lies in a node's range", which, p.Total)
		case p.Problem != "":
			d.add(name, Warn, "ropeway ipam show says which ranges the nodes have: a pool's addresses are given on the node whose range they lie in", "%s: %s", which, p.Problem)
		}
		// What lies in no node's range is of no use.
		usable := p.Total - p.unserved
		switch {
		case usable > 0 && p.Used >= usable:
			d.add(name, Fail, "enlarge it, or add another beside it; ropeway ipam check says whether addresses are leaked", "%s is used up: all of its %s addresses are in use", which, count(usable))
		case usable > 0 && p.Used >= usable-usable/10:
			d.add(name, Warn, "enlarge it, or add another beside it", "%s runs low: %s of its %s addresses are in use", which, count(p.Used), count(usable))
		}
	}
	if len(pools) > 0 {
		d.okUnless(since, name, "every pool is accepted and served, and has addresses left")
	}
}
