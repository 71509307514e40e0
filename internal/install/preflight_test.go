package install

import (
	"errors"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
)

func daemonSet(namespace, name, image string, args ...string) appsv1.DaemonSet {
	return appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Image: image, Args: args}}}}},
	}
}

// healthy is a cluster that nothing stops.
func healthy() *Survey {
	return &Survey{
		Version:      "v1.35.4",
		Nodes:        []corev1.Node{node("a", "192.0.2.1", "10.244.0.0/24"), node("b", "192.0.2.2", "10.244.1.0/24")},
		DaemonSets:   []appsv1.DaemonSet{daemonSet("kube-system", "kube-proxy", "registry.k8s.io/kube-proxy:v1.35.4")},
		ServiceCIDRs: []string{"172.21.0.0/16"}, ServiceIP: "172.21.0.1",
		OwnCRDs: map[string]bool{},
	}
}

func TestPreflightLetsAHealthyClusterPass(t *testing.T) {
	if got := Preflight(settingsOf(t, Options{}), healthy(), false); len(got) > 0 {
		t.Errorf("findings: %v", got)
	}
}

// TestPreflight: what stops an installation and what is only said, each with
// the object's name and what to do.
func TestPreflight(t *testing.T) {
	add := func(d appsv1.DaemonSet) func(*Survey) {
		return func(s *Survey) { s.DaemonSets = append(s.DaemonSets, d) }
	}
	for _, test := range []struct {
		name   string
		change func(*Survey)
		option Options
		stops  bool
		says   []string
	}{
		{"calico-node", add(daemonSet("kube-system", "calico-node", "docker.m.daocloud.io/calico/node:v3.26.1")), Options{}, true, []string{"Calico runs", "DaemonSet calico-node in namespace kube-system", "kubectl -n kube-system delete daemonset calico-node"}},
		{"Calico's operator", func(s *Survey) {
			s.Deployments = append(s.Deployments, appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "tigera-operator", Name: "tigera-operator"},
				Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "quay.io/tigera/operator:v1.30.4"}}}}}})
		}, Options{}, true, []string{"Deployment tigera-operator"}},
		{"Spiderpool", add(daemonSet("kube-system", "spiderpool-agent", "ghcr.io/spidernet-io/spiderpool/spiderpool-agent:v1")), Options{}, true, []string{"Spiderpool runs", "spiderpool-agent"}},
		{"flannel", add(daemonSet("kube-flannel", "kube-flannel-ds", "ghcr.io/flannel-io/flannel:v0.25")), Options{}, true, []string{"flannel runs", "namespace kube-flannel"}},
		{"Cilium by its image only", add(daemonSet("net", "agent", "quay.io/cilium/cilium:v1.16@sha256:00")), Options{}, true, []string{"Cilium runs", "DaemonSet agent in namespace net"}},
		{"Terway", add(daemonSet("kube-system", "terway-eniip", "registry.example/acs/terway:v1")), Options{}, true, []string{"Terway runs"}},
		{"another program of that name", func(s *Survey) {
			s.Deployments = append(s.Deployments, appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "binlog", Name: "canal"},
				Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "canal/canal-server:v1.1.7"}}}}}})
		}, Options{}, false, nil},
		{"cloud controller without routes", add(daemonSet("kube-system", "ccm", "registry.example/cloud-controller-manager:v2", "--controllers=*,-route")), Options{}, false, nil},
		{"cloud controller", add(daemonSet("kube-system", "cloud-controller-manager", "registry.example/ccm:v2")), Options{}, false, []string{"--configure-cloud-routes=false", "NetworkUnavailable"}},
		{"cloud controller whose routes are used", add(daemonSet("kube-system", "cloud-controller-manager", "registry.example/ccm:v2")),
			Options{Transports: []v1alpha1.Transport{"direct"}, AddressSource: "NodeCIDR"}, false, nil},
		{"cloud controller beside our routes", add(daemonSet("kube-system", "cloud-controller-manager", "registry.example/ccm:v2")),
			Options{Transports: []v1alpha1.Transport{"direct"}, AddressSource: "NodeCIDR", Cloud: v1alpha1.CloudSpec{Provider: "alibaba", RegionID: "cn-chengdu", VPCID: "vpc-1"}}, false, []string{"--configure-cloud-routes=false"}},
		{"NetworkPolicies", func(s *Survey) { s.Policies = []string{"shop/deny-all", "shop/web"} }, Options{}, true, []string{"2 NetworkPolicies (shop/deny-all, shop/web)", "--accept-no-policy"}},
		{"accepted NetworkPolicy", func(s *Survey) { s.Policies = []string{"shop/deny-all"} }, Options{AcceptNoPolicy: true}, false, []string{"1 NetworkPolicy (shop/deny-all) will not be enforced", "ropeway doctor"}},
		{"old Kubernetes", func(s *Survey) { s.Version = "v1.30.14" }, Options{}, true, []string{"v1.30.14 is older than 1.31.0"}},
		{"vendor's version", func(s *Survey) { s.Version = "v1.31.1-aliyun.1" }, Options{}, false, nil},
		{"Services' range", func(s *Survey) { s.ServiceCIDRs = []string{"10.244.128.0/20"} }, Options{}, true, []string{"10.244.0.0/16 overlaps the Services' range 10.244.128.0/20", "another --pod-cidr"}},
		{"Service kubernetes", func(s *Survey) { s.ServiceCIDRs, s.ServiceIP = nil, "10.244.0.1" }, Options{}, true, []string{"Service kubernetes, 10.244.0.1"}},
		{"node address", func(s *Survey) { s.Nodes[1] = node("b", "10.244.9.9", "10.244.1.0/24") }, Options{}, true, []string{"address 10.244.9.9 of node b"}},
		{"podCIDR outside", func(s *Survey) { s.Nodes[1] = node("b", "192.0.2.2", "10.99.1.0/24") }, Options{}, true, []string{"10.99.1.0/24 of b", "--cluster-cidr"}},
		{"no podCIDR, blocks", func(s *Survey) { s.Nodes[1] = node("b", "192.0.2.2") }, Options{}, false, nil},
		{"no podCIDR, NodeCIDR", func(s *Survey) { s.Nodes[1] = node("b", "192.0.2.2") }, Options{AddressSource: "NodeCIDR"}, true, []string{"these have none: b", "--address-source Blocks"}},
		{"no InternalIP", func(s *Survey) { s.Nodes[0].Status.Addresses = nil }, Options{}, false, []string{"nodes without an InternalIP: a", "--node-ip"}},
		{"architecture", func(s *Survey) { s.Nodes[0].Status.NodeInfo.Architecture = "riscv64" }, Options{}, true, []string{"a (riscv64)"}},
		{"old kernel", func(s *Survey) { s.Nodes[0].Status.NodeInfo.KernelVersion = "4.19.91-26.al7.x86_64" }, Options{}, false, []string{"older than Linux 5.10: a (4.19.91-26.al7.x86_64)"}},
		{"kernels that will do", func(s *Survey) {
			s.Nodes[0].Status.NodeInfo.KernelVersion, s.Nodes[1].Status.NodeInfo.KernelVersion = "5.10.0-26-amd64", "6.6+"
		}, Options{}, false, nil},
		{"kube-proxy with ipvs", func(s *Survey) { s.ProxyMode = "ipvs" }, Options{}, false, []string{"kube-proxy runs in the mode ipvs", "nftables or iptables"}},
		{"kube-proxy with iptables", func(s *Survey) { s.ProxyMode = "iptables" }, Options{}, false, nil},
		{"no kube-proxy", func(s *Survey) { s.DaemonSets = nil }, Options{}, false, []string{"kube-proxy"}},
		{"foreign CRD", func(s *Survey) { s.OwnCRDs["clusternetworks.ropeway.dev"] = false }, Options{}, true, []string{"clusternetworks.ropeway.dev", "no installation of Ropeway's made it"}},
		{"own CRD", func(s *Survey) { s.OwnCRDs["clusternetworks.ropeway.dev"] = true }, Options{}, false, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			survey := healthy()
			test.change(survey)
			got := Preflight(settingsOf(t, test.option), survey, test.option.AcceptNoPolicy)
			if (len(Stopping(got)) > 0) != test.stops {
				t.Errorf("stops: %v, want %t", Stopping(got), test.stops)
			}
			if test.says == nil && len(got) > 0 {
				t.Errorf("findings: %v, want none", got)
			}
			var all strings.Builder
			for _, f := range got {
				all.WriteString(f.String() + "\n")
				if f.Name == "" {
					t.Errorf("no name: %v", f)
				}
			}
			for _, part := range test.says {
				if !strings.Contains(all.String(), part) {
					t.Errorf("findings do not say %q:\n%s", part, all.String())
				}
			}
		})
	}
}

// installed is a cluster on which everything has come up.
func installed() *Survey {
	s := healthy()
	s.DaemonSets = append(s.DaemonSets, appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: AgentName, Generation: 2},
		Status:     appsv1.DaemonSetStatus{ObservedGeneration: 2, DesiredNumberScheduled: 2, NumberReady: 2, UpdatedNumberScheduled: 2},
	})
	two := int32(2)
	s.Deployments = append(s.Deployments, appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: ControllerName, Generation: 1},
		Spec:       appsv1.DeploymentSpec{Replicas: &two},
		Status:     appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, ReadyReplicas: 2},
	})
	for i := range s.Nodes {
		s.Nodes[i].Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: kube.ReasonProven}}
	}
	s.Network = &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: "default", Generation: 3}}
	setAccepted(s, metav1.ConditionTrue, 3)
	return s
}

func setAccepted(s *Survey, status metav1.ConditionStatus, generation int64) {
	s.Network.Status.ObservedGeneration = generation
	s.Network.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAccepted, Status: status, ObservedGeneration: generation, Message: "overlaps Services"}}
}

// TestReadiness: what counts as installed, and what is said of the rest.
func TestReadiness(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*Survey)
		ready   bool
		missing string
		fatal   string
	}{
		{"all", func(*Survey) {}, true, "", ""},
		{"accepted in an older generation", func(s *Survey) { setAccepted(s, metav1.ConditionTrue, 2) }, false, "has not judged the ClusterNetwork as it is now", ""},
		{"refused", func(s *Survey) { setAccepted(s, metav1.ConditionFalse, 3) }, false, "", "refuses ClusterNetwork default: overlaps Services"},
		{"refused in an older generation", func(s *Survey) { setAccepted(s, metav1.ConditionFalse, 2) }, false, "has not judged the ClusterNetwork as it is now", ""},
		{"node not proven", func(s *Survey) {
			s.Nodes[1].Status.Conditions[0].Status = corev1.ConditionTrue
			s.Nodes[1].Status.Conditions[0].Message = "no answer by ipip"
		}, false, "node b: no answer by ipip", ""},
		{"node without a word", func(s *Survey) { s.Nodes[1].Status.Conditions = nil }, false, "node b: the controller has not said anything", ""},
		{"roll-out goes on", func(s *Survey) { s.DaemonSets[1].Status.UpdatedNumberScheduled = 1 }, false, "not all pods", ""},
		{"DaemonSet not seen yet", func(s *Survey) { s.DaemonSets[1].Status = appsv1.DaemonSetStatus{} }, false, "not all pods", ""},
		{"old generation", func(s *Survey) { s.DaemonSets[1].Generation = 3 }, false, "not all pods", ""},
		{"controller starting", func(s *Survey) { s.Deployments[0].Status.ReadyReplicas = 1 }, false, "not all pods", ""},
		{"image missing", func(s *Survey) {
			s.DaemonSets[1].Status.NumberReady = 1
			s.Pods = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "ropeway-agent-x"}, Spec: corev1.PodSpec{NodeName: "b"}, Status: corev1.PodStatus{
				ContainerStatuses: []corev1.ContainerStatus{{Name: "agent", Image: "docker.io/ropeway/ropeway:v1", State: corev1.ContainerState{
					Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such host"}}}}}}}
		}, false, "pod ropeway-agent-x on b: the image docker.io/ropeway/ropeway:v1 cannot be had: no such host; import it", ""},
		{"crash", func(s *Survey) {
			s.DaemonSets[1].Status.NumberReady = 1
			s.Pods = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Name: "ropeway-agent-x"}, Spec: corev1.PodSpec{NodeName: "b"}, Status: corev1.PodStatus{
				ContainerStatuses: []corev1.ContainerStatus{{Name: "agent",
					State:                corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
					LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Message: "line\nport 9797 in use\n"}},
				}}}}}
		}, false, "ends again and again with code 1: port 9797 in use", ""},
		{"windows node", func(s *Survey) {
			s.Nodes = append(s.Nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w", Labels: map[string]string{corev1.LabelOSStable: "windows"}}})
		}, true, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			survey := installed()
			test.change(survey)
			got := readiness(survey)
			if got.Ready != test.ready {
				t.Errorf("ready %t: %s %v", got.Ready, got.Line, got.Missing)
			}
			if !strings.Contains(strings.Join(got.Missing, "\n"), test.missing) {
				t.Errorf("missing %q, want %q", got.Missing, test.missing)
			}
			if (got.Fatal != nil) != (test.fatal != "") || got.Fatal != nil && !strings.Contains(got.Fatal.Error(), test.fatal) {
				t.Errorf("fatal %v, want %q", got.Fatal, test.fatal)
			}
		})
	}
}

func TestReadinessLine(t *testing.T) {
	s := installed()
	s.Nodes[0].Status.Conditions = nil
	s.Deployments[0].Status.ReadyReplicas = 1
	if got := readiness(s).Line; got != "agents ready 2/2, controllers ready 1/2, nodes reachable 1/2" {
		t.Errorf("got %q", got)
	}
}

func TestNotReadySaysWhatIsMissing(t *testing.T) {
	ctx, cancel := deadlinePassed()
	defer cancel()
	err := notReady(ctx, Readiness{Missing: []string{"node b: no answer"}}, nil)
	for _, part := range []string{"--timeout", "node b: no answer", "ropeway doctor"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
	cause := errors.New("connection refused")
	if err := notReady(ctx, Readiness{}, cause); !errors.Is(err, cause) {
		t.Errorf("%v hides its cause", err)
	}
}
