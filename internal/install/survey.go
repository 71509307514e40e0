package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
)

// Survey is what an installer needs to know of a cluster, as it was at one
// moment.
type Survey struct {
	Server     string   // URL that the survey was made through
	Version    string   // of the API server, like v1.35.4
	APIServers []string // host:port, as the API servers say of themselves

	Nodes       []corev1.Node
	DaemonSets  []appsv1.DaemonSet // all namespaces
	Deployments []appsv1.Deployment
	Pods        []corev1.Pod // Ropeway's own
	// Policies are NetworkPolicies as namespace/name, and those of others' kinds, or for
	// administrators, with the kind before it.
	Policies []string

	PodSubnets     []string // the cluster's pod ranges, if it says so
	PodSubnetsFrom string   // where it says so
	ServiceCIDRs   []string // empty: not known
	ServiceIP      string   // of the Service kubernetes
	ProxyMode      string   // of kube-proxy, if it says so
	proxyConf      string   // the whole configuration

	Network   *v1alpha1.ClusterNetwork // nil: none
	Installed Installed
	// OwnCRDs are the CRDs of ropeway.dev that are there: name -> whether an
	// installation of ours made it.
	OwnCRDs map[string]bool
	// AnothersCRDs are those of Spiderpool's API that no installation of ours made:
	// they are used as they are.
	AnothersCRDs []string
}

// Cluster reads and writes one cluster.
type Cluster struct {
	client.Client
	// ServerVersion returns the API server's version, like v1.35.4.
	ServerVersion func() (string, error)
	// Server is the API server's URL.
	Server string
}

// Scheme knows every kind that an installer reads or writes.
func Scheme() (*runtime.Scheme, error) {
	s := kube.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, rbacv1.AddToScheme, discoveryv1.AddToScheme,
		admissionv1.AddToScheme, apiextensionsv1.AddToScheme, policyv1.AddToScheme,
	} {
		if err := add(s); err != nil {
			return nil, fmt.Errorf("two API types of one name were compiled in: %w", err)
		}
	}
	return s, nil
}

// Connect prepares to talk to a cluster. What the API server warns of goes to
// warnings. It makes no call that changes anything.
func Connect(cfg *rest.Config, warnings io.Writer) (*Cluster, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst = 50, 100
	cfg.WarningHandler = rest.NewWarningWriter(warnings, rest.WarningWriterOptions{Deduplicate: true})
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("reach the API server %s: %w", cfg.Host, err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("reach the API server %s: %w", cfg.Host, err)
	}
	version := func() (string, error) {
		v, err := d.ServerVersion()
		if err != nil {
			return "", err
		}
		return v.GitVersion, nil
	}
	return &Cluster{Client: c, ServerVersion: version, Server: cfg.Host}, nil
}

// Look makes a Survey.
func Look(ctx context.Context, c *Cluster) (*Survey, error) {
	s := &Survey{Server: c.Server, OwnCRDs: map[string]bool{}}
	var err error
	if s.Version, err = c.ServerVersion(); err != nil {
		return nil, fmt.Errorf("ask the API server %s for its version: %w", c.Server, err)
	}
	if s.Installed, err = lookAtInstalled(ctx, c); err != nil {
		return nil, err
	}
	for _, look := range []func(context.Context, client.Reader) error{
		s.lookAtWorkloads, s.lookAtPolicies, s.lookAtAPIServers, s.lookAtServices, s.lookAtKubeProxy, s.lookAtPodSubnets, s.lookAtOwn,
	} {
		if err := look(ctx, c); err != nil {
			return nil, fmt.Errorf("look at the cluster %s: %w", c.Server, err)
		}
	}
	return s, nil
}

func (s *Survey) lookAtWorkloads(ctx context.Context, r client.Reader) error {
	var (
		nodes       corev1.NodeList
		daemonSets  appsv1.DaemonSetList
		deployments appsv1.DeploymentList
		pods        corev1.PodList
	)
	ours := []client.ListOption{client.InNamespace(Namespace), client.MatchingLabels{LabelName: ProductName}}
	if err := errors.Join(r.List(ctx, &nodes), r.List(ctx, &daemonSets), r.List(ctx, &deployments), r.List(ctx, &pods, ours...)); err != nil {
		return err
	}
	s.Nodes, s.DaemonSets, s.Deployments, s.Pods = nodes.Items, daemonSets.Items, deployments.Items, pods.Items
	return nil
}

func (s *Survey) lookAtPolicies(ctx context.Context, r client.Reader) error {
	var policies networkingv1.NetworkPolicyList
	if err := r.List(ctx, &policies); err != nil {
		return err
	}
	for _, p := range policies.Items {
		s.Policies = append(s.Policies, p.Namespace+"/"+p.Name)
	}
	return nil
}

// lookAtAPIServers reads the endpoints of the Service kubernetes, which the API
// servers keep themselves.
func (s *Survey) lookAtAPIServers(ctx context.Context, r client.Reader) error {
	var slices discoveryv1.EndpointSliceList
	err := r.List(ctx, &slices, client.InNamespace("default"), client.MatchingLabels{discoveryv1.LabelServiceName: "kubernetes"})
	if err != nil {
		return err
	}
	for _, slice := range slices.Items {
		for _, port := range slice.Ports {
			for _, endpoint := range slice.Endpoints {
				for _, address := range endpoint.Addresses {
					if port.Port != nil {
						s.APIServers = append(s.APIServers, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
					}
				}
			}
		}
	}
	return nil
}

// lookAtServices finds the ranges of Services: the ServiceCIDR objects where
// there are any (Kubernetes 1.33 and newer), and one address in any case.
func (s *Survey) lookAtServices(ctx context.Context, r client.Reader) error {
	var ranges networkingv1.ServiceCIDRList
	switch err := r.List(ctx, &ranges); {
	case err == nil:
		for _, item := range ranges.Items {
			s.ServiceCIDRs = append(s.ServiceCIDRs, item.Spec.CIDRs...)
		}
	case !absent(err):
		return err
	}
	var service corev1.Service
	err := r.Get(ctx, client.ObjectKey{Namespace: "default", Name: "kubernetes"}, &service)
	if err == nil {
		s.ServiceIP = service.Spec.ClusterIP
	}
	return client.IgnoreNotFound(err)
}

// lookAtOwn finds what an earlier installation left or runs.
func (s *Survey) lookAtOwn(ctx context.Context, r client.Reader) error {
	var crds apiextensionsv1.CustomResourceDefinitionList
	if err := r.List(ctx, &crds); err != nil {
		return err
	}
	for _, crd := range crds.Items {
		switch made := crd.Labels[LabelName] == ProductName; {
		case crd.Spec.Group == v1alpha1.GroupVersion.Group:
			s.OwnCRDs[crd.Name] = made
		case crd.Spec.Group == v2beta1.GroupVersion.Group && !made:
			s.AnothersCRDs = append(s.AnothersCRDs, crd.Name)
		case isPolicy(&crd):
			if err := s.lookAtPoliciesOf(ctx, r, &crd); err != nil {
				return err
			}
		}
	}
	var network v1alpha1.ClusterNetwork
	err := r.Get(ctx, client.ObjectKey{Name: v1alpha1.ClusterNetworkName}, &network)
	if err == nil {
		s.Network = &network
	} else if !absent(err) {
		return err
	}
	return nil
}

// isPolicy goes by the names of those who have policies of their own: Calico, Cilium, and
// Kubernetes' for administrators.
func isPolicy(crd *apiextensionsv1.CustomResourceDefinition) bool {
	return slices.Contains([]string{"crd.projectcalico.org", "cilium.io", "policy.networking.k8s.io"}, crd.Spec.Group) &&
		strings.HasSuffix(crd.Spec.Names.Plural, "networkpolicies") && !strings.HasPrefix(crd.Spec.Names.Plural, "staged")
}

// lookAtPoliciesOf finds the policies of one kind, which is not Kubernetes' own.
func (s *Survey) lookAtPoliciesOf(ctx context.Context, r client.Reader, crd *apiextensionsv1.CustomResourceDefinition) error {
	for _, v := range crd.Spec.Versions {
		if !v.Served {
			continue
		}
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(schema.GroupVersionKind{Group: crd.Spec.Group, Version: v.Name, Kind: crd.Spec.Names.ListKind})
		if err := r.List(ctx, list); err != nil {
			return fmt.Errorf("list %s: %w", crd.Name, err)
		}
		for i := range list.Items {
			p := &list.Items[i]
			p.SetGroupVersionKind(schema.GroupVersionKind{Kind: crd.Spec.Names.Kind})
			s.Policies = append(s.Policies, describe(p))
		}
		return nil
	}
	return nil
}

// absent says that an object, or its whole kind, is not there.
func absent(err error) bool {
	return apierrors.IsNotFound(err) || meta.IsNoMatchError(err)
}

// lookAtPodSubnets asks those who know the cluster's pod range: kubeadm's
// configuration, kube-controller-manager's arguments, kube-proxy's
// configuration, in this order.
func (s *Survey) lookAtPodSubnets(ctx context.Context, r client.Reader) error {
	var cm corev1.ConfigMap
	err := r.Get(ctx, client.ObjectKey{Namespace: "kube-system", Name: "kubeadm-config"}, &cm)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	if err == nil && s.subnetsFrom("kubeadm's configuration", yamlField(cm.Data["ClusterConfiguration"], "podSubnet")) {
		return nil
	}
	var pods corev1.PodList
	if err := r.List(ctx, &pods, client.InNamespace("kube-system"), client.MatchingLabels{"component": "kube-controller-manager"}); err != nil {
		return err
	}
	for _, pod := range pods.Items {
		if s.subnetsFrom("the arguments of "+pod.Name, argument(pod, "--cluster-cidr")) {
			return nil
		}
	}
	s.subnetsFrom("kube-proxy's configuration", yamlField(s.proxyConf, "clusterCIDR"))
	return nil
}

// lookAtKubeProxy reads its configuration, where it is a ConfigMap's as kubeadm has it.
func (s *Survey) lookAtKubeProxy(ctx context.Context, r client.Reader) error {
	var cm corev1.ConfigMap
	err := r.Get(ctx, client.ObjectKey{Namespace: "kube-system", Name: "kube-proxy"}, &cm)
	s.proxyConf = cm.Data["config.conf"]
	s.ProxyMode = yamlField(s.proxyConf, "mode")
	return client.IgnoreNotFound(err)
}

// subnetsFrom takes a list of CIDRs with commas, if it is one.
func (s *Survey) subnetsFrom(where, list string) bool {
	var cidrs []string
	for _, one := range strings.Split(list, ",") {
		p, err := v1alpha1.ParsePodCIDR(strings.TrimSpace(one))
		if err != nil {
			return false
		}
		cidrs = append(cidrs, p.String())
	}
	s.PodSubnets, s.PodSubnetsFrom = cidrs, where
	return true
}

// yamlField finds a scalar by its name alone, at whatever depth: the documents
// that it is used on have each name once.
func yamlField(text, name string) string {
	for line := range strings.Lines(text) {
		key, value, found := strings.Cut(strings.TrimSpace(line), ":")
		if found && key == name {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return ""
}

func argument(pod corev1.Pod, flag string) string {
	for _, c := range pod.Spec.Containers {
		for _, arg := range slices.Concat(c.Command, c.Args) {
			if value, found := strings.CutPrefix(arg, flag+"="); found {
				return value
			}
		}
	}
	return ""
}
