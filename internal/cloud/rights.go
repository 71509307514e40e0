package cloud

import "context"

// Duties are the parts of the cloud's work that Ropeway does.
type Duties struct {
	Routes bool // writes route tables
	Nodes  bool // looks after the nodes' instances
}

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
