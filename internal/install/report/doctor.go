package report

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/install"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/internal/plan"
	"ropeway.dev/ropeway/internal/plan/cidr"
)

// Outcome is how a check ended.
type Outcome string

// The outcomes. A failed check means that something does not work, or does not
// do what somebody asked for; a warning, that it may.
const (
	OK   Outcome = "ok"
	Warn Outcome = "warn"
	Fail Outcome = "fail"
)

// Check is one thing that was looked at.
type Check struct {
	Name    string  `json:"name"`
	Outcome Outcome `json:"outcome"`
	Message string  `json:"message"`          // what, and where
	Remedy  string  `json:"remedy,omitempty"` // what to do
}

// Diagnosis is what Doctor found, check by check.
type Diagnosis struct {
	Checks []Check `json:"checks"`
}

// Failed says whether any check failed.
func (d Diagnosis) Failed() bool {
	return slices.ContainsFunc(d.Checks, func(c Check) bool { return c.Outcome == Fail })
}

// Doctor looks for what is wrong, in what was read of the cluster. c is nil when
// Ropeway's objects cannot be read because their CRDs are not there.
func Doctor(s *install.Survey, c *kube.Objects) Diagnosis {
	d := &Diagnosis{}
	if !d.installed(s, c) {
		return *d
	}
	d.cleaner(s)
	d.workloads(s)
	d.network(c)
	d.surroundings(s, c)
	d.nodes(c)
	d.versions(c)
	d.transports(c)
	d.reachability(c)
	d.pairs(c)
	d.faults(c)
	d.availability(c)
	d.leases(c)
	d.pools(c)
	d.cloudRoutes(c)
	d.cloud(c)
	return *d
}

func (d *Diagnosis) add(name string, outcome Outcome, remedy, format string, args ...any) {
	d.Checks = append(d.Checks, Check{Name: name, Outcome: outcome, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// CloudFailed adds that the cloud could not be looked at, if that is so: what the cluster
// says is worth saying all the same.
func (d *Diagnosis) CloudFailed(err error) {
	if err != nil {
		d.add("cloud-access", Fail, "correct the --cloud flags, or the keys in ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET", "the cloud was not looked at: %v", err)
	}
}

// okUnless adds that a check passed, if none of that name was added since.
func (d *Diagnosis) okUnless(since int, name, message string) {
	if !slices.ContainsFunc(d.Checks[since:], func(c Check) bool { return c.Name == name && c.Outcome != OK }) {
		d.add(name, OK, "", "%s", message)
	}
}

func (d *Diagnosis) installed(s *install.Survey, c *kube.Objects) bool {
	const name, remedy = "installed", "ropeway install --apply"
	ok := true
	if missing := s.MissingCRDs(); c == nil || len(missing) > 0 {
		d.add(name, Fail, remedy, "the CRDs of Ropeway are not in this cluster, or not all of them: %s", strings.Join(missing, ", "))
		ok = false
	}
	if !slices.ContainsFunc(s.DaemonSets, func(x appsv1.DaemonSet) bool {
		return x.Namespace == install.Namespace && x.Name == install.AgentName
	}) {
		d.add(name, Fail, remedy, "the DaemonSet %s is not in namespace %s", install.AgentName, install.Namespace)
	}
	if !slices.ContainsFunc(s.Deployments, func(x appsv1.Deployment) bool {
		return x.Namespace == install.Namespace && x.Name == install.ControllerName
	}) {
		d.add(name, Fail, remedy, "the Deployment %s is not in namespace %s", install.ControllerName, install.Namespace)
	}
	d.okUnless(0, name, "CRDs, agents and controllers are in the cluster")
	return ok
}

// cleaner: no interrupted uninstall cleans the nodes under the agents.
func (d *Diagnosis) cleaner(s *install.Survey) {
	for _, f := range install.CleanerLeft(s) {
		d.add(f.Name, Fail, f.Remedy, "%s", f.What)
	}
}

// workloads: an agent Ready on each node, and the controllers.
func (d *Diagnosis) workloads(s *install.Survey) {
	since := len(d.Checks)
	for _, n := range s.Nodes {
		if n.Labels[corev1.LabelOSStable] == "windows" {
			continue
		}
		why := "no pod of the DaemonSet is there"
		for _, p := range s.Pods {
			if p.Labels[install.LabelComponent] == "agent" && p.Spec.NodeName == n.Name {
				why = install.PodProblem(p)
			}
		}
		if why != "" {
			d.add("agents", Fail, "kubectl -n "+install.Namespace+" describe pod and logs of the agent there; pods that run keep their network meanwhile",
				"the agent on node %s is not ready: %s", n.Name, why)
		}
	}
	d.okUnless(since, "agents", "an agent is ready on every node")
	ready := 0
	for _, p := range s.Pods {
		if p.Labels[install.LabelComponent] != "controller" {
			continue
		}
		if why := install.PodProblem(p); why != "" {
			d.add("controllers", Warn, "kubectl -n "+install.Namespace+" describe pod "+p.Name, "the controller %s is not ready: %s", p.Name, why)
		} else {
			ready++
		}
	}
	if ready == 0 {
		d.add("controllers", Fail, "nodes join without it, but nobody says which are reachable: kubectl -n "+install.Namespace+" describe deployment "+install.ControllerName,
			"no controller is ready")
	}
	for i := range s.Deployments {
		x := &s.Deployments[i]
		if x.Namespace == install.Namespace && x.Name == install.ControllerName && x.Spec.Replicas != nil && *x.Spec.Replicas < 2 && len(s.Nodes) > 1 {
			d.add("controllers", Warn, "ropeway install --apply makes it two", "there is one controller for %d nodes: nobody takes over while its node is down", len(s.Nodes))
		}
	}
	d.okUnless(since, "controllers", "controllers are ready")
}

// network: what was asked for is what is in force.
func (d *Diagnosis) network(c *kube.Objects) {
	const name = "cluster-network"
	since := len(d.Checks)
	if _, problem := kube.InForce(c.Network); problem != "" {
		d.add(name, Fail, "nodes keep what they had", "no pod network is in force: %s", problem)
	} else if why := notAccepted(c.Network); why != "" {
		d.add(name, Fail, "correct spec of ClusterNetwork "+c.Network.Name+"; what was in force before stays in force", "the controller refuses the ClusterNetwork: %s", why)
	} else if cond := meta.FindStatusCondition(c.Network.Status.Conditions, v1alpha1.ConditionAccepted); cond == nil {
		d.add(name, Warn, "is a controller running?", "the controller has not looked at the ClusterNetwork yet")
	}
	d.okUnless(since, name, "the ClusterNetwork is accepted")
}

// surroundings: what preflight stops at, since it may have come later.
func (d *Diagnosis) surroundings(s *install.Survey, c *kube.Objects) {
	since := len(d.Checks)
	var settings install.Settings
	if spec, _ := kube.InForce(c.Network); spec != nil {
		settings.Network = *spec
	}
	for _, f := range install.Preflight(settings, s, false) {
		if f.Name == install.FindingKubeProxy && s.ProxyMode == "" {
			continue // it may run outside of the cluster's sight; install has said so
		}
		outcome := Warn
		if f.Stops {
			outcome = Fail
		}
		remedy := f.Remedy
		switch f.Name {
		case install.FindingPolicies:
			remedy = "what they forbid is allowed: remove them if nobody relies on them, or use a version that enforces them"
		case install.FindingRanges:
			remedy = "choose another range in spec.podCIDRs of the ClusterNetwork"
		}
		d.add(f.Name, outcome, remedy, "%s", f.What)
	}
	d.okUnless(since, install.FindingOther, "no other pod network runs in the cluster")
	d.okUnless(since, install.FindingPolicies, "the cluster has no NetworkPolicy that would not be enforced")
	d.okUnless(since, install.FindingRanges, "the pod network overlaps neither Services nor nodes")
}

// nodes: what each agent says of its own node, and what the plan had to work
// around.
func (d *Diagnosis) nodes(c *kube.Objects) {
	since := len(d.Checks)
	said := nodeNetworks(c)
	for _, n := range c.Nodes {
		nn := said[n.Name]
		if nn == nil || nn.Status.NodeUID != string(n.UID) {
			d.add("node-state", Fail, "look at the agent's log on that node", "the agent on node %s has not said what it does", n.Name)
			continue
		}
		for _, cond := range nn.Status.Conditions {
			if cond.Status != metav1.ConditionTrue {
				d.add("node-state", Fail, "kubectl get nodenetwork "+n.Name+" -o yaml shows all that it says", "node %s, %s: %s", n.Name, cond.Type, cond.Message)
			}
		}
	}
	d.okUnless(since, "node-state", "every node's kernel is as the plan wants it")
	snapshot, problem := c.Snapshot("")
	if problem == "" {
		for _, p := range plan.Compute(snapshot).Problems {
			d.add("node-input", Fail, "", "%s", p.String())
		}
	}
	d.okUnless(since, "node-input", "every node's addresses and CIDRs can be used")
}

func (d *Diagnosis) versions(c *kube.Objects) {
	nodes := map[string][]string{} // version -> nodes
	for _, nn := range c.NodeNetworks {
		if v := nn.Status.AgentVersion; v != "" {
			nodes[v] = append(nodes[v], nn.Name)
		}
	}
	since := len(d.Checks)
	if len(nodes) > 1 {
		var parts []string
		for version, on := range nodes {
			parts = append(parts, fmt.Sprintf("%s on %d", version, len(on)))
		}
		slices.Sort(parts)
		d.add("versions", Warn, "kubectl -n "+install.Namespace+" rollout status daemonset/"+install.AgentName+" shows a roll-out that goes on",
			"agents are of %d versions: %s", len(nodes), strings.Join(parts, ", "))
	}
	d.okUnless(since, "versions", "all agents are of one version")
}

// transports: what a node cannot use. It is an error where nothing else is
// allowed.
func (d *Diagnosis) transports(c *kube.Objects) {
	since := len(d.Checks)
	allowed := 0
	if spec, _ := kube.InForce(c.Network); spec != nil {
		allowed = len(spec.Transports)
	}
	for _, nn := range c.NodeNetworks {
		for _, t := range nn.Status.Transports {
			if t.Supported {
				continue
			}
			outcome := Warn
			if allowed == 1 {
				outcome = Fail
			}
			d.add("transports", outcome, "other allowed transports are used instead, if there are any", "node %s cannot use %s: %s", nn.Name, t.Name, t.Reason)
		}
		for _, e := range nn.Status.Exceptions {
			d.add("transports", Warn, "ropeway plan --node "+nn.Name+" shows how it reaches the others", "node %s reaches %s by %s: %s", nn.Name, e.Node, orDash(e.Transport), e.Reason)
		}
	}
	d.okUnless(since, "transports", "every node is reached by the preferred transport")
}

func (d *Diagnosis) reachability(c *kube.Objects) {
	since := len(d.Checks)
	snapshot, problem := c.Snapshot("")
	if problem != "" {
		return
	}
	verdicts := plan.Verdicts(snapshot)
	for _, n := range snapshot.Nodes {
		if v := verdicts[n.Name]; !v.Reachable {
			d.add("reachable", Fail, firewall, "node %s is not proven reachable: %s", n.Name, v.Reason)
		}
	}
	d.okUnless(since, "reachable", "every node is proven reachable")
}

// firewall is the usual cause and its remedy.
const firewall = "let protocol 4 (ipip), UDP 4789 (vxlan) and, for direct, pods' addresses pass between the nodes: the cloud's security group, and the nodes' own firewalls"

// pairs: a prover that gets no answer by an allowed transport, and has not found
// out why; what has a name is among the faults.
func (d *Diagnosis) pairs(c *kube.Objects) {
	since := len(d.Checks)
	snapshot, problem := c.Snapshot("")
	if problem != "" {
		return
	}
	for p := range plan.ProbesOf(snapshot.Probes) {
		if p.Reachable || p.Fault != "" || !slices.Contains(plan.Allowed(snapshot.Network, p.Family), p.Transport) {
			continue
		}
		d.add("pairs", Warn, firewall, "node %s gets no answer from %s by %s (%s): %s", p.From, p.To, p.Transport, p.Family, orDash(p.Reason))
	}
	d.okUnless(since, "pairs", "every prober gets answers by every allowed transport")
}

// faults: what is wrong with the paths between nodes, each by its own name. What
// keeps packets from their only way is an error, and so is what keeps them from
// going direct, since nobody gets that without asking for it.
func (d *Diagnosis) faults(c *kube.Objects) {
	all := faultsOf(c)
	for _, f := range all {
		outcome := Warn
		if name := plan.Fault(f.Fault); f.Degraded || name.Direct() || name == plan.ProberFault || name == plan.NodeSilent {
			outcome = Fail
		}
		d.add(f.Fault, outcome, f.Remedy, "%s", faultSentence(f))
	}
	if len(all) == 0 {
		d.add("paths", OK, "", "no fault is known of the paths between nodes")
	}
}

// availability: the condition NetworkUnavailable and who writes it.
func (d *Diagnosis) availability(c *kube.Objects) {
	since := len(d.Checks)
	spec, _ := kube.InForce(c.Network)
	agreed := spec != nil && install.GoesByOthersRoutes(spec) // who makes the routes writes the condition too
	for i := range c.Nodes {
		n := &c.Nodes[i]
		cond := kube.NetworkUnavailable(n)
		switch {
		case cond == nil:
			d.add("available", Fail, "is a controller running?", "the condition NetworkUnavailable of node %s has not been written", n.Name)
		case !kube.IsOurs(cond) && !agreed:
			d.add("available", Warn, "one writer is enough: turn it off there (a cloud controller manager has --configure-cloud-routes=false)",
				"somebody else writes the condition NetworkUnavailable of node %s, with the reason %s", n.Name, cond.Reason)
		case cond.Status != corev1.ConditionFalse:
			d.add("available", Fail, firewall, "no pod is scheduled to node %s: %s", n.Name, cond.Message)
		}
	}
	d.okUnless(since, "available", "every node takes pods")
}

// leases: blocks of nodes that are gone, which the controller gives back.
func (d *Diagnosis) leases(c *kube.Objects) {
	since := len(d.Checks)
	for _, l := range c.Leases() {
		nobodys := l.Sharing != "" || l.Node == "" // shared, or kept for a pod that does not run
		if !nobodys && !slices.ContainsFunc(c.Nodes, func(n corev1.Node) bool { return n.Name == l.Node }) {
			d.add("leases", Warn, "the controller gives it back a minute after the node is gone", "the block %s belongs to node %s, which is not there", l.Prefix, l.Node)
		}
	}
	d.okUnless(since, "leases", "every block belongs to a node that is there")
	d.space(c)
}

// nearlyAll is the part of the pod network from which on somebody should enlarge it.
const nearlyAll = 0.9

// space: a pod network that is used up stops nodes from joining, and pods.
func (d *Diagnosis) space(c *kube.Objects) {
	snapshot, problem := c.Snapshot("")
	if problem != "" {
		return
	}
	const name = "space"
	since := len(d.Checks)
	network := cidr.Aggregate(snapshot.Network.PodCIDRs)
	used := plan.Apart(snapshot.Network, snapshot.Nodes)
	for _, l := range c.Leases() {
		if !l.IsSingle() {
			used = append(used, l.Prefix)
		}
	}
	used = cidr.Aggregate(cidr.Intersect(used, network))
	for _, f := range []plan.Family{plan.IPv4, plan.IPv6} {
		all, taken := sizeOf(network, f), sizeOf(used, f)
		if all > 0 && taken >= nearlyAll*all {
			d.add(name, Warn, "add a range to spec.podCIDRs of the ClusterNetwork, and to kube-controller-manager's --cluster-cidr where nodes' podCIDRs are used",
				"%.0f%% of the pod network's %s addresses are leased or assigned to nodes: when there are no more, new nodes and pods wait", 100*taken/all, f)
		}
	}
	d.okUnless(since, name, "the pod network has room for more")
}

// sizeOf counts the addresses of a family.
func sizeOf(aggregated []netip.Prefix, f plan.Family) float64 {
	return cidr.Count(slices.DeleteFunc(slices.Clone(aggregated), func(p netip.Prefix) bool { return plan.FamilyOf(p.Addr()) != f }))
}

// Table writes the diagnosis for a person.
func (d Diagnosis) Table(w io.Writer, wide bool) error {
	counts := map[Outcome]int{}
	for _, c := range d.Checks {
		counts[c.Outcome]++
		fmt.Fprintf(w, "%-4s  %-18s  %s\n", c.Outcome, c.Name, c.Message)
		if c.Remedy != "" && (c.Outcome != OK || wide) {
			fmt.Fprintf(w, "%-4s  %-18s  -> %s\n", "", "", c.Remedy)
		}
	}
	_, err := fmt.Fprintf(w, "\n%d ok, %d warnings, %d failed\n", counts[OK], counts[Warn], counts[Fail])
	return err
}
