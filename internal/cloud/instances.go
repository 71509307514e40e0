package cloud

import (
	"context"
	"net/netip"
)

// MaxDescribe is how many instances one Describe or AllowForwarding takes.
const MaxDescribe = 100

// Instances are the machines of the VPC. They may be asked by several
// goroutines. Errors are *Error, whatever their depth.
type Instances interface {
	// Parse returns the instance that a Node's spec.providerID names, in any
	// spelling that is in use (for Alibaba Cloud cn-chengdu.i-1 and
	// alicloud://cn-chengdu.i-1), and false for one of another provider or
	// region. It does not call the cloud.
	Parse(providerID string) (instance string, ok bool)
	// ProviderID is how a Node names an instance: the spelling that is written
	// where the kubelet was given none. Parse reads it.
	ProviderID(instance string) string
	// List returns every instance of the VPC that the credentials are shown:
	// an answer may be empty, or a part, without an error. Who concludes from
	// an absence needs more evidence than one list.
	List(ctx context.Context) ([]Instance, error)
	// Describe returns those of the given instances (at most MaxDescribe) that
	// the credentials are shown, in this or another VPC of the region. Of one
	// that is missing no more is known than that.
	Describe(ctx context.Context, instances []string) ([]Instance, error)
	// AllowForwarding lets the primary interfaces of the given instances (at
	// most MaxDescribe) carry packets that are neither from nor to their own
	// addresses, as pods' are, and returns the instances that it had to change
	// for that, also with an error.
	AllowForwarding(ctx context.Context, of []Instance) (changed []string, err error)
}

// Instance is one machine.
type Instance struct {
	ID   string
	Host string // the name that the machine has, not unique
	// Addresses are private, in the VPC, of both families: those of the
	// primary interface first, its own IPv4 address first of all.
	Addresses []netip.Addr
	// Primary is how many of Addresses are the primary interface's.
	Primary int
	// Public are those that lead here from outside the VPC.
	Public []netip.Addr
	// Interface is the cloud's id of the primary interface.
	Interface string

	VPC, Region, Zone, Type string
	// Labels are what else the vendor's own controller tells of an instance by
	// Node labels: key -> value.
	Labels map[string]string
	// Running and Stopped are both false while the state changes.
	Running, Stopped bool
}
