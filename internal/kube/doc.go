// Package kube turns Kubernetes objects into Ropeway's own words and back:
// what the agent, the controller and the command line know of the cluster, and
// what they write to it. Beside internal/controller it is the only importer of
// client-go.
//
// Readers are served from a cache of slimmed objects (see slim.go) that costs a
// node a few hundred bytes per peer; a View is computed from it without a call
// to the API server. An agent watches its own Node and everybody's NodeNetwork,
// in which the controller says which machine it is (elsewhere.go, and
// docs/design/watching.md). Writers say what should be there, and call the API server
// only when it is not there yet.
package kube
