package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// ErrInvalid is wrapped by errors about requests that make no sense.
var ErrInvalid = errors.New("invalid request")

// ErrNoBlock is wrapped by NextBlock where the pod network has no free block.
var ErrNoBlock = errors.New("no free block")

// Shortage says why a family has no address to give.
type Shortage struct {
	Family Family
	Pools  []string // that were tried; none is what serves by itself
	Usage  Usage
}

// ExhaustedError says that not every family that was asked for had a free
// address. Nothing was given.
type ExhaustedError struct {
	Shortages []Shortage
}

// Error implements error.
func (e *ExhaustedError) Error() string {
	var parts []string
	for _, s := range e.Shortages {
		parts = append(parts, s.String())
	}
	return strings.Join(parts, "; ")
}

// String says what there is of the family, and what to do.
func (s Shortage) String() string {
	if len(s.Pools) > 0 {
		return fmt.Sprintf("no free %s address of %s on this node (%d addresses: %d held, %d freed less than a second ago)",
			s.Family, strings.Join(s.Pools, ", "), s.Usage.Total, s.Usage.Held, s.Usage.Free)
	}
	if s.Usage.Total == 0 {
		return fmt.Sprintf("this node has no range of %s addresses yet: see the NodeNetwork's condition AddressesUsable and ClusterNetwork's podCIDRs", s.Family)
	}
	return fmt.Sprintf("no free %s address on this node (%d addresses: %d held, %d freed less than a second ago): delete pods, lease another block, or enlarge the node's range",
		s.Family, s.Usage.Total, s.Usage.Held, s.Usage.Free)
}

// IsExhausted reports whether the error is an ExhaustedError: a later attempt
// may succeed, once an address is released or a range is added.
func IsExhausted(err error) bool {
	var e *ExhaustedError
	return errors.As(err, &e)
}

// ConflictError says that an address is held by someone else.
type ConflictError struct {
	Address netip.Addr
	Wanted  Key
	Holder  Binding
}

// Error implements error.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("address %s is wanted for %s but held by %s (%s): if that pod is gone, delete its sandbox (crictl rmp)",
		e.Address, e.Wanted, e.Holder.Key, e.Holder.Owner)
}

// IsConflict reports whether the error is a ConflictError.
func IsConflict(err error) bool {
	var e *ConflictError
	return errors.As(err, &e)
}
