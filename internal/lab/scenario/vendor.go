package scenario

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/openapi"
	"ropeway.dev/ropeway/internal/lab/vendorccm"
)

// vendorPods is the vendor's cloud controller manager, played by its stand-in: as
// a Deployment with its name and flags, which is how Ropeway knows it.
const vendorPods = `apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: %[1]s, namespace: kube-system}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: kube-system, labels: {app: %[1]s}}
spec:
  strategy: {type: Recreate}
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {serviceAccountName: %[1]s, hostNetwork: true, terminationGracePeriodSeconds: 0, tolerations: [{operator: Exists}], volumes: [{name: program, hostPath: {path: %[2]s}}],
      containers: [{name: ccm, image: lab.ropeway.dev/web:1, volumeMounts: [{name: program, mountPath: /ccm}],
        command: [/ccm, %[3]s, %[4]s]}]}
`

// vendorPeriod is how often the stand-in sweeps: the real one does every five
// minutes.
const vendorPeriod = 5 * time.Second

// vendor has the routes change hands between Ropeway and a vendor's route
// controller, and both at work at once, under traffic.
func (s *stage) vendor(ctx context.Context) error {
	defer s.endVendor(context.WithoutCancel(ctx))
	return s.steady(ctx, s.besideVendor, []event{
		{name: "the routes are released, and become the vendor's", happen: s.routesToVendor, undo: s.routesFromVendor},
		{name: "the routes are adopted, and become Ropeway's again", happen: s.routesFromVendor, undo: s.routesToVendor},
		{name: "the vendor's route controller is switched on beside Ropeway's", happen: s.bothWrite, undo: s.vendorGoes},
		{name: "the vendor's controller goes", happen: s.vendorGoes, undo: s.bothWrite},
	})
}

// besideVendor is publish with what a vendor's route controller needs: ranges that
// are the nodes' podCIDRs, and their providerIDs.
func (s *stage) besideVendor(ctx context.Context) error {
	patch := `{"spec":{"addressSource":"NodeCIDR"}}`
	if _, err := s.kubectl(ctx, "patch", "clusternetwork", "default", "--type", "merge", "-p", patch); err != nil {
		return err
	}
	snapshot, err := s.cloudNow(ctx)
	if err != nil {
		return err
	}
	for _, in := range snapshot.Instances {
		if !slices.Contains(s.nodes(), in.Host) {
			continue
		}
		have, err := s.quiet(ctx, "get", "node", in.Host, "-o", "jsonpath={.spec.providerID}")
		if err != nil {
			return err
		}
		if have == "" {
			id := fmt.Sprintf(`{"spec":{"providerID":%q}}`, snapshot.Spec.Region+"."+in.ID)
			if _, err := s.quiet(ctx, "patch", "node", in.Host, "--type", "merge", "-p", id); err != nil {
				return err
			}
		}
	}
	if err := s.publish(ctx); err != nil {
		return err
	}
	return s.until(ctx, time.Minute, func() error { return s.entries(ctx, true) })
}

// entries says what is wrong unless each node's podCIDR has an entry, all of them
// Ropeway's or none, and is reached by it. Blocks that pods of before still have may
// have entries beside them, which the vendor's controller takes away.
func (s *stage) entries(ctx context.Context, ours bool) error {
	snapshot, err := s.cloudNow(ctx)
	if err != nil {
		return err
	}
	cidrs, err := s.nodeCIDRs(ctx)
	if err != nil {
		return err
	}
	for node, cidr := range cidrs {
		i := slices.IndexFunc(snapshot.Entries, func(e openapi.Entry) bool { return e.Dst == cidr })
		if i < 0 {
			return fmt.Errorf("no entry leads to %s of node %s", cidr, node)
		}
		if said := snapshot.Entries[i].Description; strings.HasPrefix(said, "ropeway cluster=") != ours {
			return fmt.Errorf("entry %s says %q; should it be Ropeway's: %t", cidr, said, ours)
		}
		for _, from := range s.nodes() {
			if from == node {
				continue
			}
			route, err := s.l.NodeExec(ctx, from, "ip", "route", "show", cidr.String())
			if err != nil {
				return err
			}
			if text := string(route); !strings.Contains(text, "dev eth0") || strings.Contains(text, "encap") {
				return fmt.Errorf("node %s does not reach %s by the VPC's route: %s", from, cidr, text)
			}
		}
	}
	return nil
}

// runVendor runs the stand-in with or without its route controller.
func (s *stage) runVendor(ctx context.Context, writesRoutes bool) error {
	access, err := s.cloudAccess(ctx)
	if err != nil {
		return err
	}
	snapshot, err := s.cloudNow(ctx)
	if err != nil {
		return err
	}
	pods, err := s.quiet(ctx, "get", "clusternetwork", "default", "-o", "jsonpath={.spec.podCIDRs[0]}")
	if err != nil {
		return err
	}
	cidr, err := netip.ParsePrefix(pods)
	if err != nil {
		return fmt.Errorf("the pod network's first range: %w", err)
	}
	c := vendorccm.Config{ClusterCIDR: cidr, Routes: writesRoutes, Period: vendorPeriod,
		Cloud: vendorccm.Cloud{URL: access.Endpoint, Region: access.Region, VPC: access.VPC, Key: snapshot.Spec.VendorKey}}
	var quoted []string
	for _, flag := range c.Flags() {
		quoted = append(quoted, fmt.Sprintf("%q", flag))
	}
	objects := fmt.Sprintf(vendorPods, vendorccm.Workload, config.Binary("ropeway-lab"), vendorccm.Command, strings.Join(quoted, ", "))
	if _, err := s.l.KubectlInput(ctx, strings.NewReader(objects), "apply", "-f", "-"); err != nil {
		return err
	}
	_, err = s.kubectl(ctx, "-n", "kube-system", "rollout", "status", "deploy/"+vendorccm.Workload, "--timeout=90s")
	return err
}

// sweeps waits until the stand-in has gone over the table so many times more. It is
// known by its key: Ropeway asks for the tables, too.
func (s *stage) sweeps(ctx context.Context, more int) error {
	began := time.Now()
	return s.until(ctx, time.Minute, func() error {
		snapshot, err := s.cloudNow(ctx)
		if err != nil {
			return err
		}
		if n := sweepsSince(snapshot, began); n < more {
			return fmt.Errorf("the vendor's controller has swept %d times, %d more to come", n, more-n)
		}
		return nil
	})
}

// sweepsSince counts how often the stand-in has looked for the tables to go over.
func sweepsSince(snapshot openapi.Snapshot, began time.Time) int {
	n := 0
	for _, c := range snapshot.Calls {
		if c.Action == "DescribeRouteTableList" && c.Principal == snapshot.Spec.VendorKey.Principal() && c.Code == "" && c.Time.After(began) {
			n++
		}
	}
	return n
}

// routesBy says in the ClusterNetwork who publishes the routes.
func (s *stage) routesBy(ctx context.Context, duty string) error {
	_, err := s.kubectl(ctx, "patch", "clusternetwork", "default", "--type", "merge", "-p", fmt.Sprintf(`{"spec":{"cloud":{"routes":%q}}}`, duty))
	return err
}

func (s *stage) routesToVendor(ctx context.Context) error {
	if err := s.ropeway(ctx, "routes", "release", "--all"); err != nil {
		return err
	}
	if err := s.until(ctx, time.Minute, func() error { return s.entries(ctx, false) }); err != nil {
		return err
	}
	if err := errors.Join(s.routesBy(ctx, "external"), s.runVendor(ctx, true), s.sweeps(ctx, 3)); err != nil {
		return err
	}
	return s.entries(ctx, false)
}

func (s *stage) routesFromVendor(ctx context.Context) error {
	if err := errors.Join(s.runVendor(ctx, false), s.routesBy(ctx, "ropeway"), s.ropeway(ctx, "routes", "adopt", "--all")); err != nil {
		return err
	}
	return s.until(ctx, time.Minute, func() error { return s.entries(ctx, true) })
}

func (s *stage) bothWrite(ctx context.Context) error {
	if err := s.runVendor(ctx, true); err != nil {
		return err
	}
	if err := s.until(ctx, 90*time.Second, func() error { return s.published(ctx, "False", vendorccm.Workload, "--configure-cloud-routes=false") }); err != nil {
		return err
	}
	if err := s.sweeps(ctx, 3); err != nil {
		return err
	}
	return s.entries(ctx, true)
}

func (s *stage) vendorGoes(ctx context.Context) error {
	s.endVendor(ctx)
	if err := s.until(ctx, 3*time.Minute, func() error { return s.published(ctx, "True") }); err != nil {
		return err
	}
	return s.entries(ctx, true)
}

// published says what is wrong unless the condition about the routes has the
// status, and all the words in its message.
func (s *stage) published(ctx context.Context, status string, words ...string) error {
	const path = `jsonpath={range .status.conditions[?(@.type=="RoutesPublished")]}{.status} {.reason}: {.message}{end}`
	out, err := s.quiet(ctx, "get", "clusternetwork", "default", "-o", path)
	if err != nil {
		return err
	}
	for _, word := range append(words, status) {
		if !strings.Contains(out, word) {
			return fmt.Errorf("RoutesPublished is %s, want %s with %q", out, status, words)
		}
	}
	return nil
}

// endVendor takes the stand-in away.
func (s *stage) endVendor(ctx context.Context) {
	_, _ = s.quiet(ctx, "-n", "kube-system", "delete", "deploy/"+vendorccm.Workload, "sa/"+vendorccm.Workload, "lease/"+vendorccm.Lease, "--ignore-not-found", "--timeout=60s")
	_, _ = s.quiet(ctx, "delete", "clusterrolebinding", vendorccm.Workload, "--ignore-not-found")
}
