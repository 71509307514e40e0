package routes

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// gauges reads a gauge: its label values, joined, and their numbers.
func gauges(t *testing.T, v *prometheus.GaugeVec) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(v)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			key := ""
			for _, l := range metric.GetLabel() {
				key += l.GetValue() + " "
			}
			out[key] = metric.GetGauge().GetValue()
		}
	}
	return out
}

func TestGaugesSayWhatTheStatusSays(t *testing.T) {
	m := NewMetrics()
	row := func(state State) Row { return Row{Table: table, State: state} }
	m.set(&Status{Rows: []Row{row(Published), row(Published), row(Missing)}})
	if got := gauges(t, m.entries); len(got) != 2 || got["Published "+table+" "] != 2 || got["Missing "+table+" "] != 1 {
		t.Errorf("%v", got)
	}
	m.set(&Status{Rows: []Row{row(Published)}})
	if got := gauges(t, m.entries); len(got) != 1 || got["Published "+table+" "] != 1 {
		t.Errorf("after a row is gone: %v", got)
	}
	m.resign()
	if got := gauges(t, m.entries); len(got) != 0 {
		t.Errorf("after the end of a term: %v", got)
	}
}

// TestGaugesAreNotTakenAway: one that goes on to be told is set in place, so that a
// scrape in between finds it.
func TestGaugesAreNotTakenAway(t *testing.T) {
	m, s := NewMetrics(), &Status{Rows: []Row{{Table: table, State: Published}}}
	m.set(s)
	before := m.entries.WithLabelValues(table, string(Published))
	m.set(s)
	if m.entries.WithLabelValues(table, string(Published)) != before {
		t.Error("the gauge was taken away and made anew")
	}
}
