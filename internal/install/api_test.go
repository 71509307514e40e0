package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/controller"
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

// puppet plays the kubelets and the controllers of DaemonSets and Deployments
// until the test ends.
type puppet struct {
	c     client.Client
	stuck string // name of a node whose pods never get ready
}

func (p puppet) start(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for pause(ctx, 20*time.Millisecond) == nil {
			p.turn(ctx) // what fails now is tried again at once
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

func (p puppet) turn(ctx context.Context) {
	var nodes corev1.NodeList
	var sets appsv1.DaemonSetList
	var deployments appsv1.DeploymentList
	var pods corev1.PodList
	if errors.Join(p.c.List(ctx, &nodes), p.c.List(ctx, &sets), p.c.List(ctx, &deployments), p.c.List(ctx, &pods, client.InNamespace(Namespace))) != nil {
		return
	}
	wanted := map[string]corev1.PodTemplateSpec{}
	for i := range sets.Items {
		ds := &sets.Items[i]
		ready := int32(0)
		for _, n := range nodes.Items {
			wanted[ds.Name+"-"+n.Name] = onNode(ds.Spec.Template, n.Name)
			if n.Name != p.stuck {
				ready++
			}
		}
		n := int32(len(nodes.Items))
		ds.Status = appsv1.DaemonSetStatus{ObservedGeneration: ds.Generation, DesiredNumberScheduled: n, CurrentNumberScheduled: n, UpdatedNumberScheduled: n, NumberReady: ready}
		_ = p.c.Status().Update(ctx, ds)
	}
	for i := range deployments.Items {
		d := &deployments.Items[i]
		n := *d.Spec.Replicas
		for r := range n {
			wanted[fmt.Sprintf("%s-%d", d.Name, r)] = onNode(d.Spec.Template, nodes.Items[int(r)%len(nodes.Items)].Name)
		}
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, ReadyReplicas: n, AvailableReplicas: n}
		_ = p.c.Status().Update(ctx, d)
	}
	p.makePods(ctx, pods.Items, wanted)
}

func onNode(t corev1.PodTemplateSpec, node string) corev1.PodTemplateSpec {
	t.Spec.NodeName = node
	return t
}

func (p puppet) makePods(ctx context.Context, have []corev1.Pod, wanted map[string]corev1.PodTemplateSpec) {
	now := int64(0)
	for i := range have {
		if _, keep := wanted[have[i].Name]; !keep {
			_ = p.c.Delete(ctx, &have[i], &client.DeleteOptions{GracePeriodSeconds: &now})
		}
	}
	for name, template := range wanted {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name, Labels: template.Labels}, Spec: template.Spec}
		pod.Spec.PriorityClassName = "" // this API server has no such classes at once
		if err := p.c.Create(ctx, pod); err != nil {
			continue
		}
		if pod.Spec.NodeName != p.stuck {
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			pod.Status.Phase = corev1.PodRunning
			_ = p.c.Status().Update(ctx, pod)
		}
	}
}

func addNode(t *testing.T, c client.Client, name, address string) *corev1.Node {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: "linux"}}}
	if err := c.Create(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}
	if err := c.Status().Update(context.Background(), n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.Background(), n); client.IgnoreNotFound(err) != nil {
			t.Error(err)
		}
	})
	return n
}

func setAvailable(t *testing.T, c client.Client, node string, status corev1.ConditionStatus, reason string) {
	t.Helper()
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"NetworkUnavailable","status":%q,"reason":%q,"message":"by the test"}]}}`, status, reason)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	if err := c.Status().Patch(context.Background(), n, client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

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
	ctx := limited(t, time.Minute)
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

// as is the configuration of one of our service accounts, whose token is bound
// to a node.
func as(t *testing.T, account, node string) *rest.Config {
	cfg := rest.CopyConfig(shared.Config(t))
	cfg.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + Namespace + ":" + account,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + Namespace, "system:authenticated"},
	}
	if node != "" {
		cfg.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {node}}
	}
	return cfg
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// TestRolesAreEnough: with the rights of the manifests and no more, an agent
// reads, leases, publishes and gives back, and a controller leads and writes
// the condition.
func TestRolesAreEnough(t *testing.T) {
	c := connect(t)
	addNode(t, c, "role-a", "192.0.2.1")
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}})
	ctx, cancel := context.WithCancel(limited(t, 2*time.Minute))
	done := make(chan error, 2)
	agent, err := kube.NewNodeClient(as(t, AgentName, "role-a"), "role-a", quiet())
	if err != nil {
		t.Fatal(err)
	}
	go func() { done <- agent.Run(ctx) }()
	go func() {
		done <- controller.Run(ctx, controller.Config{API: as(t, ControllerName, ""), Identity: "test", Listen: "off", Log: quiet()})
	}()
	eventually(t, agent, func(v kube.View) bool { return v.NodeUID != "" })
	block := netip.MustParsePrefix("10.244.7.0/26")
	if err := agent.ClaimBlock(ctx, block); err != nil {
		t.Fatal(err)
	}
	status := kube.NodeStatus{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, CIDRs: []netip.Prefix{block},
		Sources: []netip.Addr{netip.MustParseAddr("10.244.7.1")}, Programmed: kube.Condition{Status: true}, AddressesUsable: kube.Condition{Status: true}}
	if err := agent.Publish(ctx, status); err != nil {
		t.Fatal(err)
	}
	status.Pods = 3
	status.Programmed.Message = "changed"
	if err := agent.Publish(ctx, status); err != nil {
		t.Fatal(err)
	}
	eventually(t, agent, func(v kube.View) bool { return v.Condition != nil && !v.Condition.Status })
	waitFor(t, "the ClusterNetwork's Accepted condition", func() bool {
		var network v1alpha1.ClusterNetwork
		err := c.Get(ctx, client.ObjectKey{Name: "default"}, &network)
		return err == nil && network.Status.InForce != nil
	})
	if err := agent.ReleaseBlock(ctx, block); err != nil {
		t.Error(err)
	}
	cancel()
	if err := errors.Join(<-done, <-done); err != nil {
		t.Error(err)
	}
	puppet{c: c}.start(t)
	uninstallFrom(t, c)
	checkNothingLeft(t, c)
}

func eventually(t *testing.T, agent *kube.NodeClient, fits func(kube.View) bool) {
	t.Helper()
	waitFor(t, "the agent's view", func() bool {
		v, err := agent.View()
		return err == nil && fits(v)
	})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := limited(t, 30*time.Second)
	for !ok() {
		if pause(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// TestAnAgentSpeaksForItsOwnNodeOnly (the admission policies): a token stolen
// from one node can neither lie about another nor take its addresses.
func TestAnAgentSpeaksForItsOwnNodeOnly(t *testing.T) {
	c := connect(t)
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}})
	puppet{c: c}.start(t)
	addNode(t, c, "adm-a", "192.0.2.1")
	defer uninstallFrom(t, c)
	ctx := limited(t, time.Minute)
	block := func(cidr, node string) *v1alpha1.AddressBlock {
		return &v1alpha1.AddressBlock{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.BlockName(netip.MustParsePrefix(cidr))},
			Spec: v1alpha1.AddressBlockSpec{CIDR: cidr, Node: node, NodeUID: "u", Generation: 1}}
	}
	theirs, theirNode := block("10.244.8.0/26", "adm-b"), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-b"}}
	if err := errors.Join(c.Create(ctx, theirs), c.Create(ctx, theirNode)); err != nil {
		t.Fatal(err)
	}
	agent, err := kube.NewClient(as(t, AgentName, "adm-a"))
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := kube.NewClient(as(t, AgentName, ""))
	if err != nil {
		t.Fatal(err)
	}
	// Policies take effect a moment after they were applied.
	waitFor(t, "the policies to be in force", func() bool {
		return apierrors.IsForbidden(agent.Create(ctx, block("10.244.9.0/26", "adm-b"), client.DryRunAll)) &&
			apierrors.IsForbidden(agent.Create(ctx, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-c"}}, client.DryRunAll))
	})
	mine, myNode := block("10.244.10.0/26", "adm-a"), &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-a"}}
	if err := errors.Join(agent.Create(ctx, mine), agent.Create(ctx, myNode)); err != nil {
		t.Errorf("its own: %v", err)
	}
	myNode.Status.AgentVersion = "v1"
	if err := agent.Status().Update(ctx, myNode); err != nil {
		t.Errorf("its own status: %v", err)
	}
	taken := theirs.DeepCopy()
	taken.Spec.Node = "adm-a"
	given := mine.DeepCopy()
	given.Spec.Node = "adm-b"
	lie := theirNode.DeepCopy()
	lie.Status.VTEP = "02:00:00:00:00:01"
	for what, err := range map[string]error{
		"take another's lease":          agent.Update(ctx, taken),
		"give its lease to another":     agent.Update(ctx, given),
		"delete another's lease":        agent.Delete(ctx, theirs),
		"write another's status":        agent.Status().Update(ctx, lie),
		"write without a node":          nobody.Create(ctx, block("10.244.11.0/26", "")),
		"write its network without one": nobody.Create(ctx, &v1alpha1.NodeNetwork{ObjectMeta: metav1.ObjectMeta{Name: "adm-d"}}),
	} {
		if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := agent.Delete(ctx, mine); err != nil {
		t.Errorf("give back its own lease: %v", err)
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
	defer func() {
		if err := errors.Join(c.Delete(ctx, policy), c.Delete(ctx, kubeadm)); err != nil {
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
	if len(s.ServiceCIDRs) > 0 && !slices.Contains(s.ServiceCIDRs, apiserver.ServiceCIDR) {
		t.Errorf("service ranges %v", s.ServiceCIDRs)
	}
}
