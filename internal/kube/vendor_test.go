package kube

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCloudControllers(t *testing.T) {
	deployment := func(name, image string, command ...string) appsv1.Deployment {
		d := appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}}
		d.Spec.Template.Spec.Containers = []corev1.Container{{Image: image, Command: command}}
		return d
	}
	for name, c := range map[string]struct {
		d                   appsv1.Deployment
		found, write, nodes bool
	}{
		"another program":     {deployment("coredns", "coredns:1"), false, false, false},
		"by name":             {deployment("cloud-controller-manager", "acs/ccm:2"), true, true, true},
		"by image":            {deployment("ccm", "acs/cloud-controller-manager-amd64:v2.14.0"), true, true, true},
		"on, said so":         {deployment("cloud-controller-manager", "x", "/bin/ccm", "--configure-cloud-routes=true"), true, true, true},
		"off":                 {deployment("cloud-controller-manager", "x", "/bin/ccm", RoutesFlag), true, false, true},
		"off, as two words":   {deployment("cloud-controller-manager", "x", "/bin/ccm", "--configure-cloud-routes", "false"), true, false, true},
		"a bare flag":         {deployment("cloud-controller-manager", "x", "/bin/ccm", "--configure-cloud-routes", "--v=2"), true, true, true},
		"off, in a shell":     {deployment("cloud-controller-manager", "x", "sh", "-c", "exec ccm --configure-cloud-routes=false --v=2"), true, false, true},
		"without the route":   {deployment("cloud-controller-manager", "x", "--controllers=node,service,nlb"), true, false, true},
		"with the route":      {deployment("cloud-controller-manager", "x", "--controllers=node,route"), true, true, true},
		"all but the route":   {deployment("cloud-controller-manager", "x", "--controllers=*,-node-route-controller"), true, false, true},
		"all":                 {deployment("cloud-controller-manager", "x", "--controllers=*"), true, true, true},
		"in the list but off": {deployment("cloud-controller-manager", "x", "--controllers=*", RoutesFlag), true, false, true},
		"without the node":    {deployment("cloud-controller-manager", "x", "--controllers=route,service,nlb"), true, true, false},
		"one of two":          {deployment("cloud-controller-manager", "x", "--controllers=*,-cloud-node-controller"), true, true, true},
		"neither of two":      {deployment("cloud-controller-manager", "x", "--controllers", "*,-cloud-node-controller,-cloud-node-lifecycle-controller"), true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := CloudControllers([]appsv1.Deployment{c.d}, nil)
			if (len(got) == 1) != c.found || c.found && (got[0].WritesRoutes != c.write || got[0].KeepsNodes != c.nodes) {
				t.Errorf("%+v", got)
			}
		})
	}
	zero := int32(0)
	idle := deployment("cloud-controller-manager", "x")
	idle.Spec.Replicas = &zero
	if got := CloudControllers([]appsv1.Deployment{idle}, []appsv1.DaemonSet{{ObjectMeta: metav1.ObjectMeta{Name: "cloud-controller-manager"}}}); len(got) != 2 || got[0].Idle || !got[1].Idle {
		t.Errorf("%+v", got)
	}
}
