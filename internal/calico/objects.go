package calico

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// readText reads one YAML document: a list of environment variables, or an
// object.
func (r *reader) readText(text []byte) error {
	var top any
	if err := yaml.Unmarshal(text, &top); err != nil {
		return fmt.Errorf("not YAML: %w", err)
	}
	switch top.(type) {
	case []any:
		return r.readSnippet(text)
	case map[string]any:
		return r.readObject(text)
	}
	return fmt.Errorf("neither an object nor a list of environment variables")
}

func (r *reader) readSnippet(text []byte) error {
	var env []corev1.EnvVar
	if err := yaml.Unmarshal(text, &env); err != nil {
		return fmt.Errorf("a list, but not of environment variables (- name: ..., value: ...): %w", err)
	}
	r.readEnv("environment of calico-node", env)
	return nil
}

func (r *reader) readObject(text []byte) error {
	var meta metav1.PartialObjectMetadata
	if err := yaml.Unmarshal(text, &meta); err != nil {
		return fmt.Errorf("not a Kubernetes object: %w", err)
	}
	switch {
	case meta.Kind == "ConfigMap":
		return decodeTo(text, r.readConfigMap)
	case meta.Kind == "DaemonSet":
		return decodeTo(text, r.readDaemonSet)
	case meta.Kind == "Deployment":
		return decodeTo(text, r.readDeployment)
	case meta.Kind == "List":
		return r.readList(text)
	}
	r.readOther(meta)
	return nil
}

func decodeTo[T any](text []byte, read func(T) error) error {
	var into T
	if err := yaml.Unmarshal(text, &into); err != nil {
		return fmt.Errorf("not a valid object: %w", err)
	}
	return read(into)
}

func (r *reader) readList(text []byte) error {
	var list struct {
		Items []map[string]any `json:"items"`
	}
	if err := yaml.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("not a valid List: %w", err)
	}
	for i, item := range list.Items {
		one, err := yaml.Marshal(item)
		if err != nil {
			return fmt.Errorf("item %d of the List: %w", i, err)
		}
		if err := r.readObject(one); err != nil {
			return fmt.Errorf("item %d of the List: %w", i, err)
		}
	}
	return nil
}

// readOther speaks of objects that hold no key of the ConfigMap's or the
// environment's kind.
func (r *reader) readOther(meta metav1.PartialObjectMetadata) {
	f := r.add("objects", meta.Kind+" "+meta.Name, "")
	group, _, _ := strings.Cut(meta.APIVersion, "/")
	switch {
	case group == "operator.tigera.io":
		f.say(Refused, "the operator's objects are not read: give the calico.yaml of a manifest installation, or --pod-cidr and --transports")
	case strings.HasSuffix(group, "projectcalico.org"):
		f.say(Refused, "Calico's own objects are not read in this version: say the same with --pod-cidr, --transports, --mtu, and leave the object out")
	case group == "spiderpool.spidernet.io":
		if meta.Kind != "SpiderIPPool" && meta.Kind != "SpiderReservedIP" {
			f.say(Refused, "of Spiderpool's kinds, SpiderIPPool and SpiderReservedIP are served: say the same with these, and leave the object out")
			return
		}
		f.say(Harmless, "served as it is: apply it by itself, once Ropeway is installed")
	case meta.Kind == "CustomResourceDefinition":
		f.say(Harmless, "Ropeway brings its own kinds; CRDs that are there are neither replaced nor deleted")
	case knownKind(meta.Kind):
		f.say(Harmless, "Ropeway brings its own")
	default:
		f.say(Refused, "not part of a Calico installation that this version knows: apply it by itself, and leave it out here")
	}
}

func knownKind(kind string) bool {
	switch kind {
	case "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
		"PodDisruptionBudget", "PodSecurityPolicy", "Service", "Namespace", "Secret":
		return true
	}
	return false
}

func (r *reader) readConfigMap(cm corev1.ConfigMap) error {
	where := "ConfigMap " + cm.Name
	for _, key := range sortedKeys(cm.Data) {
		value := cm.Data[key]
		switch {
		case key == conflistName: // below
		case key == "veth_mtu":
			r.readMTU(r.add(where, key, value))
		case key == "calico_backend":
			r.readBackend(r.add(where, key, value))
		case key == "typha_service_name":
			r.add(where, key, value).say(Harmless, "there is no Typha: agents watch only what they need")
		case strings.HasPrefix(key, "etcd_"):
			r.add(where, key, "").say(Harmless, "Ropeway keeps its state in the Kubernetes API")
		default:
			r.add(where, key, value).say(Refused, "not a key of Calico's ConfigMap that this version knows: remove it if nothing depends on it")
		}
	}
	if conflist, ok := cm.Data[conflistName]; ok {
		if err := r.readConflist(conflist); err != nil {
			return fmt.Errorf("%s, key %s: %w", where, conflistName, err)
		}
	}
	return nil
}

func (r *reader) readDaemonSet(ds appsv1.DaemonSet) error {
	where := "DaemonSet " + ds.Name
	spec := ds.Spec.Template.Spec
	for _, key := range sortedKeys(spec.NodeSelector) {
		f := r.add(where, "nodeSelector "+key, spec.NodeSelector[key])
		if key == "kubernetes.io/os" {
			f.say(Honoured, "")
		} else {
			f.say(Refused, "the agent runs on every Linux node: a node without it would have no pod network")
		}
	}
	r.readVolumes(where, spec.Volumes)
	for _, c := range spec.InitContainers {
		r.readInitContainer(where, c)
	}
	for _, c := range spec.Containers {
		at := where + ", container " + c.Name
		r.readImage(at, c.Image)
		r.readEnv(at, c.Env)
	}
	return nil
}

func (r *reader) readInitContainer(where string, c corev1.Container) {
	at := where + ", init container " + c.Name
	r.readImage(at, c.Image)
	switch c.Name {
	case "upgrade-ipam":
		r.add(at, "command", "").say(Harmless, "not run: it would move host-local's files away")
	case "install-cni":
		r.add(at, "command", "").say(Translated, "the agent itself installs plugins and conflist, last and atomically")
		r.readEnv(at, c.Env)
	default:
		r.add(at, "command", "").say(Harmless, "not run: Ropeway has no part that needs it")
	}
}

// readVolumes looks for the two directories that distributions move.
func (r *reader) readVolumes(where string, volumes []corev1.Volume) {
	for _, v := range volumes {
		if v.HostPath == nil {
			continue
		}
		switch v.Name {
		case "cni-bin-dir":
			r.out.CNIBinDir = r.readDir(where, v, "/opt/cni/bin", "--cni-bin-dir")
		case "cni-net-dir":
			r.out.CNIConfDir = r.readDir(where, v, "/etc/cni/net.d", "--cni-conf-dir")
		}
	}
}

func (r *reader) readDir(where string, v corev1.Volume, usual, flag string) string {
	f := r.add(where, "volume "+v.Name, v.HostPath.Path)
	if strings.TrimSuffix(v.HostPath.Path, "/") == usual {
		f.say(Honoured, "")
		return ""
	}
	f.say(Translated, "%s %s", flag, v.HostPath.Path)
	return v.HostPath.Path
}

func (r *reader) readDeployment(d appsv1.Deployment) error {
	where := "Deployment " + d.Name
	for _, c := range d.Spec.Template.Spec.Containers {
		at := where + ", container " + c.Name
		r.readImage(at, c.Image)
		for _, e := range c.Env {
			r.add(at, e.Name, e.Value).say(Harmless, "%s is replaced by ropeway-controller, which needs no such setting", d.Name)
		}
	}
	return nil
}

// readImage finds the mirror that the images are pulled through.
func (r *reader) readImage(where, image string) {
	f := r.add(where, "image", image)
	registry, _, found := strings.Cut(image, "/calico/")
	switch {
	case !found:
		f.say(Harmless, "not an image of Calico's; Ropeway has one image of its own")
	case registry == "docker.io" || registry == "quay.io":
		f.say(Harmless, "Ropeway has one image of its own")
	case r.out.Registry == "" || r.out.Registry == registry:
		r.out.Registry = registry
		f.say(Translated, "--registry %s, for Ropeway's image", registry)
	default:
		f.say(Refused, "images come from two registries, %s and %s: use one, and give it with --registry", r.out.Registry, registry)
	}
}
