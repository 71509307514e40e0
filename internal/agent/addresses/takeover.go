package addresses

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ropeway.dev/ropeway/internal/ipam"
)

// Claim is an address that a pod of this node has by another product's records.
type Claim struct {
	Address netip.Addr `json:"address"`
	Owner   ipam.Owner `json:"owner"`
}

// Action is what taking over does with an address.
type Action string

// The actions.
const (
	ActionHeld     Action = "held"     // its pod lives, and the journal has it already
	ActionHold     Action = "hold"     // its pod lives, and the journal has it from now on
	ActionFree     Action = "free"     // nothing has it: host-local's file goes
	ActionKeep     Action = "keep"     // not known: left as it is
	ActionConflict Action = "conflict" // another holds it
)

// Taken is what becomes of one address.
type Taken struct {
	Address netip.Addr `json:"address"`
	// From is whose record it is: host-local or Spiderpool.
	From        string     `json:"from"`
	Action      Action     `json:"action"`
	Owner       ipam.Owner `json:"owner,omitzero"`
	ContainerID string     `json:"containerID,omitempty"`
	Why         string     `json:"why,omitempty"`
}

// settled is how old a file of host-local's has to be before the absence of
// everything else speaks against it: a pod's ADD, during which there is nothing
// but the file, ends sooner.
const settled = 10 * time.Minute

// claimNetwork is the network of keys that hold an address for a pod whose
// container nobody knows.
const claimNetwork = "(claimed)"

// TakeOver goes through host-local's files and the claims, and brings the
// journal to hold what living pods have. A file whose sandbox is gone is
// removed. With dryRun nothing is changed. What was done before an error was
// done.
func (b *Book) TakeOver(claims []Claim, dryRun bool) ([]Taken, error) {
	w, err := b.newWitness()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applyTombstones()
	t := taking{book: b, witness: w, dryRun: dryRun}
	var out []Taken
	for _, r := range readHostLocal(b.options.HostLocalDir) {
		one, err := t.file(r)
		if err != nil {
			return out, err
		}
		out = append(out, one)
	}
	for _, c := range claims {
		one, err := t.claim(c)
		if err != nil {
			return out, err
		}
		out = append(out, one)
	}
	slices.SortStableFunc(out, func(a, b Taken) int {
		return cmp.Or(cmp.Compare(a.From, b.From), a.Address.Compare(b.Address))
	})
	b.touch()
	return out, nil
}

// taking is one take-over.
type taking struct {
	book    *Book
	witness *witness
	dryRun  bool
}

// file decides about one file of host-local's.
func (t taking) file(r hostLocalRecord) (Taken, error) {
	results, read := t.witness.results()
	noted, known := results[r.Key]
	one := Taken{Address: r.Address, From: "host-local", Owner: noted.owner, ContainerID: r.Key.ContainerID}
	link, state := t.witness.link(r.Key, []netip.Addr{r.Address}), t.witness.sandbox(r.Key)
	other, anothers := t.witness.wiredTo[r.Address]
	switch {
	case anothers && other != r.Key:
		one.Why = "another pod has the address by now, container " + other.ContainerID
	case link != "", state == lives, state == unknown && known:
		return t.hold(one, r.Key, noted.owner)
	case state == ended:
		one.Why = "its sandbox is gone"
	case !read:
		one.Action, one.Why = ActionKeep, fmt.Sprintf("the runtime's notes (%v) are not there to be asked whether its sandbox lives", t.book.options.ResultDirs)
		return one, nil
	case !t.settled(r):
		one.Action, one.Why = ActionKeep, fmt.Sprintf("it is younger than %s: its pod may be starting", settled)
		return one, nil
	default:
		one.Why = "neither a link, nor a route, nor the runtime speaks for it"
	}
	one.Action = ActionFree
	if t.dryRun {
		return one, nil
	}
	if holder, held := t.book.allocator.Lookup(r.Address); held && holder.Key == r.Key {
		return one, t.book.release(r.Key) // and the file
	}
	return one, removeHostLocal(filepath.Join(t.book.options.HostLocalDir, r.Key.Network), r.Key, r.Address)
}

func (t taking) settled(r hostLocalRecord) bool {
	info, err := os.Stat(filepath.Join(t.book.options.HostLocalDir, r.Key.Network, r.Address.String()))
	return err == nil && t.book.now().Sub(info.ModTime()) >= settled
}

// claim decides about one claim, whose pod lives.
func (t taking) claim(c Claim) (Taken, error) {
	one := Taken{Address: c.Address, From: "Spiderpool", Owner: c.Owner}
	results, _ := t.witness.results()
	for key, noted := range results {
		if noted.owner.UID == c.Owner.UID && slices.Contains(noted.addresses, c.Address) {
			one.ContainerID = key.ContainerID
			return t.hold(one, key, c.Owner)
		}
	}
	if holder, held := t.book.allocator.Lookup(c.Address); held && isStandIn(holder.Key) {
		one.Action, one.Why = ActionHeld, fmt.Sprintf("the link %s leads to it", holder.Key.ContainerID)
		return one, nil
	}
	one.Why = "the runtime has no note of it: if no DEL frees it, ropeway ipam release does, once the pod is gone"
	return t.hold(one, ipam.Key{Network: claimNetwork, ContainerID: c.Owner.UID, IfName: c.Address.String()}, c.Owner)
}

// hold brings the journal to have the address for the key.
func (t taking) hold(one Taken, key ipam.Key, owner ipam.Owner) (Taken, error) {
	holder, held := t.book.allocator.Lookup(one.Address)
	standIn := held && isStandIn(holder.Key)
	switch {
	case held && (holder.Key == key || owner.UID != "" && holder.Owner.UID == owner.UID):
		one.Action, one.Owner, one.Why = ActionHeld, cmp.Or(owner, holder.Owner), ""
		return one, nil
	case held && !standIn:
		one.Action, one.Why = ActionConflict, fmt.Sprintf("%s (container %s) holds it in the journal: delete one of the two", holder.Owner, holder.Key.ContainerID)
		return one, nil
	}
	one.Action = ActionHold
	if t.dryRun {
		return one, nil
	}
	if standIn {
		if err := t.book.release(holder.Key); err != nil {
			return one, err
		}
	}
	return one, t.book.allocator.Record(key, owner, []netip.Addr{one.Address}, t.book.now())
}
