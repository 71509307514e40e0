package agent

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ropeway.dev/ropeway/internal/agent/probe"
	"ropeway.dev/ropeway/internal/cniwire"
	"ropeway.dev/ropeway/internal/plan"
)

// metrics are what the agent counts, in a registry of its own.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.HistogramVec // verb, code
	sets     *prometheus.HistogramVec // result
	leases   *prometheus.CounterVec   // action, result
	heldBack prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ropeway_agent_cni_request_duration_seconds", Help: "How long requests of the CNI plugin took, by verb and CNI error code (0: success).",
			Buckets: []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5, 10},
		}, []string{"verb", "code"}),
		sets: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ropeway_agent_dataplane_set_duration_seconds", Help: "How long setting the kernel took, by result.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5},
		}, []string{"result"}),
		leases: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ropeway_agent_lease_calls_total", Help: "Calls about AddressBlocks, by action and result.",
		}, []string{"action", "result"}),
		heldBack: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ropeway_agent_transports_held_back", Help: "Transports to peers that work again and are not used yet, since they have failed of late.",
		}),
	}
	m.registry.MustRegister(m.requests, m.sets, m.leases, m.heldBack, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) request(verb cniwire.Verb, e *cniwire.Error, took time.Duration) {
	code := uint(0)
	if e != nil {
		code = e.Code
	}
	m.requests.WithLabelValues(string(verb), strconv.FormatUint(uint64(code), 10)).Observe(took.Seconds())
}

func (m *metrics) set(took time.Duration, err error) {
	m.sets.WithLabelValues(result(err)).Observe(took.Seconds())
}

func (m *metrics) lease(action string, err error) {
	m.leases.WithLabelValues(action, result(err)).Inc()
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "success"
}

// watch adds what is read from the node at each scrape.
func (m *metrics) watch(n *node) {
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
	}
	gauge("ropeway_ipam_addresses_held", "Addresses that pods on this node hold.", nil, func() float64 { return float64(n.book.Count()) })
	for _, f := range []plan.Family{plan.IPv4, plan.IPv6} {
		gauge("ropeway_ipam_addresses_free", "Addresses that pods on this node can get without another lease.",
			prometheus.Labels{"family": string(f)}, func() float64 { return float64(n.book.Free(f)) })
	}
	for _, t := range []plan.Transport{plan.Direct, plan.IPIP, plan.VXLAN} {
		gauge("ropeway_agent_peers", "Peers by the transport that they are reached by.", prometheus.Labels{"transport": string(t)}, func() float64 {
			counts, _ := reached(plan.Network{}, n.look().State)
			return float64(counts[t])
		})
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "ropeway_agent_probe_messages_sent_total", Help: "Probes and answers to probes that were sent, by transport.",
			ConstLabels: prometheus.Labels{"transport": string(t)},
		}, func() float64 { return float64(n.prober.Sent(t)) }))
	}
	gauge("ropeway_agent_probed_nodes", "Nodes that this node was chosen to prove.", nil, func() float64 { return float64(n.prober.Targets()) })
	gauge("ropeway_agent_unreachable_paths", "Paths that this node proves and that do not answer.", nil, func() float64 {
		failing := 0
		for _, p := range n.prober.Results() {
			if !p.Reachable {
				failing++
			}
		}
		return float64(failing)
	})
	m.registry.MustRegister(&faultCollector{n.prober, prometheus.NewDesc("ropeway_agent_faults",
		"Paths that this node proves and that have a fault, and faults of its own, by fault.", []string{"fault"}, nil)})
	gauge("ropeway_agent_ready", "1 if the node's kernel is set up.", nil, func() float64 {
		if n.look().Ready {
			return 1
		}
		return 0
	})
}

// faultCollector counts faults at each scrape.
type faultCollector struct {
	prober *probe.Prober
	desc   *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *faultCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements prometheus.Collector.
func (c *faultCollector) Collect(out chan<- prometheus.Metric) {
	counts := map[plan.Fault]int{}
	for _, p := range c.prober.Results() {
		if p.Fault != "" {
			counts[p.Fault]++
		}
	}
	for f := range c.prober.Faults() {
		counts[f]++
	}
	for f, n := range counts {
		out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), string(f))
	}
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
