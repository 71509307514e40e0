package install

import (
	"context"
	"fmt"
	"net"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/internal/agent/hostinstall"
)

// Installed is what an installation was made with, beside its ClusterNetwork. A
// zero field is not known.
type Installed struct {
	Image                 string // reference, with its tag or digest
	CNIBinDir, CNIConfDir string // on the nodes
	TakeOver              []string
	LogLevel              string
	APIServer             string // host:port
	Conflist, VethMTU     string // of the ConfigMap
}

// lookAtInstalled reads the agents' DaemonSet; without it, the cleaner of an
// uninstall that is under way; and the agents' ConfigMap.
func lookAtInstalled(ctx context.Context, r client.Reader) (Installed, error) {
	var in Installed
	for _, name := range []string{AgentName, CleanerName} {
		var ds appsv1.DaemonSet
		err := r.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: name}, &ds)
		if err == nil {
			in.readPod(ds.Spec.Template.Spec)
			break
		}
		if !absent(err) {
			return in, fmt.Errorf("look at DaemonSet %s/%s: %w", Namespace, name, err)
		}
	}
	var cm corev1.ConfigMap
	err := r.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: ConfigName}, &cm)
	if err == nil && cm.Labels[LabelName] == ProductName {
		in.Conflist, in.VethMTU = cm.Data["cni_network_config"], cm.Data["veth_mtu"]
	}
	if err != nil && !absent(err) {
		return in, fmt.Errorf("look at ConfigMap %s/%s: %w", Namespace, ConfigName, err)
	}
	return in, nil
}

func (in *Installed) readPod(pod corev1.PodSpec) {
	for _, v := range pod.Volumes {
		switch {
		case v.HostPath == nil:
		case v.Name == "cni-bin":
			in.CNIBinDir = v.HostPath.Path
		case v.Name == "cni-conf":
			in.CNIConfDir = v.HostPath.Path
		}
	}
	if len(pod.Containers) == 0 {
		return
	}
	c := pod.Containers[0]
	in.Image = c.Image
	for _, arg := range c.Args {
		if name, found := strings.CutPrefix(arg, "--take-over="); found {
			in.TakeOver = append(in.TakeOver, name)
		}
		if level, found := strings.CutPrefix(arg, "--log-level="); found {
			in.LogLevel = level
		}
	}
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	if host := env["KUBERNETES_SERVICE_HOST"]; host != "" {
		in.APIServer = net.JoinHostPort(host, orElse(env["KUBERNETES_SERVICE_PORT"], "443"))
	}
}

// addInstalled fills what was not spoken of with what is installed: an
// installation that is run again changes only what it is told to. The image's tag
// is not kept, since running it again is how one upgrades. The notes say what is
// kept and is not the default.
func (o *Options) addInstalled(in Installed) []string {
	var notes []string
	kept := func(flag, value string) {
		notes = append(notes, fmt.Sprintf("%s stays %s, as it is installed", flag, value))
	}
	if o.Image == "" && in.Image != "" {
		if o.Image, _ = cutTag(in.Image); o.Image != DefaultImage && o.Registry == "" {
			kept("--image", o.Image)
		}
	}
	if len(o.TakeOver) == 0 && len(in.TakeOver) > 0 {
		o.TakeOver = in.TakeOver
		kept("--take-over", strings.Join(in.TakeOver, ","))
	}
	if in.VethMTU != "" && in.VethMTU != defaultVethMTU {
		notes = append(notes, fmt.Sprintf("veth_mtu of ConfigMap %s/%s stays %s", Namespace, ConfigName, in.VethMTU))
	}
	for _, s := range []struct {
		flag                 string
		to                   *string
		installed, byDefault string
	}{
		{"--cni-bin-dir", &o.CNIBinDir, in.CNIBinDir, defaultBinDir},
		{"--cni-conf-dir", &o.CNIConfDir, in.CNIConfDir, defaultConfDir},
		{"--log-level", &o.LogLevel, in.LogLevel, defaultLogLevel},
		{"--api-server", &o.APIServer, in.APIServer, in.APIServer},
	} {
		if *s.to == "" && s.installed != "" {
			if *s.to = s.installed; s.installed != s.byDefault {
				kept(s.flag, s.installed)
			}
		}
	}
	if o.Conflist == "" && in.Conflist != "" {
		if o.Conflist = in.Conflist; strings.TrimSpace(in.Conflist) != strings.TrimSpace(hostinstall.DefaultTemplate) {
			notes = append(notes, fmt.Sprintf("cni_network_config of ConfigMap %s/%s stays as it is, which is not this version's own: delete that key to have the latter", Namespace, ConfigName))
		}
	}
	return notes
}
