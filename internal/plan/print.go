package plan

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// String draws the State for a person: the node itself, a line per destination,
// and the problems. Equal States read the same.
func (s State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s  addresses %s  sources %s\n", orNone(s.Self), join(s.Addresses), join(s.Sources))
	fmt.Fprintf(&b, "owns %s  of %s\n", join(s.CIDRs), join(s.PodCIDRs))
	if len(s.Singles) > 0 {
		fmt.Fprintf(&b, "holds %s  one by one\n", join(s.Singles))
	}
	fmt.Fprintf(&b, "transports %s  mtu %s  vxlan vni %d port %d mac %s  masquerade %s\n",
		join(s.Transports), s.MTU, s.VXLAN.VNI, s.VXLAN.Port, s.VXLAN.MAC, onOff(s.Masquerade))
	if len(s.Bare.Sources) > 0 {
		fmt.Fprintf(&b, "bare from %s to %s\n", join(s.Bare.Sources), join(s.Bare.Destinations))
	}
	if line := s.Metadata.line(); line != "" {
		fmt.Fprintf(&b, "metadata service %s\n", line)
	}
	if len(s.Routes) > 0 {
		b.WriteString("\n")
		table := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
		fmt.Fprintln(table, "DESTINATION\tNODE\tTRANSPORT\tOUTER\tGATEWAY\tWHY")
		for _, r := range s.Routes {
			why := r.Reason
			if r.MTU > 0 {
				why += "; of at most " + r.mtu() + " bytes"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Dst, r.Peer, r.Transport, r.Outer, r.Gateway, why)
		}
		table.Flush() // a strings.Builder takes everything
	}
	if len(s.Problems) > 0 {
		b.WriteString("\nproblems:\n")
		for _, p := range s.Problems {
			fmt.Fprintf(&b, "  %s\n", p)
		}
	}
	return b.String()
}

// mtu is empty where nothing smaller was found than what the uplink allows.
func (r Route) mtu() string {
	if r.MTU == 0 {
		return ""
	}
	return fmt.Sprint(r.MTU)
}

// line says how a State differs from one that keeps every pod from the default
// addresses; nothing if it does not.
func (m Metadata) line() string {
	closed := "closed to pods"
	switch {
	case m.Open:
		closed = "open to pods"
	case len(m.Links) > 0:
		closed += fmt.Sprintf(" but %d of allowed namespaces", len(m.Links))
	case slices.Equal(m.Denied(), DefaultMetadata()):
		return ""
	}
	return join(m.Addresses) + "  " + closed
}

// String returns the policy as ClusterNetwork's mtu is written.
func (m MTUPolicy) String() string {
	if m.Mode == MTUFixed {
		return fmt.Sprint(m.Bytes)
	}
	return orNone(m.Mode)
}

// String returns the problem as one line.
func (p Problem) String() string {
	if p.Node == "" {
		return fmt.Sprintf("%s: %s", p.Reason, p.Message)
	}
	return fmt.Sprintf("%s: %s: %s", p.Node, p.Reason, p.Message)
}

// join lists things with commas, or says that there are none.
func join[T any](things []T) string {
	words := make([]string, len(things))
	for i, t := range things {
		words[i] = fmt.Sprint(t)
	}
	return orNone(strings.Join(words, ","))
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
