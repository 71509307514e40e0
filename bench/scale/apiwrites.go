package scale

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// Writes reads from the API server's own metrics what it was asked to change of
// the kinds that Ropeway has to do with (not Leases, which say who leads):
// "VERB resource" -> how often.
func Writes(ctx context.Context, cfg *rest.Config) (map[string]float64, error) {
	return requests(ctx, cfg, "POST PUT PATCH DELETE APPLY DELETECOLLECTION", "nodes nodenetworks clusternetworks addressblocks events secrets")
}

// LeaseCalls reads from the same place how often leases of addresses were asked
// for one by one, made, changed and deleted.
func LeaseCalls(ctx context.Context, cfg *rest.Config) (float64, error) {
	all, err := requests(ctx, cfg, "GET POST PUT PATCH DELETE", "addressblocks")
	total := 0.0
	for _, n := range all {
		total += n
	}
	return total, err
}

// requests counts those of the verbs about the resources, both listed with blanks
// between them.
func requests(ctx context.Context, cfg *rest.Config, verbs, resources string) (map[string]float64, error) {
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
		if ok && slices.Contains(strings.Fields(verbs), verb) && slices.Contains(strings.Fields(resources), resource) {
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
