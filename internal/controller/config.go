package controller

import (
	"errors"
	"log/slog"
	"time"

	"k8s.io/client-go/rest"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/kube"
)

// Config says how to run a controller. Defaults fills what is empty.
type Config struct {
	// API is how to reach the API server. Required.
	API *rest.Config
	// Identity names this replica in the Lease, such as the pod's name.
	// Required, and different for each replica.
	Identity string
	// Namespace holds the Lease; agents look for it in kube-system.
	Namespace string
	// Listen is the address of /healthz, /readyz and /metrics; "off" for none.
	Listen string
	// Version is what the log says at the start.
	Version string
	Log     *slog.Logger
	// Providers maps spec.cloud.provider -> how to make one.
	Providers map[string]cloud.New
	// CloudKeys are the cloud's credentials from the environment, by the keys
	// of the Secret; they count where the ClusterNetwork names no Secret. Empty
	// means the instance's role.
	CloudKeys map[string][]byte

	// Confirm is the least time between the two looks at the cloud that find a
	// node's instance gone, Monitor how often silent nodes are looked at, and how
	// soon what failed there is tried again.
	Confirm, Monitor time.Duration
	// Grace is how long a node is gone before its leases are taken back.
	Grace time.Duration
	// Interval is the least time between passes, Resync the greatest.
	Interval, Resync time.Duration
	// LeaseDuration is how long a leader that does not renew stays leader. It
	// renews five times as often.
	LeaseDuration time.Duration
}

// DefaultListen is where a controller serves health and metrics. The agent on
// the same host has 9797 (TCP) and 9798 (UDP).
const DefaultListen = ":9799"

// Defaults fills the empty fields.
func (c *Config) Defaults() {
	setIfZero(&c.Namespace, kube.SystemNamespace)
	setIfZero(&c.Listen, DefaultListen)
	setIfZero(&c.Grace, time.Minute)
	setIfZero(&c.Interval, 100*time.Millisecond)
	setIfZero(&c.Resync, 10*time.Second)
	// An agent takes a controller for dead after kube.ControllerTimeout.
	setIfZero(&c.LeaseDuration, kube.ControllerTimeout)
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

func setIfZero[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate says what is missing.
func (c *Config) Validate() error {
	var errs []error
	if c.API == nil {
		errs = append(errs, errors.New("how to reach the API server is not known: give --kubeconfig, or run in a pod"))
	}
	if c.Identity == "" {
		errs = append(errs, errors.New("the replica has no identity: set POD_NAME to the pod's name"))
	}
	if c.Grace < 0 || c.Interval < 0 || c.Resync <= 0 {
		errs = append(errs, errors.New("grace, interval and resync cannot be negative"))
	}
	return errors.Join(errs...)
}
