package controller

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/nodes"
	"ropeway.dev/ropeway/internal/controller/routes"
)

// Reasons of the condition CloudRights.
const (
	reasonAllowed     = "Allowed"
	reasonRefused     = "ActionsRefused"
	reasonCredentials = "CredentialsRefused"
	reasonNotAsked    = "NotAsked"
)

// rights asks the cloud which actions the credentials may call: when nobody has
// asked yet, when the configuration changes, when a call was refused, and again
// while something is. Its questions are calls that change nothing, but the VPC
// takes one call at a time: while routes are being published they wait, since
// the routes' calls tell as much.
type rights struct {
	make    func(ctx context.Context, s cloud.Setup) (cloud.Provider, error)
	changed func()
	log     *slog.Logger
	every   time.Duration // between two questions, at least

	wake   chan struct{}
	status atomic.Pointer[rightsStatus] // nil before the first answer
	mu     sync.Mutex
	asked  *rightsInput // nil before the first pass of this term
	doubt  bool
	known  bool // an earlier leader was answered that all is allowed
	busy   bool
}

// rightsHints are what a pass knows that matters for asking.
type rightsHints struct {
	refused bool // a call was, for want of rights
	busy    bool // routes are being published
	known   bool // the condition says that all is allowed by this configuration
}

// mostHeld bounds how often a question is put off, once in rights.every.
const mostHeld = 10

// rightsInput is what is to be asked about; no duties mean nothing.
type rightsInput struct {
	setup  cloud.Setup
	duties cloud.Duties
}

// rightsStatus is the answer; the zero value is none.
type rightsStatus struct {
	reason, message string
	refused         []string // actions
}

func newRights(provider func(ctx context.Context, s cloud.Setup) (cloud.Provider, error), changed func(), log *slog.Logger, every time.Duration) *rights {
	return &rights{make: provider, changed: changed, log: log, every: every, wake: make(chan struct{}, 1)}
}

// rightsNeeded is what the network in force needs in the cloud.
func rightsNeeded(spec *v1alpha1.ClusterNetworkSpec, in routes.Input) rightsInput {
	if spec == nil || spec.Cloud == nil || spec.Cloud.Provider == "" {
		return rightsInput{}
	}
	return rightsInput{
		setup: cloudSetup(spec.Cloud),
		duties: cloud.Duties{
			Check:  in.Mode != routes.Off,
			Routes: in.Mode == routes.Write || in.Mode == routes.Withdraw,
			Nodes:  spec.Cloud.KeepsNodes(),
		},
	}
}

// set says what is needed, and what is known meanwhile.
func (r *rights) set(in rightsInput, h rightsHints) {
	r.mu.Lock()
	first := r.asked == nil
	other := first || !reflect.DeepEqual(*r.asked, in)
	news := other || h.refused && !r.doubt || r.busy && !h.busy
	if first {
		r.known = h.known
	}
	r.known = r.known && (first || !other) && !h.refused
	r.asked, r.doubt, r.busy = &in, h.refused, h.busy && !h.refused
	r.mu.Unlock()
	if !news {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// question returns what to ask now: nil for nothing yet.
func (r *rights) question(held int) (in *rightsInput, doubt bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known || r.busy && held < mostHeld {
		return nil, false
	}
	return r.asked, r.doubt
}

// resign forgets what a term has learned: another replica may lead meanwhile.
func (r *rights) resign() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked, r.doubt, r.known, r.busy = nil, false, false, false
	r.status.Store(nil)
}

// run works until the context ends.
func (r *rights) run(ctx context.Context) {
	defer r.resign()
	held := 0
	for ctx.Err() == nil {
		in, doubt := r.question(held)
		if in == nil {
			held++
			pause(ctx, r.every, r.wake) // no pass has said yet, or it can wait
			continue
		}
		held = 0
		s := r.ask(ctx, *in)
		if ctx.Err() != nil {
			return
		}
		r.publish(s)
		// All is well until somebody says otherwise; what is refused is asked
		// about until it is allowed.
		wait := 24 * time.Hour
		if s.reason != "" && s.reason != reasonAllowed || doubt {
			wait = r.every
		}
		pause(ctx, wait, r.wake)
	}
}

func (r *rights) publish(s *rightsStatus) {
	if before := r.status.Swap(s); !reflect.DeepEqual(before, s) {
		if s.reason == reasonRefused || s.reason == reasonCredentials {
			r.log.Warn(s.message, "reason", s.reason)
		}
		r.changed()
	}
}

func (r *rights) ask(ctx context.Context, in rightsInput) *rightsStatus {
	if in.duties == (cloud.Duties{}) {
		return &rightsStatus{}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	p, err := r.make(ctx, in.setup)
	if err != nil {
		reason := reasonNotAsked
		if cloud.Is(err, cloud.Unauthenticated) {
			reason = reasonCredentials
		}
		return &rightsStatus{reason: reason, message: err.Error()}
	}
	checker, can := p.(cloud.Checker)
	if !can {
		return &rightsStatus{}
	}
	return judgeRights(checker.Preflight(ctx, in.duties))
}

// judgeRights puts the answers into one sentence.
func judgeRights(permissions []cloud.Permission) *rightsStatus {
	var refused, unknown []string
	for _, p := range permissions {
		switch {
		case cloud.Is(p.Err, cloud.Unauthenticated):
			return &rightsStatus{reason: reasonCredentials, message: p.Err.Error()}
		case cloud.Is(p.Err, cloud.Forbidden):
			refused = append(refused, p.Action)
		case p.Err != nil:
			unknown = append(unknown, p.Action)
		}
	}
	switch {
	case len(refused) > 0:
		slices.Sort(refused)
		return &rightsStatus{reason: reasonRefused, refused: refused, message: fmt.Sprintf(
			"the cloud refuses %s to the controller's credentials: add them to the policy of its RAM role or user (ropeway cloud policy prints the least)", strings.Join(refused, ", "))}
	case len(unknown) > 0:
		return &rightsStatus{reason: reasonNotAsked, message: fmt.Sprintf("whether the credentials may call %s is not known: the cloud gave no answer", strings.Join(unknown, ", "))}
	}
	return &rightsStatus{reason: reasonAllowed, message: fmt.Sprintf("the credentials may call all %d actions that are needed", len(permissions))}
}

// rightsKnown says that the condition answers for the ClusterNetwork as it is.
func rightsKnown(cn *v1alpha1.ClusterNetwork) bool {
	if cn == nil {
		return false
	}
	cond := meta.FindStatusCondition(cn.Status.Conditions, v1alpha1.ConditionCloudRights)
	return cond != nil && cond.Status == metav1.ConditionTrue && cond.ObservedGeneration == cn.Generation
}

// publishing says that routes are on their way, and that nothing is wrong with it.
func publishing(in routes.Input, s *routes.Status) bool {
	wanted, good := s.Wanted()
	return in.Mode == routes.Write && in.Nodes > 0 && len(s.Problems) == 0 && (s.Mode != routes.Write || s.Listed.IsZero() || good < wanted)
}

// setRights fills the condition. What an earlier leader has said stays until
// this one has asked.
func setRights(cn *v1alpha1.ClusterNetwork, s *rightsStatus) {
	if s == nil {
		return
	}
	if s.reason == "" {
		meta.RemoveStatusCondition(&cn.Status.Conditions, v1alpha1.ConditionCloudRights)
		return
	}
	cond := metav1.Condition{Type: v1alpha1.ConditionCloudRights, Status: metav1.ConditionFalse, Reason: s.reason, Message: s.message, ObservedGeneration: cn.Generation}
	switch s.reason {
	case reasonAllowed:
		cond.Status = metav1.ConditionTrue
	case reasonNotAsked:
		cond.Status = metav1.ConditionUnknown
	}
	meta.SetStatusCondition(&cn.Status.Conditions, cond)
}

// problems are what an event tells.
func (s *rightsStatus) problems() []routes.Problem {
	if s == nil || s.reason != reasonRefused && s.reason != reasonCredentials {
		return nil
	}
	return []routes.Problem{{Reason: s.reason, Message: s.message}}
}

// refusedIn says that a controller's call was refused for want of rights.
func refusedIn(r *routes.Status, n *nodes.Status) bool {
	is := func(reason string) bool {
		return reason == routes.ReasonForbidden || reason == routes.ReasonCredentials
	}
	return slices.ContainsFunc(r.Problems, func(p routes.Problem) bool { return is(p.Reason) }) ||
		slices.ContainsFunc(n.Problems, func(p nodes.Problem) bool { return is(p.Reason) })
}
