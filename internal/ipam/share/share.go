// Package share decides which single addresses a node leases, of ranges that
// pods on any node share, and which it gives back. It is pure: the caller does
// what it says against the API server, and asks again.
//
// An address has one holder because its lease is an object whose name is the
// address: the API server lets one node create it. That is enough only where no
// node owns a range around it, so single addresses are leased of blocks that are
// shared. A block is first declared (as a lease of nobody's, whose name no node
// can then lease), then compared with the live list of Nodes and leases, then
// confirmed. A node that gets a podCIDR later reads the declarations before it
// uses it, and leaves out what it finds. An address inside another node's range
// is asked for: that node stops giving it and says so in the lease, and only then
// is it used. Outside the pod network no node owns a range: there the lease of the
// address is all.
//
// What a pod has left rests for a second, whoever wants it, and is then given
// back at once unless a pod of this node waits for it: or a moment later, together
// with others.
package share

import (
	"net/netip"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
)

const (
	// Rest is how long an address that a pod has left stays unused.
	Rest = time.Second
	// Together is how long an address that has rested waits for others that have
	// rested until then.
	Together = 200 * time.Millisecond
	// Spare is how long an address that was leased and never used is kept after
	// its pod last asked for it: the kubelet tries again, 10 to 15 seconds after
	// it failed and with a sandbox to make before.
	Spare = 30 * time.Second
	// LateDeclaration is how old another node's declaration is before this node
	// goes on with it.
	LateDeclaration = 3 * time.Second
)

// Sharing is what a lease says of a block that is no node's.
type Sharing string

// The states of a shared block, in their order.
const (
	Declared  Sharing = "Declared"
	Confirmed Sharing = "Confirmed"
	Retired   Sharing = "Retired"
)

// Grant is the answer of the node that an address is asked from.
type Grant string

// The answers.
const (
	Granted Grant = "Granted"
	Refused Grant = "Refused"
)

// Kept is the pod that an address outlives: one of a StatefulSet's.
type Kept struct {
	Namespace, Pod, StatefulSet, UID string
	// Interface is the pod's interface that has the address; "" is its first.
	Interface string
}

// Lease is an AddressBlock: a range that belongs to a node, a shared block, or a
// single address.
type Lease struct {
	Prefix     netip.Prefix
	Node       string // the holder; of a shared block, and of a kept address that rests, nobody
	NodeUID    string
	Generation int64
	// ObjectUID and Version tell which state of the object this is.
	ObjectUID, Version string

	Sharing Sharing
	Pool    string // whose pods may have the single address; "" if it is for one pod
	From    string // the node whose range it lies in
	Grant   Grant
	Reason  string // of a refusal
	KeptFor Kept
	// Unsure is set by Memory where this node cannot know that the lease is its
	// own still.
	Unsure bool
}

// Address returns the address of a single one.
func (l Lease) Address() netip.Addr { return l.Prefix.Addr() }

// IsSingle reports whether the lease is of one address.
func (l Lease) IsSingle() bool { return l.Sharing == "" && l.Prefix.IsSingleIP() }

// Usable reports whether the holder may use the address: nobody else can.
func (l Lease) Usable() bool { return !l.Unsure && (l.From == "" || l.Grant == Granted) }

// ForAnyone reports whether any pod of the pool on the node may have it.
func (l Lease) ForAnyone() bool { return l.Pool != "" && l.KeptFor == Kept{} }

// Group is whose addresses the allocator takes this one for: the pool's, or that
// of the one pod which it is for.
func (l Lease) Group() string {
	if l.ForAnyone() {
		return l.Pool
	}
	return Apart(l.Address())
}

// apart begins the groups of addresses that are for one pod. No pool's kind is
// called so.
const apart = "address/"

// Apart is the group of an address that is for one pod.
func Apart(a netip.Addr) string { return apart + a.String() }

// IsApart returns the address that a group is of, if it is one of Apart's.
func IsApart(group string) (netip.Addr, bool) {
	text, ok := strings.CutPrefix(group, apart)
	a, err := netip.ParseAddr(text)
	return a, ok && err == nil
}

// Range is what a node owns otherwise: a podCIDR or a block.
type Range struct {
	Prefix   netip.Prefix
	Node     string
	NodeCIDR bool
}

// Need is a pod's interface that waits for an address which the node has not.
type Need struct {
	ID     string
	Family ipam.Family
	// Pools are tried in order; Exact is the one address that will do, if valid.
	Pools []string
	Exact netip.Addr
	// KeptFor is set where the address is to outlive the pod.
	KeptFor Kept
}

// Input is what the decision depends on.
type Input struct {
	Node     string
	PodCIDRs []netip.Prefix
	Bits     map[ipam.Family]int // prefix length of a block
	Ranges   []Range             // of all nodes
	Leases   []Lease             // all
	// Pools maps pool -> the addresses that it gives.
	Pools    map[string][]netip.Prefix
	Reserved []netip.Prefix // that nobody gets
	Needs    []Need
	// Found maps address outside the pod network -> the pool that states it: pods of
	// this node have these, and no lease says so. Another product gave them.
	Found map[netip.Addr]string
	// Holder says who on this node has an address: a pod, or the node itself;
	// "" if nobody has.
	Holder func(netip.Addr) string
	// Idle says of this node's single addresses since when nobody has them.
	Idle map[netip.Addr]Idle
	// Avoid are addresses that this node gave back a moment ago: others come
	// first. Lost says of those that it just failed to have why that was, and
	// until when they are not tried again; until is zero for all others.
	Avoid func(netip.Addr) bool
	Lost  func(netip.Addr) (why string, until time.Time)
	// Declared maps declared block -> since when this node knows it.
	Declared map[netip.Prefix]time.Time
	// Unshared maps block that could not be shared -> until when it is not tried again.
	Unshared map[netip.Prefix]time.Time
	Now      time.Time
}

// Idle is an address that nobody has.
type Idle struct {
	Since time.Time
	Used  bool // somebody had it
	// Leaving is true once it was taken out of use, to be given back.
	Leaving bool
}

// Answer is what this node says of an address that it is asked for.
type Answer struct {
	Lease  Lease
	Grant  Grant
	Reason string
}

// Claim is an address to lease.
type Claim struct {
	Lease
	// Within is the shared block that it is of: the claim holds only if that is
	// Confirmed after it was made. It is invalid where the address is asked from
	// a node, or is outside the pod network.
	Within netip.Prefix
}

// Decision is what to do.
type Decision struct {
	Answer  []Answer
	Unshare []Lease        // declarations that this node's podCIDR contradicts
	Share   []netip.Prefix // blocks to declare, and then to confirm
	Confirm []Lease        // declarations that somebody else did not go on with
	Claim   []Claim        // single addresses to lease
	Take    []Lease        // kept ones to take over
	LetGo   []Lease        // to give back, or, where they are kept, to leave to whoever comes
	Drop    []Lease        // kept for a pod that now wants another
	// Awaited are addresses of this node's that needs will have.
	Awaited []netip.Addr
	// Wait maps need -> why it waits or is refused, a sentence.
	Wait map[string]string
	// Again is when to look again though nothing happens; zero: not at all.
	Again time.Time
}
