package report

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// Plan is how each node reaches each destination: the same computation that
// the agents do, from what they have published. An agent's own latest probes
// may be some seconds ahead of it.
type Plan struct {
	Nodes []NodePlan `json:"nodes"`
	// WhatIf is what was supposed, in words; empty for the plan as it is.
	WhatIf string `json:"whatIf,omitempty"`
}

// NodePlan is the plan of one node.
type NodePlan struct {
	Node     string   `json:"node"`
	Routes   []Route  `json:"routes"`
	Problems []string `json:"problems,omitempty"`
	// Changes are what the supposition would change.
	Changes []Change `json:"changes,omitempty"`
}

// Route says how one destination is reached.
type Route struct {
	Destination string `json:"destination"`
	Owner       string `json:"owner"`
	Transport   string `json:"transport"`
	// Outer is the owner's address that encapsulated packets go to, Gateway
	// its address in the pod network.
	Outer   string `json:"outer,omitempty"`
	Gateway string `json:"gateway,omitempty"`
	Why     string `json:"why,omitempty"`
}

// Change is one difference, as plan.Change has it.
type Change struct {
	Action string        `json:"action"` // + - ~
	Kind   string        `json:"kind"`
	Name   string        `json:"name"`
	Fields []FieldChange `json:"fields,omitempty"`
	text   string
}

// FieldChange is one property before and after.
type FieldChange struct {
	Name string `json:"name,omitempty"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// WhatIf is a supposition: fields that are empty stay as they are.
type WhatIf struct {
	Transports []string
}

func (w WhatIf) empty() bool { return len(w.Transports) == 0 }

// apply changes a snapshot to what is supposed.
func (w WhatIf) apply(s plan.Snapshot) (plan.Snapshot, error) {
	spec := v1alpha1.ClusterNetworkSpec{}
	for _, t := range w.Transports {
		spec.Transports = append(spec.Transports, v1alpha1.Transport(t))
	}
	s.Network.Transports = nil
	for _, t := range spec.Transports {
		switch t {
		case v1alpha1.TransportDirect, v1alpha1.TransportIPIP, v1alpha1.TransportVXLAN:
			s.Network.Transports = append(s.Network.Transports, plan.Transport(t))
		default:
			return s, fmt.Errorf("--transports: %q is not a transport: direct, ipip and vxlan are", t)
		}
	}
	return s, nil
}

// PlanOf computes the plan of the named nodes, of all if none is named.
func PlanOf(c *kube.Objects, nodes []string, what WhatIf) (Plan, error) {
	if err := known(c, nodes); err != nil {
		return Plan{}, err
	}
	base, problem := c.Snapshot("")
	if problem != "" {
		return Plan{}, errors.New("there is no plan, since no pod network is in force: " + problem)
	}
	var out Plan
	supposed := base
	if !what.empty() {
		var err error
		if supposed, err = what.apply(base); err != nil {
			return Plan{}, err
		}
		out.WhatIf = fmt.Sprintf("spec.transports: %v", supposed.Network.Transports)
	}
	for _, n := range base.Nodes {
		if len(nodes) > 0 && !slices.Contains(nodes, n.Name) {
			continue
		}
		base.Self, supposed.Self = n.Name, n.Name
		state := plan.Compute(supposed)
		np := nodePlan(state)
		if !what.empty() {
			np.Changes = changes(plan.Compute(base), state)
		}
		out.Nodes = append(out.Nodes, np)
	}
	return out, nil
}

func nodePlan(s plan.State) NodePlan {
	np := NodePlan{Node: s.Self, Routes: []Route{}}
	for _, c := range s.CIDRs {
		np.Routes = append(np.Routes, Route{Destination: c.String(), Owner: s.Self, Transport: string(plan.Local)})
	}
	for _, r := range s.Routes {
		route := Route{Destination: r.Dst.String(), Owner: r.Peer, Transport: string(r.Transport), Why: r.Reason}
		if r.Outer.IsValid() {
			route.Outer = r.Outer.String()
		}
		if r.Gateway.IsValid() {
			route.Gateway = r.Gateway.String()
		}
		np.Routes = append(np.Routes, route)
	}
	for _, p := range s.Problems {
		np.Problems = append(np.Problems, p.String())
	}
	return np
}

func changes(before, after plan.State) []Change {
	var out []Change
	for _, c := range plan.Diff(before, after) {
		change := Change{Action: string(c.Action), Kind: c.Kind, Name: c.Name, text: c.String()}
		for _, f := range c.Fields {
			change.Fields = append(change.Fields, FieldChange(f))
		}
		out = append(out, change)
	}
	return out
}

// Table writes the plan for a person.
func (p Plan) Table(w io.Writer, wide bool) error {
	if p.WhatIf != "" {
		return p.changesTable(w)
	}
	head := []string{"NODE", "DESTINATION", "OWNER", "TRANSPORT", "WHY"}
	if wide {
		head = []string{"NODE", "DESTINATION", "OWNER", "TRANSPORT", "OUTER", "GATEWAY", "WHY"}
	}
	var rows [][]string
	for _, n := range p.Nodes {
		for _, r := range n.Routes {
			row := []string{n.Node, r.Destination, r.Owner, r.Transport, r.Why}
			if wide {
				row = []string{n.Node, r.Destination, r.Owner, r.Transport, r.Outer, r.Gateway, r.Why}
			}
			rows = append(rows, row)
		}
	}
	if err := columns(w, head, rows); err != nil {
		return err
	}
	p.listProblems(w)
	return nil
}

// listProblems writes each problem once: most are the same on every node.
func (p Plan) listProblems(w io.Writer) {
	var seen []string
	for _, n := range p.Nodes {
		for _, problem := range n.Problems {
			if slices.Contains(seen, problem) {
				continue
			}
			if len(seen) == 0 {
				fmt.Fprintln(w)
			}
			seen = append(seen, problem)
			fmt.Fprintf(w, "! %s\n", problem)
		}
	}
}

func (p Plan) changesTable(w io.Writer) error {
	fmt.Fprintf(w, "with %s, this would change:\n", p.WhatIf)
	for _, n := range p.Nodes {
		fmt.Fprintf(w, "\n%s\n", n.Node)
		for _, c := range n.Changes {
			fmt.Fprintf(w, "  %s\n", c.text)
		}
		if len(n.Changes) == 0 {
			fmt.Fprintln(w, "  nothing")
		}
	}
	return nil
}
