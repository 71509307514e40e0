package dataplane

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"ropeway.dev/ropeway/internal/plan"
)

// FakeUplinkMTU is the MTU in bytes of a Fake's only uplink.
const FakeUplinkMTU = 1500

// Fake is a Dataplane without a kernel, for tests of what uses one. It keeps to
// the contract: Set is idempotent and reports Changed truthfully, Observe shows
// what was Set, Clean forgets it.
type Fake struct {
	mu      sync.Mutex
	states  []plan.State
	failing []error
	refuses map[plan.Transport]string
	pods    []PodLink
	clean   bool
	changes chan struct{}
}

var _ Dataplane = (*Fake)(nil)

// NewFake returns a Fake in which nothing is set.
func NewFake() *Fake {
	return &Fake{refuses: map[plan.Transport]string{}, clean: true, changes: make(chan struct{}, 1)}
}

// Fail makes the next calls of Set, Observe or Clean fail, one with each error.
// A nil error lets that call succeed.
func (f *Fake) Fail(errs ...error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing = append(f.failing, errs...)
}

// Refuse makes the node unable to use a transport from now on; an empty reason
// makes it able again.
func (f *Fake) Refuse(t plan.Transport, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if why == "" {
		delete(f.refuses, t)
	} else {
		f.refuses[t] = why
	}
}

// SetPods says what Observe finds of pods.
func (f *Fake) SetPods(pods ...PodLink) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods = slices.Clone(pods)
}

// Change makes the channel of Changes speak.
func (f *Fake) Change() {
	select {
	case f.changes <- struct{}{}:
	default:
	}
}

// Changes is Linux.Changes.
func (f *Fake) Changes(context.Context) <-chan struct{} { return f.changes }

// States returns the states of all Sets that did not fail, the latest last.
func (f *Fake) States() []plan.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.states)
}

// Cleaned reports whether nothing is set.
func (f *Fake) Cleaned() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clean
}

// fail takes the next error. The caller holds the lock.
func (f *Fake) fail() error {
	if len(f.failing) == 0 {
		return nil
	}
	err := f.failing[0]
	f.failing = f.failing[1:]
	return err
}

// Set implements Dataplane.
func (f *Fake) Set(ctx context.Context, want plan.State) (Report, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	report := Report{
		Refuses: map[plan.Transport]string{}, Failed: map[netip.Prefix]string{},
		Uplinks: []Uplink{{Name: "eth0", Index: 2, MTU: FakeUplinkMTU}},
		PodMTU:  plan.PodMTU(want.MTU, want.Transports, plan.IPv4, FakeUplinkMTU),
	}
	for t, why := range f.refuses {
		report.Refuses[t] = why
	}
	for _, r := range want.Routes {
		if why := f.refuses[r.Transport]; why != "" {
			report.Failed[r.Dst] = why
		}
	}
	if err := ctx.Err(); err != nil {
		return report, err
	}
	if err := f.fail(); err != nil {
		return report, err
	}
	last := len(f.states) - 1
	report.Changed = f.clean || last < 0 || !reflect.DeepEqual(f.states[last], want)
	f.states = append(f.states, want)
	f.clean = false
	report.Local = true
	return report, nil
}

// Observe implements Dataplane.
func (f *Fake) Observe(ctx context.Context) (Observed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return Observed{}, err
	}
	if err := f.fail(); err != nil {
		return Observed{}, err
	}
	out := Observed{Pods: slices.Clone(f.pods)}
	if f.clean {
		return out, nil
	}
	now := f.states[len(f.states)-1]
	out.Sources = slices.Clone(now.Sources)
	for _, r := range now.Routes {
		if f.refuses[r.Transport] != "" {
			continue
		}
		o := ObservedRoute{Dst: r.Dst, Transport: r.Transport, Outer: r.Outer, Device: "eth0"}
		if r.Transport == plan.VXLAN {
			o.Device = VXLANDeviceName
		}
		o.MTU = plan.RouteMTU(now.MTU, r.Transport, plan.FamilyOf(r.Outer), FakeUplinkMTU)
		out.Routes = append(out.Routes, o)
	}
	return out, nil
}

// Clean implements Dataplane.
func (f *Fake) Clean(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := f.fail(); err != nil {
		return err
	}
	f.clean = true
	return nil
}
