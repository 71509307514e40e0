package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Action is what a Change does.
type Action string

// The actions, as a diff marks them.
const (
	Added   Action = "+"
	Removed Action = "-"
	Changed Action = "~"
)

// Change is one difference between two States of a node.
type Change struct {
	Action Action
	// Kind is what differs: setting, address, source, range, single, pod
	// network, bare source, bare destination, pod that reaches the metadata service,
	// peer, route or problem.
	Kind string
	// Name says which one of its kind.
	Name string
	// Fields are those that differ; of what was added or removed, all.
	Fields []FieldChange
}

// FieldChange is one property before and after. Old is empty in what was added,
// New in what was removed.
type FieldChange struct {
	Name, Old, New string
}

// String returns the change as one line, such as
// "~ route 10.244.1.0/26: transport ipip -> vxlan, why preferred -> ...".
func (c Change) String() string {
	var fields []string
	for _, f := range c.Fields {
		fields = append(fields, f.String())
	}
	line := fmt.Sprintf("%s %s %s", c.Action, c.Kind, c.Name)
	if len(fields) > 0 {
		line += ": " + strings.Join(fields, ", ")
	}
	return line
}

// String writes the field before and after, or the one of the two that is.
func (f FieldChange) String() string {
	value := f.Old + f.New
	if f.Old != "" && f.New != "" {
		value = f.Old + " -> " + f.New
	}
	return strings.TrimSpace(f.Name + " " + value)
}

// Diff returns what changes from one State of a node to another, kind by kind
// and in order within a kind. It is empty if and only if the States are equal.
func Diff(before, after State) []Change {
	kinds := []struct {
		name  string
		items func(State) []item
	}{
		{"setting", settingItems},
		{"address", func(s State) []item { return names(s.Addresses) }},
		{"source", func(s State) []item { return names(s.Sources) }},
		{"range", func(s State) []item { return names(s.CIDRs) }},
		{"single", func(s State) []item { return names(s.Singles) }},
		{"pod network", func(s State) []item { return names(s.PodCIDRs) }},
		{"bare source", func(s State) []item { return names(s.Bare.Sources) }},
		{"bare destination", func(s State) []item { return names(s.Bare.Destinations) }},
		{"pod that reaches the metadata service", func(s State) []item { return names(s.Metadata.Links) }},
		{"peer", peerItems},
		{"route", routeItems},
		{"problem", problemItems},
	}
	var out []Change
	for _, k := range kinds {
		out = append(out, diffItems(k.name, k.items(before), k.items(after))...)
	}
	return out
}

// item is one thing of a State, by its name.
type item struct {
	name   string
	fields []field
	// dst puts routes in the order of what they are, not of its spelling.
	dst netip.Prefix
}

// field is one property of an item; the fields of a kind are always the same
// and in one order.
type field struct {
	name, value string
}

func compareItems(a, b item) int {
	return cmp.Or(a.dst.Compare(b.dst), strings.Compare(a.name, b.name))
}

// diffItems merges two lists by name. Of several items with one name each
// counts.
func diffItems(kind string, before, after []item) []Change {
	slices.SortStableFunc(before, compareItems)
	slices.SortStableFunc(after, compareItems)
	var out []Change
	for len(before) > 0 || len(after) > 0 {
		switch order := compareHeads(before, after); {
		case order < 0:
			out = append(out, Change{Removed, kind, before[0].name, diffFields(before[0].fields, nil)})
			before = before[1:]
		case order > 0:
			out = append(out, Change{Added, kind, after[0].name, diffFields(nil, after[0].fields)})
			after = after[1:]
		default:
			if fields := diffFields(before[0].fields, after[0].fields); len(fields) > 0 {
				out = append(out, Change{Changed, kind, after[0].name, fields})
			}
			before, after = before[1:], after[1:]
		}
	}
	return out
}

func compareHeads(before, after []item) int {
	switch {
	case len(before) == 0:
		return 1
	case len(after) == 0:
		return -1
	default:
		return compareItems(before[0], after[0])
	}
}

// diffFields compares the fields of one item; either list may be absent.
func diffFields(before, after []field) []FieldChange {
	var out []FieldChange
	for i := range max(len(before), len(after)) {
		var c FieldChange
		if i < len(before) {
			c.Name, c.Old = before[i].name, before[i].value
		}
		if i < len(after) {
			c.Name, c.New = after[i].name, after[i].value
		}
		if c.Old != c.New {
			out = append(out, c)
		}
	}
	return out
}

func names[T any](things []T) []item {
	out := make([]item, len(things))
	for i, t := range things {
		out[i] = item{name: fmt.Sprint(t)}
	}
	return out
}

// settingItems are what a State has one of.
func settingItems(s State) []item {
	return []item{
		setting("node", orNone(s.Self)),
		setting("transports", join(s.Transports)),
		setting("mtu", s.MTU.String()),
		setting("masquerade", onOff(s.Masquerade)),
		setting("metadata service", join(s.Metadata.Addresses)),
		setting("metadata open", onOff(s.Metadata.Open)),
		setting("vxlan vni", fmt.Sprint(s.VXLAN.VNI)),
		setting("vxlan port", fmt.Sprint(s.VXLAN.Port)),
		setting("vxlan mac", s.VXLAN.MAC.String()),
		setting("vxlan checksums", map[bool]string{false: "left to the interface", true: "computed"}[s.VXLAN.Checksums]),
	}
}

func setting(name, value string) item { return item{name: name, fields: []field{{"", value}}} }

func peerItems(s State) []item {
	out := make([]item, len(s.Peers))
	for i, p := range s.Peers {
		out[i] = item{name: p.Name, fields: []field{
			{"addresses", join(p.Addresses)}, {"sources", join(p.Sources)}, {"owns", join(p.CIDRs)}, {"vtep", p.VTEP.String()},
		}}
	}
	return out
}

func routeItems(s State) []item {
	out := make([]item, len(s.Routes))
	for i, r := range s.Routes {
		source := orNone("")
		if r.Source.IsValid() {
			source = r.Source.String()
		}
		out[i] = item{name: r.Dst.String(), dst: r.Dst, fields: []field{
			{"node", r.Peer}, {"transport", string(r.Transport)}, {"outer", r.Outer.String()}, {"gateway", r.Gateway.String()},
			{"source", source}, {"vtep", r.VTEP.String()}, {"mtu", r.mtu()}, {"why", r.Reason},
		}}
	}
	return out
}

func problemItems(s State) []item { return names(s.Problems) }
