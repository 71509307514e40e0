package addresses

import (
	"net/netip"

	"ropeway.dev/ropeway/internal/ipam"
)

// View is what a node knows of addresses, from each of its witnesses, so that
// they can be compared.
type View struct {
	// Holdings are what the journal has, in the order of keys.
	Holdings []Holding `json:"holdings"`
	// Links are the links that host routes to single addresses lead to: our
	// pods', and those of other products.
	Links []Link `json:"links"`
	// HostLocal are host-local's files.
	HostLocal []File `json:"hostLocal,omitempty"`
}

// Sandbox is what a node knows of a sandbox by its network namespace.
type Sandbox string

// What is known of a sandbox.
const (
	SandboxLives   Sandbox = "lives"
	SandboxGone    Sandbox = "gone"
	SandboxUnknown Sandbox = "unknown" // nobody has noted its network namespace
)

// Holding is what one interface of a sandbox holds.
type Holding struct {
	ipam.Binding
	Sandbox Sandbox `json:"sandbox"`
	// StandIn is true for addresses that are held because a link of another
	// product's leads to them: who has them is not known.
	StandIn bool `json:"standIn,omitempty"`
}

// Link is a link that leads to pods' addresses.
type Link struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	// Ours is false for a link of another product's; then the rest is empty.
	Ours  bool       `json:"ours,omitempty"`
	Key   ipam.Key   `json:"key,omitzero"`
	Owner ipam.Owner `json:"owner,omitzero"`
}

// File is one file of host-local's.
type File struct {
	Key     ipam.Key   `json:"key"`
	Address netip.Addr `json:"address"`
}

// View looks at the journal, the kernel and host-local's files. They change
// while it looks: a difference between them counts when it is there twice.
func (b *Book) View() (View, error) {
	var v View
	links, err := b.options.Kernel.PodLinks()
	if err != nil {
		return v, err
	}
	w, err := b.newWitness()
	if err != nil {
		return v, err
	}
	for _, l := range links {
		key, owner := attachmentOf(l)
		v.Links = append(v.Links, Link{Name: l.Name, Addresses: l.Addresses, Ours: true, Key: key, Owner: owner})
	}
	foreign, err := b.options.Kernel.ForeignPods()
	if err != nil {
		return v, err
	}
	for _, p := range foreign {
		v.Links = append(v.Links, Link{Name: p.Link, Addresses: []netip.Addr{p.Address}})
	}
	for _, r := range readHostLocal(b.options.HostLocalDir) {
		v.HostLocal = append(v.HostLocal, File(r))
	}
	names := map[life]Sandbox{unknown: SandboxUnknown, lives: SandboxLives, ended: SandboxGone}
	for _, binding := range b.allocator.Held() {
		v.Holdings = append(v.Holdings, Holding{Binding: binding, Sandbox: names[w.sandbox(binding.Key)], StandIn: isStandIn(binding.Key)})
	}
	return v, nil
}
