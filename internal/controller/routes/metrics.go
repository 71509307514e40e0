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

	shown map[*prometheus.GaugeVec]map[labels]float64 // of the gauges that set sets
}

// labels are the values of a gauge's one or two labels.
type labels [2]string

// NewMetrics makes them; Collectors are to be registered.
func NewMetrics() *Metrics {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	return &Metrics{
		shown:    map[*prometheus.GaugeVec]map[labels]float64{},
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
		if cloud.Is(r.Err, cloud.Untried) {
			continue // nobody asked
		}
		m.changes.WithLabelValues(change, result(r.Err)).Inc()
	}
}

// set makes the gauges say what the Status says. All is counted before anything is
// set: who reads them meanwhile finds numbers of before or after, never a part.
func (m *Metrics) set(s *Status) {
	wanted, held, left := map[labels]float64{}, map[labels]float64{}, map[labels]float64{}
	for _, t := range s.Tables {
		wanted[labels{t.ID}] = float64(t.Wanted)
		held[labels{t.ID, "ours"}] = float64(t.Ours)
		held[labels{t.ID, "foreign"}] = float64(t.Entries - t.Ours)
		if n := t.Left(); n >= 0 {
			left[labels{t.ID}] = float64(n)
		}
	}
	entries, problems := map[labels]float64{}, map[labels]float64{}
	for i := range s.Rows {
		entries[labels{s.Rows[i].Table, string(s.Rows[i].State)}]++
	}
	for _, p := range s.Problems {
		problems[labels{p.Reason}]++
	}
	m.show(m.wanted, 1, wanted)
	m.show(m.held, 2, held)
	m.show(m.left, 1, left)
	m.show(m.entries, 2, entries)
	m.show(m.problems, 1, problems)
	m.withheld.Set(float64(s.Withheld))
}

// show sets a gauge of n labels, and takes away what it had and has no more.
func (m *Metrics) show(v *prometheus.GaugeVec, n int, now map[labels]float64) {
	for l, value := range now {
		v.WithLabelValues(l[:n]...).Set(value)
	}
	for l := range m.shown[v] {
		if _, still := now[l]; !still {
			v.DeleteLabelValues(l[:n]...)
		}
	}
	m.shown[v] = now
}

// resign clears what only a leader knows.
func (m *Metrics) resign() { m.set(&Status{}) }
