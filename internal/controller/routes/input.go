package routes

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/cloud"
)

// Mode is what the planner may do.
type Mode string

// The modes.
const (
	Off      Mode = "off"      // nothing, not even look
	External Mode = "external" // look, and say what is wrong; another writes
	Write    Mode = "ropeway"  // make the tables right
	// Withdraw takes this cluster's entries out of the tables: nobody needs
	// them any more, and a person has asked for it.
	Withdraw Mode = "withdraw"
)

// Input is what the cluster says. It is a value: nobody changes it later.
type Input struct {
	Setup   Setup
	Cluster string // the cluster's id, which marks its entries
	Mode    Mode
	// Why says, as a sentence, why the mode is not what the configuration
	// asks for; empty if it is.
	Why string
	// Nodes counts the cluster's Node objects. With none nothing is done:
	// that is an empty or wrong cache rather than a cluster.
	Nodes int
	Wants []Want
	// PodCIDRs are the pod network. Entries for parts of it that nobody wants
	// are shown, whoever made them.
	PodCIDRs []netip.Prefix
	// Blocks says that destinations are leased blocks, which only Ropeway
	// knows of: other programs make entries for podCIDRs.
	Blocks bool
	// Diverted are single addresses that entries of ours may lead elsewhere than the
	// range around them: nodes leave nothing for them to the fabric. So such an entry
	// does no harm to the range, and its removal none to pods.
	Diverted []netip.Addr
	// Confirmed is the person's word that a bulk withdrawal is meant: the
	// token that Status.Token asked for.
	Confirmed string
	// WithheldSince is since when, as the condition RoutesWithheld says,
	// something waits for that word; zero if nothing does. A new leader goes on
	// from there, so that the token which a person has read stays the same.
	WithheldSince time.Time
	// Allowed says that the credentials may call all that is needed, as somebody
	// has asked the cloud. When it becomes so, what was refused is tried again.
	Allowed bool
	// Adopt and Release are entries to mark as ours, and ours to let go.
	Adopt, Release Selection
}

// releases says whether an own entry is to be let go. What is named counts for
// more than what "all" means.
func (in *Input) releases(dst netip.Prefix) bool {
	return in.Release.Names(dst) || in.Release.All && !in.Adopt.Names(dst)
}

// adopts says whether an entry that is not ours, and right, is to be marked. All
// does not take what another cluster has marked.
func (in *Input) adopts(e cloud.RouteEntry) bool {
	return !in.releases(e.Dst) && (in.Adopt.Names(e.Dst) || in.Adopt.All && e.Owner == "")
}

// Setup says which cloud, and with which credentials.
type Setup = cloud.Setup

// Want is a destination and its owner.
type Want struct {
	Dst        netip.Prefix
	Node       string // name
	UID        string
	Created    int64 // of the Node object, in seconds since 1970
	ProviderID string
	Addresses  []netip.Addr // the node's own, for a node without a providerID
	// Single is true for one address in no range of the node: it comes after all
	// ranges.
	Single bool
}

// diverts reports whether a destination is one of Diverted.
func (in *Input) diverts(dst netip.Prefix) bool {
	return dst.IsSingleIP() && slices.Contains(in.Diverted, dst.Addr())
}

// older orders wants: ranges first, and those of older nodes first, so that the
// choice of who gets an entry of a full table does not change.
func older(a, b Want) int {
	if a.Single != b.Single {
		if b.Single {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.Created, b.Created), strings.Compare(a.UID, b.UID), strings.Compare(a.Node, b.Node), a.Dst.Compare(b.Dst))
}

// sorted returns the wants in the order of their claim, one for a destination.
func sorted(in []Want) []Want {
	out := slices.Clone(in)
	slices.SortFunc(out, older)
	seen := make(map[netip.Prefix]bool, len(out))
	return slices.DeleteFunc(out, func(w Want) bool {
		twice := seen[w.Dst]
		seen[w.Dst] = true
		return twice
	})
}

// Selection is a set of destinations.
type Selection struct {
	All  bool
	Dsts []netip.Prefix
	Bad  []string // what was to be read and is no CIDR
}

// ParseSelection reads "all" or CIDRs with commas between. What is neither is in
// Bad.
func ParseSelection(text string) Selection {
	var s Selection
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "all" {
			s.All = true
		} else if p, err := netip.ParsePrefix(part); err == nil {
			s.Dsts = append(s.Dsts, p.Masked())
		} else if part != "" {
			s.Bad = append(s.Bad, part)
		}
	}
	return s
}

// String is what ParseSelection reads, without what is bad.
func (s Selection) String() string {
	var parts []string
	if s.All {
		parts = append(parts, "all")
	}
	for _, d := range s.Dsts {
		parts = append(parts, d.String())
	}
	return strings.Join(parts, ",")
}

// Names reports whether the destination is selected by name.
func (s Selection) Names(dst netip.Prefix) bool { return slices.Contains(s.Dsts, dst) }

// Has reports whether the destination is selected.
func (s Selection) Has(dst netip.Prefix) bool { return s.All || s.Names(dst) }
