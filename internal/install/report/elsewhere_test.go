package report

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/install"
)

// elsewhere is the reference scenario as it is today: Calico and the vendor's
// controller, with all routes right.
func elsewhere() (*install.Survey, *Cloud) {
	s := &install.Survey{Version: "v1.35.4", PodSubnets: []string{"10.244.0.0/16"}, OwnCRDs: map[string]bool{}}
	c := &Cloud{Listing: cloud.Listing{Tables: []cloud.Table{{ID: "vtb-1"}}}, Instances: cloud.NewFake("cn-chengdu").Instances()}
	for i, name := range []string{"a", "b"} {
		n := node(name, "192.0.2."+string(rune('1'+i)))
		n.Spec.ProviderID = "cn-chengdu.i-" + name
		n.Spec.PodCIDRs = []string{"10.244." + string(rune('1'+i)) + ".0/24"}
		n.Status.Conditions[0].Reason = "CalicoIsUp"
		s.Nodes = append(s.Nodes, n)
		c.Listing.Entries = append(c.Listing.Entries, cloud.RouteEntry{Table: "vtb-1", Dst: netip.MustParsePrefix(n.Spec.PodCIDRs[0]), NextHop: "i-" + name, HopType: "Instance", State: cloud.Available})
	}
	s.DaemonSets = []appsv1.DaemonSet{{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "calico-node"}}}
	ccm := appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "cloud-controller-manager"}}
	ccm.Spec.Template.Spec.Containers = []corev1.Container{{Command: []string{"/ccm", "--configure-cloud-routes=true"}}}
	s.Deployments = []appsv1.Deployment{ccm}
	return s, c
}

func TestElsewhere(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*install.Survey, *Cloud)
		check   string
		outcome Outcome
		says    string
	}{
		{"as it is", func(*install.Survey, *Cloud) {}, "vpc-routes", OK, "2 of 2"},
		{"two writers", func(*install.Survey, *Cloud) {}, "network-condition", Warn, "two programs write the condition NetworkUnavailable: Deployment cloud-controller-manager"},
		{"traces of two writers", func(s *install.Survey, _ *Cloud) {
			s.Deployments = nil
			s.Nodes[1].Status.Conditions[0].Reason = "RouteCreated"
		}, "network-condition", Warn, "CalicoIsUp (node a), RouteCreated (node b)"},
		{"unavailable", func(s *install.Survey, _ *Cloud) {
			s.Nodes[0].Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated", Message: "quota"}
		}, "network-condition", Fail, "node a: NoRouteCreated: quota"},
		{"wrong next hop", func(_ *install.Survey, c *Cloud) { c.Listing.Entries[0].NextHop = "i-old" }, "vpc-routes", Fail, "leads to i-old instead of to i-a"},
		{"narrower entry", func(_ *install.Survey, c *Cloud) {
			c.Listing.Entries = append(c.Listing.Entries, cloud.RouteEntry{Table: "vtb-1", Dst: netip.MustParsePrefix("10.244.1.64/26"), NextHop: "i-old", State: cloud.Available})
		}, "vpc-routes", Fail, "10.244.1.64/26"},
		{"missing", func(_ *install.Survey, c *Cloud) { c.Listing.Entries = c.Listing.Entries[1:] }, "vpc-routes", Fail, "no entry for 10.244.1.0/24 of node a"},
		{"missing, and nobody makes routes", func(s *install.Survey, c *Cloud) { s.Deployments, c.Listing.Entries = nil, nil }, "vpc-routes", Warn, "no entry for 10.244.1.0/24"},
		{"stale", func(s *install.Survey, _ *Cloud) { s.Nodes = s.Nodes[:1] }, "vpc-routes", Warn, "10.244.2.0/24 to i-b, which no node has: it is stale"},
		{"prefix", func(s *install.Survey, _ *Cloud) {
			s.Deployments, s.Nodes[0].Spec.ProviderID = nil, "alicloud://cn-chengdu.i-a"
		}, "node-identity", Warn, "deletes and makes it anew"},
		{"no providerID", func(s *install.Survey, _ *Cloud) { s.Nodes[0].Spec.ProviderID = "" }, "node-identity", Fail, "node a has no providerID"},
		{"no podCIDR", func(s *install.Survey, _ *Cloud) { s.Nodes[0].Spec.PodCIDRs = nil }, "node-identity", Fail, "node a has no podCIDR"},
		{"security group", func(_ *install.Survey, c *Cloud) {
			c.Findings = []cloud.Finding{{Problem: cloud.SecurityGroup, Instance: "i-a", Message: "sg-1 does not allow 10.244.0.0/16", Remedy: "add a rule"}}
		}, "cloud-settings", Fail, "SecurityGroup: sg-1"},
		{"source check", func(_ *install.Survey, c *Cloud) {
			c.Findings = []cloud.Finding{{Problem: cloud.SourceDestCheck, Instance: "i-a", Message: "eni-1 checks", Remedy: "switch it off"}}
		}, "cloud-settings", Fail, "SourceDestCheck: eni-1"},
		{"not allowed to look", func(_ *install.Survey, c *Cloud) { c.NotLooked = errors.New("Forbidden.RAM") }, "cloud-settings", Warn, "Forbidden.RAM"},
		{"flag off", func(s *install.Survey, _ *Cloud) {
			s.Deployments[0].Spec.Template.Spec.Containers[0].Command = []string{"/ccm", "--configure-cloud-routes=false"}
		}, "network-condition", OK, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, c := elsewhere()
			test.change(s, c)
			d := Elsewhere(s, c)
			i := slices.IndexFunc(d.Checks, func(c Check) bool {
				return c.Name == test.check && c.Outcome == test.outcome && strings.Contains(c.Message, test.says)
			})
			if i < 0 {
				t.Fatalf("no %s of %s that says %q in %+v", test.outcome, test.check, test.says, d.Checks)
			}
			if d.Failed() != (test.outcome == Fail) {
				t.Errorf("failed: %v", d.Failed())
			}
			if d.Checks[i].Remedy == "" && test.outcome != OK {
				t.Error("no word on what to do")
			}
		})
	}
	s, _ := elsewhere()
	if d := Elsewhere(s, nil); d.Failed() || !strings.Contains(d.Checks[len(d.Checks)-1].Message, "the cloud was not asked") {
		t.Errorf("%+v", d.Checks)
	}
}
