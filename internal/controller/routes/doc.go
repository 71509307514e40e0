// Package routes makes a cloud's route tables hold one entry for each
// destination of the pod network, by one serial planner per VPC.
//
// Desired comes from the plan (Input), real from the cloud (cloud.Listing).
// decide, which is pure, compares the two; the Planner makes the calls, one at
// a time, 50 entries in each, and looks again before it repeats what may have
// happened. An entry that does not carry this cluster's mark is never changed:
// where it leads to the right instance it is used, where it leads elsewhere it
// is named. An entry of ours that nobody wants any more is removed on evidence
// only (guard.go).
//
// It is not on anybody's path: tunnels carry packets without it, and whether
// an entry carries them is for the nodes' probes to find out.
package routes
