package controller

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// TestWhatNobodySharesAnyMore: shared blocks without a pool and without an address
// in use, and addresses kept for pods that are never made again, are given back;
// the others stay, and so does what is kept for a pod of a node that is gone.
func TestWhatNobodySharesAnyMore(t *testing.T) {
	api := admin(t)
	create(t, api, &v1alpha1.ClusterNetwork{ObjectMeta: metav1.ObjectMeta{Name: "default"},
		Spec: v1alpha1.ClusterNetworkSpec{PodCIDRs: []string{"10.244.0.0/16"}}})
	n, gone := register(t, api, "a", "192.0.2.1"), register(t, api, "gone", "192.0.2.2")
	speak(t, api, n, "10.244.0.1")
	create(t, api, &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.AddressPoolSpec{
		Subnets: []string{"10.244.0.0/16"}, Ranges: []string{"10.244.20.1-10.244.20.9", "10.244.20.70"}}})
	labels := map[string]string{"app": "web"}
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}, Spec: appsv1.StatefulSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}}}
	create(t, api, set)
	made := func(cidr string, change func(*v1alpha1.AddressBlockSpec)) *v1alpha1.AddressBlock {
		b := block(cidr, "")
		b.Spec.NodeUID = ""
		change(&b.Spec)
		create(t, api, &b)
		return &b
	}
	sharing := func(s v1alpha1.Sharing) func(*v1alpha1.AddressBlockSpec) {
		return func(b *v1alpha1.AddressBlockSpec) { b.Sharing = s }
	}
	kept := func(pod, uid string) func(*v1alpha1.AddressBlockSpec) {
		return func(b *v1alpha1.AddressBlockSpec) {
			b.KeptFor = &v1alpha1.KeptFor{Namespace: "default", Pod: pod, StatefulSet: "web", UID: uid}
		}
	}
	held := func(node *corev1.Node, then func(*v1alpha1.AddressBlockSpec)) func(*v1alpha1.AddressBlockSpec) {
		return func(b *v1alpha1.AddressBlockSpec) {
			b.Node, b.NodeUID = node.Name, string(node.UID)
			then(b)
		}
	}
	stay := map[string]*v1alpha1.AddressBlock{
		"has a pool":                      made("10.244.20.0/26", sharing(v1alpha1.SharingConfirmed)),
		"has an address in use":           made("10.244.21.0/26", sharing(v1alpha1.SharingConfirmed)),
		"has a pool again, half way":      made("10.244.20.64/26", sharing(v1alpha1.SharingRetired)),
		"is in use":                       made("10.244.21.5/32", held(n, func(*v1alpha1.AddressBlockSpec) {})),
		"is kept for a pod":               made("10.244.20.5/32", kept("web-0", string(set.UID))),
		"was held by a node that is gone": made("10.244.20.6/32", held(gone, kept("web-0", string(set.UID)))),
	}
	unneeded := map[string]*v1alpha1.AddressBlock{
		"has nothing":                 made("10.244.22.0/26", sharing(v1alpha1.SharingConfirmed)),
		"was declared for nothing":    made("10.244.23.0/26", sharing(v1alpha1.SharingDeclared)),
		"was left half way":           made("10.244.24.0/26", sharing(v1alpha1.SharingRetired)),
		"is of a pod beyond replicas": made("10.244.20.7/32", kept("web-1", string(set.UID))),
		"is of another set, now gone": made("10.244.20.8/32", kept("web-0", "another")),
	}
	// What others write beside the lease is not to be lost when it is written.
	for _, b := range []*v1alpha1.AddressBlock{stay["has a pool again, half way"], stay["was held by a node that is gone"]} {
		before := b.DeepCopy()
		b.Labels, b.Annotations = map[string]string{v1alpha1.SharedLabel: "", "team": "a"}, map[string]string{"note": "ours"}
		if err := api.Patch(t.Context(), b, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
	}
	startReplica(t, "one")
	if err := api.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	untouched := func(b *v1alpha1.AddressBlock) {
		if b.Labels["team"] != "a" || b.Annotations["note"] != "ours" {
			t.Errorf("%s has lost what others have written: %v %v", b.Name, b.Labels, b.Annotations)
		}
	}
	eventually(t, "what nobody needs to go", func() string {
		left := ""
		for what, b := range unneeded {
			if err := api.Get(t.Context(), client.ObjectKeyFromObject(b), b.DeepCopy()); !apierrors.IsNotFound(err) {
				left += fmt.Sprintf("%s %s; ", b.Name, what)
			}
		}
		b := stay["was held by a node that is gone"].DeepCopy()
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(b), b); err != nil || b.Spec.Node != "" {
			left += fmt.Sprintf("%s has %q (%v)", b.Name, b.Spec.Node, err)
		}
		untouched(b)
		b = stay["has a pool again, half way"].DeepCopy()
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(b), b); err != nil || b.Spec.Sharing != v1alpha1.SharingConfirmed {
			left += fmt.Sprintf("%s is %q (%v)", b.Name, b.Spec.Sharing, err)
		}
		untouched(b)
		return left
	})
	for what, b := range stay {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(b), b); err != nil {
			t.Errorf("%s, which %s: %v", b.Name, what, err)
		}
	}
}
