package report

import (
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
		case p.Total > 0 && p.Used >= p.Total:
			d.add(name, Fail, "enlarge it, or add another beside it; ropeway ipam check says whether addresses are leaked", "%s is used up: all of its %s addresses are in use", which, count(p.Total))
		case p.Total > 0 && p.Used >= p.Total-p.Total/10:
			d.add(name, Warn, "enlarge it, or add another beside it", "%s runs low: %s of its %s addresses are in use", which, count(p.Used), count(p.Total))
		}
	}
	if len(pools) > 0 {
		d.okUnless(since, name, "every pool is accepted, and has addresses left")
	}
}
