package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
)

// Status is the pod network, node by node.
type Status struct {
	Network NetworkStatus `json:"network"`
	Nodes   []NodeStatus  `json:"nodes"`
}

// NetworkStatus is what is in force.
type NetworkStatus struct {
	PodCIDRs      []string `json:"podCIDRs,omitempty"`
	AddressSource string   `json:"addressSource,omitempty"`
	Transports    []string `json:"transports,omitempty"`
	// Problem is why nothing is in force, or why what was asked for is not.
	Problem string `json:"problem,omitempty"`
	// Faults are what is wrong with the paths between nodes.
	Faults []v1alpha1.FaultReport `json:"faults,omitempty"`
	// Cloud says what is wrong with the cloud's rights, instances and routes.
	Cloud []string `json:"cloud,omitempty"`
}

// NodeStatus is one node's part.
type NodeStatus struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses,omitempty"`
	CIDRs     []string `json:"cidrs,omitempty"`
	Sources   []string `json:"sources,omitempty"`
	VTEP      string   `json:"vtep,omitempty"`
	Agent     string   `json:"agentVersion,omitempty"`
	Pods      int32    `json:"pods"`
	// Peers maps transport -> how many other nodes are reached by it.
	Peers map[string]int32 `json:"peers,omitempty"`
	// Reachable is whether other nodes have reached it, and Reason who, or
	// what is missing.
	Reachable bool   `json:"reachable"`
	Reason    string `json:"reason,omitempty"`
	// Available is whether the Node's condition lets pods be scheduled.
	Available bool     `json:"available"`
	Problems  []string `json:"problems,omitempty"`
}

// StatusOf puts a Status together. nodes names those to show; none means all.
// The error names a node that is not there.
func StatusOf(c *kube.Objects, nodes []string) (Status, error) {
	if err := known(c, nodes); err != nil {
		return Status{}, err
	}
	snapshot, problem := c.Snapshot("")
	s := Status{Network: networkStatus(c, problem)}
	said := nodeNetworks(c)
	verdicts := map[string]plan.Verdict{}
	if problem == "" {
		verdicts = plan.Verdicts(snapshot)
	}
	problems := problemsByNode(snapshot, problem)
	for _, n := range snapshot.Nodes {
		if len(nodes) > 0 && !slices.Contains(nodes, n.Name) {
			continue
		}
		v := verdicts[n.Name]
		out := NodeStatus{Name: n.Name, Addresses: texts(n.Addresses), Reachable: v.Reachable, Reason: v.Reason}
		out.add(said[n.Name], n.UID)
		out.Problems = append(out.Problems, problems[n.Name]...)
		s.Nodes = append(s.Nodes, out)
	}
	for i := range s.Nodes {
		s.Nodes[i].Available = available(c.Nodes, s.Nodes[i].Name)
	}
	return s, nil
}

func known(c *kube.Objects, nodes []string) error {
	for _, name := range nodes {
		if !slices.ContainsFunc(c.Nodes, func(n corev1.Node) bool { return n.Name == name }) {
			return fmt.Errorf("there is no node %q: kubectl get nodes lists them", name)
		}
	}
	return nil
}

func networkStatus(c *kube.Objects, problem string) NetworkStatus {
	out := NetworkStatus{Problem: problem}
	spec, _ := kube.InForce(c.Network)
	if spec != nil {
		out.PodCIDRs = spec.PodCIDRs
		out.AddressSource = string(spec.AddressSource)
		for _, t := range spec.Transports {
			out.Transports = append(out.Transports, string(t))
		}
	}
	if out.Problem == "" && c.Network != nil {
		out.Problem = notAccepted(c.Network)
	}
	out.Faults = faultsOf(c)
	out.Cloud = cloudProblems(c.Network)
	return out
}

// faultsOf returns what is wrong between nodes. The controller knows best, which
// asks the cloud too; but only the agents say that there is anything.
func faultsOf(c *kube.Objects) []v1alpha1.FaultReport {
	snapshot, problem := c.Snapshot("")
	if problem != "" {
		return nil
	}
	seen := plan.Summarize(plan.Defects(snapshot))
	if len(seen) == 0 {
		return nil
	}
	if c.Network != nil && len(c.Network.Status.Faults) > 0 {
		return c.Network.Status.Faults
	}
	var out []v1alpha1.FaultReport
	for _, f := range seen {
		out = append(out, v1alpha1.FaultReport{Fault: string(f.Fault), Nodes: int32(len(f.Nodes)), Node: f.Nodes[0],
			Message: f.Message, Remedy: f.Remedy, Degraded: f.Degraded})
	}
	return out
}

// faultSentence is what and where.
func faultSentence(f v1alpha1.FaultReport) string {
	if f.Nodes > 1 {
		return fmt.Sprintf("%d nodes, such as %s: %s", f.Nodes, f.Node, f.Message)
	}
	return fmt.Sprintf("node %s: %s", f.Node, f.Message)
}

// notAccepted is the controller's sentence if it refused the spec; what was in
// force before stays in force.
func notAccepted(n *v1alpha1.ClusterNetwork) string {
	cond := meta.FindStatusCondition(n.Status.Conditions, v1alpha1.ConditionAccepted)
	if cond == nil || cond.Status != metav1.ConditionFalse {
		return ""
	}
	return cond.Message
}

func nodeNetworks(c *kube.Objects) map[string]*v1alpha1.NodeNetwork {
	out := make(map[string]*v1alpha1.NodeNetwork, len(c.NodeNetworks))
	for _, nn := range c.NodeNetworks {
		out[nn.Name] = nn
	}
	return out
}

// add adds what the node's agent says, if it speaks of this Node object.
func (s *NodeStatus) add(nn *v1alpha1.NodeNetwork, uid string) {
	if nn == nil || nn.Status.NodeUID != uid {
		s.Problems = append(s.Problems, "its agent has not said anything yet")
		return
	}
	st := nn.Status
	s.CIDRs, s.Sources, s.VTEP, s.Agent, s.Pods, s.Peers = st.CIDRs, st.Sources, st.VTEP, st.AgentVersion, st.Pods, st.Peers
	for _, t := range st.Transports {
		if !t.Supported {
			s.Problems = append(s.Problems, fmt.Sprintf("cannot use %s: %s", t.Name, t.Reason))
		}
	}
	for _, e := range st.Exceptions {
		if e.Transport == "" {
			s.Problems = append(s.Problems, fmt.Sprintf("does not reach %s: %s", e.Node, e.Reason))
		} else {
			s.Problems = append(s.Problems, fmt.Sprintf("reaches %s by %s: %s", e.Node, e.Transport, e.Reason))
		}
	}
	for _, cond := range st.Conditions {
		if cond.Status == metav1.ConditionFalse {
			s.Problems = append(s.Problems, cond.Message)
		}
	}
}

func available(nodes []corev1.Node, name string) bool {
	for i := range nodes {
		if nodes[i].Name == name {
			c := kube.NetworkUnavailable(&nodes[i])
			return c != nil && c.Status == corev1.ConditionFalse
		}
	}
	return false
}

// problemsByNode are what the plan had to work around: node -> sentences.
func problemsByNode(s plan.Snapshot, none string) map[string][]string {
	out := map[string][]string{}
	if none != "" {
		return out
	}
	for _, p := range plan.Compute(s).Problems {
		out[p.Node] = append(out[p.Node], p.Message)
	}
	return out
}

func texts[T fmt.Stringer](in []T) []string {
	out := make([]string, 0, len(in))
	for _, v := range in {
		out = append(out, v.String())
	}
	return out
}

// Table writes the status for a person.
func (s Status) Table(w io.Writer, wide bool) error {
	if s.Network.Problem != "" {
		fmt.Fprintf(w, "! %s\n", s.Network.Problem)
	}
	for _, f := range s.Network.Faults {
		fmt.Fprintf(w, "! %s: %s\n  -> %s\n", f.Fault, faultSentence(f), f.Remedy)
	}
	for _, line := range s.Network.Cloud {
		fmt.Fprintf(w, "! cloud: %s\n", line)
	}
	if len(s.Network.PodCIDRs) > 0 {
		fmt.Fprintf(w, "pod CIDRs %s   addresses from %s   transports %s\n\n", strings.Join(s.Network.PodCIDRs, ","),
			s.Network.AddressSource, strings.Join(s.Network.Transports, ","))
	}
	head := []string{"NODE", "ADDRESSES", "CIDRS", "PODS", "PEERS", "REACHABLE", "PROBLEMS"}
	if wide {
		head = []string{"NODE", "ADDRESSES", "CIDRS", "SOURCES", "VTEP", "AGENT", "PODS", "PEERS", "REACHABLE", "WHY", "PROBLEMS"}
	}
	var rows [][]string
	for _, n := range s.Nodes {
		peers := peerCounts(n.Peers)
		problems := strconv.Itoa(len(n.Problems))
		if wide {
			rows = append(rows, []string{n.Name, strings.Join(n.Addresses, ","), strings.Join(n.CIDRs, ","), strings.Join(n.Sources, ","),
				n.VTEP, n.Agent, strconv.Itoa(int(n.Pods)), peers, yesNo(n.Reachable), n.Reason, problems})
		} else {
			rows = append(rows, []string{n.Name, strings.Join(n.Addresses, ","), strings.Join(n.CIDRs, ","),
				strconv.Itoa(int(n.Pods)), peers, yesNo(n.Reachable), problems})
		}
	}
	if err := columns(w, head, rows); err != nil {
		return err
	}
	s.listProblems(w)
	return nil
}

func (s Status) listProblems(w io.Writer) {
	first := true
	for _, n := range s.Nodes {
		lines := n.Problems
		if !n.Reachable && n.Reason != "" {
			lines = append([]string{"not reachable: " + n.Reason}, lines...)
		}
		for _, line := range lines {
			if first {
				fmt.Fprintln(w)
				first = false
			}
			fmt.Fprintf(w, "! %s: %s\n", n.Name, line)
		}
	}
}

func peerCounts(peers map[string]int32) string {
	var parts []string
	for _, t := range slices.Sorted(maps.Keys(peers)) {
		parts = append(parts, fmt.Sprintf("%s:%d", t, peers[t]))
	}
	return strings.Join(parts, " ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
