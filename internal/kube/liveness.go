package kube

import (
	"context"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// ControllerTimeout is how long after the last renewal of its Lease a
	// controller counts as alive.
	ControllerTimeout = 15 * time.Second
	livenessInterval  = 3 * time.Second
	// clockSkew is how far two nodes' clocks may be apart for a renewal time
	// to be believed at first sight.
	clockSkew = time.Minute
)

// liveness judges the controller by its Lease. Nodes' clocks differ, so what
// counts is when this node saw the Lease change, not the time written in it;
// that serves only to tell a long abandoned Lease at first sight.
type liveness struct {
	api client.Reader
	now func() time.Time

	mu      sync.Mutex
	version string    // of the Lease as last seen
	changed time.Time // when it was seen to change; zero for never
	was     bool      // the last answer of check
}

func newLiveness(api client.Reader, now func() time.Time) *liveness {
	return &liveness{api: api, now: now}
}

// alive says whether the Lease was seen renewed within ControllerTimeout.
func (l *liveness) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.aliveLocked()
}

func (l *liveness) aliveLocked() bool {
	return !l.changed.IsZero() && l.now().Sub(l.changed) < ControllerTimeout
}

// check reads the Lease and says whether the answer of alive changed. When the
// API server does not answer, what was seen before ages.
func (l *liveness) check(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, livenessInterval)
	defer cancel()
	var lease coordinationv1.Lease
	err := l.api.Get(ctx, client.ObjectKey{Namespace: SystemNamespace, Name: ControllerLease}, &lease)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil && lease.ResourceVersion != l.version {
		if held(&lease) && (l.version != "" || l.believable(&lease)) {
			l.changed = l.now()
		}
		l.version = lease.ResourceVersion
	}
	is := l.aliveLocked()
	flipped := is != l.was
	l.was = is
	return flipped
}

// held says whether somebody holds the Lease: a controller that stops empties
// it.
func held(lease *coordinationv1.Lease) bool {
	return lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity != ""
}

// believable says whether a Lease that is seen for the first time may be in
// use: it was renewed lately by anybody's clock.
func (l *liveness) believable(lease *coordinationv1.Lease) bool {
	return lease.Spec.RenewTime != nil && l.now().Sub(lease.Spec.RenewTime.Time).Abs() < clockSkew
}
