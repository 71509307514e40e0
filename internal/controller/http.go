package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ropeway.dev/ropeway/internal/controller/routes"
)

// server answers /healthz, /readyz and /metrics. A replica is ready when it has
// read the API server, whether it leads or not.
type server struct {
	listener net.Listener // nil when switched off
	http     *http.Server
	synced   atomic.Pointer[func() error]
	routes   atomic.Pointer[func() (*routes.Status, bool)]
}

// listen opens the port, so that a port in use is an error at the start.
func (c *controller) listen() (*server, error) {
	s := &server{}
	if c.cfg.Listen == "off" {
		return s, nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", c.answerHealthy)
	mux.HandleFunc("GET /readyz", s.answerReady)
	mux.HandleFunc("GET /v1/routes", s.answerRoutes)
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{}))
	s.http = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	var err error
	s.listener, err = net.Listen("tcp", c.cfg.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("serve health and metrics on %s: another program, or another replica on this host, has the port: "+
			"ss -ltnp names it: end it, or run the replicas on different hosts: %w", c.cfg.Listen, err)
	}
	if err != nil {
		return nil, fmt.Errorf("serve health and metrics on %s: %w", c.cfg.Listen, err)
	}
	return s, nil
}

// stuckAfter is how long after the begin of its last pass a leader counts as stuck: it
// holds the Lease, and does nothing. Where the API server is slow, a pass over thousands
// of nodes takes minutes.
const stuckAfter = 15 * time.Minute

// answerHealthy says whether the leader's passes go on. Nothing that a restart would not
// mend makes it fail.
func (c *controller) answerHealthy(w http.ResponseWriter, _ *http.Request) {
	if since := c.now().Sub(time.Unix(0, c.beat.Load())); c.leading.Load() && since > stuckAfter {
		http.Error(w, fmt.Sprintf("the leader has not looked at the cluster for %s", since.Round(time.Second)), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// ready tells the server how to know whether the API server has been read.
func (s *server) ready(synced func() error) { s.synced.Store(&synced) }

func (s *server) answerReady(w http.ResponseWriter, _ *http.Request) {
	err := errors.New("the API server has not answered yet")
	if synced := s.synced.Load(); synced != nil {
		err = (*synced)()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// showRoutes tells the server how to know the state of the cloud's routes.
func (s *server) showRoutes(status func() (*routes.Status, bool)) { s.routes.Store(&status) }

func (s *server) answerRoutes(w http.ResponseWriter, _ *http.Request) {
	status := s.routes.Load()
	if status == nil {
		http.Error(w, "the API server has not answered yet", http.StatusServiceUnavailable)
		return
	}
	current, leads := (*status)()
	if !leads {
		http.Error(w, "this replica does not lead", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(current) // the client is gone: nobody to tell
}

// routesShown is the state of the cloud's routes, and whether this replica is
// the one that knows.
func (c *controller) routesShown() (*routes.Status, bool) {
	return c.planner.Status(), c.leading.Load()
}

// serve answers until the context ends.
func (s *server) serve(ctx context.Context) error {
	if s.listener == nil {
		<-ctx.Done()
		return nil
	}
	defer context.AfterFunc(ctx, func() { s.http.Close() })()
	if err := s.http.Serve(s.listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics: %w", err)
	}
	return nil
}
