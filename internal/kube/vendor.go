package kube

import (
	"iter"
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
	// KeepsNodes says that they leave the node controller on, which makes new
	// nodes known and deletes those whose instance it does not find.
	KeepsNodes bool
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
			out = append(out, CloudController{Kind: kind, Namespace: namespace, Name: name, WritesRoutes: writesRoutes(args), KeepsNodes: keepsNodes(args), Idle: idle})
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
// by default, and --controllers.
func writesRoutes(args []string) bool {
	for name, value := range flags(args) {
		if name == "--configure-cloud-routes" && (value == "false" || value == "0" || value == "f") {
			return false
		}
	}
	return runs(args, "route", "node-route-controller")
}

// keepsNodes reads --controllers. The vendor's has one controller for nodes,
// those of k8s.io/cloud-provider have two, either of which is enough.
func keepsNodes(args []string) bool {
	return runs(args, "node", "cloud-node-controller", "cloud-node") || runs(args, "node", "cloud-node-lifecycle-controller", "cloud-node-lifecycle")
}

// runs says whether --controllers, whose default has all, leaves a controller on
// that is called one of the names.
func runs(args []string, names ...string) bool {
	on := true
	for flag, value := range flags(args) {
		if flag != "--controllers" {
			continue
		}
		list := strings.Split(value, ",")
		on = slices.Contains(list, "*")
		for _, name := range names {
			on = on || slices.Contains(list, name)
		}
		for _, name := range names {
			on = on && !slices.Contains(list, "-"+name)
		}
	}
	return on
}

// flags yields the names and values of flags, whether joined or apart.
func flags(args []string) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for i, arg := range args {
			name, value, given := strings.Cut(arg, "=")
			if !given && i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
				value = args[i+1]
			}
			if !yield(name, value) {
				return
			}
		}
	}
}
