package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"ropeway.dev/ropeway/internal/dataplane"
	"ropeway.dev/ropeway/internal/ipam"
	"ropeway.dev/ropeway/internal/plan"
)

// StateAnswer is what GET /v1/state answers: what the node does, whole. The
// API server only ever gets a summary of it.
type StateAnswer struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// NotServing says why pods cannot be started, "" if they can.
	NotServing string `json:"notServing,omitempty"`
	// Conflist says what is wrong with the conflist, "" if nothing is.
	Conflist string         `json:"conflist,omitempty"`
	State    plan.State     `json:"state"`
	Report   ReportAnswer   `json:"report"`
	Bindings []ipam.Binding `json:"bindings"`
	Probes   []plan.Probe   `json:"probes"`
}

// ReportAnswer is what setting the kernel achieved.
type ReportAnswer struct {
	Refuses map[plan.Transport]string `json:"refuses,omitempty"`
	Failed  map[string]string         `json:"failed,omitempty"` // destination -> why
	Uplinks []dataplane.Uplink        `json:"uplinks"`
	PodMTU  int                       `json:"podMTU"` // bytes
}

// web serves health, metrics and state. Nothing in it changes anything.
type web struct {
	config *Config
	node   *node
}

func (w *web) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", w.healthy)
	mux.HandleFunc("GET /readyz", w.ready)
	mux.Handle("GET /metrics", w.node.metrics.handler())
	mux.HandleFunc("GET /v1/state", w.state)
	mux.HandleFunc("GET "+PathAddresses, w.addresses)
	return mux
}

// stuckAfter is how long after the begin of its last pass the node loop counts
// as stuck. A pass takes milliseconds, and one begins at least every resync.
const stuckAfter = 5 * time.Minute

// healthy says whether the node loop still turns. Nothing that a restart would
// not mend makes it fail.
func (w *web) healthy(rw http.ResponseWriter, _ *http.Request) {
	beat := w.node.beat.Load()
	if since := time.Since(time.Unix(0, beat)); beat != 0 && since > stuckAfter {
		rw.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(rw, "the node loop has not looked at the node for %s\n", since.Round(time.Second))
		return
	}
	fmt.Fprintln(rw, "ok")
}

// ready says whether the local state is set: nothing that depends on peers or
// on the API server once the node was set up, so that a roll-out never waits
// for what it might break.
func (w *web) ready(rw http.ResponseWriter, _ *http.Request) {
	shows := w.node.look()
	if !shows.Ready {
		rw.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(rw, shows.Why)
		return
	}
	fmt.Fprintln(rw, "ok")
}

func (w *web) state(rw http.ResponseWriter, _ *http.Request) {
	shows := w.node.look()
	failed := map[string]string{}
	for dst, why := range shows.Report.Failed {
		failed[dst.String()] = why
	}
	answer := StateAnswer{
		Node: w.config.NodeName, Version: w.config.Version, NotServing: shows.Why,
		Conflist: w.node.installer.problemNow(), State: shows.State,
		Report:   ReportAnswer{Refuses: shows.Report.Refuses, Failed: failed, Uplinks: shows.Report.Uplinks, PodMTU: shows.Report.PodMTU},
		Bindings: w.node.book.Bindings(), Probes: w.node.prober.Results(),
	}
	rw.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(rw).Encode(answer); err != nil {
		w.config.Log.Debug("answering /v1/state", "err", err)
	}
}

func (w *web) addresses(rw http.ResponseWriter, _ *http.Request) {
	view, err := w.node.book.View()
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(rw).Encode(AddressesAnswer{Node: w.config.NodeName, Version: w.config.Version, View: view}); err != nil {
		w.config.Log.Debug("answering "+PathAddresses, "err", err)
	}
}

// listen opens the port; a port that is in use is an error of the start.
func (w *web) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", w.config.ListenAddress)
	if err != nil {
		return nil, fmt.Errorf("listening on %s for health checks and metrics (is another program using the port? ss -ltnp names it: end it, or give it another): %w", w.config.ListenAddress, err)
	}
	return l, nil
}

// serve serves until ctx is done.
func (w *web) serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: w.handler(), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving HTTP on %s: %w", w.config.ListenAddress, err)
	}
	return nil
}
