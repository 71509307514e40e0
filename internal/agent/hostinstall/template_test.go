package hostinstall

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// scenarioTemplate returns the conflist template of a ConfigMap of the scenario.
func scenarioTemplate(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "..", "test", "scenario", file))
	if err != nil {
		t.Fatal(err)
	}
	var configMap struct{ Data map[string]string }
	if err := yaml.Unmarshal(data, &configMap); err != nil {
		t.Fatal(err)
	}
	return configMap.Data["cni_network_config"]
}

func TestRenderScenario(t *testing.T) {
	for _, file := range []string{"calico-config.host-local.yaml", "calico-config.spiderpool.yaml"} {
		t.Run(file, func(t *testing.T) {
			conf, err := Render(scenarioTemplate(t, file), Values{NodeName: "cn-chengdu.i-2vcxxr"})
			if err != nil {
				t.Fatal(err)
			}
			var list struct {
				Name    string
				Plugins []struct {
					Type, Nodename string
					MTU            *int
					Kubernetes     struct{ Kubeconfig string }
				}
			}
			if err := json.Unmarshal(conf, &list); err != nil {
				t.Fatal(err)
			}
			first := list.Plugins[0]
			if list.Name != "k8s-pod-network" || first.Type != "calico" || first.Nodename != "cn-chengdu.i-2vcxxr" || first.MTU == nil || *first.MTU != 0 {
				t.Errorf("got %+v", list)
			}
			if first.Kubernetes.Kubeconfig != kubeconfigNotNeeded {
				t.Errorf("kubeconfig %q", first.Kubernetes.Kubeconfig)
			}
			if strings.Contains(string(conf), "__") {
				t.Errorf("placeholders are left:\n%s", conf)
			}
		})
	}
}

func TestRenderDefault(t *testing.T) {
	conf, err := Render(DefaultTemplate, Values{NodeName: "n", MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(conf), `"mtu": 1400`) {
		t.Errorf("the MTU is not in\n%s", conf)
	}
	// Without these, runtimes never ask for GC and STATUS (CNI specification 1.1.0).
	var list struct {
		CNIVersions []string `json:"cniVersions"`
	}
	if err := json.Unmarshal(conf, &list); err != nil || !slices.Contains(list.CNIVersions, "1.1.0") {
		t.Errorf("cniVersions %q (%v), want 1.1.0 among them", list.CNIVersions, err)
	}
}

// TestRenderEveryPlaceholder: each of Calico's is known, as a string's content
// and, where it is a number there, as a number.
func TestRenderEveryPlaceholder(t *testing.T) {
	v := Values{NodeName: "n"}
	var fields []string
	for name := range v.placeholders() {
		fields = append(fields, `"`+strings.ToLower(strings.Trim(name, "_"))+`": "`+name+`"`)
	}
	template := `{"name": "x", "cniVersion": "0.3.1", "plugins": [{"type": "calico", "mtu": __CNI_MTU__, ` + strings.Join(fields, ", ") + `}]}`
	if _, err := Render(template, v); err != nil {
		t.Error(err)
	}
}

func TestRenderEscapes(t *testing.T) {
	conf, err := Render(`{"name": "x", "cniVersion": "1.0.0", "plugins": [{"type": "ropeway", "nodename": "__KUBERNETES_NODE_NAME__"}]}`, Values{NodeName: `a"b\c`})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(conf), `"a\"b\\c"`) {
		t.Errorf("the name breaks out of its string: %s", conf)
	}
}

func TestBrokenTemplates(t *testing.T) {
	const good = `{"name": "x", "cniVersion": "1.0.0", "plugins": [{"type": "ropeway"}]}`
	if _, err := Render(good, Values{}); err != nil {
		t.Fatalf("the template that the others are made from: %v", err)
	}
	tests := []struct {
		name, template string
		line, column   int
		says           string
	}{
		{"a comma too many", "{\n  \"name\": \"x\",\n  \"plugins\": [],\n}", 4, 1, "not JSON"},
		{"cut off", "{\n  \"name\": \"x\"", 2, 13, "not JSON"},
		{"unquoted", "{\"name\": __KUBERNETES_NODE_NAME__}", 1, 11, "not JSON"},
		{"empty", "", 1, 1, "not JSON"},
		{"an array", "[1]", 1, 1, "not JSON|JSON object"},
		{"unknown placeholder", "{\n\"a\": \"__NO_SUCH_THING__\"}", 2, 7, "__NO_SUCH_THING__"},
		{"no name", strings.Replace(good, `"name": "x", `, "", 1), 0, 0, "no name"},
		{"bad name", strings.Replace(good, `"x"`, `"a b"`, 1), 0, 0, "a network's name"},
		{"no version", strings.Replace(good, `"cniVersion": "1.0.0", `, "", 1), 0, 0, "cniVersion"},
		{"unknown version", strings.Replace(good, "1.0.0", "9.0.0", 1), 0, 0, `"9.0.0": use one of`},
		{"no plugins", strings.Replace(good, `{"type": "ropeway"}`, "", 1), 0, 0, "plugin"},
		{"not a list", `{"name": "x", "cniVersion": "1.0.0", "type": "ropeway"}`, 0, 0, "plugin"},
		{"no type", strings.Replace(good, `"type": "ropeway"`, "", 1), 0, 0, "type"},
		{"a path as type", strings.Replace(good, `"ropeway"`, `"../../bin/sh"`, 1), 0, 0, "file name"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Render(tt.template, Values{NodeName: "n"})
			broken, ok := errors.AsType[*TemplateError](err)
			if !ok {
				t.Fatalf("got %v, want a TemplateError", err)
			}
			if broken.Line != tt.line || broken.Column != tt.column {
				t.Errorf("line %d, column %d, want %d, %d: %v", broken.Line, broken.Column, tt.line, tt.column, err)
			}
			said := false
			for _, s := range strings.Split(tt.says, "|") {
				said = said || strings.Contains(err.Error(), s)
			}
			if !said {
				t.Errorf("%q does not say %q", err, tt.says)
			}
		})
	}
}

func FuzzRender(f *testing.F) {
	f.Add(DefaultTemplate)
	f.Add("{__CNI_MTU__")
	f.Fuzz(func(t *testing.T, template string) {
		conf, err := Render(template, Values{NodeName: "n"})
		if err == nil && !json.Valid(conf) {
			t.Errorf("%q was accepted and is not JSON", conf)
		}
	})
}
