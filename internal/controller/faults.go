package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/plan"
)

// The agents say what they see of the paths between nodes; what they cannot see
// is which thing of the cloud it is. So bare packets' faults are laid beside the
// cloud's routes, which the planner has listed, and beside what the cloud says
// of the nodes' interfaces and security groups, which it is asked only while
// there is such a fault.

// faultSettles is how long a fault lasts before an event tells of it: while
// nodes join, much is unproven for a moment.
const faultSettles = 2 * time.Second

// findFaults returns what is wrong between nodes, as exactly as can be known.
func (c *controller) findFaults(ctx context.Context, o *observed) []plan.FaultReport {
	if o.noNet != "" {
		return nil
	}
	defects := plan.Defects(o.snapshot)
	v := cloudView{status: c.planner.Status(), instances: map[string]string{}}
	for _, row := range v.status.Rows {
		if row.Node != "" && row.Instance != "" {
			v.instances[row.Node] = row.Instance
		}
	}
	if concerned := v.concerned(defects); v.status.Mode != routes.Off && len(concerned) > 0 {
		in := routesInput(o.objects, o.snapshot, o.inForce, nil)
		v.findings, v.err = c.inspector.ask(ctx, question{setup: in.Setup, instances: concerned, pods: o.snapshot.Network.PodCIDRs})
	} else {
		c.inspector.forget()
	}
	for i := range defects {
		v.refine(&defects[i])
	}
	return plan.Summarize(defects)
}

// cloudView is what the cloud says of the nodes.
type cloudView struct {
	status    *routes.Status
	instances map[string]string // node -> instance
	findings  []cloud.Finding
	err       error // why the cloud does not say more
}

// concernedMost bounds the instances that the cloud is asked of at a time: the
// same thing is wrong with most of them.
const concernedMost = 20

// concerned returns the instances at both ends of paths that bare packets do not
// pass, in order.
func (v *cloudView) concerned(defects []plan.Defect) []string {
	var out []string
	for _, d := range defects {
		if !d.Fault.Direct() || len(out) >= concernedMost {
			continue
		}
		for _, node := range []string{d.Node, d.From} {
			if id := v.instances[node]; id != "" {
				out = append(out, id)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// refine gives a fault of bare packets the name and the sentence that the cloud
// has for it. The surest comes first; what the cloud does not explain stays as
// the agent said it.
func (v *cloudView) refine(d *plan.Defect) {
	if !d.Fault.Direct() || v.status.Mode == routes.Off {
		return
	}
	for _, try := range []func(*plan.Defect) bool{v.stopped, v.route, v.check, v.group, v.table} {
		if try(d) {
			return
		}
	}
	if v.err != nil {
		d.Remedy = fmt.Sprintf("%s; the cloud could not be asked which it is: %v", d.Fault.Remedy(), v.err)
	}
}

// say makes d what a finding of the cloud says.
func say(d *plan.Defect, fault plan.Fault, f cloud.Finding) bool {
	d.Fault, d.Message, d.Remedy = fault, f.Message, f.Remedy
	return true
}

func (v *cloudView) found(node string, p cloud.Problem) (cloud.Finding, bool) {
	all := about(v.findings, v.instances[node])
	i := slices.IndexFunc(all, func(f cloud.Finding) bool { return f.Problem == p })
	if i < 0 {
		return cloud.Finding{}, false
	}
	return all[i], true
}

func (v *cloudView) stopped(d *plan.Defect) bool {
	f, found := v.found(d.Node, cloud.NotRunning)
	return found && say(d, plan.InstanceNotRunning, f)
}

// route looks at the entry for the destination, and at the source's: the cloud
// drops packets from a range that it has no route back for.
func (v *cloudView) route(d *plan.Defect) bool {
	ends := []string{d.Node}
	if d.Fault == plan.PodCIDRNotAllowed || d.Fault == plan.DirectBlocked {
		ends = append(ends, d.From)
	}
	for _, node := range ends {
		for _, row := range v.status.Rows {
			if row.Node != node || row.Single || row.State.Good() || v.status.Listed.IsZero() {
				continue
			}
			d.Node = node
			d.Fault, d.Message, d.Remedy = routeFault(row)
			return true
		}
	}
	return false
}

// routeFault says what is wrong with an entry of a route table.
func routeFault(row routes.Row) (fault plan.Fault, message, remedy string) {
	switch row.State {
	case routes.Conflict:
		return plan.WrongNextHop, row.Message, "correct the entry for " + row.Dst + " in route table " + row.Table
	case routes.Wrong:
		return plan.WrongNextHop, fmt.Sprintf("route table %s leads %s to %s instead of to %s (node %s): %s", row.Table, row.Dst, row.NextHop, row.Instance, row.Node, row.Message),
			"Ropeway corrects it; ropeway routes shows how far it is"
	case routes.Missing, routes.Pending:
		message = fmt.Sprintf("route table %s has no entry in force for %s (node %s)", row.Table, row.Dst, row.Node)
		return plan.RouteMissing, message, "Ropeway publishes it, unless the condition RoutesPublished of the ClusterNetwork says what is in the way; where another program is to do it, see to that one"
	}
	return plan.RouteMissing, fmt.Sprintf("route table %s has no entry for %s (node %s): %s", row.Table, row.Dst, row.Node, row.Message),
		"ropeway routes shows it; the condition RoutesPublished of the ClusterNetwork says what to do"
}

// check looks for the source and destination check of the two interfaces.
func (v *cloudView) check(d *plan.Defect) bool {
	for _, node := range []string{d.Node, d.From} {
		if f, found := v.found(node, cloud.SourceDestCheck); found {
			d.Node = node
			return say(d, plan.SourceDestCheck, f)
		}
	}
	return false
}

// group looks for the security group of the node that packets go to.
func (v *cloudView) group(d *plan.Defect) bool {
	f, found := v.found(d.Node, cloud.SecurityGroup)
	return found && say(d, plan.PodCIDRNotAllowed, f)
}

// table looks for the route table of the subnet that packets come from.
func (v *cloudView) table(d *plan.Defect) bool {
	f, found := v.found(d.From, cloud.OtherRouteTable)
	if found {
		d.Node = d.From
	}
	return found && say(d, plan.OtherRouteTable, f)
}

// setFaults fills the list of faults and the condition PathsSound.
func setFaults(cn *v1alpha1.ClusterNetwork, faults []plan.FaultReport) {
	cond := metav1.Condition{
		Type: v1alpha1.ConditionPathsSound, Status: metav1.ConditionTrue, Reason: "NoFaults", ObservedGeneration: cn.Generation,
		Message: "no probe has found anything wrong with the paths that spec.transports allows",
	}
	cn.Status.Faults = nil
	var sentences []string
	for _, f := range faults[:min(len(faults), v1alpha1.MaxFaults)] {
		out := v1alpha1.FaultReport{Fault: string(f.Fault), Nodes: int32(len(f.Nodes)), Message: f.Message, Remedy: f.Remedy, Degraded: f.Degraded}
		if len(f.Nodes) > 0 {
			out.Node = f.Nodes[0]
		}
		cn.Status.Faults = append(cn.Status.Faults, out)
		sentences = append(sentences, f.String()+": "+f.Remedy)
	}
	if len(faults) > 0 {
		cond.Status, cond.Reason, cond.Message = metav1.ConditionFalse, string(faults[0].Fault), strings.Join(sentences, "; ")
	}
	meta.SetStatusCondition(&cn.Status.Conditions, cond)
}

// tellFaults records an event for each fault that lasts, once until it is gone,
// and counts the nodes that faults concern.
func (c *controller) tellFaults(cn *v1alpha1.ClusterNetwork, faults []plan.FaultReport, m *memory) {
	now := map[plan.Fault]bool{}
	first := m.faultsAt.IsZero()
	m.faultsAt = c.now()
	c.metrics.faults.Reset()
	for _, f := range faults {
		now[f.Fault] = true
		c.metrics.faults.WithLabelValues(string(f.Fault)).Set(float64(len(f.Nodes)))
		at, known := m.faults[f.Fault]
		switch {
		case !known:
			// What the status names already an earlier leader has told.
			m.faults[f.Fault] = seenFault{since: c.now(), told: first && reported(cn, f.Fault)}
		case !at.told && c.now().Sub(at.since) >= faultSettles:
			m.faults[f.Fault] = seenFault{since: at.since, told: true}
			c.log.Warn("something is wrong between nodes", "fault", f.Fault, "nodes", len(f.Nodes), "message", f.Message, "remedy", f.Remedy)
			c.tellIn(m.faultsTold, networkReference(cn), "faults", true, string(f.Fault), f.String()+": "+f.Remedy)
		}
	}
	for fault := range m.faults {
		if !now[fault] {
			delete(m.faults, fault)
			delete(m.faultsTold, told{"faults", string(fault)})
		}
	}
}

// reported says whether the status names the fault.
func reported(cn *v1alpha1.ClusterNetwork, f plan.Fault) bool {
	return slices.ContainsFunc(cn.Status.Faults, func(r v1alpha1.FaultReport) bool { return r.Fault == string(f) })
}

// seenFault is since when a fault lasts, and whether an event told of it.
type seenFault struct {
	since time.Time
	told  bool
}

// faultsSettle says that there is a fault that no event has told of yet.
func (m *memory) faultsSettle() bool {
	for _, f := range m.faults {
		if !f.told {
			return true
		}
	}
	return false
}
