package report

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/install"
	"ropeway.dev/ropeway/internal/kube"
)

var rewrite = flag.Bool("rewrite", false, "write the goldens anew")

const (
	nodeR = "cn-chengdu.i-2vcxxr"
	nodeS = "cn-chengdu.i-2vcxxs"
)

func node(name, address string) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{corev1.LabelOSStable: "linux"}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: kube.ReasonProven}},
		},
	}
}

func block(cidr, node string) v1alpha1.AddressBlock {
	return v1alpha1.AddressBlock{Spec: v1alpha1.AddressBlockSpec{CIDR: cidr, Node: node, NodeUID: "uid-" + node, Generation: 1}}
}

func nodeNetwork(name, address, cidr, source, vtep, peer string) *v1alpha1.NodeNetwork {
	since := metav1.NewTime(time.Unix(1700000000, 0))
	probe := func(transport string) v1alpha1.ProbeResult {
		return v1alpha1.ProbeResult{Node: peer, NodeUID: "uid-" + peer, Family: "IPv4", Transport: transport, Reachable: true, Since: since}
	}
	return &v1alpha1.NodeNetwork{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: v1alpha1.NodeNetworkStatus{
			NodeUID: "uid-" + name, AgentVersion: "v1.2.3", ReadySince: &since, Addresses: []string{address}, CIDRs: []string{cidr},
			Sources: []string{source}, VTEP: vtep, Pods: 4, Peers: map[string]int32{"ipip": 1},
			Transports: []v1alpha1.TransportStatus{{Name: "ipip", Supported: true}, {Name: "vxlan", Supported: true}},
			Probes:     []v1alpha1.ProbeResult{probe("ipip"), probe("vxlan")},
			Conditions: []metav1.Condition{
				{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionTrue},
				{Type: v1alpha1.ConditionAddressesUsable, Status: metav1.ConditionTrue},
			},
		},
	}
}

// scenarioObjects is the reference scenario's cluster in tunnel mode, with
// nothing wrong.
func scenarioObjects() *kube.Objects {
	return &kube.Objects{
		ClusterID: "cluster",
		Network: &v1alpha1.ClusterNetwork{
			ObjectMeta: metav1.ObjectMeta{Name: "default", Generation: 1},
			Spec:       v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}},
			Status: v1alpha1.ClusterNetworkStatus{Conditions: []metav1.Condition{
				{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, ObservedGeneration: 1}}},
		},
		Nodes:  []corev1.Node{node(nodeR, "192.168.1.10"), node(nodeS, "192.168.2.10")},
		Blocks: []v1alpha1.AddressBlock{block("10.244.236.192/26", nodeR), block("10.244.140.0/26", nodeS)},
		NodeNetworks: []*v1alpha1.NodeNetwork{
			nodeNetwork(nodeR, "192.168.1.10", "10.244.236.192/26", "10.244.236.193", "02:00:00:00:00:01", nodeS),
			nodeNetwork(nodeS, "192.168.2.10", "10.244.140.0/26", "10.244.140.1", "02:00:00:00:00:02", nodeR),
		},
	}
}

// failIPIP makes protocol 4 fail between the nodes.
func failIPIP(o *kube.Objects) {
	for i := range o.NodeNetworks {
		o.NodeNetworks[i].Status.Probes[0].Reachable = false
		o.NodeNetworks[i].Status.Probes[0].Fault = "Protocol4Blocked"
		o.NodeNetworks[i].Status.Probes[0].Reason = "3 probes without an answer"
	}
}

// routeMissing makes the fabric know no route to nodeS.
func routeMissing(o *kube.Objects) {
	o.Network.Spec.Transports = []v1alpha1.Transport{"direct", "ipip"}
	st := &o.NodeNetworks[0].Status
	st.Probes = append(st.Probes, v1alpha1.ProbeResult{Node: nodeS, NodeUID: "uid-" + nodeS, Family: "IPv4", Transport: "direct",
		Fault: "RouteMissing", Reason: "bare packets do not arrive"})
}

func pod(component, node string, ready bool) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "ropeway-" + component + "-" + node, Labels: map[string]string{install.LabelComponent: component}},
		Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

// scenarioSurvey fits scenarioObjects.
func scenarioSurvey(o *kube.Objects) *install.Survey {
	in := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: install.Namespace, Name: name}
	}
	return &install.Survey{
		Version: "v1.35.4", Nodes: o.Nodes, ServiceCIDRs: []string{"172.21.0.0/16"}, Network: o.Network,
		DaemonSets:  []appsv1.DaemonSet{{ObjectMeta: in(install.AgentName)}, {ObjectMeta: in("kube-proxy")}},
		Deployments: []appsv1.Deployment{{ObjectMeta: in(install.ControllerName)}},
		Pods:        []corev1.Pod{pod("agent", nodeR, true), pod("agent", nodeS, true), pod("controller", nodeR, true)},
		OwnCRDs:     map[string]bool{"addressblocks.ropeway.dev": true, "addresspools.ropeway.dev": true, "clusternetworks.ropeway.dev": true, "nodenetworks.ropeway.dev": true},
	}
}

func compareGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -rewrite writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -rewrite writes it anew); got:\n%s", path, got)
	}
}

// written is a report in every format, one below the other.
func written(t *testing.T, v any, table func(w *bytes.Buffer, wide bool) error) string {
	t.Helper()
	var out bytes.Buffer
	for _, wide := range []bool{false, true} {
		if err := table(&out, wide); err != nil {
			t.Fatal(err)
		}
		out.WriteString("\n")
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return out.String() + string(text) + "\n"
}

func TestGoldenStatus(t *testing.T) {
	troubled := scenarioObjects()
	failIPIP(troubled)
	nn := &troubled.NodeNetworks[1].Status
	nn.Exceptions = []v1alpha1.PeerException{{Node: nodeR, Transport: "vxlan", Reason: "ipip fails"}, {Node: "gone", Reason: "no address"}}
	nn.Transports[0] = v1alpha1.TransportStatus{Name: "ipip", Reason: "the kernel has neither tcx nor clsact"}
	nn.Conditions[0] = metav1.Condition{Type: v1alpha1.ConditionProgrammed, Status: metav1.ConditionFalse, Message: "route to 10.244.1.0/26: no such device"}
	troubled.Nodes = append(troubled.Nodes, node("new", "192.168.3.10"))
	troubled.Nodes[2].Status.Conditions = nil
	for name, o := range map[string]*kube.Objects{"healthy": scenarioObjects(), "troubled": troubled, "none": {Nodes: scenarioObjects().Nodes}} {
		t.Run(name, func(t *testing.T) {
			s, err := StatusOf(o, nil)
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, "status-"+name+".golden", written(t, s, func(w *bytes.Buffer, wide bool) error { return s.Table(w, wide) }))
		})
	}
}

func TestStatusOfOneNode(t *testing.T) {
	s, err := StatusOf(scenarioObjects(), []string{nodeS})
	if err != nil || len(s.Nodes) != 1 || s.Nodes[0].Name != nodeS || !s.Nodes[0].Reachable || !s.Nodes[0].Available {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := StatusOf(scenarioObjects(), []string{"x"}); err == nil || !strings.Contains(err.Error(), `no node "x"`) {
		t.Errorf("a node that is not there: %v", err)
	}
}

// TestStatusOfAnEarlierNode: what is said of a Node object that was replaced by
// another of its name is not said of the new one.
func TestStatusOfAnEarlierNode(t *testing.T) {
	o := scenarioObjects()
	o.Nodes[0].UID = "another"
	s, err := StatusOf(o, []string{nodeR})
	if err != nil || s.Nodes[0].Pods != 0 || s.Nodes[0].Reachable || !strings.Contains(strings.Join(s.Nodes[0].Problems, "\n"), "has not said anything") {
		t.Errorf("%+v, %v", s.Nodes, err)
	}
}

func TestGoldenPlan(t *testing.T) {
	broken := scenarioObjects()
	failIPIP(broken)
	for name, o := range map[string]*kube.Objects{"healthy": scenarioObjects(), "fallback": broken} {
		p, err := PlanOf(o, nil, WhatIf{})
		if err != nil {
			t.Fatal(err)
		}
		compareGolden(t, "plan-"+name+".golden", written(t, p, func(w *bytes.Buffer, wide bool) error { return p.Table(w, wide) }))
	}
	p, err := PlanOf(scenarioObjects(), []string{nodeR}, WhatIf{Transports: []string{"vxlan"}})
	if err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "plan-what-if.golden", written(t, p, func(w *bytes.Buffer, wide bool) error { return p.Table(w, wide) }))
}

func TestPlanErrors(t *testing.T) {
	for want, call := range map[string]func() (Plan, error){
		`no node "x"`:              func() (Plan, error) { return PlanOf(scenarioObjects(), []string{"x"}, WhatIf{}) },
		`"gre" is not a transport`: func() (Plan, error) { return PlanOf(scenarioObjects(), nil, WhatIf{Transports: []string{"gre"}}) },
		"no ClusterNetwork":        func() (Plan, error) { return PlanOf(&kube.Objects{}, nil, WhatIf{}) },
	} {
		if _, err := call(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestPlanWithoutAChange: to suppose what is there changes nothing.
func TestPlanWithoutAChange(t *testing.T) {
	p, err := PlanOf(scenarioObjects(), nil, WhatIf{Transports: []string{"ipip", "vxlan"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range p.Nodes {
		if len(n.Changes) > 0 {
			t.Errorf("%s: %v", n.Node, n.Changes)
		}
	}
}

func TestDoctorFindsNothingWrong(t *testing.T) {
	o := scenarioObjects()
	d := Doctor(scenarioSurvey(o), o)
	if d.Failed() {
		t.Errorf("failed: %+v", d)
	}
	for _, c := range d.Checks {
		if c.Outcome != OK {
			t.Errorf("%s %s: %s", c.Outcome, c.Name, c.Message)
		}
	}
	var out bytes.Buffer
	if err := d.Table(&out, false); err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "doctor-healthy.golden", out.String())
}

// TestDoctor: each thing that can be wrong is found by the check of its name,
// with a sentence and a remedy.
func TestDoctor(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*install.Survey, *kube.Objects)
		check   string
		outcome Outcome
		says    string
	}{
		{"NetworkPolicies", func(s *install.Survey, _ *kube.Objects) { s.Policies = []string{"shop/deny"} }, install.FindingPolicies, Fail, "1 NetworkPolicy (shop/deny) will not be enforced"},
		{"another network", func(s *install.Survey, _ *kube.Objects) {
			s.DaemonSets = append(s.DaemonSets, appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "calico-node"}})
		}, install.FindingOther, Fail, "calico-node"},
		{"a cleaner beside the agents", func(s *install.Survey, _ *kube.Objects) {
			s.DaemonSets = append(s.DaemonSets, appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: install.CleanerName}})
		}, install.FindingCleaner, Fail, "ropeway-clean would take a new installation off the nodes again"},
		{"agent missing", func(s *install.Survey, _ *kube.Objects) { s.Pods = s.Pods[1:] }, "agents", Fail, "node " + nodeR},
		{"agent not ready", func(s *install.Survey, _ *kube.Objects) { s.Pods[0] = pod("agent", nodeR, false) }, "agents", Fail, "not ready yet"},
		{"no controller", func(s *install.Survey, _ *kube.Objects) { s.Pods = s.Pods[:2] }, "controllers", Fail, "no controller is ready"},
		{"one controller of two", func(s *install.Survey, _ *kube.Objects) { s.Pods = append(s.Pods, pod("controller", nodeS, false)) }, "controllers", Warn, "ropeway-controller-" + nodeS},
		{"kube-proxy with ipvs", func(s *install.Survey, _ *kube.Objects) { s.ProxyMode = "ipvs" }, install.FindingKubeProxy, Warn, "runs in the mode ipvs"},
		{"one controller for all", func(s *install.Survey, _ *kube.Objects) {
			one := int32(1)
			s.Deployments[0].Spec.Replicas = &one
		}, "controllers", Warn, "one controller for 2 nodes"},
		{"no room for more", func(_ *install.Survey, o *kube.Objects) {
			o.Network.Spec.PodCIDRs = []string{"10.244.140.0/25", "10.244.236.192/26"}
			o.Blocks = append(o.Blocks, block("10.244.140.64/26", nodeS))
		}, "space", Warn, "100% of the pod network's IPv4 addresses"},
		{"no DaemonSet", func(s *install.Survey, _ *kube.Objects) { s.DaemonSets = s.DaemonSets[1:] }, "installed", Fail, "DaemonSet ropeway-agent"},
		{"no network", func(_ *install.Survey, o *kube.Objects) { o.Network = nil }, "cluster-network", Fail, "no ClusterNetwork"},
		{"refused", func(_ *install.Survey, o *kube.Objects) {
			o.Network.Status.InForce = o.Network.Spec.DeepCopy()
			o.Network.Status.Conditions[0].Status, o.Network.Status.Conditions[0].Message = metav1.ConditionFalse, "overlaps Services"
		}, "cluster-network", Fail, "overlaps Services"},
		{"nobody looked", func(_ *install.Survey, o *kube.Objects) { o.Network.Status.Conditions = nil }, "cluster-network", Warn, "has not looked"},
		{"range over Services", func(s *install.Survey, _ *kube.Objects) { s.ServiceCIDRs = []string{"10.244.0.0/20"} }, install.FindingRanges, Fail, "10.244.0.0/20"},
		{"silent agent", func(_ *install.Survey, o *kube.Objects) { o.NodeNetworks = o.NodeNetworks[1:] }, "node-state", Fail, nodeR},
		{"not programmed", func(_ *install.Survey, o *kube.Objects) {
			o.NodeNetworks[0].Status.Conditions[0].Status, o.NodeNetworks[0].Status.Conditions[0].Message = metav1.ConditionFalse, "no nft"
		}, "node-state", Fail, "Programmed: no nft"},
		{"podCIDR outside", func(_ *install.Survey, o *kube.Objects) {
			o.Network.Spec.AddressSource = v1alpha1.AddressesFromNodeCIDR
			o.Nodes[0].Spec.PodCIDRs = []string{"10.99.0.0/24"}
		}, "node-input", Fail, "10.99.0.0/24"},
		{"two versions", func(_ *install.Survey, o *kube.Objects) { o.NodeNetworks[0].Status.AgentVersion = "v1.3.0" }, "versions", Warn, "v1.2.3 on 1, v1.3.0 on 1"},
		{"transport refused", func(_ *install.Survey, o *kube.Objects) {
			o.NodeNetworks[0].Status.Transports[1] = v1alpha1.TransportStatus{Name: "vxlan", Reason: "UDP port 4789 is in use by flannel.1"}
		}, "transports", Warn, "cannot use vxlan: UDP port 4789 is in use"},
		{"the only transport refused", func(_ *install.Survey, o *kube.Objects) {
			o.Network.Spec.Transports = []v1alpha1.Transport{"vxlan"}
			o.NodeNetworks[0].Status.Transports[1] = v1alpha1.TransportStatus{Name: "vxlan", Reason: "no module"}
		}, "transports", Fail, "no module"},
		{"ipip fails", func(_ *install.Survey, o *kube.Objects) { failIPIP(o) }, "Protocol4Blocked", Warn, "2 nodes, such as " + nodeR + ": 3 probes without an answer"},
		{"ipip fails, and nobody knows why", func(_ *install.Survey, o *kube.Objects) {
			failIPIP(o)
			o.NodeNetworks[0].Status.Probes[0].Fault = ""
		}, "pairs", Warn, "by ipip (IPv4): 3 probes without an answer"},
		{"no other way", func(_ *install.Survey, o *kube.Objects) {
			failIPIP(o)
			o.Network.Spec.Transports = []v1alpha1.Transport{"ipip"}
		}, "Protocol4Blocked", Fail, "3 probes without an answer"},
		{"route missing", func(_ *install.Survey, o *kube.Objects) { routeMissing(o) }, "RouteMissing", Fail, "node " + nodeS + ": bare packets do not arrive"},
		{"what the cloud says", func(_ *install.Survey, o *kube.Objects) {
			routeMissing(o)
			o.Network.Status.Faults = []v1alpha1.FaultReport{{Fault: "SourceDestCheck", Nodes: 1, Node: nodeS, Message: "interface eni-1 checks", Remedy: "switch it off"}}
		}, "SourceDestCheck", Fail, "node " + nodeS + ": interface eni-1 checks"},
		{"an MTU hole", func(_ *install.Survey, o *kube.Objects) {
			p := &o.NodeNetworks[0].Status.Probes[0]
			p.Fault, p.PathMTU, p.Reason = "MTUBlackHole", 1380, "packets of more than 1380 bytes get lost"
		}, "MTUBlackHole", Warn, "more than 1380 bytes"},
		{"a node's own fault", func(_ *install.Survey, o *kube.Objects) {
			o.NodeNetworks[0].Status.Faults = []v1alpha1.NodeFault{{Fault: "ProberFault", Message: "all stopped to answer"}}
		}, "ProberFault", Fail, "node " + nodeR + ": all stopped to answer"},
		{"not proven", func(_ *install.Survey, o *kube.Objects) {
			failIPIP(o)
			for i := range o.NodeNetworks {
				o.NodeNetworks[i].Status.Probes[1].Reachable = false
			}
		}, "reachable", Fail, "not proven reachable"},
		{"unavailable", func(_ *install.Survey, o *kube.Objects) {
			o.Nodes[0].Status.Conditions[0] = corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: kube.ReasonNotProven, Message: "no answer yet"}
		}, "available", Fail, "no answer yet"},
		{"another writer", func(_ *install.Survey, o *kube.Objects) { o.Nodes[0].Status.Conditions[0].Reason = "CalicoIsUp" }, "available", Warn, "CalicoIsUp"},
		{"no condition", func(_ *install.Survey, o *kube.Objects) { o.Nodes[0].Status.Conditions = nil }, "available", Fail, "has not been written"},
		{"lost lease", func(_ *install.Survey, o *kube.Objects) { o.Blocks = append(o.Blocks, block("10.244.9.0/26", "gone")) }, "leases", Warn, "10.244.9.0/26 belongs to node gone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := scenarioObjects()
			s := scenarioSurvey(o)
			test.change(s, o)
			d := Doctor(s, o)
			i := slices.IndexFunc(d.Checks, func(c Check) bool {
				return c.Name == test.check && c.Outcome == test.outcome && strings.Contains(c.Message, test.says)
			})
			if i < 0 {
				t.Fatalf("no %s of %s that says %q in %+v", test.outcome, test.check, test.says, d.Checks)
			}
			if d.Failed() != slices.ContainsFunc(d.Checks, func(c Check) bool { return c.Outcome == Fail }) || test.outcome == Fail && !d.Failed() {
				t.Error("Failed does not fit the checks")
			}
			if d.Checks[i].Remedy == "" && test.check != "node-input" {
				t.Error("no word on what to do")
			}
			if slices.ContainsFunc(d.Checks, func(c Check) bool { return c.Name == test.check && c.Outcome == OK }) {
				t.Error("the same check is ok, too")
			}
		})
	}
}

// TestDoctorIsQuietAboutKubeProxy: clusters that run it as a plain process would
// be warned for ever.
func TestDoctorIsQuietAboutKubeProxy(t *testing.T) {
	o := scenarioObjects()
	s := scenarioSurvey(o)
	s.DaemonSets = s.DaemonSets[:1]
	for _, c := range Doctor(s, o).Checks {
		if c.Outcome != OK {
			t.Errorf("%+v", c)
		}
	}
}

func TestDoctorWithoutAnInstallation(t *testing.T) {
	d := Doctor(&install.Survey{OwnCRDs: map[string]bool{}}, nil)
	if !d.Failed() || d.Checks[0].Name != "installed" || d.Checks[0].Remedy != "ropeway install --apply" {
		t.Errorf("%+v", d)
	}
}

func TestWriteFormats(t *testing.T) {
	for flag, part := range map[string]string{"json": `"checks": [`, "yaml": "checks:", "wide": "0 failed", "": "0 failed"} {
		f, err := ParseFormat(flag)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		d := Diagnosis{Checks: []Check{{Name: "a", Outcome: OK}}}
		if err := Write(&out, f, d, d.Table); err != nil || !strings.Contains(out.String(), part) {
			t.Errorf("%s: %v, %s", flag, err, out.String())
		}
	}
	if _, err := ParseFormat("xml"); err == nil {
		t.Error("xml is no format")
	}
}
