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

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/install"
)

// elsewhere is the reference scenario as it is today: Calico and the vendor's
// controller, with all routes right.
func elsewhere() (*install.Survey, *Cloud) {
	s := &install.Survey{Version: "v1.35.4", PodSubnets: []string{"10.244.0.0/16"}, OwnCRDs: map[string]bool{}}
	c := &Cloud{Looked: 2, Pods: PodRanges(s), Listing: cloud.Listing{Tables: []cloud.Table{{ID: "vtb-1"}}}, Instances: cloud.NewFake("cn-chengdu").Instances()}
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

// TestLookAt: a node without a providerID is found by its address; of one that is not
// found, and where no pod range is known, nothing is said to be well.
func TestLookAt(t *testing.T) {
	const well = "let pods' own addresses pass"
	for _, test := range []struct {
		name    string
		change  func(*install.Survey, *cloud.Fake)
		outcome Outcome
		says    string
	}{
		{"well", func(*install.Survey, *cloud.Fake) {}, OK, well},
		{"a finding", func(_ *install.Survey, f *cloud.Fake) {
			f.Find(cloud.Finding{Problem: cloud.SecurityGroup, Instance: "i-b", Message: "sg-1", Remedy: "add a rule"})
		}, Fail, "SecurityGroup: sg-1"},
		{"a finding of a node without a providerID", func(s *install.Survey, f *cloud.Fake) {
			s.Nodes[1].Spec.ProviderID = ""
			f.Find(cloud.Finding{Problem: cloud.SecurityGroup, Instance: "i-b", Message: "sg-1", Remedy: "add a rule"})
		}, Fail, "SecurityGroup: sg-1"},
		{"no instance has its address", func(s *install.Survey, _ *cloud.Fake) {
			s.Nodes[1].Spec.ProviderID, s.Nodes[1].Status.Addresses[0].Address = "", "192.0.2.9"
		}, Warn, "1 of 2 nodes' instances were not looked at: node b has no providerID"},
		{"another cloud's", func(s *install.Survey, _ *cloud.Fake) { s.Nodes[0].Spec.ProviderID = "kind://a" }, Warn, "1 of 2 nodes"},
		{"an instance that is gone", func(_ *install.Survey, f *cloud.Fake) { f.Release("i-a") }, Warn, "node a is instance i-a by its providerID, which the VPC does not have"},
		{"no nodes", func(s *install.Survey, _ *cloud.Fake) { s.Nodes = nil }, Warn, "the cluster has no nodes"},
		{"no pod range", func(s *install.Survey, _ *cloud.Fake) {
			s.PodSubnets, s.Nodes[0].Spec.PodCIDRs, s.Nodes[1].Spec.PodCIDRs = nil, nil, nil
		}, Warn, "nothing in the cluster says which addresses its pods have"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := elsewhere()
			f := cloud.NewFake("cn-chengdu", cloud.Table{ID: "vtb-1"})
			for i, id := range []string{"i-a", "i-b"} {
				f.AddInstances(cloud.Instance{ID: id, Addresses: []netip.Addr{netip.MustParseAddr(s.Nodes[i].Status.Addresses[0].Address)}, Running: true})
			}
			test.change(s, f)
			c, err := LookAt(t.Context(), f, s)
			if err != nil {
				t.Fatal(err)
			}
			var d Diagnosis
			d.Surroundings(c)
			if len(d.Checks) != 1 || d.Checks[0].Outcome != test.outcome || !strings.Contains(d.Checks[0].Message, test.says) {
				t.Errorf("want one %s that says %q: %+v", test.outcome, test.says, d.Checks)
			}
		})
	}
	s, _ := elsewhere()
	s.Network = &v1alpha1.ClusterNetwork{Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16", "fd00:10::/56"}}}
	if got := PodRanges(s); len(got) != 2 || got[1].String() != "fd00:10::/56" {
		t.Errorf("the pod network's ranges are %v", got)
	}
}
