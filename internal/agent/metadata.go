package agent

import (
	"slices"

	"ropeway.dev/ropeway/internal/agent/addresses"
	"ropeway.dev/ropeway/internal/dataplane/podlink"
	"ropeway.dev/ropeway/internal/plan"
)

// localPods are the node's pods, as the journal of addresses knows them: it says
// of every attachment whose it is, and has since before the pod's first packet.
func localPods(book *addresses.Book) []plan.LocalPod {
	var pods []plan.LocalPod
	for _, b := range book.Bindings() {
		if b.Owner.Namespace != "" {
			pods = append(pods, plan.LocalPod{Namespace: b.Owner.Namespace,
				Link: podlink.HostLinkName(b.Key.Network, b.Key.ContainerID, b.Key.IfName)})
		}
	}
	return pods
}

// exemption is which pods the last plan lets through to the metadata service.
type exemption struct {
	access plan.MetadataAccess
	links  []string
}

// differs reports whether the pods have changed so that another pass is needed:
// never in a cluster that lets no namespace through, which costs its pods
// nothing then.
func (e *exemption) differs(book *addresses.Book) bool {
	if e == nil || len(e.access.Namespaces) == 0 || slices.Contains(e.access.Namespaces, plan.AllNamespaces) {
		return false
	}
	return !slices.Equal(e.links, e.access.Exempt(localPods(book)))
}
