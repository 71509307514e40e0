package install

import (
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent/hostinstall"
	"ropeway.dev/ropeway/internal/calico"
)

func node(name, address string, podCIDRs ...string) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-" + "x", Labels: map[string]string{corev1.LabelOSStable: "linux"}},
		Spec:       corev1.NodeSpec{PodCIDRs: podCIDRs},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}},
			NodeInfo:  corev1.NodeSystemInfo{Architecture: "amd64"},
		},
	}
}

func TestImageReference(t *testing.T) {
	for _, test := range []struct{ image, version, registry, want string }{
		{"", "v1", "", "docker.io/ropeway/ropeway:v1"},
		{"", "v1", "docker.m.daocloud.io", "docker.m.daocloud.io/ropeway/ropeway:v1"},
		{"", "v1", "mirror.example:5000/hub/", "mirror.example:5000/hub/ropeway/ropeway:v1"},
		{"me/ropeway", "v1", "mirror.example", "mirror.example/me/ropeway:v1"},
		{"localhost/ropeway:dev", "v1", "", "localhost/ropeway:dev"},
		{"host:5000/ropeway", "v1", "", "host:5000/ropeway:v1"},
		{"r.example/ropeway@sha256:abc", "v1", "", "r.example/ropeway@sha256:abc"},
		{"r.example/ropeway:v1@sha256:abc", "v2", "", "r.example/ropeway:v1@sha256:abc"},
		{"", "", "", "error: --version"},
		{"https://r.example/ropeway", "v1", "", "error: --image"},
		{"", "v1", "https://mirror.example", "error: --registry"},
	} {
		got, err := imageReference(test.image, test.version, test.registry)
		if want, isError := strings.CutPrefix(test.want, "error: "); isError {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %q, %v", test, got, err)
			}
		} else if err != nil || got != test.want {
			t.Errorf("%+v: got %q, %v", test, got, err)
		}
	}
}

func TestSplitAPIServer(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:6443": "192.0.2.1 6443", "https://192.0.2.1:6443": "192.0.2.1 6443",
		"https://lb.example": "lb.example 443", "lb.example": "lb.example 6443",
		"[fd00::1]:6443": "fd00::1 6443", "https://[fd00::1]": "fd00::1 443", "https://lb.example:6443/path": "lb.example 6443",
		"http://x": "error", ":6443": "error", "x:port": "error", "x:0": "error", "a b": "error",
	} {
		host, port, err := SplitAPIServer(in)
		got := host + " " + port
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s: %s (%v), want %s", in, got, err, want)
		}
	}
}

const asksForIPv6 = `{"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [{"type": "calico", "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"}}]}`

// TestConflistAsksForBothFamilies, which is right where the pod network has both.
func TestConflistAsksForBothFamilies(t *testing.T) {
	o := Options{Version: "v1", Conflist: asksForIPv6, PodCIDRs: []string{"10.244.0.0/16", "fd00:10:244::/48"}}
	if _, _, err := Resolve(o, nil); err != nil {
		t.Error(err)
	}
}

// TestWrongOptions: every wrong input has a sentence that names the flag.
func TestWrongOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"--pod-cidr: \"pods\" is not a CIDR":          {PodCIDRs: []string{"pods"}},
		"--pod-cidr: 10.1.0.1/16 has bits set":        {PodCIDRs: []string{"10.1.0.1/16"}},
		"cloud.provider":                              {Cloud: v1alpha1.CloudSpec{Provider: "moon"}},
		"cloud.nodes":                                 {Cloud: v1alpha1.CloudSpec{Nodes: "ropeway"}},
		"this version makes no load balancers":        {Cloud: v1alpha1.CloudSpec{LoadBalancers: "ropeway"}},
		"cloud.regionID":                              {Cloud: v1alpha1.CloudSpec{Provider: "alibaba", VPCID: "vpc-1"}},
		"--transports: \"gre\" is not a transport":    {Transports: []v1alpha1.Transport{"gre"}},
		"--address-source: want Blocks or NodeCIDR":   {AddressSource: "Pool"},
		"--mtu: want perRoute, smallest":              {MTU: "68"},
		"--api-server: want the host":                 {APIServer: "a b"},
		"--take-over: \"flannel\" cannot be answered": {TakeOver: []string{"flannel"}},
		"--cni-bin-dir: want the absolute path":       {CNIBinDir: "bin"},
		"--cni-conf-dir: want the absolute path":      {CNIConfDir: "/"},
		"--log-level: want debug":                     {LogLevel: "loud"},
		"podCIDRs[1]":                                 {PodCIDRs: []string{"10.0.0.0/8", "10.1.0.0/16"}},
		"transports":                                  {Transports: []v1alpha1.Transport{"ipip", "ipip"}},
		"the conflist":                                {Conflist: "{\n  \"name\": }"},
		"plugins[0].ipam.assign_ipv6 of the conflist": {Conflist: asksForIPv6, PodCIDRs: []string{"10.244.0.0/16"}},
	} {
		o.Version = "v1"
		if _, _, err := Resolve(o, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q in it", o, err, want)
		}
	}
}

// TestResolvePodCIDRs: from flags, from the cluster's own network, from what
// knows it in the cluster, from the default; never a guess that is wrong.
func TestResolvePodCIDRs(t *testing.T) {
	own := &v1alpha1.ClusterNetwork{Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.9.0.0/16"}, Transports: []v1alpha1.Transport{"vxlan"}}}
	for _, test := range []struct {
		name   string
		flag   []string
		survey *Survey
		want   string
		note   string
	}{
		{"no cluster", nil, nil, "[10.244.0.0/16]", "the default"},
		{"flag", []string{"10.5.0.0/16"}, &Survey{Network: own}, "[10.5.0.0/16]", ""},
		{"own", nil, &Survey{Network: own}, "[10.9.0.0/16]", "stays as it is"},
		{"kubeadm", nil, &Survey{PodSubnets: []string{"10.6.0.0/16"}, PodSubnetsFrom: "kubeadm's configuration"}, "[10.6.0.0/16]", "kubeadm"},
		{"nodes inside", nil, &Survey{Nodes: []corev1.Node{node("a", "192.0.2.1", "10.244.3.0/24")}}, "[10.244.0.0/16]", "the default"},
		{"nodes outside", nil, &Survey{Nodes: []corev1.Node{node("a", "192.0.2.1", "10.7.3.0/24")}}, "error: 10.7.3.0/24 of a", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, notes, err := Resolve(Options{Version: "v1", PodCIDRs: test.flag, APIServer: "192.0.2.9:6443"}, test.survey)
			if want, isError := strings.CutPrefix(test.want, "error: "); isError {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("%v, want %q", err, want)
				}
				return
			}
			if err != nil || fmt.Sprint(s.Network.PodCIDRs) != test.want {
				t.Fatalf("%v, %v", s.Network.PodCIDRs, err)
			}
			if test.note != "" && !strings.Contains(strings.Join(notes, "\n"), test.note) {
				t.Errorf("notes %q do not say %q", notes, test.note)
			}
		})
	}
}

// TestInstallAgainKeepsTheNetwork: an upgrade does not undo what a person
// changed in the meantime.
func TestInstallAgainKeepsTheNetwork(t *testing.T) {
	no := false
	survey := &Survey{Network: &v1alpha1.ClusterNetwork{Spec: v1alpha1.ClusterNetworkSpec{
		PodCIDRs: []string{"10.9.0.0/16"}, Transports: []v1alpha1.Transport{"vxlan"}, NAT: v1alpha1.NATSpec{Outgoing: &no},
		VXLAN: v1alpha1.VXLANSpec{Port: 4790},
	}}}
	s, _, err := Resolve(Options{Version: "v2", MTU: "smallest"}, survey)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(s.Network.Transports) != "[vxlan]" || *s.Network.NAT.Outgoing || s.Network.VXLAN.Port != 4790 || s.Network.MTU.String() != "smallest" {
		t.Errorf("the network became %+v", s.Network)
	}
	if fmt.Sprint(survey.Network.Spec.MTU) != "<nil>" {
		t.Error("Resolve changed the survey")
	}
}

// TestInstallAgainKeepsTheRest: what is installed stays, with its directories,
// names, conflist and registry, but for what a flag says; the tag is the new one.
func TestInstallAgainKeepsTheRest(t *testing.T) {
	in := Installed{
		Image: "mirror.example:5000/hub/ropeway:v1", CNIBinDir: "/data/bin", CNIConfDir: "/data/net.d", TakeOver: []string{"calico"},
		LogLevel: "debug", APIServer: "[fd00::10]:6443", Conflist: "{\"cniVersion\": \"1.0.0\", \"name\": \"mine\", \"plugins\": [{\"type\": \"ropeway\"}]}", VethMTU: "1400",
	}
	survey := &Survey{Server: "https://192.0.2.2:6443", Installed: in}
	s, notes, err := Resolve(Options{Version: "v2"}, survey)
	if err != nil {
		t.Fatal(err)
	}
	got := Installed{s.Image, s.CNIBinDir, s.CNIConfDir, s.TakeOver, s.LogLevel, net.JoinHostPort(s.APIServerHost, s.APIServerPort), s.Conflist, s.VethMTU}
	want := in
	want.Image = "mirror.example:5000/hub/ropeway:v2"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("became %+v\nwant   %+v", got, want)
	}
	for _, part := range []string{"--image stays mirror.example:5000/hub/ropeway", "--cni-bin-dir stays /data/bin", "--take-over stays calico", "cni_network_config of ConfigMap", "veth_mtu of ConfigMap kube-system/ropeway-config stays 1400",
		"--api-server stays [fd00::10]:6443, as it is installed, and your kubeconfig has 192.0.2.2:6443"} {
		if !strings.Contains(strings.Join(notes, "\n"), part) {
			t.Errorf("the notes do not say %q: %q", part, notes)
		}
	}
	s, _, err = Resolve(Options{
		Version: "v2", Registry: "other.example", CNIBinDir: "/opt/cni/bin", TakeOver: []string{"calico-ipam"}, APIServer: "192.0.2.9:6443", LogLevel: "warn",
		Conflist: hostinstall.DefaultTemplate,
	}, survey)
	if err != nil {
		t.Fatal(err)
	}
	if s.Image != "other.example/hub/ropeway:v2" || s.CNIBinDir != "/opt/cni/bin" || s.CNIConfDir != "/data/net.d" || fmt.Sprint(s.TakeOver) != "[calico-ipam]" ||
		s.APIServerHost != "192.0.2.9" || s.LogLevel != "warn" || s.Conflist != hostinstall.DefaultTemplate {
		t.Errorf("flags did not win: %+v", s)
	}
	if s, _, err = Resolve(Options{Version: "v2", TakeOver: []string{"none"}}, survey); err != nil || len(s.TakeOver) > 0 {
		t.Errorf("names that are taken back: %v, %v", s.TakeOver, err)
	}
}

func TestResolveAPIServer(t *testing.T) {
	for _, test := range []struct {
		name, flag, server string
		endpoints          []string
		want               string
	}{
		{"flag", "192.0.2.1:6443", "https://192.0.2.2:6443", nil, "192.0.2.1:6443"},
		{"kubeconfig", "", "https://192.0.2.2:6443", nil, "192.0.2.2:6443"},
		{"name", "", "https://lb.example", nil, "lb.example:443"},
		{"loopback", "", "https://127.0.0.1:41000", []string{"192.0.2.3:6443"}, "192.0.2.3:6443"},
		{"loopback alone", "", "https://127.0.0.1:41000", nil, "error: give --api-server"},
	} {
		t.Run(test.name, func(t *testing.T) {
			survey := &Survey{Server: test.server, APIServers: test.endpoints}
			s, _, err := Resolve(Options{Version: "v1", APIServer: test.flag}, survey)
			got := s.APIServerHost + ":" + s.APIServerPort
			if err != nil {
				got = "error: " + err.Error()
			}
			if !strings.HasPrefix(got, test.want) && !strings.HasSuffix(got, strings.TrimPrefix(test.want, "error: ")+" host:port") {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestOneNodeHasOneController(t *testing.T) {
	s, notes, err := Resolve(Options{Version: "v1", APIServer: "a:1"}, &Survey{Nodes: []corev1.Node{node("a", "192.0.2.1")}})
	if err != nil || s.ControllerReplicas != 1 || !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "one node") }) {
		t.Errorf("%d controllers, %v, %v", s.ControllerReplicas, notes, err)
	}
}

// TestDirectNotes: what direct needs beside being allowed is said, by whom it is not
// done.
func TestDirectNotes(t *testing.T) {
	const fabric, check = "direct needs a fabric", "SourceDestCheck"
	vpc := func(routes, nodes v1alpha1.CloudDuty) *v1alpha1.CloudSpec {
		return &v1alpha1.CloudSpec{Provider: v1alpha1.CloudAlibaba, Routes: routes, Nodes: nodes}
	}
	direct := []v1alpha1.Transport{v1alpha1.TransportDirect, v1alpha1.TransportVXLAN}
	for _, c := range []struct {
		spec v1alpha1.ClusterNetworkSpec
		want []string
	}{
		{v1alpha1.ClusterNetworkSpec{Transports: direct[1:], Cloud: vpc("", "")}, nil},
		{v1alpha1.ClusterNetworkSpec{Transports: direct}, []string{fabric}},
		{v1alpha1.ClusterNetworkSpec{Transports: direct, Cloud: vpc(v1alpha1.DutyOff, "")}, []string{fabric}},
		{v1alpha1.ClusterNetworkSpec{Transports: direct, Cloud: vpc(v1alpha1.DutyExternal, "")}, []string{check}},
		{v1alpha1.ClusterNetworkSpec{Transports: direct, Cloud: vpc("", v1alpha1.DutyExternal)}, []string{check}},
		{v1alpha1.ClusterNetworkSpec{Transports: direct, Cloud: vpc("", v1alpha1.DutyRopeway)}, nil},
	} {
		notes := directNotes(c.spec)
		if len(notes) != len(c.want) {
			t.Errorf("%+v: notes %q, want %q", c.spec, notes, c.want)
			continue
		}
		for i, part := range c.want {
			if !strings.Contains(notes[i], part) {
				t.Errorf("%+v: note %q does not speak of %q", c.spec, notes[i], part)
			}
		}
	}
}

// TestFlagsWinOverCalico, and what no flag says comes from Calico.
func TestFlagsWinOverCalico(t *testing.T) {
	o := Options{PodCIDRs: []string{"10.1.0.0/16"}, MTU: "perRoute", TakeOver: []string{"calico"}}
	o.AddCalico(calico.Installation{
		PodCIDRs: []string{"10.2.0.0/16"}, MTU: 1400, TakeOver: []string{"calico", "calico-ipam"},
		Transports: []v1alpha1.Transport{"vxlan"}, APIServerHost: "fd00::1", Registry: "mirror.example",
	})
	if fmt.Sprint(o.PodCIDRs) != "[10.1.0.0/16]" || o.MTU != "perRoute" || o.Registry != "mirror.example" ||
		fmt.Sprint(o.TakeOver) != "[calico calico-ipam]" || fmt.Sprint(o.Transports) != "[vxlan]" || o.APIServer != "[fd00::1]:443" {
		t.Errorf("got %+v", o)
	}
}

func TestLabelVersion(t *testing.T) {
	for in, want := range map[string]string{"v1.2.3": "v1.2.3", "v1+dirty": "v1_dirty", "-": "", strings.Repeat("a", 70): strings.Repeat("a", 63)} {
		if got := labelVersion(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
