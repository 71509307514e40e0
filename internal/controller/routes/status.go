package routes

import (
	"net/netip"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// State is what is the case with one destination in one table.
type State string

// The states of a Row.
const (
	Published  State = "Published"  // ours, right and Available
	Used       State = "Used"       // somebody else's, right and Available
	Pending    State = "Pending"    // right, or being made so, and not yet Available
	Missing    State = "Missing"    // not there yet
	OverQuota  State = "OverQuota"  // not there: the table is full
	Failed     State = "Failed"     // the cloud refuses it
	Wrong      State = "Wrong"      // ours, leads to another instance, to be changed
	Conflict   State = "Conflict"   // somebody else's, leads elsewhere
	Shadowed   State = "Shadowed"   // right, but a narrower entry leads a part elsewhere
	NoInstance State = "NoInstance" // the node is no instance of the cloud
	Stale      State = "Stale"      // ours, and nobody wants it
	Foreign    State = "Foreign"    // somebody else's, in the pod network, and nobody wants it
)

// Good says that packets to the destination follow an entry that is right.
func (s State) Good() bool { return s == Published || s == Used }

// Status is what the planner knows, for a person and for the condition.
type Status struct {
	Mode     Mode      `json:"mode"` // empty while nothing is known yet
	Provider string    `json:"provider,omitempty"`
	Why      string    `json:"why,omitempty"`    // why nothing is written
	Listed   time.Time `json:"listed,omitempty"` // when the cloud last said what it has
	Tables   []Table   `json:"tables,omitempty"`
	Rows     []Row     `json:"routes,omitempty"`
	// Problems need a person; the most urgent first.
	Problems []Problem `json:"problems,omitempty"`
	// Diverted are the single addresses that the tables have an entry for, as a listing
	// that began at Begun has shown it or a call since.
	Diverted []netip.Addr `json:"-"`
	Begun    time.Time    `json:"-"`
	// Withheld counts the changes that wait for a person's word, and Token is
	// that word, which is good for those that wait since WithheldSince.
	Withheld      int       `json:"withheld,omitempty"`
	Token         string    `json:"token,omitempty"`
	WithheldSince time.Time `json:"withheldSince,omitzero"`
}

// Table is one route table.
type Table struct {
	ID      string `json:"id"`
	Quota   int    `json:"quota,omitempty"` // 0: the cloud does not say
	Entries int    `json:"entries"`         // custom ones, whoever made them
	Ours    int    `json:"ours"`            // of those entries
	Wanted  int    `json:"wanted"`          // ranges
	Good    int    `json:"good"`            // of those wanted
}

// Left returns how many entries the table still takes, -1 if that is not known.
func (t Table) Left() int {
	if t.Quota == 0 {
		return -1
	}
	return max(0, t.Quota-t.Entries)
}

// Row is one destination in one table.
type Row struct {
	Table    string           `json:"table"`
	Dst      string           `json:"destination"`
	Node     string           `json:"node,omitempty"`
	Instance string           `json:"instance,omitempty"` // that it should lead to
	NextHop  string           `json:"nextHop,omitempty"`  // that it leads to
	Owner    string           `json:"owner,omitempty"`    // the cluster that its mark names
	State    State            `json:"state"`
	Cloud    cloud.RouteState `json:"cloudState,omitempty"`
	Message  string           `json:"message,omitempty"`
	// Single is true for one address that is on a node whose ranges do not have it.
	Single bool `json:"single,omitempty"`

	key    cloud.Key
	late   bool // external: it should have been there by now
	mends  bool // shadowed by an own entry, which goes
	denied bool // refused for lack of rights, which is one Problem for all
}

// Reasons of Problems.
const (
	ReasonForbidden   = "CloudForbidden"
	ReasonCredentials = "CloudCredentials"
	ReasonNoAnswer    = "CloudNoAnswer"
	ReasonSetup       = "CloudSetup"
	ReasonWithheld    = "RoutesWithheld"
	ReasonTableFull   = "RouteTableFull"
	ReasonConflict    = "ForeignRoute"
	ReasonRefused     = "RouteRefused"
	ReasonNoInstance  = "NoInstance"
	ReasonMissing     = "RouteMissing" // external: its writer has not made it
	ReasonInUse       = "RoutesInUse"  // they are to be withdrawn, and pods use them
	ReasonBusy        = "CloudBusy"    // somebody else keeps changing the VPC's routes
)

// ReasonPublishing is why ConditionPublished is False when nothing is wrong:
// it takes time.
const ReasonPublishing = "Publishing"

// Reasons of ConditionPublished in the mode Withdraw.
const (
	ReasonWithdrawing = "Withdrawing"
	ReasonWithdrawn   = "Withdrawn"
)

// Conditions of the ClusterNetwork.
const (
	// ConditionPublished is True when every destination has a right entry in
	// the cloud's route tables. It is there only where spec.cloud says that
	// routes are looked after.
	ConditionPublished = "RoutesPublished"
	// ConditionWithheld is True while changes of many routes at once wait for
	// a person's word, and is there only then.
	ConditionWithheld = ReasonWithheld
)

// Problem is something that a person must act on.
type Problem struct {
	Reason  string `json:"reason"`
	Node    string `json:"node,omitempty"`
	Message string `json:"message"`
}

// Count returns how many rows are in the state.
func (s *Status) Count(state State) int {
	n := 0
	for i := range s.Rows {
		if s.Rows[i].State == state {
			n++
		}
	}
	return n
}

// Ours counts this cluster's entries in all tables.
func (s *Status) Ours() int {
	n := 0
	for _, t := range s.Tables {
		n += t.Ours
	}
	return n
}

// Wanted counts the rows that somebody wants, and those of them that are good.
func (s *Status) Wanted() (wanted, good int) {
	for _, t := range s.Tables {
		wanted += t.Wanted
		good += t.Good
	}
	return wanted, good
}
