// Package cloud is what Ropeway asks of a cloud: the routes of a VPC, and which
// instance a node is. It is not a cloudprovider.Interface: clouds take routes
// in batches, one writer at a time, and answer for each entry, so the seam has
// that shape. Providers (alibaba) live below; Fake is one in memory.
package cloud

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// MaxBatch is how many entries one Apply or Withdraw takes.
const MaxBatch = 50

// Provider is one account's view of one VPC.
type Provider interface {
	// Name is what ClusterNetwork's spec.cloud.provider calls it.
	Name() string
	Routes() Routes
	Instances() Instances
}

// Routes are the custom entries of the VPC's configured route tables. There is
// one caller at a time: implementations need no locks, and may count on no
// other call of the same process running in the same VPC.
//
// No method waits for an asynchronous state, nor retries what was refused: the
// caller plans the next step. Errors are *Error, whatever their depth.
type Routes interface {
	// List returns every custom entry of the configured tables, whatever its
	// state and whoever made it. It returns an error rather than a part.
	List(ctx context.Context) (Listing, error)
	// Apply makes entries, or changes own ones in place (Replaces), at most
	// MaxBatch. With a nil error there is one result per change, in order; a
	// result without error means that the cloud took the change, which becomes
	// Available later. With an error nothing is known about the entries unless
	// its class says that the call was refused (Class.Refused).
	Apply(ctx context.Context, changes []RouteChange) ([]RouteResult, error)
	// Withdraw removes entries, at most MaxBatch; results as Apply's. An entry
	// that is gone already is a success.
	Withdraw(ctx context.Context, entries []RouteEntry) ([]RouteResult, error)
}

// Listing is what the tables hold.
type Listing struct {
	Tables  []Table
	Entries []RouteEntry // in no particular order
}

// Table is one route table.
type Table struct {
	ID string
	// Quota is how many custom entries the table may hold, whoever made them;
	// 0 if the cloud does not say.
	Quota int
}

// RouteState is where the cloud is with an entry.
type RouteState string

// The states. An entry of a state that a provider does not know is Unknown.
const (
	Available RouteState = "Available" // packets follow it
	Pending   RouteState = "Pending"   // being made
	Modifying RouteState = "Modifying" // being changed
	Deleting  RouteState = "Deleting"  // being removed
	Unknown   RouteState = "Unknown"
)

// RouteEntry is one entry of a route table, as the cloud tells it.
type RouteEntry struct {
	ID    string // the cloud's own, where it has one
	Table string
	Dst   netip.Prefix
	// NextHop is the instance that packets go to. It is empty, and HopType
	// says what is there, for an entry that leads elsewhere than to exactly
	// one instance.
	NextHop string
	HopType string // as the cloud spells it; "Instance" for an instance
	State   RouteState
	// Owner is the cluster that the entry's mark names; "" for an entry that
	// Ropeway did not make.
	Owner       string
	Description string // as it stands in the cloud
}

// Key says which entry is meant: a table has one entry per destination.
func (e RouteEntry) Key() Key { return Key{e.Table, e.Dst} }

// Key names an entry.
type Key struct {
	Table string
	Dst   netip.Prefix
}

// String is "10.244.1.0/24 in vtb-1".
func (k Key) String() string { return fmt.Sprintf("%s in %s", k.Dst, k.Table) }

// RouteChange is an entry as it is to be.
type RouteChange struct {
	Table   string
	Dst     netip.Prefix
	NextHop string // instance ID
	// Owner is the cluster to mark the entry with (Mark); "" takes the mark
	// away.
	Owner string
	// Replaces is the entry that is there and is to be changed in place: its
	// next hop, its mark, or both. nil makes a new entry.
	Replaces *RouteEntry
}

// Key says which entry is meant.
func (c RouteChange) Key() Key { return Key{c.Table, c.Dst} }

// RouteResult is what became of one entry of a batch.
type RouteResult struct {
	Table string
	Dst   netip.Prefix
	Err   error // nil, or an *Error
}

// Key says which entry is meant.
func (r RouteResult) Key() Key { return Key{r.Table, r.Dst} }

// markPrefix begins the description of an entry that Ropeway made.
const markPrefix = "ropeway cluster="

// Mark is the description of an entry that belongs to a cluster. Clouds bound
// its length (256 characters in Alibaba's VPC); a UID needs 52.
func Mark(cluster string) string {
	if cluster == "" {
		return ""
	}
	return markPrefix + cluster
}

// OwnerOf reads a Mark: the cluster, or "" for a description of another kind. A
// person may add words behind it.
func OwnerOf(description string) string {
	rest, ok := strings.CutPrefix(strings.TrimSpace(description), markPrefix)
	if !ok {
		return ""
	}
	owner, _, _ := strings.Cut(rest, " ")
	return owner
}
