package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
	"ropeway.dev/ropeway/test/apiserver"
)

// These tests install on a real API server. There is no kubelet and no
// controller manager, so a puppet makes the pods and says that they are ready.

var shared apiserver.Shared

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

func deadlinePassed() (context.Context, context.CancelFunc) {
	return context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
}

func limited(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T) *Cluster {
	t.Helper()
	c, err := Connect(shared.Config(t), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	c.Client = unprivileged{c.Client}
	return c
}

// unprivileged applies workloads without what an API server refuses that runs
// without --allow-privileged, as the test's does. (A cluster's has the flag:
// kube-proxy needs it too.)
type unprivileged struct{ client.Client }

func (u unprivileged) Apply(ctx context.Context, obj runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
	if content, ok := obj.(interface{ UnstructuredContent() map[string]any }); ok {
		spec, found, err := unstructured.NestedMap(content.UnstructuredContent(), "spec", "template", "spec")
		if err != nil {
			return err
		}
		if found {
			withoutPrivilege(spec)
			if err := unstructured.SetNestedMap(content.UnstructuredContent(), spec, "spec", "template", "spec"); err != nil {
				return err
			}
		}
	}
	return u.Client.Apply(ctx, obj, opts...)
}

func withoutPrivilege(spec map[string]any) {
	for _, key := range []string{"containers", "initContainers"} {
		list, _ := spec[key].([]any)
		for _, item := range list {
			c := item.(map[string]any)
			unstructured.RemoveNestedField(c, "securityContext", "privileged")
			mounts, _ := c["volumeMounts"].([]any)
			for _, m := range mounts {
				delete(m.(map[string]any), "mountPropagation")
			}
		}
	}
}

// lines collects progress.
type lines struct{ text bytes.Buffer }

func (l *lines) say(format string, args ...any) { fmt.Fprintf(&l.text, format+"\n", args...) }

// adopt puts our label on the CRDs that the test's API server came with: an
// installation must not take CRDs over that it did not make.
func adopt(t *testing.T, c client.Client) {
	t.Helper()
	var crds apiextensionsv1.CustomResourceDefinitionList
	if err := c.List(context.Background(), &crds); err != nil {
		t.Fatal(err)
	}
	for i := range crds.Items {
		patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"`+LabelName+`":"`+ProductName+`"}}}`))
		if err := c.Patch(context.Background(), &crds.Items[i], patch); err != nil {
			t.Fatal(err)
		}
	}
}

func installOn(t *testing.T, c *Cluster, o Options) *lines {
	t.Helper()
	ctx := limited(t, time.Minute)
	adopt(t, c)
	survey, err := Look(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	o.Version, o.APIServer = "v1.2.3", "192.0.2.10:6443"
	settings, _, err := Resolve(o, survey)
	if err != nil {
		t.Fatal(err)
	}
	if stopping := Stopping(Preflight(settings, survey, false)); len(stopping) > 0 {
		t.Fatalf("preflight: %v", stopping)
	}
	m, err := Render(settings)
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{}
	if err := Apply(ctx, c, m, out.say); err != nil {
		t.Fatal(err)
	}
	return out
}

func uninstallFrom(t *testing.T, c *Cluster) *lines {
	t.Helper()
	// The API server looks every 5 s, and later when it is busy, whether the
	// objects of a CRD that goes are gone.
	ctx := limited(t, 5*time.Minute)
	r, err := PlanRemoval(ctx, c, "docker.io/ropeway/ropeway:v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{}
	if err := Uninstall(ctx, c, r, false, out.say); err != nil {
		t.Fatalf("%v\n%s", err, out.text.String())
	}
	return out
}

// TestInstallAndUninstall: everything is applied and accepted by a real API
// server, waiting ends when all is ready, installing again is no change, and
// uninstalling leaves nothing.
func TestInstallAndUninstall(t *testing.T) {
	c := connect(t)
	addNode(t, c, "inst-a", "192.0.2.1")
	addNode(t, c, "inst-b", "192.0.2.2")
	puppet{c: c}.start(t)
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}})

	waiting := &lines{}
	done := make(chan error, 1)
	go func() { done <- WaitReady(limited(t, time.Minute), c, waiting.say) }()
	setAvailable(t, c, "inst-a", corev1.ConditionFalse, kube.ReasonProven)
	setAvailable(t, c, "inst-b", corev1.ConditionFalse, kube.ReasonProven)
	if err := <-done; err != nil {
		t.Fatalf("%v\n%s", err, waiting.text.String())
	}
	if !strings.Contains(waiting.text.String(), "agents ready 2/2, controllers ready 2/2, nodes reachable 2/2") {
		t.Errorf("progress was:\n%s", waiting.text.String())
	}

	before := generations(t, c)
	installOn(t, c, Options{})
	if after := generations(t, c); before != after {
		t.Errorf("installing again changed something: %s, then %s", before, after)
	}

	out := uninstallFrom(t, c)
	for _, part := range []string{"nodes cleaned 2/2", "deleted DaemonSet kube-system/ropeway-clean", "removed the condition NetworkUnavailable of node inst-a"} {
		if !strings.Contains(out.text.String(), part) {
			t.Errorf("progress does not say %q:\n%s", part, out.text.String())
		}
	}
	checkNothingLeft(t, c)
	// Again, with nothing there.
	r, err := PlanRemoval(limited(t, time.Minute), c, "x:y")
	if err != nil || len(r.Found) > 0 {
		t.Errorf("found %v, %v", r.Found, err)
	}
	uninstallFrom(t, c)
}

func generations(t *testing.T, c client.Client) string {
	t.Helper()
	var ds appsv1.DaemonSet
	var d appsv1.Deployment
	var network v1alpha1.ClusterNetwork
	ctx := context.Background()
	err := errors.Join(c.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: AgentName}, &ds),
		c.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: ControllerName}, &d),
		c.Get(ctx, client.ObjectKey{Name: "default"}, &network))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(ds.Generation, d.Generation, network.Generation, network.Spec.PodCIDRs)
}

func checkNothingLeft(t *testing.T, c client.Client) {
	t.Helper()
	ctx := context.Background()
	ours := client.MatchingLabels{LabelName: ProductName}
	for _, list := range []client.ObjectList{
		&appsv1.DaemonSetList{}, &appsv1.DeploymentList{}, &corev1.PodList{}, &corev1.ConfigMapList{}, &corev1.ServiceAccountList{},
		&rbacv1.ClusterRoleList{}, &rbacv1.ClusterRoleBindingList{}, &rbacv1.RoleList{}, &rbacv1.RoleBindingList{},
		&admissionv1.ValidatingAdmissionPolicyList{}, &admissionv1.ValidatingAdmissionPolicyBindingList{}, &apiextensionsv1.CustomResourceDefinitionList{},
	} {
		if err := c.List(ctx, list, ours); err != nil {
			t.Fatal(err)
		}
		if n := meta.LenList(list); n > 0 {
			t.Errorf("%d objects left of %T", n, list)
		}
	}
	var nodes corev1.NodeList
	if err := c.List(ctx, &nodes); err != nil {
		t.Fatal(err)
	}
	for i := range nodes.Items {
		if cond := kube.NetworkUnavailable(&nodes.Items[i]); kube.IsOurs(cond) {
			t.Errorf("node %s has our condition still: %v", nodes.Items[i].Name, cond)
		}
	}
}

// TestUninstallHalf: part of it is gone already, another program's condition
// stays, and a node that does not answer is named.
func TestUninstallHalf(t *testing.T) {
	c := connect(t)
	addNode(t, c, "half-a", "192.0.2.1")
	puppet{c: c}.start(t)
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}})
	setAvailable(t, c, "half-a", corev1.ConditionFalse, "CalicoIsUp")
	ctx := limited(t, time.Minute)
	for _, obj := range []client.Object{
		&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: AgentName}},
		&apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "clusternetworks.ropeway.dev"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: ControllerName}},
	} {
		if err := c.Delete(ctx, obj); err != nil {
			t.Fatal(err)
		}
	}
	lost := addNode(t, c, "half-lost", "192.0.2.3")
	lost.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
	if err := c.Status().Update(ctx, lost); err != nil {
		t.Fatal(err)
	}
	r, err := PlanRemoval(ctx, c, "docker.io/ropeway/ropeway:v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	if err := Uninstall(ctx, c, r, false, (&lines{}).say); err == nil || !strings.Contains(err.Error(), "half-lost") || !strings.Contains(err.Error(), "--abandon-lost-nodes") {
		t.Errorf("a node that does not answer: %v", err)
	}
	if err := Uninstall(ctx, c, r, true, (&lines{}).say); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, c)
	var n corev1.Node
	if err := c.Get(ctx, client.ObjectKey{Name: "half-a"}, &n); err != nil {
		t.Fatal(err)
	}
	if cond := kube.NetworkUnavailable(&n); cond == nil || cond.Reason != "CalicoIsUp" {
		t.Errorf("another program's condition became %v", cond)
	}
}

// TestUninstallNamesTheNodeThatIsNotClean, and can be run again.
func TestUninstallNamesTheNodeThatIsNotClean(t *testing.T) {
	c := connect(t)
	addNode(t, c, "slow-a", "192.0.2.1")
	p := puppet{c: c, stuck: "slow-a"}
	p.start(t)
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}})
	r, err := PlanRemoval(limited(t, time.Minute), c, "docker.io/ropeway/ropeway:v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	err = Uninstall(limited(t, 3*time.Second), c, r, false, (&lines{}).say)
	if err == nil || !strings.Contains(err.Error(), "node slow-a: ") || !strings.Contains(err.Error(), "--timeout") {
		t.Errorf("got %v", err)
	}
	ready := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: CleanerName + "-slow-a"}}
	patch := client.RawPatch(types.MergePatchType, []byte(`{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`))
	if err := c.Status().Patch(limited(t, time.Minute), ready, patch); err != nil {
		t.Fatal(err)
	}
	uninstallFrom(t, c)
	checkNothingLeft(t, c)
}

// TestForeignObjectStopsApply before anything is written.
func TestForeignObjectStopsApply(t *testing.T) {
	c := connect(t)
	ctx := limited(t, time.Minute)
	theirs := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: ConfigName}, Data: map[string]string{"a": "b"}}
	if err := c.Create(ctx, theirs); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Delete(ctx, theirs); err != nil {
			t.Error(err)
		}
	}()
	adopt(t, c)
	m, err := Render(settingsOf(t, Options{}))
	if err != nil {
		t.Fatal(err)
	}
	out := &lines{}
	if err := Apply(ctx, c, m, out.say); err == nil || !strings.Contains(err.Error(), "ConfigMap kube-system/ropeway-config is there") {
		t.Errorf("got %v", err)
	}
	if out.text.Len() > 0 {
		t.Errorf("something was applied: %s", out.text.String())
	}
}

// TestLook reads what the decisions need from a real API server.
func TestLook(t *testing.T) {
	c := connect(t)
	ctx := limited(t, time.Minute)
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "deny"}}
	kubeadm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kubeadm-config"},
		Data: map[string]string{"ClusterConfiguration": "networking:\n  podSubnet: 10.6.0.0/16,fd00:6::/48\n  serviceSubnet: 172.21.0.0/16\n"}}
	if err := errors.Join(c.Create(ctx, policy), c.Create(ctx, kubeadm)); err != nil {
		t.Fatal(err)
	}
	// Calico's own, by which its users say more than by Kubernetes'.
	keep := true
	crd := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "globalnetworkpolicies.crd.projectcalico.org"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "crd.projectcalico.org", Scope: apiextensionsv1.ClusterScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "globalnetworkpolicies", Singular: "globalnetworkpolicy", Kind: "GlobalNetworkPolicy", ListKind: "GlobalNetworkPolicyList"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &keep}}}},
		},
	}
	global := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy", "metadata": map[string]any{"name": "default.deny"}}}
	if err := errors.Join(c.Create(ctx, crd), waitEstablished(ctx, c, crd.Name)); err != nil {
		t.Fatal(err)
	}
	if err := retry(ctx, meta.IsNoMatchError, func() error { return c.Create(ctx, global) }); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(c.Delete(ctx, policy), c.Delete(ctx, kubeadm), c.Delete(ctx, crd)); err != nil {
			t.Error(err)
		}
	}()
	s, err := Look(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.Version, "v1.") || !slices.Contains(s.Policies, "default/deny") || fmt.Sprint(s.PodSubnets) != "[10.6.0.0/16 fd00:6::/48]" {
		t.Errorf("version %s, policies %v, pod subnets %v", s.Version, s.Policies, s.PodSubnets)
	}
	if !slices.Contains(s.Policies, "GlobalNetworkPolicy default.deny") {
		t.Errorf("Calico's policy is not among %v", s.Policies)
	}
	if len(s.ServiceCIDRs) > 0 && !slices.Contains(s.ServiceCIDRs, apiserver.ServiceCIDR) {
		t.Errorf("service ranges %v", s.ServiceCIDRs)
	}
}
