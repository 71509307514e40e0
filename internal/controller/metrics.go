package controller

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ropeway.dev/ropeway/internal/controller/nodes"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/ipam/pool"
)

// metrics of one replica; those that a leader counts are 0 on the others.
type metrics struct {
	registry          *prometheus.Registry
	leader            prometheus.Gauge
	nodes             prometheus.Gauge
	reachable         prometheus.Gauge
	blocks            prometheus.Gauge
	policies          prometheus.Gauge
	foreignConditions prometheus.Gauge
	problems          *prometheus.GaugeVec
	faults            *prometheus.GaugeVec
	pools             *prometheus.GaugeVec
	conditionWrites   *prometheus.CounterVec
	blocksCollected   prometheus.Counter
	passErrors        prometheus.Counter
	passSeconds       prometheus.Histogram
	routes            *routes.Metrics
	instances         *nodes.Metrics
}

func newMetrics() *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		registry:          prometheus.NewRegistry(),
		routes:            routes.NewMetrics(),
		instances:         nodes.NewMetrics(),
		leader:            gauge("ropeway_controller_leader", "1 on the replica that holds the Lease."),
		nodes:             gauge("ropeway_nodes", "Nodes of the cluster."),
		reachable:         gauge("ropeway_nodes_reachable", "Nodes whose pod CIDRs are proven reachable."),
		blocks:            gauge("ropeway_address_blocks", "Leases of address blocks."),
		policies:          gauge("ropeway_network_policies_not_enforced", "NetworkPolicies that exist and are not enforced."),
		foreignConditions: gauge("ropeway_node_conditions_written_by_others", "Nodes whose NetworkUnavailable was written by another program."),
		blocksCollected:   counter("ropeway_address_blocks_collected_total", "Leases taken back from nodes that are gone."),
		passErrors:        counter("ropeway_controller_pass_errors_total", "Passes in which something could not be written."),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ropeway_node_problems", Help: "What is wrong with nodes, by reason.",
		}, []string{"reason"}),
		faults: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ropeway_faults", Help: "Nodes that a fault of the paths between nodes concerns, by fault.",
		}, []string{"fault"}),
		pools: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ropeway_ipam_pool_addresses", Help: "Addresses of address pools, by pool (Kind/name) and state (total, givable, allocated).",
		}, []string{"pool", "state"}),
		conditionWrites: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ropeway_node_condition_writes_total", Help: "Writes of the node condition NetworkUnavailable, by its status.",
		}, []string{"status"}),
		passSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ropeway_controller_pass_duration_seconds", Help: "Duration of a pass over the cluster.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
	}
	m.registry.MustRegister(m.leader, m.nodes, m.reachable, m.blocks, m.policies, m.foreignConditions, m.problems, m.faults, m.pools,
		m.conditionWrites, m.blocksCollected, m.passErrors, m.passSeconds,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(m.routes.Collectors()...)
	m.registry.MustRegister(m.instances.Collectors()...)
	return m
}

func (m *metrics) setProblems(counts map[string]int) {
	m.problems.Reset()
	for reason, n := range counts {
		m.problems.WithLabelValues(reason).Set(float64(n))
	}
}

func (m *metrics) setPools(states map[pool.ID]poolState) {
	m.pools.Reset()
	for id, s := range states {
		m.pools.WithLabelValues(string(id), "total").Set(float64(s.total))
		m.pools.WithLabelValues(string(id), "givable").Set(float64(s.givable))
		m.pools.WithLabelValues(string(id), "allocated").Set(float64(s.allocated))
	}
}

// count sets the gauges that describe the cluster.
func (c *controller) count(o *observed) {
	reachable := 0
	for _, v := range o.verdicts {
		if v.Reachable {
			reachable++
		}
	}
	c.metrics.nodes.Set(float64(len(o.objects.Nodes)))
	c.metrics.reachable.Set(float64(reachable))
	c.metrics.blocks.Set(float64(len(o.objects.Blocks)))
	c.metrics.policies.Set(float64(o.policies.count))
}

// resign clears what only a leader knows.
func (m *metrics) resign() {
	for _, g := range []prometheus.Gauge{m.leader, m.nodes, m.reachable, m.blocks, m.policies, m.foreignConditions} {
		g.Set(0)
	}
	m.pools.Reset()
	m.problems.Reset()
	m.faults.Reset()
}
