package routes

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// Config says how a Planner works. Defaults fills what is zero.
type Config struct {
	// Make makes the provider that a Setup names. It is called again after the
	// Setup has changed, or the credentials were refused. Required.
	Make func(ctx context.Context, s Setup) (cloud.Provider, error)
	// Confirm reads the same Input as Set is given, from the API server
	// itself. It is asked before anything is withdrawn. Required.
	Confirm func(ctx context.Context) (Input, error)
	// Changed is told when the Status has changed; nil for nobody.
	Changed func()
	Log     *slog.Logger
	Metrics *Metrics // nil: not counted
	Now     func() time.Time

	// Resync is the least time between listings with nothing to do; large
	// tables are listed less often (PerPage more for each hundred entries).
	Resync, PerPage time.Duration
	// StaleAfter is how long an own entry is unwanted before it is removed.
	StaleAfter time.Duration
	// Settle is how long the cloud takes for a batch until it is known.
	Settle time.Duration
	// CallTimeout bounds one call of the provider.
	CallTimeout time.Duration
}

// Defaults fills the zero fields.
func (c *Config) Defaults() {
	for field, value := range map[*time.Duration]time.Duration{
		&c.Resync: 30 * time.Second, &c.PerPage: 3 * time.Second, &c.StaleAfter: time.Minute,
		&c.Settle: time.Second, &c.CallTimeout: 2 * time.Minute,
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
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
}

// Planner makes one VPC's route tables right. Set tells it what is wanted, Run
// works until its context ends.
type Planner struct {
	cfg    Config
	wake   chan struct{}
	status atomic.Pointer[Status]

	mu    sync.Mutex // guards input and hint
	input Input
	hint  bool // somebody thinks that the tables have changed

	// What follows is Run's own.
	provider  cloud.Provider
	setup     Setup
	instances resolver
	tables    []cloud.Table
	real      map[cloud.Key]cloud.RouteEntry // nil before the first listing
	held      map[cloud.Key]held
	full      map[string]fullMark
	absent    map[cloud.Key]time.Time // wanted entries that are not there -> since when
	guard     *guard
	kept      withheld  // what the guard keeps from being done
	listed    time.Time // when the last listing was made, and when it was asked for
	begun     time.Time
	look      bool      // list before anything else
	lookAt    time.Time // list then at the latest; zero: nothing is awaited
	looks     int       // listings in a row that found changes still under way
	pace      pace
	batch     int  // entries in the next batch
	sending   bool // there are more to send than the last batch took
	// What fails as a whole, each by itself: a right that is missing for one
	// kind of call must not hold the others up.
	reading, resolving, adding, removing trouble
	inUse                                string // why the API server has a withdrawal wait
	busy                                 busySpell
	alone                                singles
	allowed                              bool // as the last Input said
}

// trouble is why calls of one kind fail now, and when to try again.
type trouble struct {
	backoff
	err error
}

// busySpell is since when the VPC has taken no change because of another one.
type busySpell struct {
	since time.Time
	tries int
	err   error
}

// New makes a Planner.
func New(cfg Config) *Planner {
	cfg.Defaults()
	p := &Planner{cfg: cfg, wake: make(chan struct{}, 1)}
	p.reset()
	p.status.Store(&Status{})
	return p
}

// reset forgets everything that was learned of a cloud.
func (p *Planner) reset() {
	p.provider, p.tables, p.real = nil, nil, nil
	p.instances = resolver{}
	p.held, p.full, p.absent = map[cloud.Key]held{}, map[string]fullMark{}, map[cloud.Key]time.Time{}
	p.guard, p.kept = newGuard(), withheld{}
	p.listed, p.begun, p.look, p.lookAt, p.looks = time.Time{}, time.Time{}, true, time.Time{}, 0
	p.pace = pace{settle: p.cfg.Settle}
	p.batch, p.sending = cloud.MaxBatch, false
	p.reading, p.adding, p.removing, p.busy, p.inUse = trouble{}, trouble{}, trouble{}, busySpell{}, ""
	p.resolving, p.alone = trouble{}, singles{}
}

// Set says what is wanted from now on.
func (p *Planner) Set(in Input) {
	p.mu.Lock()
	p.input = in
	p.mu.Unlock()
	p.rouse()
}

// Look makes the next step list the tables: somebody has a reason to think
// that they have changed. Hints in quick succession make one listing.
func (p *Planner) Look() {
	p.mu.Lock()
	p.hint = true
	p.mu.Unlock()
	p.rouse()
}

// hintEvery is the least time between a listing and one that was hinted at. It
// grows with the table: what a hint is about goes by the tunnel meanwhile.
func (p *Planner) hintEvery() time.Duration { return max(5*time.Second, p.resync()/6) }

func (p *Planner) hinted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hint
}

// takeHint returns a hint once it is time to follow it.
func (p *Planner) takeHint(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.hint || now.Before(p.listed.Add(p.hintEvery())) {
		return false
	}
	p.hint = false
	return true
}

func (p *Planner) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Planner) wanted() Input {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.input
}

// Status returns the latest; it is never nil, and not changed later. Its Mode is
// empty until this term's Run has something to say.
func (p *Planner) Status() *Status { return p.status.Load() }

// Run works until the context ends, and then forgets what it was Set. There must
// be one Run at a time, in all replicas together.
func (p *Planner) Run(ctx context.Context) {
	defer p.resign()
	for ctx.Err() == nil {
		wait := p.step(ctx)
		timer := time.NewTimer(max(wait, 0))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-p.wake:
		}
		timer.Stop()
	}
}

// resign forgets everything once this replica leads no more: another one may
// lead meanwhile, and the next term must act on nothing but what it is Set. It
// is done at the end of a term since Set may come before the next one's Run.
func (p *Planner) resign() {
	p.mu.Lock()
	p.input, p.hint = Input{}, false
	p.mu.Unlock()
	p.reset()
	p.status.Store(&Status{})
	p.cfg.Metrics.resign()
}

// idleFor is how long a Planner sleeps that has nothing to wait for but Set.
const idleFor = time.Minute

// step makes at most one call that changes something, and returns after which
// time the next step has something to do if nothing is Set before.
func (p *Planner) step(ctx context.Context) time.Duration {
	in, now := p.wanted(), p.cfg.Now()
	if in.Mode == Off || in.Mode == "" || in.Nodes == 0 || in.Cluster == "" {
		if in.Mode != "" {
			p.guard.lapse()
			p.kept = withheld{}
		}
		p.idle(in)
		return idleFor
	}
	if !in.Setup.Equal(p.setup) {
		p.reset()
		p.setup = in.Setup
	}
	p.heed(in.Allowed)
	if wait := p.reading.wait(now); wait > 0 {
		p.publish(in, p.recompare(in))
		return wait
	}
	if err := p.read(ctx, in, now); err != nil {
		return p.failed(&p.reading, in, err)
	}
	p.reading = trouble{}
	// Reading may have taken long: what is done follows from what is wanted now.
	if next := p.wanted(); next.Mode == in.Mode && next.Cluster == in.Cluster && next.Setup.Equal(in.Setup) {
		return p.act(ctx, next)
	}
	return 0
}

// read brings up to date what is known of the cloud.
func (p *Planner) read(ctx context.Context, in Input, now time.Time) error {
	if p.provider == nil {
		if err := p.make(ctx); err != nil {
			return err
		}
	}
	p.resolve(ctx, in)
	if p.mustList(now) {
		return p.list(ctx, in)
	}
	return nil
}

// idle publishes that nothing is done.
func (p *Planner) idle(in Input) {
	s := &Status{Mode: in.Mode, Provider: in.Setup.Provider, Why: in.Why}
	if in.Mode != "" && in.Mode != Off {
		s.Why = "the cluster shows no nodes, or no id: nothing is done until it does"
	}
	p.store(s)
}

func (p *Planner) make(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.CallTimeout)
	defer cancel()
	provider, err := p.cfg.Make(ctx, p.setup)
	if err != nil {
		return fmt.Errorf("prepare to call the cloud: %w", err)
	}
	p.provider = provider
	p.cfg.Log.Info("routes of the cloud", "provider", provider.Name(), "region", p.setup.Region, "vpc", p.setup.VPC, "tables", p.setup.Tables)
	return nil
}

// compare decides from what is known now.
func (p *Planner) compare(in Input) decision {
	return decide(facts{
		in: in, tables: p.tables, real: p.real, hops: p.instances.hops, held: p.held, full: p.full, absent: p.absent, now: p.cfg.Now(),
	})
}

// recompare is compare while the cloud is not asked anything: nodes that have
// come meanwhile are known by their providerID.
func (p *Planner) recompare(in Input) decision {
	if p.provider != nil {
		p.instances.known(in, p.provider.Instances(), p.resolving.err)
	}
	return p.compare(in)
}

// act makes the next change, if one is due. Additions go first; what frees
// room in a full table comes when they have run out.
func (p *Planner) act(ctx context.Context, in Input) time.Duration {
	now := p.cfg.Now()
	d := p.compare(in)
	p.guard.forget(d.stale)
	ours := 0
	for _, t := range d.tables {
		ours += t.Ours
	}
	remove, replace, kept := p.guard.allow(d, ours, in, now)
	p.kept = kept
	changes := p.refusedLast(append(d.add, due(replace, d.waiting)...))
	gone := p.guard.confirmed(p.notHeld(remove, now), p.cfg.StaleAfter, now)
	p.drop(len(changes), len(remove))
	p.publish(in, d)
	if in.Mode != Write && in.Mode != Withdraw {
		return p.rest(in, now)
	}
	if wait := p.pace.wait(now); wait > 0 && len(changes)+len(remove) > 0 {
		return wait
	}
	if len(changes) > 0 && p.adding.wait(now) == 0 {
		return p.apply(ctx, in, changes)
	}
	p.sending = false
	if len(gone) > 0 && p.removing.wait(now) == 0 {
		return p.withdraw(ctx, in, gone)
	}
	return p.rest(in, now)
}

// due leaves out the changes that wait for something else than a person's word.
func due(changes []cloud.RouteChange, waiting map[cloud.Key]bool) []cloud.RouteChange {
	return slices.DeleteFunc(slices.Clone(changes), func(c cloud.RouteChange) bool { return waiting[c.Key()] })
}

// refusedLast lets the entries that have not been refused go first: those that
// have may spoil the call for others.
func (p *Planner) refusedLast(changes []cloud.RouteChange) []cloud.RouteChange {
	slices.SortStableFunc(changes, func(a, b cloud.RouteChange) int { return p.held[a.Key()].times - p.held[b.Key()].times })
	return changes
}

// notHeld leaves out the removals that the cloud has refused lately.
func (p *Planner) notHeld(remove []cloud.RouteEntry, now time.Time) []cloud.RouteEntry {
	return slices.DeleteFunc(slices.Clone(remove), func(e cloud.RouteEntry) bool {
		h, known := p.held[e.Key()]
		return known && h.what == removalOf(e) && now.Before(h.until)
	})
}

// drop forgets troubles of changes that nobody wants to make any more.
func (p *Planner) drop(changes, removals int) {
	if changes == 0 {
		p.adding = trouble{}
	}
	if removals == 0 {
		p.removing, p.inUse = trouble{}, ""
	}
	if changes+removals == 0 {
		p.busy, p.alone = busySpell{}, singles{}
	}
}

// rest returns how long there is nothing to do.
func (p *Planner) rest(in Input, now time.Time) time.Duration {
	next := p.listed.Add(p.resync())
	if !p.lookAt.IsZero() {
		next = p.lookAt
	}
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	if due := p.guard.due(p.cfg.StaleAfter); p.lookAt.IsZero() && p.listed.Before(due) {
		earlier(due)
	}
	for _, h := range p.held {
		if now.Before(h.until) {
			earlier(h.until)
		}
	}
	for _, mark := range p.full {
		if now.Before(mark.until) {
			earlier(mark.until)
		}
	}
	for _, t := range []trouble{p.adding, p.removing} {
		if t.wait(now) > 0 {
			earlier(t.until)
		}
	}
	if p.hinted() {
		earlier(p.listed.Add(p.hintEvery()))
	}
	earlier(p.instances.next)
	return max(next.Sub(now), 10*time.Millisecond)
}
