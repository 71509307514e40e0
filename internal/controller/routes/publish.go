package routes

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// publish makes the Status say what was decided.
func (p *Planner) publish(in Input, d decision) {
	s := &Status{
		Mode: in.Mode, Provider: in.Setup.Provider, Why: in.Why, Listed: p.listed, Tables: d.tables, Rows: d.rows, Diverted: d.diverted, Begun: p.begun,
		Withheld: p.kept.count, Token: p.kept.token, WithheldSince: p.kept.since,
	}
	s.Problems = append(p.troubles(in), problemsOf(s, in)...)
	p.store(s)
}

// troubles are why calls fail, one for each kind of call or action.
func (p *Planner) troubles(in Input) []Problem {
	var out []Problem
	seen := map[Problem]bool{}
	add := func(problem Problem) {
		if !seen[problem] {
			seen[problem] = true
			out = append(out, problem)
		}
	}
	for _, t := range []trouble{p.reading, p.resolving, p.adding, p.removing} {
		if t.err != nil {
			add(troubleOf(t.err, in))
		}
	}
	denied := map[string]error{} // action -> one of its refusals
	for _, key := range slices.SortedFunc(maps.Keys(p.held), compareKeys) {
		if err := p.held[key].err; cloud.Is(err, cloud.Forbidden, cloud.Unauthenticated) && denied[cloud.ActionOf(err)] == nil {
			denied[cloud.ActionOf(err)] = err
			add(troubleOf(err, in))
		}
	}
	if p.inUse != "" {
		add(Problem{Reason: ReasonInUse, Message: p.inUse})
	}
	if b := p.busy; !b.since.IsZero() && p.cfg.Now().Sub(b.since) >= busyFor {
		add(Problem{Reason: ReasonBusy, Message: fmt.Sprintf("the VPC has refused every change since %s because another one is under way: "+
			"see whether another program keeps writing routes there; it is tried again (%v)", b.since.UTC().Format(time.RFC3339), b.err)})
	}
	return out
}

// store publishes a Status and tells of it if more than the time has changed.
func (p *Planner) store(s *Status) {
	before := p.status.Swap(s)
	p.cfg.Metrics.set(s)
	then, now := *before, *s
	then.Listed, then.Begun = now.Listed, now.Begun
	if !reflect.DeepEqual(then, now) {
		p.cfg.Changed()
	}
}

// troubleOf says why calls fail, and what to do.
func troubleOf(err error, in Input) Problem {
	text := err.Error()
	switch cloud.ClassOf(err) {
	case cloud.Forbidden:
		return Problem{Reason: ReasonForbidden, Message: fmt.Sprintf("%s; give the role or user of the controller the action %s", text, orSome(cloud.ActionOf(err)))}
	case cloud.Unauthenticated:
		return Problem{Reason: ReasonCredentials, Message: text + "; " + mendKeys(in.Setup.Secret)}
	case cloud.Permanent, cloud.BadNextHop:
		return Problem{Reason: ReasonSetup, Message: text + "; correct spec.cloud"}
	}
	return Problem{Reason: ReasonNoAnswer, Message: text + "; it is tried again"}
}

func mendKeys(secret string) string {
	if secret == "" {
		return "see the RAM role of the instances that the controller runs on, or name a Secret in spec.cloud.credentialsSecret"
	}
	return "put working keys into the Secret " + secret + " that spec.cloud.credentialsSecret names"
}

func orSome(action string) string {
	if action == "" {
		return "that it names"
	}
	return action
}

// problemsOf names what a person must act on, the most urgent first. Problems
// of nodes are one each; those of a table are one for the table.
func problemsOf(s *Status, in Input) []Problem {
	var out []Problem
	if s.Withheld > 0 && s.Mode == Withdraw {
		out = append(out, Problem{Reason: ReasonWithheld, Message: fmt.Sprintf(
			"%d routes of ours are to be withdrawn as asked for: see ropeway routes, then say ropeway routes confirm %s", s.Withheld, s.Token)})
	} else if s.Withheld > 0 {
		out = append(out, Problem{Reason: ReasonWithheld, Message: fmt.Sprintf(
			"%d routes of ours would be withdrawn or changed at once, which is more than a tenth: nothing is done until a person says that it is meant: "+
				"see ropeway routes, then say ropeway routes confirm %s (the annotation %s of the ClusterNetwork)", s.Withheld, s.Token, ConfirmAnnotation)})
	}
	for _, a := range []struct {
		name string
		bad  []string
	}{{AdoptAnnotation, in.Adopt.Bad}, {ReleaseAnnotation, in.Release.Bad}} {
		if len(a.bad) > 0 {
			out = append(out, Problem{Reason: ReasonSetup, Message: fmt.Sprintf(
				"the annotation %s of the ClusterNetwork names %q, which is no CIDR, nor all: that part of it is left out", a.name, a.bad)})
		}
	}
	for _, t := range s.Tables {
		if n := countRows(s, t.ID, OverQuota); n > 0 {
			out = append(out, Problem{Reason: ReasonTableFull, Message: fmt.Sprintf(
				"route table %s is full (%d of %d entries): %d destinations have no route and stay on the tunnel where one is allowed: "+
					"raise the table's quota, or delete entries that nobody needs", t.ID, t.Entries, t.Quota, n)})
		}
	}
	for i := range s.Rows {
		if p, bad := problemOf(&s.Rows[i], in); bad {
			out = append(out, p)
		}
	}
	return out
}

func problemOf(r *Row, in Input) (Problem, bool) {
	p := Problem{Node: r.Node, Message: r.Message}
	switch {
	case r.State == Conflict, r.State == Shadowed && !r.mends:
		p.Reason = ReasonConflict
	case r.State == NoInstance:
		p.Reason = ReasonNoInstance
	case r.State == Failed && !r.denied:
		p.Reason = ReasonRefused
		p.Message = fmt.Sprintf("the route for %s to %s in table %s: %s", r.Dst, r.Instance, r.Table, r.Message)
	case r.State == Missing && r.late && in.Mode == External:
		p.Reason = ReasonMissing
		p.Message = fmt.Sprintf("route table %s has no entry for %s to %s, and Ropeway makes none: %s", r.Table, r.Dst, r.Instance, makerOf(in))
	default:
		return Problem{}, false
	}
	return p, true
}

// makerOf says who should have made an entry that is missing.
func makerOf(in Input) string {
	if in.Blocks {
		return "other programs make entries for nodes' podCIDRs, and this is a block of spec.addressSource Blocks: set that to NodeCIDR, or spec.cloud.routes to ropeway"
	}
	return "see the log of the cloud controller manager that should have made it, and whether it knows the node's instance"
}

func countRows(s *Status, table string, state State) int {
	n := 0
	for i := range s.Rows {
		if s.Rows[i].Table == table && s.Rows[i].State == state {
			n++
		}
	}
	return n
}

// Annotations of the ClusterNetwork that speak to the planner.
const (
	// ConfirmAnnotation holds the token of a bulk withdrawal that is meant.
	ConfirmAnnotation = "ropeway.dev/confirm-withdrawal"
	// AdoptAnnotation and ReleaseAnnotation hold "all" or CIDRs: entries to
	// mark as this cluster's, and entries to take the mark from.
	AdoptAnnotation   = "ropeway.dev/adopt-routes"
	ReleaseAnnotation = "ropeway.dev/release-routes"
	// WithdrawAnnotation, whatever it says, asks for the removal of this
	// cluster's entries once the configuration needs none.
	WithdrawAnnotation = "ropeway.dev/withdraw-routes"
)

// Sentence sums the Status up, for a condition's message.
func (s *Status) Sentence() string {
	wanted, good := s.Wanted()
	text := fmt.Sprintf("%d of %d routes are in the cloud's tables", good, wanted)
	if used := s.Count(Used); used > 0 {
		text += fmt.Sprintf(" (%d of them made by others)", used)
	}
	const most = 3
	for i, p := range s.Problems {
		if i == most {
			text += fmt.Sprintf("; and %d more problems", len(s.Problems)-most)
			break
		}
		text += "; " + strings.TrimSuffix(p.Message, ".")
	}
	return text
}
