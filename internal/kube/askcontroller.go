package kube

import (
	"context"
	"errors"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// ErrNoController says that no controller leads. Test with errors.Is.
var ErrNoController = errors.New("no controller leads: see kubectl -n kube-system get pods -l app.kubernetes.io/component=controller")

// AskController gets a path of the leading controller's HTTP server, through
// the API server's proxy, so that a person needs no way to the nodes.
func AskController(ctx context.Context, cfg *rest.Config, path string) ([]byte, error) {
	clients, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("prepare to call the API server %s: %w", cfg.Host, err)
	}
	api, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	var lease coordinationv1.Lease
	err = api.Get(ctx, client.ObjectKey{Namespace: SystemNamespace, Name: ControllerLease}, &lease)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("find the leading controller: %w", err)
	}
	if err != nil || lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		return nil, ErrNoController
	}
	pod := *lease.Spec.HolderIdentity
	body, err := clients.CoreV1().RESTClient().Get().Namespace(SystemNamespace).Resource("pods").Name(pod).
		SubResource("proxy").Suffix(path).DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the leading controller %s (through the API server's proxy): %w", pod, err)
	}
	return body, nil
}

// EditAnnotations changes annotations of the ClusterNetwork: edit is given
// those that are there and changes them in place. The controller writes the same
// object's status: where a write of somebody's comes in between, edit is called
// again with what is there then.
func EditAnnotations(ctx context.Context, cfg *rest.Config, edit func(map[string]string)) error {
	api, err := NewClient(cfg)
	if err != nil {
		return err
	}
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error { return editAnnotations(ctx, api, edit) })
	if err != nil {
		return fmt.Errorf("annotate the ClusterNetwork %s: %w", v1alpha1.ClusterNetworkName, err)
	}
	return nil
}

func editAnnotations(ctx context.Context, api client.Client, edit func(map[string]string)) error {
	var cn v1alpha1.ClusterNetwork
	if err := api.Get(ctx, types.NamespacedName{Name: v1alpha1.ClusterNetworkName}, &cn); err != nil {
		return err
	}
	before := cn.DeepCopy()
	if cn.Annotations == nil {
		cn.Annotations = map[string]string{}
	}
	edit(cn.Annotations)
	return api.Patch(ctx, &cn, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}
