package cloud

import "context"

// Duties are the parts of the cloud's work that Ropeway does.
type Duties struct {
	// Check looks at the route tables, and says what is wrong with them and
	// what stands in the way of bare packets. Routes does so too.
	Check  bool
	Routes bool // writes route tables
	Nodes  bool // looks after the nodes' instances
}

// Checks says whether the duties include looking at the route tables.
func (d Duties) Checks() bool { return d.Check || d.Routes }

// Permission is what is known of the right to one action.
type Permission struct {
	Action string // as the cloud's access control spells it, such as vpc:CreateRouteEntries
	// Err is nil if the action is allowed. Of class Forbidden or
	// Unauthenticated it is refused; of any other nothing is known.
	Err error
}

// Checker is a Provider that can find out what its credentials may do.
type Checker interface {
	// Preflight asks for each action that the duties need, and changes nothing.
	Preflight(ctx context.Context, d Duties) []Permission
}
