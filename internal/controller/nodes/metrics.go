package nodes

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the nodes' instances; 0 on replicas that do not lead.
type Metrics struct {
	known    prometheus.Gauge
	silent   *prometheus.GaugeVec
	deleted  prometheus.Counter
	forward  prometheus.Counter
	problems *prometheus.GaugeVec
}

// NewMetrics makes them; Collectors are to be registered.
func NewMetrics() *Metrics {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	return &Metrics{
		known:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "ropeway_cloud_nodes_known", Help: "Nodes whose instance the cloud shows."}),
		silent:   gauge("ropeway_cloud_nodes_silent", "Nodes whose kubelet is silent and whose instance the cloud does not show, by verdict (gone, doubted, pending).", "verdict"),
		deleted:  counter("ropeway_cloud_nodes_deleted_total", "Nodes deleted because their instance is gone."),
		forward:  counter("ropeway_cloud_forwarding_allowed_total", "Interfaces whose check of source and destination was switched off."),
		problems: gauge("ropeway_cloud_node_problems", "Problems of nodes' instances that need a person, by reason.", "reason"),
	}
}

// Collectors returns what a registry takes.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.known, m.silent, m.deleted, m.forward, m.problems}
}

func (m *Metrics) set(s *Status, verdicts []verdict) {
	m.resign()
	m.known.Set(float64(s.Known))
	for _, p := range s.Problems {
		m.problems.WithLabelValues(p.Reason).Inc()
	}
	for _, v := range verdicts {
		switch {
		case v.gone:
			m.silent.WithLabelValues("gone").Inc()
		case v.person:
			m.silent.WithLabelValues("doubted").Inc()
		case v.why != "":
			m.silent.WithLabelValues("pending").Inc()
		}
	}
}

// resign clears what only a leader knows.
func (m *Metrics) resign() {
	m.known.Set(0)
	m.silent.Reset()
	m.problems.Reset()
}
