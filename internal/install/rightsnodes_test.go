package install

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/cloud"
	"ropeway.dev/ropeway/internal/controller"
)

// TestRolesAreEnoughForNodes: with cloud.nodes: ropeway, the manifests give the
// controller what it needs to make a node known, to taint it and to end it.
func TestRolesAreEnoughForNodes(t *testing.T) {
	c := connect(t)
	fake := cloud.NewFake("cn-chengdu")
	for i, name := range []string{"role-stays", "role-goes"} {
		address := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		fake.AddInstances(cloud.Instance{ID: "i-" + name, VPC: "vpc-1", Zone: "a", Running: true, Addresses: []netip.Addr{address}, Primary: 1})
		n := addNode(t, c, name, address.String())
		n.Spec.Taints = []corev1.Taint{{Key: "node.cloudprovider.kubernetes.io/uninitialized", Value: "true", Effect: corev1.TaintEffectNoSchedule}}
		if err := c.Update(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		setReady(t, c, name, corev1.ConditionTrue)
	}
	installOn(t, c, Options{PodCIDRs: []string{"10.244.0.0/16"}, Cloud: v1alpha1.CloudSpec{
		Provider: v1alpha1.CloudAlibaba, RegionID: "cn-chengdu", VPCID: "vpc-1", Nodes: v1alpha1.DutyRopeway, Routes: v1alpha1.DutyOff}})
	ctx, cancel := context.WithCancel(limited(t, 2*time.Minute))
	done := make(chan error, 1)
	go func() {
		done <- controller.Run(ctx, controller.Config{API: as(t, ControllerName, ""), Identity: "test", Listen: "off", Log: quiet(),
			Confirm: 200 * time.Millisecond, Monitor: 100 * time.Millisecond,
			Providers: map[string]cloud.New{"alibaba": func(context.Context, cloud.Settings) (cloud.Provider, error) { return fake, nil }}})
	}()
	var n corev1.Node
	get := func() error { return c.Get(t.Context(), client.ObjectKey{Name: "role-goes"}, &n) }
	waitFor(t, "the node to be known", func() bool {
		return get() == nil && !hasTaint(n, "node.cloudprovider.kubernetes.io/uninitialized") && n.Spec.ProviderID == "cn-chengdu.i-role-goes" && n.Annotations["ropeway.dev/instance-seen"] != "" && n.Labels[corev1.LabelTopologyZone] == "a"
	})
	fake.ChangeInstance("i-role-goes", func(i *cloud.Instance) { i.Running, i.Stopped = false, true })
	setReady(t, c, "role-goes", corev1.ConditionUnknown)
	waitFor(t, "the taint of a stopped instance", func() bool {
		return get() == nil && hasTaint(n, "node.cloudprovider.kubernetes.io/shutdown")
	})
	fake.Release("i-role-goes")
	waitFor(t, "the end of the node", func() bool { return apierrors.IsNotFound(get()) })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	puppet{c: c}.start(t)
	uninstallFrom(t, c)
}

func hasTaint(n corev1.Node, key string) bool {
	for _, t := range n.Spec.Taints {
		if t.Key == key {
			return true
		}
	}
	return false
}

func setReady(t *testing.T, c client.Client, name string, status corev1.ConditionStatus) {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	patch := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":%q,"reason":"Test"}]}}`, status)
	if err := c.Status().Patch(t.Context(), n, client.RawPatch(types.StrategicMergePatchType, patch)); err != nil {
		t.Fatal(err)
	}
}
