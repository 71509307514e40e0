package nodes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"ropeway.dev/ropeway/internal/cloud"
)

// Config says how a Controller works. Defaults fills what is zero.
type Config struct {
	// API is how to reach the API server. Required.
	API *rest.Config
	// Make makes the provider of a Setup. Required.
	Make func(ctx context.Context, s cloud.Setup) (cloud.Provider, error)
	// Record records an event of a Node; nil for nobody.
	Record func(node *corev1.Node, warning bool, reason, message string)
	// Changed is told when the Status has changed; nil for nobody.
	Changed func()
	Log     *slog.Logger
	Metrics *Metrics // nil: not counted
	Now     func() time.Time

	// Update is how often labels, addresses and interfaces of all nodes are
	// looked at, Monitor how often those of silent nodes.
	Update, Monitor time.Duration
	// Confirm is the least time between the two looks that find an instance
	// gone.
	Confirm time.Duration
	// Retry is how soon what failed is tried again at first; thirty times that
	// is the longest wait.
	Retry time.Duration
	// CallTimeout bounds one question to the cloud, all its pages included.
	CallTimeout time.Duration
}

// Defaults fills the zero fields.
func (c *Config) Defaults() {
	for field, value := range map[*time.Duration]time.Duration{
		&c.Update: 5 * time.Minute, &c.Monitor: 5 * time.Second, &c.Confirm: 30 * time.Second,
		&c.Retry: 2 * time.Second, &c.CallTimeout: 2 * time.Minute,
	} {
		if *field == 0 {
			*field = value
		}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Changed == nil {
		c.Changed = func() {}
	}
	if c.Record == nil {
		c.Record = func(*corev1.Node, bool, string, string) {}
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
}

func (c *Config) longest() time.Duration { return 30 * c.Retry }

// Input is what the configuration asks for.
type Input struct {
	On    bool // spec.cloud.nodes: ropeway
	Setup cloud.Setup
	// Forward lets interfaces carry pods' packets: direct is allowed.
	Forward bool
	// IPv6 says that pods have addresses of that family, so that nodes' count.
	IPv6 bool
}

// Controller is this package's work. Set tells it what is wanted, Run works
// until its context ends.
type Controller struct {
	cfg    Config
	wake   chan struct{}
	status atomic.Pointer[Status]

	mu    sync.Mutex
	input Input
}

// New makes a Controller.
func New(cfg Config) *Controller {
	cfg.Defaults()
	c := &Controller{cfg: cfg, wake: make(chan struct{}, 1)}
	c.status.Store(&Status{})
	return c
}

// Set says what is wanted from now on.
func (c *Controller) Set(in Input) {
	c.mu.Lock()
	same := reflect.DeepEqual(c.input, in)
	c.input = in
	c.mu.Unlock()
	if same {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Controller) wanted() Input {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.input
}

// Status returns the latest; it is never nil, and not changed later.
func (c *Controller) Status() *Status { return c.status.Load() }

func (c *Controller) publish(s *Status) {
	if before := c.status.Swap(s); !reflect.DeepEqual(before, s) {
		c.cfg.Changed()
	}
}

// Run works until the context ends; when it returns, nothing of it writes any
// more, and what it was Set is forgotten. There must be one Run at a time, in all
// replicas together.
func (c *Controller) Run(ctx context.Context) {
	defer c.resign()
	retry := c.cfg.Retry
	for ctx.Err() == nil {
		in := c.wanted()
		if !in.On {
			c.cfg.Metrics.resign()
			c.publish(&Status{})
			c.pause(ctx, 0)
			continue
		}
		err := c.term(ctx, in)
		if err == nil {
			retry = c.cfg.Retry // something else is wanted
			continue
		}
		if ctx.Err() == nil {
			c.cfg.Log.Warn("the nodes' instances are not looked after; trying again", "err", err, "wait", retry)
			c.publish(&Status{On: true, Problems: []Problem{problemOf(err)}})
			c.pause(ctx, retry)
			retry = min(2*retry, c.cfg.longest())
		}
	}
}

// resign forgets what was wanted once this replica leads no more: the next term
// must act on nothing but what it is Set.
func (c *Controller) resign() {
	c.mu.Lock()
	c.input = Input{}
	c.mu.Unlock()
	c.cfg.Metrics.resign()
	c.publish(&Status{})
}

// pause waits for a time (0: without end), for Set, or for the end.
func (c *Controller) pause(ctx context.Context, d time.Duration) {
	var after <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-ctx.Done():
	case <-after:
	case <-c.wake:
	}
}

// problemOf turns an error into what a person reads.
func problemOf(err error) Problem {
	p := Problem{Reason: ReasonNoAnswer, Message: err.Error()}
	var e *cloud.Error
	if !errors.As(err, &e) {
		return p
	}
	switch e.Class {
	case cloud.Forbidden:
		p.Reason = ReasonForbidden
	case cloud.Unauthenticated:
		p.Reason = ReasonCredentials
	case cloud.Permanent:
		p.Reason = ReasonSetup
	}
	return p
}

func counted(n, of int) string { return fmt.Sprintf("%d of %d nodes", n, of) }
