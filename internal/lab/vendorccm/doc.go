// Package vendorccm is the lab's stand-in for the vendor's cloud controller
// manager, as far as it meets a pod network: its route controller, the node
// condition that this writes, and the Lease and Deployment by which it is
// known. It does what is known of release v2.14.0, defects included, so that
// Ropeway is tried beside the real behaviour rather than beside a good one.
//
//   - An entry has no mark; "mine" is every custom entry inside the cluster's
//     CIDR that leads to one instance.
//   - Node events are gathered for a second and become at most one batch call
//     each way; an entry that is there already is passed over in silence.
//   - A sweep, first after one whole period, deletes what is narrower than a
//     node's podCIDR or leads elsewhere, makes what is missing, one call each,
//     and keeps what belongs to nobody.
//   - The condition is compared by its status alone, never by its reason.
//
// Files: cloudapi signs and sends (signature version 1, all parameters in the
// query, no retry), routes is the route controller without an API server,
// condition and run put it into a cluster.
package vendorccm
