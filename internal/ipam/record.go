package ipam

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Family is an address family, spelled as Kubernetes does.
type Family string

// The families.
const (
	IPv4 Family = "IPv4"
	IPv6 Family = "IPv6"
)

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() || a.Is4In6() {
		return IPv4
	}
	return IPv6
}

// Key names one interface of one sandbox: what an address is held for.
type Key struct {
	Network     string `json:"network"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Compare orders keys.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Network, o.Network), cmp.Compare(k.ContainerID, o.ContainerID), cmp.Compare(k.IfName, o.IfName))
}

// String writes the key for messages.
func (k Key) String() string { return k.Network + "/" + k.ContainerID + "/" + k.IfName }

// Owner is the pod that an address is held for; zero outside Kubernetes.
type Owner struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// String writes the owner for messages.
func (o Owner) String() string {
	if o == (Owner{}) {
		return "no pod"
	}
	return "pod " + o.Namespace + "/" + o.Name
}

// Binding is what one key holds.
type Binding struct {
	Key       Key          `json:"key"`
	Owner     Owner        `json:"owner,omitzero"`
	Addresses []netip.Addr `json:"addresses"`
	// External is true if another IPAM gave the addresses: they are held, so
	// that nobody else gets them, but giving them back is that IPAM's business.
	External bool `json:"external,omitempty"`
}

func (b Binding) clone() Binding {
	b.Addresses = slices.Clone(b.Addresses)
	return b
}

// Op is what a Record does.
type Op string

// The operations.
const (
	// OpHold says that Binding.Key now holds exactly Binding.Addresses.
	OpHold Op = "hold"
	// OpFree says that Binding.Key holds nothing any more, and that
	// Binding.Addresses became free at At.
	OpFree Op = "free"
)

// Record is one change, as a Store keeps it.
type Record struct {
	Op      Op        `json:"op"`
	Binding Binding   `json:"binding"`
	At      time.Time `json:"at"`
}

// Store keeps Records. It has one user at a time. An error of Append means
// that the record may or may not be there after a restart; every other record
// still is.
type Store interface {
	// Load returns the records of all Appends so far in their order, or fewer
	// with the same meaning (see Compact).
	Load() ([]Record, error)
	// Append keeps the record. When it returns nil, the record outlives the
	// process.
	Append(Record) error
}

// Compact returns the fewest records with the same meaning, for Stores to
// replace their content by. Of addresses that are free, those that were freed
// last are remembered, up to a bound.
func Compact(records []Record) []Record {
	l := newLedger()
	for _, r := range records {
		l.apply(r)
	}
	return l.records()
}
