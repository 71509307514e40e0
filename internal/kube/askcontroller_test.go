package kube

import (
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// TestAnnotationsBesideTheController: a write of the status that comes between
// the reading and the writing costs another look, and no annotation.
func TestAnnotationsBesideTheController(t *testing.T) {
	api := admin(t)
	cn := network("10.244.0.0/16")
	cn.Generation = 0
	cn.Annotations = map[string]string{"kept": "yes"}
	create(t, api, cn)
	looks := 0
	err := EditAnnotations(t.Context(), shared.Config(t), func(a map[string]string) {
		if looks++; looks <= 2 {
			status := cn.DeepCopy()
			status.ResourceVersion = ""
			patch := client.MergeFrom(status.DeepCopy())
			status.Status.Nodes = int32(looks)
			if err := api.Status().Patch(t.Context(), status, patch); err != nil {
				t.Error(err)
			}
		}
		a["ropeway.dev/test"] = "all"
	})
	var got v1alpha1.ClusterNetwork
	if getErr := api.Get(t.Context(), client.ObjectKeyFromObject(cn), &got); getErr != nil {
		t.Fatal(getErr)
	}
	if err != nil || looks != 3 || got.Annotations["ropeway.dev/test"] != "all" || got.Annotations["kept"] != "yes" {
		t.Errorf("%v after %d looks: %v", err, looks, got.Annotations)
	}
}
