package main

import (
	"math"
	"testing"
)

func TestRequestsAreCounted(t *testing.T) {
	got := countRequests(`# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",group="ropeway.dev",resource="addressblocks",verb="LIST"} 3
apiserver_request_total{code="201",component="apiserver",group="ropeway.dev",resource="addressblocks",verb="POST"} 1.5e+01
apiserver_request_total{code="0",component="apiserver",group="ropeway.dev",resource="addressblocks",verb="WATCH"} 7
apiserver_request_total{code="200",component="apiserver",group="",resource="pods",scope="namespace",verb="GET"} 9
apiserver_request_total{code="201",component="apiserver",group="events.k8s.io",resource="events",verb="POST"} 2
apiserver_request_total{code="200",component="apiserver",group="",resource="nodes",verb="PATCH"} 4
`)
	if got != 29 {
		t.Errorf("%v requests, want 29", got)
	}
}

func TestAgentsHistogram(t *testing.T) {
	h := parseHistogram(`ropeway_agent_cni_request_duration_seconds_bucket{code="0",verb="ADD",le="0.001"} 90
ropeway_agent_cni_request_duration_seconds_bucket{code="0",verb="ADD",le="0.005"} 99
ropeway_agent_cni_request_duration_seconds_bucket{code="0",verb="ADD",le="+Inf"} 100
ropeway_agent_cni_request_duration_seconds_bucket{code="11",verb="ADD",le="+Inf"} 5
ropeway_agent_cni_request_duration_seconds_bucket{code="0",verb="DEL",le="+Inf"} 50
`)
	if h.count() != 100 || h.quantile(0.99) != 0.005 || h.quantile(0.5) != 0.001 {
		t.Errorf("%v of %v", h.count(), h)
	}
	before := histogram{0.001: 90, 0.005: 90, math.Inf(1): 90}
	if since := h.since(before); since.quantile(0.5) != 0.005 {
		t.Errorf("the later part is %v", since)
	}
}

func TestPerMille(t *testing.T) {
	var values []float64
	for i := range 1000 {
		values = append(values, float64(1000-i))
	}
	if got := perMille(values, 999); got != 999 {
		t.Errorf("p99.9 of 1 to 1000 is %v", got)
	}
	if got := perMille([]float64{3}, 999); got != 3 {
		t.Errorf("of one value it is %v", got)
	}
}
