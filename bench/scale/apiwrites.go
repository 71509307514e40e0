package scale

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// Writes reads from the API server's own metrics what it was asked to change of
// the kinds that Ropeway has to do with (not Leases, which say who leads):
// "VERB resource" -> how often.
func Writes(ctx context.Context, cfg *rest.Config) (map[string]float64, error) {
	plain := rest.CopyConfig(cfg)
	plain.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	plain.GroupVersion = &scheme.Scheme.PrioritizedVersionsAllGroups()[0]
	api, err := rest.RESTClientFor(plain)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	text, err := api.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	all, err := parseMetrics(bytes.NewReader(text))
	out := map[string]float64{}
	for key, n := range all {
		labels, ok := strings.CutPrefix(key, "apiserver_request_total{")
		verb, resource := label(labels, "verb"), label(labels, "resource")
		if !ok || !strings.Contains(" POST PUT PATCH DELETE APPLY DELETECOLLECTION ", " "+verb+" ") {
			continue
		}
		if strings.Contains(" nodes nodenetworks clusternetworks addressblocks events secrets ", " "+resource+" ") {
			out[verb+" "+resource] += n
		}
	}
	return out, err
}

// label returns the value of a label of a metric.
func label(labels, name string) string {
	_, rest, _ := strings.Cut(","+labels, ","+name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// Grown returns how much larger the values of now are than before, without
// those that are as large.
func Grown[T int | float64](before, now map[string]T) map[string]T {
	out := map[string]T{}
	for key, n := range now {
		if n != before[key] {
			out[key] = n - before[key]
		}
	}
	return out
}
