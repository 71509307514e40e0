package routes

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ropeway.dev/ropeway/internal/cloud"
)

// Metrics of the planner; 0 on replicas that do not lead.
type Metrics struct {
	wanted   *prometheus.GaugeVec
	entries  *prometheus.GaugeVec
	held     *prometheus.GaugeVec
	left     *prometheus.GaugeVec
	withheld prometheus.Gauge
	problems *prometheus.GaugeVec
	changes  *prometheus.CounterVec
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

// NewMetrics makes them; Collectors are to be registered.
func NewMetrics() *Metrics {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	return &Metrics{
		wanted:   gauge("ropeway_cloud_routes_wanted", "Destinations that should have an entry, by route table.", "table"),
		entries:  gauge("ropeway_cloud_routes", "Destinations by route table and state (Published, Used, Pending, Missing, OverQuota, Failed, Wrong, Conflict, Shadowed, NoInstance, Stale, Foreign).", "table", "state"),
		held:     gauge("ropeway_cloud_route_entries", "Custom entries that a route table holds, by owner (ours, foreign), whatever they are for.", "table", "owner"),
		left:     gauge("ropeway_cloud_routes_quota_left", "Entries that a route table still takes, where that is known: the quota is told by the cloud, or has been found out by filling the table.", "table"),
		withheld: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ropeway_cloud_routes_withheld", Help: "Withdrawals and changes that wait for a person's word."}),
		problems: gauge("ropeway_cloud_route_problems", "Problems that need a person, by reason.", "reason"),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ropeway_cloud_route_changes_total", Help: "Entries asked for or withdrawn, by result.",
		}, []string{"change", "result"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ropeway_cloud_calls_total", Help: "Calls of the cloud's API, by action and result.",
		}, []string{"action", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ropeway_cloud_call_duration_seconds", Help: "Duration of calls of the cloud's API.", Buckets: prometheus.ExponentialBuckets(0.01, 3, 8),
		}, []string{"action"}),
	}
}

// Collectors returns what a registry takes.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.wanted, m.entries, m.held, m.left, m.withheld, m.problems, m.changes, m.calls, m.seconds}
}

// Called counts one call of the cloud's API; it is cloud.Settings.Called.
func (m *Metrics) Called(action string, took time.Duration, err error) {
	m.calls.WithLabelValues(action, result(err)).Inc()
	m.seconds.WithLabelValues(action).Observe(took.Seconds())
}

func result(err error) string {
	if err == nil {
		return "ok"
	}
	return cloud.ClassOf(err).String()
}

func (m *Metrics) count(results []cloud.RouteResult, change string) {
	for _, r := range results {
		m.changes.WithLabelValues(change, result(r.Err)).Inc()
	}
}

func (m *Metrics) set(s *Status) {
	m.resign()
	for _, t := range s.Tables {
		m.wanted.WithLabelValues(t.ID).Set(float64(t.Wanted))
		m.held.WithLabelValues(t.ID, "ours").Set(float64(t.Ours))
		m.held.WithLabelValues(t.ID, "foreign").Set(float64(t.Entries - t.Ours))
		if left := t.Left(); left >= 0 {
			m.left.WithLabelValues(t.ID).Set(float64(left))
		}
	}
	for i := range s.Rows {
		m.entries.WithLabelValues(s.Rows[i].Table, string(s.Rows[i].State)).Inc()
	}
	m.withheld.Set(float64(s.Withheld))
	for _, p := range s.Problems {
		m.problems.WithLabelValues(p.Reason).Inc()
	}
}

// resign clears what only a leader knows.
func (m *Metrics) resign() {
	for _, v := range []*prometheus.GaugeVec{m.wanted, m.entries, m.held, m.left, m.problems} {
		v.Reset()
	}
	m.withheld.Set(0)
}
