// Package nodes tells Kubernetes about the machines that its nodes are: the
// providerID, labels and addresses of a new node, the taint of one that was
// stopped, and the end of the Node whose machine is released.
//
// The work is done by the controllers of k8s.io/cloud-provider (cloud-node and
// cloud-node-lifecycle), which run here on our InstancesV2 (instances.go) over
// cloud.Instances. What they do not do is done beside them (tend.go): the
// providerID of a node whose kubelet does not wait for a cloud, and interfaces
// that drop pods' packets.
//
// They delete a Node as soon as InstanceExists says that there is none, and a
// cloud's answer may leave an instance out for many reasons: the wrong region,
// rights that show a part, an API that forgets. So that a wrong answer never
// deletes a healthy node, an instance is gone only on evidence (evidence.go):
// its kubelet is silent, two looks at different times agree, each by two
// different questions, and the answers show everything that is certainly there.
// Anything less is an error. As the last thing before a deletion, the Node is
// read anew, and deleted as it was read or not at all (guard.go).
package nodes
