package kube

import (
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"ropeway.dev/ropeway/api/spiderpool/v2beta1"
	"ropeway.dev/ropeway/api/v1alpha1"
)

// Names that agents and the controller share.
const (
	// SystemNamespace holds the controller's Lease, and its UID is the
	// cluster's id.
	SystemNamespace = metav1.NamespaceSystem
	// ControllerLease is the Lease that the leading controller renews.
	ControllerLease = "ropeway-controller"
)

// ErrNoConfig says that nothing names an API server.
var ErrNoConfig = errors.New("there is no kubeconfig")

// RESTConfig reads the configuration for an API server: from the named
// kubeconfig and context; when both are empty from the pod's service account,
// else from the usual places of kubectl (KUBECONFIG, ~/.kube/config). The error is, or
// wraps, ErrNoConfig if there is none.
func RESTConfig(kubeconfig, context string) (*rest.Config, error) {
	if kubeconfig == "" && context == "" {
		if cfg, err := rest.InClusterConfig(); err == nil {
			return cfg, nil
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, fmt.Errorf("%w: give --kubeconfig or set KUBECONFIG", ErrNoConfig)
	}
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig (give --kubeconfig or set KUBECONFIG): %w", err)
	}
	return cfg, nil
}

// NewScheme returns a scheme that knows the objects that Ropeway reads and
// writes.
func NewScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, coordinationv1.AddToScheme, networkingv1.AddToScheme, v1alpha1.AddToScheme, v2beta1.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(fmt.Sprintf("two API types of one name were compiled in: %v", err))
		}
	}
	return s
}

// NewMapper returns the resources of those objects. It is fixed, so that a
// program starts while the API server is down or the CRDs are not there yet,
// and needs no discovery call.
func NewMapper() meta.RESTMapper {
	core := schema.GroupVersion{Version: "v1"}
	m := meta.NewDefaultRESTMapper([]schema.GroupVersion{core, v1alpha1.GroupVersion, v2beta1.GroupVersion})
	for _, kind := range []string{"ClusterNetwork", "AddressBlock", "NodeNetwork", "AddressPool"} {
		m.Add(v1alpha1.GroupVersion.WithKind(kind), meta.RESTScopeRoot)
	}
	m.Add(v2beta1.GroupVersion.WithKind("SpiderIPPool"), meta.RESTScopeRoot)
	m.Add(v2beta1.GroupVersion.WithKind("SpiderReservedIP"), meta.RESTScopeRoot)
	m.Add(core.WithKind("Node"), meta.RESTScopeRoot)
	m.Add(core.WithKind("Namespace"), meta.RESTScopeRoot)
	m.Add(networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR"), meta.RESTScopeRoot)
	m.Add(core.WithKind("Pod"), meta.RESTScopeNamespace)
	m.Add(core.WithKind("Service"), meta.RESTScopeNamespace)
	m.Add(core.WithKind("Event"), meta.RESTScopeNamespace)
	m.Add(core.WithKind("Secret"), meta.RESTScopeNamespace)
	m.Add(appsv1.SchemeGroupVersion.WithKind("Deployment"), meta.RESTScopeNamespace)
	m.Add(appsv1.SchemeGroupVersion.WithKind("DaemonSet"), meta.RESTScopeNamespace)
	m.Add(appsv1.SchemeGroupVersion.WithKind("StatefulSet"), meta.RESTScopeNamespace)
	m.Add(coordinationv1.SchemeGroupVersion.WithKind("Lease"), meta.RESTScopeNamespace)
	m.Add(networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"), meta.RESTScopeNamespace)
	return m
}
