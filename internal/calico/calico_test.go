package calico

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var rewrite = flag.Bool("rewrite", false, "write the goldens anew")

func file(t *testing.T, path string) Document {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return Document{Name: filepath.Base(path), Data: text}
}

func scenario(name string) string { return filepath.Join("../../test/scenario", name) }

// TestGoldenReports holds what is said of each key of the reference scenario's
// own files, and of a whole manifest.
func TestGoldenReports(t *testing.T) {
	for _, test := range []struct {
		golden string
		files  []string
	}{
		{"host-local", []string{scenario("calico-config.host-local.yaml")}},
		{"spiderpool", []string{scenario("calico-config.spiderpool.yaml")}},
		{"non-tunnel-env", []string{scenario("calico-node-env.non-tunnel.yaml")}},
		{"host-local-non-tunnel", []string{scenario("calico-config.host-local.yaml"), scenario("calico-node-env.non-tunnel.yaml")}},
		{"spiderippools", []string{scenario("spiderippools.yaml")}},
		{"whole-manifest", []string{"testdata/calico.yaml"}},
	} {
		t.Run(test.golden, func(t *testing.T) {
			var docs []Document
			for _, f := range test.files {
				docs = append(docs, file(t, f))
			}
			got, report, err := Read(docs...)
			if err != nil {
				t.Fatal(err)
			}
			got.Conflist = "" // kept as it is: TestConflistIsKeptAsItIs
			wanted, err := json.MarshalIndent(got, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", test.golden+".golden"), report.String()+"\nwanted: "+string(wanted)+"\n")
		})
	}
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
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

// TestEveryKeyIsSpokenOf: nothing of what was given may be passed over.
func TestEveryKeyIsSpokenOf(t *testing.T) {
	_, report, err := Read(file(t, "testdata/calico.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(file(t, "testdata/calico.yaml").Data)
	for _, line := range strings.Split(text, "\n") {
		_, rest, found := strings.Cut(line, "name: ")
		name, _, _ := strings.Cut(rest, ",")
		name = strings.Trim(name, " }")
		if !found || strings.ToUpper(name) != name || name == "" {
			continue
		}
		if !slices.ContainsFunc(report.Findings, func(f Finding) bool { return f.Key == name }) {
			t.Errorf("nothing is said of %s", name)
		}
	}
	for _, f := range report.Findings {
		if f.Verdict == "" {
			t.Errorf("%s %s has no verdict", f.Where, f.Key)
		}
		if (f.Verdict == Translated || f.Verdict == Refused) && f.Note == "" {
			t.Errorf("%s %s is %s without a word", f.Where, f.Key, f.Verdict)
		}
	}
}

func TestConflistIsKeptAsItIs(t *testing.T) {
	got, _, err := Read(file(t, scenario("calico-config.host-local.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"mtu": __CNI_MTU__ ,`, `"ranges": [[{ "subnet": "usePodCidr" }]]`, `"nodename": "__KUBERNETES_NODE_NAME__"`} {
		if !strings.Contains(got.Conflist, want) {
			t.Errorf("the conflist has lost %s", want)
		}
	}
}

func env(pairs ...string) Document {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "- name: %s\n  value: %q\n", pairs[i], pairs[i+1])
	}
	return Document{Name: "env", Data: []byte(b.String())}
}

func configMap(key, value string) Document {
	text := "kind: ConfigMap\napiVersion: v1\nmetadata: {name: calico-config}\ndata:\n  " + key + ": |-\n    " +
		strings.ReplaceAll(value, "\n", "\n    ")
	return Document{Name: "config", Data: []byte(text)}
}

// TestTransports: what IPIP, VXLAN and the backend mean together.
func TestTransports(t *testing.T) {
	for _, test := range []struct {
		name    string
		docs    []Document
		want    string // of spec.transports
		refused string // part of a note, if refused
	}{
		{"the manifest's own default", []Document{env("CALICO_IPV4POOL_IPIP", "Always", "CALICO_IPV4POOL_VXLAN", "Never")}, "[ipip vxlan]", ""},
		{"IPIP alone", []Document{env("CALICO_IPV4POOL_IPIP", "CrossSubnet")}, "[direct ipip vxlan]", ""},
		{"VXLAN alone", []Document{env("CALICO_IPV4POOL_VXLAN", "Always")}, "[vxlan]", ""},
		{"VXLAN, IPIP Never", []Document{env("CALICO_IPV4POOL_IPIP", "Never", "CALICO_IPV4POOL_VXLAN", "Always")}, "[vxlan]", ""},
		{"both", []Document{env("CALICO_IPV4POOL_IPIP", "Always", "CALICO_IPV4POOL_VXLAN", "Always")}, "[]", "refuses IPIP and VXLAN together"},
		{"neither", []Document{env("CALICO_IPV4POOL_IPIP", "Never", "CALICO_IPV4POOL_VXLAN", "Never")}, "[direct]", ""},
		{"IPIP Never alone", []Document{env("CALICO_IPV4POOL_IPIP", "Never")}, "[direct]", ""},
		{"all three Never", []Document{env("CALICO_IPV4POOL_IPIP", "Never", "CALICO_IPV4POOL_VXLAN", "Never", "CALICO_IPV6POOL_VXLAN", "Never", "CALICO_IPV6POOL_CIDR", "fd00:1::/48")}, "[direct]", ""},
		{"IPv4 bare, IPv6 by VXLAN", []Document{env("CALICO_IPV4POOL_IPIP", "Never", "CALICO_IPV4POOL_VXLAN", "Never", "CALICO_IPV6POOL_VXLAN", "Always", "CALICO_IPV6POOL_CIDR", "fd00:1::/48")}, "[direct]", "cannot be had"},
		{"VXLAN between subnets", []Document{env("CALICO_IPV4POOL_IPIP", "Never", "CALICO_IPV4POOL_VXLAN", "CrossSubnet")}, "[direct vxlan]", ""},
		{"VXLAN Never alone", []Document{env("CALICO_IPV4POOL_VXLAN", "Never")}, "[ipip vxlan]", ""},
		{"no mode", []Document{env("CALICO_IPV4POOL_IPIP", "Sometimes")}, "[]", "want Always"},
		{"backend vxlan", []Document{configMap("calico_backend", "vxlan")}, "[vxlan]", ""},
		{"backend vxlan, IPIP", []Document{configMap("calico_backend", "vxlan"), env("CALICO_IPV4POOL_IPIP", "Always")}, "[]", "contradicts the backend"},
		{"backend vxlan, VXLAN Never", []Document{configMap("calico_backend", "vxlan"), env("CALICO_IPV4POOL_VXLAN", "Never")}, "[]", "contradicts the backend"},
		{"backend bird", []Document{configMap("calico_backend", "bird")}, "[]", ""},
		{"backend none", []Document{configMap("calico_backend", "none")}, "[]", "policy beside another"},
		{"IPv6 without VXLAN", []Document{env("CALICO_IPV4POOL_VXLAN", "Always", "CALICO_IPV6POOL_CIDR", "fd00:1::/48", "CALICO_IPV6POOL_VXLAN", "Never")}, "[vxlan]", "IPv6 pods without VXLAN"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, report, err := Read(test.docs...)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got.Transports) != test.want {
				t.Errorf("transports %v, want %s", got.Transports, test.want)
			}
			checkRefused(t, report, test.refused)
		})
	}
}

func checkRefused(t *testing.T, report Report, part string) {
	t.Helper()
	refused := report.Refused()
	if part == "" {
		if len(refused) > 0 {
			t.Errorf("refused: %v", refused)
		}
		return
	}
	if !slices.ContainsFunc(refused, func(f Finding) bool { return strings.Contains(f.Note, part) }) {
		t.Errorf("nothing is refused because of %q; refused: %v", part, refused)
	}
}

// TestEnvironment: single variables and what becomes of them.
func TestEnvironment(t *testing.T) {
	for _, test := range []struct {
		key, value string
		want       Verdict
		note       string
	}{
		{"CALICO_IPV4POOL_CIDR", "10.244.0.0/16", Translated, "podCIDRs"},
		{"CALICO_IPV4POOL_CIDR", "10.244.0.1/16", Refused, "10.244.0.0/16 is meant"},
		{"CALICO_IPV4POOL_CIDR", "pods", Refused, "not a CIDR"},
		{"CALICO_IPV4POOL_CIDR", "fd00::/48", Refused, "other family"},
		{"CALICO_IPV4POOL_BLOCK_SIZE", "26", Translated, "blockSize"},
		{"CALICO_IPV4POOL_BLOCK_SIZE", "32", Refused, "20 to 31"},
		{"CALICO_IPV4POOL_NAT_OUTGOING", "false", Translated, "outgoing: false"},
		{"CALICO_IPV4POOL_NAT_OUTGOING", "perhaps", Refused, "true or false"},
		{"CALICO_IPV4POOL_NODE_SELECTOR", "all()", Harmless, ""},
		{"CALICO_IPV4POOL_NODE_SELECTOR", "zone == 'a'", Refused, "some of the nodes"},
		{"IP", "autodetect", Harmless, ""},
		{"IP", "192.0.2.1", Refused, "InternalIP"},
		{"IP_AUTODETECTION_METHOD", "kubernetes-internal-ip", Honoured, ""},
		{"IP_AUTODETECTION_METHOD", "can-reach=8.8.8.8", Translated, "--node-ip"},
		{"USE_POD_CIDR", "true", Translated, "NodeCIDR"},
		{"FELIX_IPINIPMTU", "0", Honoured, ""},
		{"FELIX_IPINIPMTU", "1400", Translated, "1400"},
		{"FELIX_IPINIPMTU", "900", Refused, "1280"},
		{"FELIX_WIREGUARDENABLED", "true", Refused, "encryption"},
		{"FELIX_WIREGUARDENABLED", "false", Harmless, ""},
		{"FELIX_BPFENABLED", "true", Refused, "kube-proxy"},
		{"FELIX_ALLOWIPIPPACKETSFROMWORKLOADS", "true", Refused, "inject"},
		{"FELIX_DEFAULTENDPOINTTOHOSTACTION", "DROP", Refused, "policy"},
		{"FELIX_VXLANVNI", "0", Refused, "16777215"},
		{"FELIX_LOGSEVERITYSCREEN", "Loud", Refused, "Debug"},
		{"FELIX_NEVERHEARDOF", "1", Refused, "not a variable"},
		{"CALICO_NEVERHEARDOF", "1", Refused, "not a variable"},
		{"ETCD_ENDPOINTS", "http://x", Harmless, "Kubernetes API"},
	} {
		t.Run(test.key+"="+test.value, func(t *testing.T) {
			_, report, err := Read(env(test.key, test.value))
			if err != nil {
				t.Fatal(err)
			}
			f := report.Findings[0]
			if f.Verdict != test.want || !strings.Contains(f.Note, test.note) {
				t.Errorf("%s (%s), want %s (%s)", f.Verdict, f.Note, test.want, test.note)
			}
		})
	}
}

// TestConflist: what is refused of a CNI configuration, and where it is broken.
func TestConflist(t *testing.T) {
	list := func(plugins string) string {
		return `{"name": "n", "cniVersion": "0.3.1", "plugins": [` + plugins + `]}`
	}
	for _, test := range []struct {
		name, conflist string
		err, refused   string
	}{
		{"fine", list(`{"type": "calico", "ipam": {"type": "calico-ipam"}}`), "", ""},
		{"ours", list(`{"type": "ropeway", "ipam": {"type": "ropeway-ipam"}}, {"type": "tuning"}`), "", ""},
		{"broken", "{\n  \"name\": \"n\",\n  \"plugins\": [}\n}", "line 3, column 15", ""},
		{"no plugins", `{"name": "n"}`, "no plugins", ""},
		{"no type", list(`{"ipam": {}}`), `plugins[0] has no "type"`, ""},
		{"main plugin of others", list(`{"type": "bridge"}`), "", "want calico or ropeway"},
		{"main plugin twice", list(`{"type": "calico"}, {"type": "calico"}`), "", "stands first"},
		{"host-local without range", list(`{"type": "calico", "ipam": {"type": "host-local"}}`), "", "no subnet"},
		{"host-local with one range for all", list(`{"type": "calico", "ipam": {"type": "host-local", "subnet": "10.1.0.0/24"}}`), "", "two pods one address"},
		{"host-local with a start", list(`{"type": "calico", "ipam": {"type": "host-local", "ranges": [[{"subnet": "usePodCidr", "rangeStart": "10.244.0.9"}]]}}`), "", "one value for every node"},
		{"host-local elsewhere", list(`{"type": "calico", "ipam": {"type": "host-local", "subnet": "usePodCidr", "dataDir": "/srv"}}`), "", "usual place"},
		{"spiderpool", list(`{"type": "calico", "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["a"], "log_level": "INFO"}}`), "", ""},
		{"spiderpool with a key of later", list(`{"type": "calico", "ipam": {"type": "spiderpool", "clean_gateway": true}}`), "", "not a key"},
		{"pools", list(`{"type": "calico", "ipam": {"type": "calico-ipam", "ipv4_pools": ["a"]}}`), "", ""},
		{"pools by their CIDRs", list(`{"type": "calico", "ipam": {"type": "calico-ipam", "ipv4_pools": ["10.0.0.0/24"]}}`), "", "no name"},
		{"netkit", list(`{"type": "calico", "device_type": "netkit"}`), "", "veth"},
		{"policy of others", list(`{"type": "calico", "policy": {"type": "x"}}`), "", "want k8s"},
		{"unknown key", list(`{"type": "calico", "speed": 3}`), "", "not a key of Calico's plugin"},
		{"unknown placeholder", list(`{"type": "calico", "mtu": __MY_MTU__}`), "", "not a placeholder"},
		{"placeholder in a string", list(`{"type": "calico", "nodename": "a \" __KUBERNETES_NODE_NAME__"}`), "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, report, err := Read(configMap("cni_network_config", test.conflist))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) || !strings.Contains(err.Error(), "ConfigMap calico-config, key cni_network_config") {
					t.Errorf("error %v, want one with %q and the place", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkRefused(t, report, test.refused)
		})
	}
}

func TestWrongDocuments(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"empty", "# nothing\n", "nothing of Calico's"},
		{"not YAML", "a: [", "not YAML"},
		{"scalar", "hello", "neither an object nor a list"},
		{"a list of something", "- 3\n", "not of environment variables"},
		{"second document", "- name: IP\n  value: autodetect\n---\na: [\n", "YAML document 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := Read(Document{Name: "x.yaml", Data: []byte(test.text)})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "x.yaml") {
				t.Errorf("error %v, want one of x.yaml with %q", err, test.want)
			}
		})
	}
}

// TestObjects: kinds beside the ones that hold keys.
func TestObjects(t *testing.T) {
	for _, test := range []struct {
		object string
		want   Verdict
	}{
		{"{apiVersion: operator.tigera.io/v1, kind: Installation, metadata: {name: default}}", Refused},
		{"{apiVersion: crd.projectcalico.org/v1, kind: IPPool, metadata: {name: p}}", Refused},
		{"{apiVersion: v1, kind: ServiceAccount, metadata: {name: calico-node}}", Harmless},
		{"{apiVersion: batch/v1, kind: Job, metadata: {name: surprise}}", Refused},
		{"{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: ServiceAccount, metadata: {name: a}}]}", Harmless},
	} {
		_, report, err := Read(Document{Name: "x", Data: []byte(test.object)})
		if err != nil {
			t.Fatal(err)
		}
		if got := report.Findings[0].Verdict; got != test.want {
			t.Errorf("%s: %s, want %s", test.object, got, test.want)
		}
	}
}

// TestTwoRegistries: which of them Ropeway's image would come from is not ours
// to guess.
func TestTwoRegistries(t *testing.T) {
	ds := `{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: calico-node}, spec: {template: {spec: {containers: [
		{name: a, image: one.example/calico/node:v3}, {name: b, image: two.example/calico/cni:v3}]}}}}`
	_, report, err := Read(Document{Name: "x", Data: []byte(ds)})
	if err != nil {
		t.Fatal(err)
	}
	checkRefused(t, report, "two registries")
}

// TestReadNeverPanics, whatever the environment and the conflist are.
func TestReadNeverPanics(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.SampledFrom([]string{"", "Always", "Never", "CrossSubnet", "true", "0", "10.0.0.0/8", "usePodCidr", "vxlan", "\x00"})
		names := rapid.SampledFrom([]string{"CALICO_IPV4POOL_IPIP", "CALICO_IPV4POOL_VXLAN", "CALICO_IPV6POOL_VXLAN", "CALICO_IPV4POOL_CIDR",
			"USE_POD_CIDR", "CALICO_NETWORKING_BACKEND", "FELIX_VXLANMTU", "FELIX_", "IP"})
		var pairs []string
		for range rapid.IntRange(1, 5).Draw(t, "variables") {
			pairs = append(pairs, names.Draw(t, "name"), value.Draw(t, "value"))
		}
		got, report, err := Read(env(pairs...))
		if err == nil && len(report.Findings) != len(pairs)/2 {
			t.Fatalf("%d findings for %v", len(report.Findings), pairs)
		}
		if len(got.Transports) > 0 && len(report.Refused()) == 0 && got.Transports[len(got.Transports)-1] != "vxlan" && fmt.Sprint(got.Transports) != "[direct]" {
			t.Fatalf("transports %v: vxlan is the last resort wherever a tunnel is allowed", got.Transports)
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add("- name: IP\n  value: autodetect\n")
	f.Add("kind: ConfigMap\ndata: {cni_network_config: '{\"plugins\": [{\"type\": \"calico\", \"ipam\": {\"ranges\": [[{}]]}}]}'}")
	f.Add("kind: DaemonSet\nspec: {template: {spec: {containers: [{env: [{name: A, valueFrom: {}}]}]}}}")
	f.Fuzz(func(t *testing.T, text string) {
		_, report, err := Read(Document{Name: "x", Data: []byte(text)})
		if err != nil {
			return
		}
		for _, finding := range report.Findings {
			if finding.Verdict == "" {
				t.Fatalf("no verdict for %+v", finding)
			}
		}
	})
}
