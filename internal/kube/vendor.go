package kube

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// What a vendor's cloud controller manager leaves in a cluster.
const (
	// VendorLease is the Lease, in kube-system, of Alibaba Cloud's.
	VendorLease = "ccm"
	// RoutesFlag turns its route controller off.
	RoutesFlag = "--configure-cloud-routes=false"
	// ReasonRouteCreated and ReasonNoRouteCreated are the reasons that route
	// controllers give in the node condition NetworkUnavailable: those of
	// k8s.io/cloud-provider and Alibaba Cloud's alike.
	ReasonRouteCreated   = "RouteCreated"
	ReasonNoRouteCreated = "NoRouteCreated"
)

// CloudController is a workload that runs a vendor's cloud controller manager.
type CloudController struct {
	Kind, Namespace, Name string
	// WritesRoutes says that its flags leave the route controller on, which
	// then also writes the node condition NetworkUnavailable.
	WritesRoutes bool
	// Idle says that it is scaled to nothing.
	Idle bool
}

// String is "Deployment cloud-controller-manager in namespace kube-system".
func (c CloudController) String() string {
	return c.Kind + " " + c.Name + " in namespace " + c.Namespace
}

// CloudControllers finds the cloud controller managers among workloads, by
// their names and their images'.
func CloudControllers(deployments []appsv1.Deployment, daemonSets []appsv1.DaemonSet) []CloudController {
	var out []CloudController
	add := func(kind, namespace, name string, spec corev1.PodSpec, idle bool) {
		if args, found := controllerArguments(name, spec); found {
			out = append(out, CloudController{Kind: kind, Namespace: namespace, Name: name, WritesRoutes: writesRoutes(args), Idle: idle})
		}
	}
	for _, d := range daemonSets {
		add("DaemonSet", d.Namespace, d.Name, d.Spec.Template.Spec, false)
	}
	for _, d := range deployments {
		add("Deployment", d.Namespace, d.Name, d.Spec.Template.Spec, d.Spec.Replicas != nil && *d.Spec.Replicas == 0)
	}
	return out
}

// controllerArguments returns the words of the command line of a cloud
// controller manager, shells' command strings taken apart.
func controllerArguments(name string, spec corev1.PodSpec) ([]string, bool) {
	const program = "cloud-controller-manager"
	found := strings.Contains(name, program)
	var args []string
	for _, c := range spec.Containers {
		found = found || strings.Contains(c.Image, program)
		for _, arg := range slices.Concat(c.Command, c.Args) {
			args = append(args, strings.Fields(arg)...)
		}
	}
	return args, found
}

// writesRoutes reads the flags that decide it: --configure-cloud-routes, true
// by default, and --controllers, whose default has the route controller.
func writesRoutes(args []string) bool {
	on := true
	for i, arg := range args {
		name, value, given := strings.Cut(arg, "=")
		if !given && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			value = args[i+1]
		}
		switch name {
		case "--configure-cloud-routes":
			on = on && value != "false" && value != "0" && value != "f"
		case "--controllers":
			on = on && runsRoutes(strings.Split(value, ","))
		}
	}
	return on
}

func runsRoutes(controllers []string) bool {
	for _, name := range []string{"route", "node-route-controller"} {
		if slices.Contains(controllers, "-"+name) {
			return false
		}
		if slices.Contains(controllers, name) {
			return true
		}
	}
	return slices.Contains(controllers, "*")
}
