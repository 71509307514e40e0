package report

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller/routes"
	"ropeway.dev/ropeway/internal/few"
	"ropeway.dev/ropeway/internal/install"
	"ropeway.dev/ropeway/internal/kube"
)

// Cloud is what was read of the cloud for a diagnosis.
type Cloud struct {
	Listing   cloud.Listing
	Instances cloud.Instances
	Machines  []cloud.Instance
	Findings  []cloud.Finding
	// Looked is at how many nodes' instances was looked for Findings, Unseen why
	// not at the others'; Pods are the ranges that were looked for.
	Looked int
	Unseen []string
	Pods   []netip.Prefix
	// NotLooked is why Findings are not known, nil if they are.
	NotLooked error
}

// LookAt reads a cloud for a diagnosis, and changes nothing.
func LookAt(ctx context.Context, provider cloud.Provider, s *install.Survey) (*Cloud, error) {
	c := &Cloud{Instances: provider.Instances(), Pods: PodRanges(s)}
	var err error
	if c.Listing, err = provider.Routes().List(ctx); err != nil {
		return nil, fmt.Errorf("look at the cloud's route tables: %w", err)
	}
	if c.Machines, err = c.Instances.List(ctx); err != nil {
		return nil, fmt.Errorf("look at the cloud's instances: %w", err)
	}
	ids := c.identify(s.Nodes)
	c.Looked = len(ids)
	if inspector, can := provider.(cloud.Inspector); can {
		c.Findings, c.NotLooked = inspector.Inspect(ctx, ids, c.Pods)
	}
	return c, nil
}

// identify returns the nodes' instances, and fills Unseen.
func (c *Cloud) identify(nodes []corev1.Node) []string {
	var wants []routes.Want
	for _, n := range nodes {
		wants = append(wants, wantOf(n))
	}
	found, unknown := routes.InstancesOf(wants, c.Instances, c.Machines)
	for _, node := range slices.Sorted(maps.Keys(found)) {
		if id := found[node]; !slices.ContainsFunc(c.Machines, func(m cloud.Instance) bool { return m.ID == id }) {
			unknown[node] = fmt.Sprintf("node %s is instance %s by its providerID, which the VPC does not have", node, id)
			delete(found, node)
		}
	}
	for _, node := range slices.Sorted(maps.Keys(unknown)) {
		c.Unseen = append(c.Unseen, unknown[node])
	}
	return slices.Sorted(maps.Values(found))
}

// nobody is an owner that no entry has: without Ropeway all are others'.
const nobody = "-"

// Elsewhere diagnoses a cluster in which Ropeway is not installed, such as one
// of Calico or flannel with a vendor's route controller. c is nil where the
// cloud was not asked.
func Elsewhere(s *install.Survey, c *Cloud) Diagnosis {
	d := &Diagnosis{}
	d.add("installed", OK, "ropeway install installs it", "Ropeway is not in this cluster; what is was looked at, and nothing was changed")
	networks := install.OtherNetworks(s)
	for _, n := range networks {
		d.add("pod-network", OK, "", "%s", n.What)
	}
	if len(networks) == 0 {
		d.add("pod-network", Warn, "a network that runs outside of the cluster's sight is not known here", "no known pod network runs in the cluster")
	}
	controllers := slices.DeleteFunc(kube.CloudControllers(s.Deployments, s.DaemonSets), func(v kube.CloudController) bool { return v.Idle })
	writes := d.vendors(controllers)
	d.writers(s, networks, writes)
	d.identities(s, writes)
	if c == nil {
		d.add("vpc-routes", OK, "", "the cloud was not asked: give --cloud, --cloud-region and --cloud-vpc, and keys in the environment, to have its route tables and security groups looked at")
		return *d
	}
	d.table(s, c, writes)
	d.Surroundings(c)
	return *d
}

// vendors says which cloud controller managers run, and returns the one that
// writes routes.
func (d *Diagnosis) vendors(all []kube.CloudController) *kube.CloudController {
	var writes *kube.CloudController
	for i := range all {
		v := &all[i]
		if v.WritesRoutes {
			writes = v
			d.add(install.FindingCloud, OK, "", "%s writes the VPC's routes and the node condition NetworkUnavailable", v)
		} else {
			d.add(install.FindingCloud, OK, "", "%s runs without its route controller", v)
		}
	}
	if len(all) == 0 {
		d.add(install.FindingCloud, OK, "", "no cloud controller manager shows in the cluster")
	}
	return writes
}

// writers: who writes the node condition NetworkUnavailable, and what it says.
func (d *Diagnosis) writers(s *install.Survey, networks []install.Finding, writes *kube.CloudController) {
	const name = "network-condition"
	since := len(d.Checks)
	reasons := map[string]string{} // reason -> a node that has it
	for i := range s.Nodes {
		cond := kube.NetworkUnavailable(&s.Nodes[i])
		if cond == nil {
			continue
		}
		if _, known := reasons[cond.Reason]; !known {
			reasons[cond.Reason] = s.Nodes[i].Name
		}
		if cond.Status == corev1.ConditionTrue {
			d.add(name, Fail, "look at the log of what writes that reason", "no pod is scheduled to node %s: %s: %s", s.Nodes[i].Name, cond.Reason, cond.Message)
		}
	}
	network := slices.IndexFunc(networks, func(f install.Finding) bool {
		return strings.HasPrefix(f.What, "Calico ") || strings.HasPrefix(f.What, "Cilium ") || strings.HasPrefix(f.What, "flannel ")
	})
	const remedy = "whoever writes last is believed: a node can take pods before its route is there; one of them has to stop (--configure-cloud-routes=false, if nothing needs the routes)"
	switch {
	case writes != nil && network >= 0:
		d.add(name, Warn, remedy, "two programs write the condition NetworkUnavailable: %s, and the pod network (%s)", writes, networks[network].What)
	case len(reasons) > 1:
		var seen []string
		for reason, node := range reasons {
			seen = append(seen, fmt.Sprintf("%s (node %s)", reason, node))
		}
		slices.Sort(seen)
		d.add(name, Warn, remedy, "the condition NetworkUnavailable has been written by several programs, by its reasons: %s", strings.Join(seen, ", "))
	}
	d.okUnless(since, name, "the condition NetworkUnavailable keeps no node from taking pods")
}

// identities: what a vendor's route controller trips over.
func (d *Diagnosis) identities(s *install.Survey, writes *kube.CloudController) {
	const name = "node-identity"
	since := len(d.Checks)
	outcome := Warn
	if writes != nil {
		outcome = Fail
	}
	for _, n := range s.Nodes {
		switch {
		case n.Spec.ProviderID == "":
			d.add(name, outcome, "start its kubelet with --provider-id=REGION.INSTANCE", "node %s has no providerID, so no route controller makes a route for it", n.Name)
		case strings.HasPrefix(n.Spec.ProviderID, "alicloud://"):
			d.add(name, Warn, "use --provider-id=REGION.INSTANCE without alicloud://",
				"node %s has the providerID %s: with this prefix Alibaba Cloud's controller takes its own route for a conflict, and deletes and makes it anew at every sweep", n.Name, n.Spec.ProviderID)
		}
		if len(n.Spec.PodCIDRs) == 0 && writes != nil {
			d.add(name, Fail, "run kube-controller-manager with --allocate-node-cidrs", "node %s has no podCIDR, so there is nothing to make a route for", n.Name)
		}
	}
	d.okUnless(since, name, "every node has a providerID")
}

// wantOf is what is known of a node, without a destination.
func wantOf(n corev1.Node) routes.Want {
	w := routes.Want{Node: n.Name, UID: string(n.UID), Created: n.CreationTimestamp.Unix(), ProviderID: n.Spec.ProviderID}
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			w.Addresses = append(w.Addresses, addr)
		}
	}
	return w
}

// wantsOf are the nodes' podCIDRs.
func wantsOf(nodes []corev1.Node) []routes.Want {
	var out []routes.Want
	for _, n := range nodes {
		w := wantOf(n)
		for _, cidr := range n.Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(cidr); err == nil {
				w.Dst = p.Masked()
				out = append(out, w)
			}
		}
	}
	return out
}

// PodRanges are the cluster's pod ranges, as far as it tells them: the pod network
// that is in force, or else the cluster's own configuration, or the nodes' podCIDRs.
func PodRanges(s *install.Survey) []netip.Prefix {
	said := s.PodSubnets
	if spec, _ := kube.InForce(s.Network); spec != nil {
		said = spec.PodCIDRs
	}
	var out []netip.Prefix
	for _, text := range said {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p.Masked())
		}
	}
	if len(out) == 0 {
		for _, w := range wantsOf(s.Nodes) {
			out = append(out, w.Dst)
		}
	}
	return out
}

// table holds the route tables against the nodes' podCIDRs.
func (d *Diagnosis) table(s *install.Survey, c *Cloud, writes *kube.CloudController) {
	const name = "vpc-routes"
	since := len(d.Checks)
	missing := Warn // tunnels need none
	if writes != nil {
		missing = Fail
	}
	in := routes.Input{Cluster: nobody, Mode: routes.External, Nodes: len(s.Nodes), Wants: wantsOf(s.Nodes), PodCIDRs: PodRanges(s)}
	status := routes.Compare(in, c.Listing, c.Instances, c.Machines)
	for _, r := range status.Rows {
		switch r.State {
		case routes.Conflict:
			d.add(name, Fail, "packets for that node's pods go to the wrong machine: delete or correct the entry", "node %s: %s", r.Node, r.Message)
		case routes.Shadowed:
			d.add(name, Fail, "a part of that node's pods is not reached: delete the narrower entry", "node %s: %s", r.Node, r.Message)
		case routes.Missing:
			d.add(name, missing, "without a tunnel its pods are not reached from other nodes: see what should make the entry", "route table %s has no entry for %s of node %s (to %s)", r.Table, r.Dst, r.Node, r.Instance)
		case routes.NoInstance:
			d.add(name, missing, "", "%s", r.Message)
		case routes.Foreign:
			d.add(name, Warn, "it uses up the table's quota, and swallows packets: delete it if no other cluster has it", "route table %s has an entry for %s to %s, which no node has: it is stale", r.Table, r.Dst, r.NextHop)
		}
	}
	for _, t := range status.Tables {
		if t.Entries >= 190 {
			d.add(name, Warn, "a table takes 200 entries unless its quota was raised: the nodes behind that get no route", "route table %s has %d entries", t.ID, t.Entries)
		}
	}
	wanted, good := status.Wanted()
	d.okUnless(since, name, fmt.Sprintf("%d of %d of the nodes' podCIDRs have a right entry", good, wanted))
}

// Surroundings adds what the cloud itself puts in the way of bare packets.
func (d *Diagnosis) Surroundings(c *Cloud) {
	const name = "cloud-settings"
	since := len(d.Checks)
	if c.NotLooked != nil {
		d.add(name, Warn, "the keys need ecs:DescribeNetworkInterfaces and ecs:DescribeSecurityGroupAttribute", "interfaces and security groups could not be looked at: %v", c.NotLooked)
		return
	}
	const remedy = "see whether --cloud-region and --cloud-vpc are the nodes'; what is said here is of the others only"
	switch {
	case c.Looked == 0 && len(c.Unseen) == 0:
		d.add(name, Warn, remedy, "no instance was looked at: the cluster has no nodes")
	case len(c.Unseen) > 0:
		d.add(name, Warn, remedy, "%d of %d nodes' instances were not looked at: %s",
			len(c.Unseen), c.Looked+len(c.Unseen), few.Join(c.Unseen, "; "))
	}
	if len(c.Pods) == 0 {
		d.add(name, Warn, "ropeway install makes a ClusterNetwork, with spec.podCIDRs", "security groups were not looked at: nothing in the cluster says which addresses its pods have")
	}
	for _, f := range c.Findings {
		outcome := Fail
		if f.Problem == cloud.NotRunning {
			outcome = Warn
		}
		d.add(name, outcome, f.Remedy, "%s: %s", f.Problem, f.Message)
	}
	d.okUnless(since, name, "security groups, source checks and route tables let pods' own addresses pass")
}
