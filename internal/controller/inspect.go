package controller

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/routes"
)

// How often the cloud is asked what stands in the way of bare packets.
const (
	inspectAnew  = 5 * time.Second  // at the least, when other nodes are concerned than before
	inspectAgain = 30 * time.Second // while the same ones are
	inspectLimit = 20 * time.Second // for one look
)

// question is what the cloud is asked.
type question struct {
	setup     routes.Setup
	instances []string // in order
	pods      []netip.Prefix
}

func (q question) key() string {
	return fmt.Sprint(q.setup, q.instances)
}

// inspector asks the cloud beside the passes, only when there is a reason to,
// and seldom.
type inspector struct {
	make    func(context.Context, routes.Setup) (cloud.Provider, error)
	changed func() // is told when an answer came
	now     func() time.Time
	log     *slog.Logger

	mu       sync.Mutex
	running  bool
	asked    string // the last question's key
	at       time.Time
	findings []cloud.Finding
	err      error

	// What only the look that is under way touches.
	provider cloud.Provider // nil: to be made
	setup    routes.Setup   // of provider
}

// ask returns what was found last of the question's instances, and begins
// another look if it is time for one.
func (i *inspector) ask(ctx context.Context, q question) ([]cloud.Finding, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	wait := inspectAgain
	if q.key() != i.asked {
		wait = inspectAnew
	}
	if !i.running && (i.at.IsZero() || i.now().Sub(i.at) >= wait) {
		i.running, i.asked, i.at = true, q.key(), i.now()
		go i.look(ctx, q)
	}
	return i.findings, i.err
}

func (i *inspector) look(ctx context.Context, q question) {
	ctx, cancel := context.WithTimeout(ctx, inspectLimit)
	defer cancel()
	findings, err := i.inspect(ctx, q)
	if err != nil && ctx.Err() == nil {
		i.log.Warn("cannot ask the cloud what stands in the way of bare packets", "err", err, "request", cloud.RequestOf(err))
	}
	i.mu.Lock()
	i.running, i.findings, i.err = false, findings, err
	i.mu.Unlock()
	i.changed()
}

func (i *inspector) inspect(ctx context.Context, q question) ([]cloud.Finding, error) {
	if i.provider == nil || !i.setup.Equal(q.setup) {
		made, err := i.make(ctx, q.setup)
		if err != nil {
			return nil, err
		}
		// It is kept: it knows for how long the cloud wants to be left alone.
		i.provider, i.setup = made, q.setup
	}
	inspecting, can := i.provider.(cloud.Inspector)
	if !can {
		return nil, nil
	}
	findings, err := inspecting.Inspect(ctx, q.instances, q.pods)
	if cloud.Is(err, cloud.Unauthenticated) {
		i.provider = nil // there may be other keys by then
	}
	return findings, err
}

// forget drops what was found: nothing fails any more.
func (i *inspector) forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.findings, i.err, i.asked = nil, nil, ""
}

// about returns the findings of one instance.
func about(findings []cloud.Finding, instance string) []cloud.Finding {
	if instance == "" {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(findings), func(f cloud.Finding) bool { return f.Instance != instance })
}
