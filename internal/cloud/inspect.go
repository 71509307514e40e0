package cloud

import (
	"context"
	"net/netip"
)

// Problem is a thing of the cloud that keeps pods' packets from being delivered
// bare, although the route is there.
type Problem string

// The problems.
const (
	// SourceDestCheck: an interface drops what is not from or to its own
	// addresses, which is every packet of a pod.
	SourceDestCheck Problem = "SourceDestCheck"
	// SecurityGroup: no rule lets the pods' addresses in. Groups know nodes by
	// their interfaces' addresses, so even inside one group pods need a rule.
	SecurityGroup Problem = "SecurityGroup"
	// OtherRouteTable: the node's subnet is bound to a route table that is
	// not written.
	OtherRouteTable Problem = "OtherRouteTable"
	// NotRunning: the cloud says that the machine does not run.
	NotRunning Problem = "NotRunning"
)

// Finding is a problem of one instance.
type Finding struct {
	Problem  Problem
	Instance string
	Message  string // what and where
	Remedy   string // what to do
}

// Inspector is a Provider that can look for what stands in the way of bare
// packets.
type Inspector interface {
	// Inspect looks at the given instances, for packets between pods of the
	// given ranges. It changes nothing. Findings are in the order of instances
	// and problems; an error means that nothing is known.
	Inspect(ctx context.Context, instances []string, pods []netip.Prefix) ([]Finding, error)
}
