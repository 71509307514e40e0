package install

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/yaml"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/agent/hostinstall"
	"ropeway.dev/ropeway/internal/calico"
)

var rewrite = flag.Bool("rewrite", false, "write the goldens anew")

func compareGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -rewrite writes it)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -rewrite writes it anew); got:\n%s", path, got)
	}
}

// settingsOf are settings with nothing from a cluster.
func settingsOf(t *testing.T, o Options) Settings {
	t.Helper()
	if o.Version == "" {
		o.Version = "v1.2.3"
	}
	s, _, err := Resolve(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// full sets every option to something other than its default.
func full() Options {
	no := false
	return Options{
		Registry: "docker.m.daocloud.io", PodCIDRs: []string{"10.200.0.0/16", "fd00:10:200::/48"},
		AddressSource: v1alpha1.AddressesFromNodeCIDR, BlockSizeIPv4: 25, BlockSizeIPv6: 121,
		Transports: []v1alpha1.Transport{v1alpha1.TransportVXLAN}, VXLANPort: 4790, VXLANVNI: 1<<24 - 1,
		MTU: "1400", Masquerade: &no, APIServer: "[fd00::10]:6443", TakeOver: []string{"calico", "calico-ipam"},
		CNIBinDir: "/usr/libexec/cni", CNIConfDir: "/var/lib/rancher/k3s/agent/etc/cni/net.d", LogLevel: "debug",
		Cloud: v1alpha1.CloudSpec{Provider: v1alpha1.CloudAlibaba, RegionID: "cn-chengdu", VPCID: "vpc-1", RouteTableIDs: []string{"vtb-1"},
			VPCCIDRs: []string{"192.168.0.0/16"}, Endpoint: "http://100.100.0.10", Routes: v1alpha1.DutyExternal, Nodes: v1alpha1.DutyRopeway,
			LoadBalancers: v1alpha1.DutyOff, CredentialsSecret: "keys"},
	}
}

func TestGoldenManifests(t *testing.T) {
	for name, o := range map[string]Options{"default": {APIServer: "192.0.2.10:6443"}, "full": full()} {
		t.Run(name, func(t *testing.T) {
			m, err := Render(settingsOf(t, o))
			if err != nil {
				t.Fatal(err)
			}
			// The CRDs are generated, and golden in config/crd already.
			text, err := Manifest{Objects: m.Objects}.YAML("golden")
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", name+".golden.yaml"), text)
		})
	}
	cleaner, err := Cleaner(settingsOf(t, full()))
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(cleaner.Object)
	if err != nil {
		t.Fatal(err)
	}
	compareGolden(t, "testdata/cleaner.golden.yaml", text)
}

// decode reads every object of a manifest with the API's own types; unknown
// fields are errors.
func decode(t *testing.T, m Manifest) []runtime.Object {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var out []runtime.Object
	for _, obj := range slices.Concat(m.CRDs, m.Objects) {
		text, err := yaml.Marshal(obj.Object)
		if err != nil {
			t.Fatal(err)
		}
		typed, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			t.Errorf("%s: %v", describe(obj), err)
			continue
		}
		out = append(out, typed)
	}
	return out
}

func find[T runtime.Object](t *testing.T, objects []runtime.Object) T {
	t.Helper()
	for _, obj := range objects {
		if typed, ok := obj.(T); ok {
			return typed
		}
	}
	t.Fatalf("no %T", *new(T))
	panic("unreachable")
}

func TestManifestsAreStrictlyValid(t *testing.T) {
	for _, o := range []Options{{}, full()} {
		m, err := Render(settingsOf(t, o))
		if err != nil {
			t.Fatal(err)
		}
		objects := decode(t, m)
		if len(m.CRDs) != 6 || len(objects) != len(m.CRDs)+len(m.Objects) {
			t.Errorf("%d CRDs, %d of %d objects decoded", len(m.CRDs), len(objects), len(m.CRDs)+len(m.Objects))
		}
		for _, obj := range slices.Concat(m.CRDs, m.Objects) {
			if obj.GetLabels()[LabelName] != ProductName || obj.GetLabels()[LabelVersion] != "v1.2.3" {
				t.Errorf("%s is not marked as ours: %v", describe(obj), obj.GetLabels())
			}
		}
		find[*admissionv1.ValidatingAdmissionPolicy](t, objects)
		network := find[*v1alpha1.ClusterNetwork](t, objects)
		if err := v1alpha1.Validate(&network.Spec); err != nil {
			t.Errorf("the ClusterNetwork is not valid: %v", err)
		}
		checkAgent(t, find[*appsv1.DaemonSet](t, objects))
		checkController(t, find[*appsv1.Deployment](t, objects))
	}
}

// checkAgent holds what must be true of the agent whatever the options are.
func checkAgent(t *testing.T, ds *appsv1.DaemonSet) {
	t.Helper()
	pod := ds.Spec.Template.Spec
	if !pod.HostNetwork || pod.PriorityClassName != "system-node-critical" || !toleratesAll(pod) {
		t.Error("the agent must be in the host's network, node-critical, and tolerate every taint")
	}
	if ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable.String() != "10%" {
		t.Error("the agents must be rolled out a tenth at a time")
	}
	c := pod.Containers[0]
	if c.ImagePullPolicy != corev1.PullIfNotPresent {
		t.Error("an image that was imported by hand must not be pulled")
	}
	propagation := map[string]corev1.MountPropagationMode{}
	for _, m := range c.VolumeMounts {
		if m.MountPropagation != nil {
			propagation[m.MountPath] = *m.MountPropagation
		}
	}
	if propagation["/sys/fs/bpf"] != corev1.MountPropagationBidirectional || propagation["/run/netns"] != corev1.MountPropagationHostToContainer {
		t.Errorf("mount propagation is %v", propagation)
	}
}

func checkController(t *testing.T, d *appsv1.Deployment) {
	t.Helper()
	pod := d.Spec.Template.Spec
	if *d.Spec.Replicas != 2 || !pod.HostNetwork || !toleratesAll(pod) {
		t.Error("two controllers, in the host's network, that tolerate every taint")
	}
	if c := pod.Containers[0]; *c.SecurityContext.AllowPrivilegeEscalation || c.SecurityContext.Capabilities.Drop[0] != "ALL" || !*pod.SecurityContext.RunAsNonRoot {
		t.Error("the controller needs no privilege")
	}
	if d.Spec.Strategy.RollingUpdate.MaxSurge.IntValue() != 0 {
		t.Error("with as many nodes as replicas, a surge has no place: the port is taken")
	}
}

func toleratesAll(pod corev1.PodSpec) bool {
	return slices.Contains(pod.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists})
}

// TestCleanerReachesEverything that an agent touches on the node.
func TestCleanerReachesEverything(t *testing.T) {
	obj, err := Cleaner(settingsOf(t, full()))
	if err != nil {
		t.Fatal(err)
	}
	objects := decode(t, Manifest{Objects: append(Manifest{}.Objects, obj)})
	ds := find[*appsv1.DaemonSet](t, objects)
	paths := map[string]bool{}
	for _, v := range ds.Spec.Template.Spec.Volumes {
		paths[v.HostPath.Path] = true
	}
	for _, want := range []string{"/usr/libexec/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d", "/run", "/sys/fs/bpf"} {
		if !paths[want] {
			t.Errorf("the cleaner does not see %s", want)
		}
	}
	if ds.Spec.Template.Spec.Containers[0].Image != "docker.m.daocloud.io/ropeway/ropeway:v1.2.3" {
		t.Errorf("image %s", ds.Spec.Template.Spec.Containers[0].Image)
	}
}

// TestConflistsAreInstallable: what install renders is what an agent accepts.
func TestConflistsAreInstallable(t *testing.T) {
	text, err := os.ReadFile("../../test/scenario/calico-config.host-local.yaml")
	if err != nil {
		t.Fatal(err)
	}
	wanted, _, err := calico.Read(calico.Document{Name: "scenario", Data: text})
	if err != nil {
		t.Fatal(err)
	}
	var o Options
	o.AddCalico(wanted)
	for name, s := range map[string]Settings{"default": settingsOf(t, Options{}), "scenario": settingsOf(t, o)} {
		m, err := Render(s)
		if err != nil {
			t.Fatal(err)
		}
		cm := find[*corev1.ConfigMap](t, decode(t, m))
		if cm.Data["cni_network_config"] != s.Conflist {
			t.Errorf("%s: the ConfigMap changed the template:\n%q\n%q", name, cm.Data["cni_network_config"], s.Conflist)
		}
		if _, err := hostinstall.Render(cm.Data["cni_network_config"], hostinstall.Values{NodeName: "node-a"}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCalicoPlaceholders: the reader and the agent know the same ones.
func TestCalicoPlaceholders(t *testing.T) {
	for _, p := range calico.Placeholders() {
		template := `{"name": "n", "cniVersion": "0.3.1", "plugins": [{"type": "calico", "x": "` + p + `"}]}`
		if _, err := hostinstall.Render(template, hostinstall.Values{NodeName: "a"}); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestYAMLOrder(t *testing.T) {
	m, err := Render(settingsOf(t, Options{}))
	if err != nil {
		t.Fatal(err)
	}
	text, err := m.YAML("one\ntwo")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), "# one\n# two\n---\napiVersion: apiextensions.k8s.io/v1\n") {
		t.Errorf("begins with %q", text[:60])
	}
	at := func(kind string) int { return bytes.Index(text, []byte("\nkind: "+kind+"\n")) }
	order := []string{"CustomResourceDefinition", "ServiceAccount", "ValidatingAdmissionPolicy", "ConfigMap", "ClusterNetwork", "Deployment", "DaemonSet"}
	for i := 1; i < len(order); i++ {
		if at(order[i-1]) < 0 || at(order[i-1]) > at(order[i]) {
			t.Errorf("%s stands behind %s", order[i-1], order[i])
		}
	}
}
