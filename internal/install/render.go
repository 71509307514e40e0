package install

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/config"
)

// Manifest is everything that an installation is, in the order in which it is
// applied: CRDs first, the agents last.
type Manifest struct {
	CRDs    []*unstructured.Unstructured
	Objects []*unstructured.Unstructured
}

// Render makes the objects. Equal settings give equal manifests.
func Render(s Settings) (Manifest, error) {
	var m Manifest
	var err error
	if m.CRDs, err = renderFiles(config.CRDs(), s); err != nil {
		return Manifest{}, fmt.Errorf("render the CRDs: %w", err)
	}
	if m.Objects, err = renderFiles(config.Templates(), s); err != nil {
		return Manifest{}, fmt.Errorf("render the installation: %w", err)
	}
	network, err := clusterNetwork(s.Network)
	if err != nil {
		return Manifest{}, err
	}
	m.Objects = insertBeforeWorkloads(m.Objects, network)
	for _, obj := range append(append([]*unstructured.Unstructured{}, m.CRDs...), m.Objects...) {
		label(obj, s.Version)
	}
	return m, nil
}

// renderFiles fills in the templates of a directory, in the order of names,
// and reads the objects in them.
func renderFiles(dir fs.FS, s Settings) ([]*unstructured.Unstructured, error) {
	names, err := fs.Glob(dir, "*")
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, err
		}
		if path.Ext(name) == ".tmpl" {
			if text, err = fillIn(name, text, s); err != nil {
				return nil, err
			}
		}
		objects, err := parseObjects(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out = append(out, objects...)
	}
	return out, nil
}

func fillIn(name string, text []byte, s Settings) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{
		"quote": strconv.Quote,
		"indent": func(n int, text string) string {
			pad := strings.Repeat(" ", n)
			return pad + strings.ReplaceAll(text, "\n", "\n"+pad)
		},
	}).Parse(string(text))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, s); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// parseObjects reads a text of several YAML documents.
func parseObjects(text []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for i, doc := range strings.Split("\n"+string(text), "\n---") {
		asJSON, err := yaml.YAMLToJSONStrict([]byte(doc))
		if err != nil {
			return nil, fmt.Errorf("YAML document %d: %w", i+1, err)
		}
		if string(asJSON) == "null" {
			continue
		}
		obj := &unstructured.Unstructured{}
		if err := obj.UnmarshalJSON(asJSON); err != nil {
			return nil, fmt.Errorf("YAML document %d: %w", i+1, err)
		}
		out = append(out, obj)
	}
	return out, nil
}

// clusterNetwork makes the one object that a person writes.
func clusterNetwork(spec v1alpha1.ClusterNetworkSpec) (*unstructured.Unstructured, error) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&v1alpha1.ClusterNetwork{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "ClusterNetwork"},
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ClusterNetworkName},
		Spec:       spec,
	})
	if err != nil {
		return nil, fmt.Errorf("render the ClusterNetwork: %w", err)
	}
	delete(fields, "status")
	obj := &unstructured.Unstructured{Object: fields}
	unstructured.RemoveNestedField(obj.Object, "metadata", "creationTimestamp")
	return obj, nil
}

// insertBeforeWorkloads keeps agents from starting before there is a network
// to read. They would wait for it; this saves them the wait.
func insertBeforeWorkloads(objects []*unstructured.Unstructured, network *unstructured.Unstructured) []*unstructured.Unstructured {
	var out []*unstructured.Unstructured
	for _, obj := range objects {
		if network != nil && (obj.GetKind() == "Deployment" || obj.GetKind() == "DaemonSet") {
			out = append(out, network)
			network = nil
		}
		out = append(out, obj)
	}
	if network != nil {
		out = append(out, network)
	}
	return out
}

// label marks an object as ours, which uninstall and doctor go by.
func label(obj *unstructured.Unstructured, version string) {
	labels := obj.GetLabels()
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelName] = ProductName
	labels[LabelManagedBy] = "ropeway-install"
	labels[LabelVersion] = version
	obj.SetLabels(labels)
}

// Without is the manifest without the CRDs of those names.
func (m Manifest) Without(crds []string) Manifest {
	m.CRDs = slices.DeleteFunc(slices.Clone(m.CRDs), func(o *unstructured.Unstructured) bool { return slices.Contains(crds, o.GetName()) })
	return m
}

// YAML is the manifest for kubectl, preceded by what to know about it.
func (m Manifest) YAML(header string) ([]byte, error) {
	var out bytes.Buffer
	for line := range strings.Lines(header) {
		fmt.Fprintf(&out, "# %s\n", strings.TrimSuffix(line, "\n"))
	}
	for _, obj := range append(append([]*unstructured.Unstructured{}, m.CRDs...), m.Objects...) {
		text, err := yaml.Marshal(obj.Object)
		if err != nil {
			return nil, fmt.Errorf("write %s %s: %w", obj.GetKind(), obj.GetName(), err)
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	return out.Bytes(), nil
}
