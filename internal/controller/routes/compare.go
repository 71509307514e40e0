package routes

import (
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// Compare says how what a cloud listed meets what is wanted, without a Planner
// and for looking only. machines are for nodes without a providerID; they may be
// nil.
func Compare(in Input, l cloud.Listing, instances cloud.Instances, machines []cloud.Instance) *Status {
	var r resolver
	r.learn(in, machines)
	r.known(in, instances, nil)
	real := make(map[cloud.Key]cloud.RouteEntry, len(l.Entries))
	for _, e := range l.Entries {
		real[e.Key()] = e
	}
	d := decide(facts{in: in, tables: l.Tables, real: real, hops: r.hops, now: time.Time{}})
	return &Status{Mode: in.Mode, Provider: in.Setup.Provider, Tables: d.tables, Rows: d.rows}
}

// InstancesOf says which instance each node is, as Compare finds it: node ->
// instance, and for each other node -> why that is not known.
func InstancesOf(wants []Want, instances cloud.Instances, machines []cloud.Instance) (found, unknown map[string]string) {
	var r resolver
	in := Input{Wants: wants}
	r.learn(in, machines)
	r.known(in, instances, nil)
	found, unknown = map[string]string{}, map[string]string{}
	for node, h := range r.hops {
		if h.instance != "" {
			found[node] = h.instance
		} else {
			unknown[node] = h.problem
		}
	}
	return found, unknown
}
