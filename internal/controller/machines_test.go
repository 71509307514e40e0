package controller

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
)

// machineIs says what is wrong with what a node's NodeNetwork says of its machine.
func machineIs(t *testing.T, c client.Client, node *corev1.Node, cidrs string, silent bool) func() string {
	return func() string {
		var nn v1alpha1.NodeNetwork
		if err := c.Get(t.Context(), client.ObjectKey{Name: node.Name}, &nn); err != nil {
			return err.Error()
		}
		spec := nn.Spec
		right := spec.NodeUID == string(node.UID) && spec.NodeCreated != nil && spec.NodeCreated.Equal(&node.CreationTimestamp) &&
			fmt.Sprint(spec.Addresses) == "["+node.Status.Addresses[0].Address+"]" && fmt.Sprint(spec.PodCIDRs) == cidrs && spec.Silent == silent &&
			len(nn.OwnerReferences) == 1 && nn.OwnerReferences[0].UID == node.UID
		if !right {
			return fmt.Sprintf("%+v, owned by %+v", spec, nn.OwnerReferences)
		}
		return ""
	}
}

// TestMachinesAreDescribed: what a Node says that its peers need is in its
// NodeNetwork, through all that becomes of it.
func TestMachinesAreDescribed(t *testing.T) {
	api := admin(t)
	register(t, api, "other", "192.0.2.9")
	startReplica(t, "one")
	n := register(t, api, "a", "192.0.2.1")
	eventually(t, "a node without an agent", machineIs(t, api, n, "[]", false))
	ready := func(status corev1.ConditionStatus) {
		t.Helper()
		patch := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":%q,"reason":"Test"}]}}`, status)
		if err := api.Status().Patch(t.Context(), n.DeepCopy(), client.RawPatch("application/strategic-merge-patch+json", patch)); err != nil {
			t.Fatal(err)
		}
	}
	ready(corev1.ConditionUnknown)
	eventually(t, "its kubelet stopped", machineIs(t, api, n, "[]", true))
	ready(corev1.ConditionTrue)
	given := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"]}}`))
	if err := api.Patch(t.Context(), n.DeepCopy(), given); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it was given a podCIDR", machineIs(t, api, n, "[10.244.1.0/24]", false))
	speak(t, api, n, "10.244.1.1")
	if err := api.Delete(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() string {
		if err := api.Get(t.Context(), client.ObjectKey{Name: "a"}, &v1alpha1.NodeNetwork{}); !apierrors.IsNotFound(err) {
			return fmt.Sprintf("its NodeNetwork is there: %v", err)
		}
		return ""
	})
	again := register(t, api, "a", "192.0.2.5")
	speak(t, api, n, "10.244.1.1") // its agent has not noticed
	eventually(t, "it is made anew", machineIs(t, api, again, "[]", false))
}

// TestAgentsWatchNoOtherNode: an agent learns of all nodes, and of what changes in
// them, without a look at any Node but its own.
func TestAgentsWatchNoOtherNode(t *testing.T) {
	api := admin(t)
	register(t, api, "a", "192.0.2.1")
	startReplica(t, "one")
	var looks atomic.Int64
	cfg := rest.CopyConfig(shared.Config(t))
	cfg.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			own := strings.Contains(req.URL.RawQuery, "metadata.name%3Da") || strings.HasSuffix(req.URL.Path, "/nodes/a")
			if strings.Contains(req.URL.Path, "/api/v1/nodes") && !own {
				looks.Add(1)
			}
			return next.RoundTrip(req)
		})
	})
	agent, err := kube.NewNodeClient(cfg, "a", quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- agent.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	sees := func(name string, address string) func() string {
		return func() string {
			v, err := agent.View()
			for _, n := range v.Snapshot.Nodes {
				if n.Name == name && len(n.Addresses) == 1 && n.Addresses[0] == netip.MustParseAddr(address) {
					return ""
				}
			}
			return fmt.Sprintf("%+v, %v", v.Snapshot.Nodes, err)
		}
	}
	eventually(t, "its own", sees("a", "192.0.2.1"))
	b := register(t, api, "b", "192.0.2.2")
	eventually(t, "another", sees("b", "192.0.2.2"))
	speak(t, api, b, "10.244.2.1")
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.7"}]}}`))
	if err := api.Status().Patch(t.Context(), b, patch); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its new address", sees("b", "192.0.2.7"))
	if n := looks.Load(); n != 0 {
		t.Errorf("%d looks at other Nodes", n)
	}
}
