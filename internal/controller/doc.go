// Package controller is the cluster's part of Ropeway: it accepts or refuses
// the ClusterNetwork, writes the node condition NetworkUnavailable, takes back
// the leases of nodes that are gone, and names what is wrong. Several replicas
// may run; the one that holds the Lease acts.
//
// Each pass looks at everything that is known, decides with pure functions
// (judge.go, condition.go, garbage.go) and writes only what differs. Nothing
// that pods need waits for the controller, but for the first word on a node,
// and agents do without that when the Lease is not renewed.
package controller
