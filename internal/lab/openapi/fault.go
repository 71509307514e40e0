package openapi

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path"
	"time"
)

// FaultKind says what goes wrong.
type FaultKind string

// The kinds of faults.
const (
	// FaultError: the call is answered with Code and does nothing.
	FaultError FaultKind = "error"
	// FaultTimeout: nothing is done, and the connection is closed without an
	// answer after Delay.
	FaultTimeout FaultKind = "timeout"
	// FaultCommitTimeout: the call is done, and then as FaultTimeout.
	FaultCommitTimeout FaultKind = "commit-timeout"
	// FaultSlow: what the call changes stays in its passing state for Delay.
	FaultSlow FaultKind = "slow"
	// FaultEmpty: the call is answered as if this account had nothing in the
	// region, as for rights or a region that hide everything.
	FaultEmpty FaultKind = "empty"
	// FaultEntry: of a batch, the entries inside CIDR fail with Code.
	FaultEntry FaultKind = "entry"
)

// Fault is something that goes wrong on demand.
type Fault struct {
	ID int `json:"id"`
	// Action is a pattern of actions, as path.Match has it; all when empty.
	Action string    `json:"action,omitempty"`
	Kind   FaultKind `json:"kind"`
	// Code is the error's; status and message follow from it unless given.
	Code    string `json:"code,omitempty"`
	Status  int    `json:"status,omitempty"`
	Message string `json:"message,omitempty"`
	// CIDR limits FaultEntry and FaultSlow to destinations inside it; all
	// when zero.
	CIDR netip.Prefix `json:"cidr,omitzero"`
	// Delay is how long it takes.
	Delay Duration `json:"delay,omitempty"`
	// Skip lets that many calls pass first; Times is how many are hit then,
	// without an end when 0.
	Skip  int `json:"skip,omitempty"`
	Times int `json:"times,omitempty"`
	// Probability of a hit, 0 to 1; always when 0.
	Probability float64 `json:"probability,omitempty"`
	// RetryAfter is told to whoever is throttled, as the header
	// x-ratelimit-user-api has it.
	RetryAfter Duration `json:"retryAfter,omitempty"`

	Hits int `json:"hits"`
}

// Validate names every field that cannot be.
func (f Fault) Validate() error {
	var errs []error
	switch f.Kind {
	case FaultError, FaultEntry:
		if f.Code == "" {
			errs = append(errs, fmt.Errorf("fault of kind %s: give the error's code, such as Throttling.User", f.Kind))
		}
	case FaultSlow:
		if f.Delay <= 0 {
			errs = append(errs, errors.New("fault of kind slow: give a delay, such as 30s"))
		}
	case FaultTimeout, FaultCommitTimeout, FaultEmpty:
	default:
		errs = append(errs, fmt.Errorf("fault of kind %q: choose error, timeout, commit-timeout, slow, empty or entry", f.Kind))
	}
	if _, err := path.Match(f.Action, ""); err != nil {
		errs = append(errs, fmt.Errorf("fault on action %q: give a name or a pattern such as Describe*", f.Action))
	}
	if f.Probability < 0 || f.Probability > 1 {
		errs = append(errs, fmt.Errorf("fault with probability %v: give 0 to 1", f.Probability))
	}
	if f.Delay < 0 || f.RetryAfter < 0 || f.Skip < 0 || f.Times < 0 {
		errs = append(errs, errors.New("fault: times and counts cannot be negative"))
	}
	return errors.Join(errs...)
}

// err is the refusal that a fault makes.
func (f Fault) err() *apiError {
	e := knownCode(f.Code)
	if f.Status != 0 {
		e.Status = f.Status
	}
	if f.Message != "" {
		e.Message = f.Message
	}
	return e
}

// strikes are the faults that hit one call.
type strikes []Fault

// strike finds the faults that hit a call and counts them. The caller holds
// the lock.
func (s *Server) strike(action string) strikes {
	var hit strikes
	for i := range s.state.Faults {
		f := &s.state.Faults[i]
		if match, _ := path.Match(first(f.Action, "*"), action); !match {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Times > 0 && f.Hits >= f.Times || f.Probability > 0 && rand.Float64() >= f.Probability {
			continue
		}
		f.Hits++
		hit = append(hit, *f)
	}
	return hit
}

func (hit strikes) find(kinds ...FaultKind) (Fault, bool) {
	for _, f := range hit {
		for _, k := range kinds {
			if f.Kind == k {
				return f, true
			}
		}
	}
	return Fault{}, false
}

// entry is what FaultEntry says of a destination; nil when nothing.
func (hit strikes) entry(dst netip.Prefix) *apiError {
	for _, f := range hit {
		if f.Kind == FaultEntry && f.covers(dst) {
			return f.err()
		}
	}
	return nil
}

// delay is how long a change of a destination takes.
func (hit strikes) delay(dst netip.Prefix, otherwise Duration) time.Duration {
	for _, f := range hit {
		if f.Kind == FaultSlow && f.covers(dst) {
			return time.Duration(f.Delay)
		}
	}
	return time.Duration(otherwise)
}

func (f Fault) covers(dst netip.Prefix) bool {
	return !f.CIDR.IsValid() || f.CIDR.Bits() <= dst.Bits() && f.CIDR.Contains(dst.Addr())
}
