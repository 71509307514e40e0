package install

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"ropeway.dev/ropeway/api/v1alpha1"
	"ropeway.dev/ropeway/internal/kube"
)

// MinimumKubernetes is the oldest API server that is supported. Its tokens name the
// node that they are bound to, which the admission policies rely on, and it admits
// CRDs whose rules use CEL's library of addresses: that came with 1.30, and an API
// server admits in new objects what the version before it knew.
const MinimumKubernetes = "1.31.0"

// Finding is something that stands in the way of an installation (Stops), or
// that whoever installs should know.
type Finding struct {
	Name   string `json:"name"` // of what was looked at
	Stops  bool   `json:"stops"`
	What   string `json:"what"`   // and where
	Remedy string `json:"remedy"` // what to do
}

// String is the finding as one line.
func (f Finding) String() string {
	if f.Remedy == "" {
		return f.What
	}
	return f.What + ": " + f.Remedy
}

// The names of findings.
const (
	FindingVersion    = "kubernetes-version"
	FindingOther      = "other-pod-network"
	FindingCloud      = "cloud-controller"
	FindingPolicies   = "network-policies"
	FindingRanges     = "address-ranges"
	FindingNodes      = "nodes"
	FindingKubeProxy  = "kube-proxy"
	FindingOwnObjects = "own-objects"
	FindingCleaner    = "cleaner" // of CleanerLeft: applying mends it by itself
)

func stops(name, remedy, what string, args ...any) Finding {
	return Finding{Name: name, Stops: true, What: fmt.Sprintf(what, args...), Remedy: remedy}
}

func warns(name, remedy, what string, args ...any) Finding {
	return Finding{Name: name, What: fmt.Sprintf(what, args...), Remedy: remedy}
}

// Preflight says what stands in the way of installing with the settings on the
// cluster that was surveyed. It decides; it changes nothing.
func Preflight(s Settings, survey *Survey, acceptNoPolicy bool) []Finding {
	var out []Finding
	out = append(out, checkVersion(survey)...)
	out = append(out, OtherNetworks(survey)...)
	out = append(out, checkCloudController(s, survey)...)
	out = append(out, checkPolicies(survey, acceptNoPolicy)...)
	out = append(out, checkRanges(s, survey)...)
	out = append(out, checkNodes(s, survey)...)
	out = append(out, checkKubeProxy(survey)...)
	out = append(out, checkOwnNames(survey)...)
	return out
}

// Stopping returns the findings that stop an installation.
func Stopping(findings []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return !f.Stops })
}

// MissingCRDs are those of Ropeway's own that are not in the cluster.
func (s *Survey) MissingCRDs() []string {
	var out []string
	for _, kind := range []string{"addressblocks", "addresspools", "clusternetworks", "nodenetworks"} {
		if _, there := s.OwnCRDs[kind+"."+v1alpha1.GroupVersion.Group]; !there {
			out = append(out, kind+"."+v1alpha1.GroupVersion.Group)
		}
	}
	return out
}

func checkVersion(s *Survey) []Finding {
	v, err := version.ParseGeneric(s.Version)
	if err != nil {
		return []Finding{warns(FindingVersion, "", "the API server's version %q is not understood", s.Version)}
	}
	if v.LessThan(version.MustParseGeneric(MinimumKubernetes)) {
		return []Finding{stops(FindingVersion, "upgrade the cluster first", "Kubernetes %s is older than %s, the oldest that is supported", s.Version, MinimumKubernetes)}
	}
	return nil
}

// product is a pod network by other people, or a part of one.
type product struct {
	name   string
	names  []string // of its DaemonSet or Deployment
	images []string // parts of its images' paths
}

func products() []product {
	return []product{
		{"Calico", []string{"calico-node", "canal"}, []string{"/calico/node", "/calico-node"}},
		{"Calico's operator", []string{"tigera-operator"}, []string{"tigera/operator"}},
		{"Spiderpool", []string{"spiderpool-agent", "spiderpool-controller"}, []string{"spiderpool/spiderpool-"}},
		{"flannel", []string{"kube-flannel-ds", "kube-flannel"}, []string{"flannel/flannel", "flannelcni/flannel", "coreos/flannel"}},
		{"Cilium", []string{"cilium", "cilium-operator"}, []string{"cilium/cilium", "cilium/operator"}},
		{"Terway", []string{"terway", "terway-eniip", "terway-eni"}, []string{"/terway"}},
		{"Weave Net", []string{"weave-net"}, []string{"weaveworks/weave-kube"}},
		{"kube-router", []string{"kube-router"}, []string{"cloudnativelabs/kube-router"}},
		{"kindnet", []string{"kindnet", "kindnetd"}, []string{"kindest/kindnetd"}},
		{"Antrea", []string{"antrea-agent", "antrea-controller"}, []string{"antrea/antrea-"}},
		{"Kube-OVN", []string{"kube-ovn-cni", "ovn-central"}, []string{"kubeovn/kube-ovn"}},
	}
}

// workload is a DaemonSet or Deployment, as far as telling who made it needs.
type workload struct {
	kind, namespace, name string
	images, args          []string
}

func workloads(s *Survey) []workload {
	var out []workload
	add := func(kind, namespace, name string, spec corev1.PodSpec) {
		w := workload{kind: kind, namespace: namespace, name: name}
		for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
			w.images = append(w.images, c.Image)
			w.args = append(w.args, slices.Concat(c.Command, c.Args)...)
		}
		out = append(out, w)
	}
	for _, d := range s.DaemonSets {
		add("DaemonSet", d.Namespace, d.Name, d.Spec.Template.Spec)
	}
	for _, d := range s.Deployments {
		add("Deployment", d.Namespace, d.Name, d.Spec.Template.Spec)
	}
	return out
}

// isOf goes by the images, and by the name of a DaemonSet: what has a pod network's
// name and is a Deployment may be anything.
func (w workload) isOf(p product) bool {
	if w.kind == "DaemonSet" && slices.Contains(p.names, w.name) {
		return true
	}
	return slices.ContainsFunc(w.images, func(image string) bool {
		name, _ := cutTag(image)
		return slices.ContainsFunc(p.images, func(part string) bool { return strings.Contains("/"+name, part) })
	})
}

// OtherNetworks finds pod networks by others that run in the cluster: two on
// one node fight over routes and conflists, and the pods lose.
func OtherNetworks(s *Survey) []Finding {
	var out []Finding
	for _, w := range workloads(s) {
		for _, p := range products() {
			if !w.isOf(p) {
				continue
			}
			out = append(out, stops(FindingOther,
				fmt.Sprintf("two pod networks cannot share a node; drain the nodes and remove it (kubectl -n %s delete %s %s, what came with it, and its conflist in /etc/cni/net.d of each node), or keep it and do not install Ropeway",
					w.namespace, strings.ToLower(w.kind), w.name),
				"%s runs in this cluster: %s %s in namespace %s", p.name, w.kind, w.name, w.namespace))
			break
		}
	}
	return out
}

// checkCloudController: routes for node CIDRs do no harm beside tunnels, but a
// route controller also writes the condition NetworkUnavailable. Where pods go by its
// routes, that is as agreed.
func checkCloudController(s Settings, survey *Survey) []Finding {
	if GoesByOthersRoutes(&s.Network) {
		return nil
	}
	var out []Finding
	for _, c := range kube.CloudControllers(survey.Deployments, survey.DaemonSets) {
		if c.WritesRoutes && !c.Idle {
			out = append(out, warns(FindingCloud, "run it with "+kube.RoutesFlag+", so that a node is available only when its pods are reachable",
				"%s writes routes and the condition NetworkUnavailable, which Ropeway's controller writes too", c))
		}
	}
	return out
}

// GoesByOthersRoutes reports whether pods may be reached by routes that somebody else
// makes: direct is allowed, and Ropeway publishes none.
func GoesByOthersRoutes(spec *v1alpha1.ClusterNetworkSpec) bool {
	return slices.Contains(spec.Transports, v1alpha1.TransportDirect) && !spec.Cloud.PublishesRoutes()
}

func checkPolicies(s *Survey, accept bool) []Finding {
	if len(s.Policies) == 0 {
		return nil
	}
	f := warns(FindingPolicies, "ropeway doctor will say so until they are gone, or a version that enforces them is installed",
		"%s (%s) will not be enforced by this version", counted(len(s.Policies), "NetworkPolicy", "NetworkPolicies"), strings.Join(firstFew(s.Policies), ", "))
	if !accept {
		f.Stops, f.Remedy = true, "what they forbid would be allowed; --accept-no-policy installs all the same"
	}
	return []Finding{f}
}

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// checkRanges holds the pod network against Services, nodes' addresses and
// nodes' podCIDRs.
func checkRanges(s Settings, survey *Survey) []Finding {
	var out []Finding
	for _, cidr := range s.Network.PodCIDRs {
		pod, err := netip.ParsePrefix(cidr)
		if err != nil {
			continue // Validate has refused it
		}
		for _, service := range survey.ServiceCIDRs {
			if p, err := netip.ParsePrefix(service); err == nil && p.Overlaps(pod) {
				out = append(out, stops(FindingRanges, "give another --pod-cidr", "the pod CIDR %s overlaps the Services' range %s", pod, p))
			}
		}
		if ip, err := netip.ParseAddr(survey.ServiceIP); err == nil && len(survey.ServiceCIDRs) == 0 && pod.Contains(ip) {
			out = append(out, stops(FindingRanges, "give another --pod-cidr", "the pod CIDR %s holds the address of the Service kubernetes, %s", pod, ip))
		}
		for _, n := range survey.Nodes {
			for _, a := range internalIPs(n) {
				if pod.Contains(a) {
					out = append(out, stops(FindingRanges, "give another --pod-cidr", "the pod CIDR %s holds the address %s of node %s", pod, a, n.Name))
				}
			}
		}
	}
	if outside := outsideOf(s.Network.PodCIDRs, survey.Nodes); len(outside) > 0 {
		out = append(out, stops(FindingRanges, "give the --cluster-cidr of kube-controller-manager as --pod-cidr",
			"nodes have podCIDRs outside of the pod network %s: %s", strings.Join(s.Network.PodCIDRs, ", "), strings.Join(firstFew(outside), ", ")))
	}
	return out
}

// outsideOf lists the nodes' podCIDRs that no given range holds, as
// "10.1.0.0/24 of node-a".
func outsideOf(ranges []string, nodes []corev1.Node) []string {
	var out []string
	for _, n := range nodes {
		for _, cidr := range n.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(cidr)
			if err != nil {
				continue
			}
			held := slices.ContainsFunc(ranges, func(r string) bool {
				whole, err := netip.ParsePrefix(r)
				return err == nil && whole.Bits() <= p.Bits() && whole.Contains(p.Addr())
			})
			if !held {
				out = append(out, fmt.Sprintf("%s of %s", p, n.Name))
			}
		}
	}
	return out
}

func internalIPs(n corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

// oldestKernel is the oldest that is expected to work; agents probe for what they need.
var oldestKernel = [2]int{5, 10}

// olderThan compares the first two numbers of a kernel's version, such as
// 5.10.0-26-amd64. What cannot be read is not older.
func olderThan(kernel string, than [2]int) bool {
	var have [2]int
	if n, err := fmt.Sscanf(kernel, "%d.%d", &have[0], &have[1]); err != nil || n != 2 {
		return false
	}
	return slices.Compare(have[:], than[:]) < 0
}

func checkNodes(s Settings, survey *Survey) []Finding {
	var out []Finding
	var bare, foreign, without, old []string
	for _, n := range survey.Nodes {
		if n.Labels[corev1.LabelOSStable] == "windows" {
			continue
		}
		if len(internalIPs(n)) == 0 {
			bare = append(bare, n.Name)
		}
		if arch := n.Status.NodeInfo.Architecture; arch != "" && arch != "amd64" && arch != "arm64" {
			foreign = append(foreign, n.Name+" ("+arch+")")
		}
		if len(n.Spec.PodCIDRs) == 0 {
			without = append(without, n.Name)
		}
		if kernel := n.Status.NodeInfo.KernelVersion; olderThan(kernel, oldestKernel) {
			old = append(old, n.Name+" ("+kernel+")")
		}
	}
	if len(old) > 0 {
		out = append(out, warns(FindingNodes, "their agents say what they lack; upgrade these nodes", "nodes with a kernel older than Linux %d.%d: %s", oldestKernel[0], oldestKernel[1], strings.Join(firstFew(old), ", ")))
	}
	if len(bare) > 0 {
		out = append(out, warns(FindingNodes, "peers reach a node at its InternalIP: set the kubelet's --node-ip", "nodes without an InternalIP: %s", strings.Join(firstFew(bare), ", ")))
	}
	if len(foreign) > 0 {
		out = append(out, stops(FindingNodes, "the image is for amd64 and arm64", "nodes of another architecture: %s", strings.Join(firstFew(foreign), ", ")))
	}
	if len(without) > 0 && s.Network.AddressSource == "NodeCIDR" {
		out = append(out, stops(FindingNodes, "run kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or install with --address-source Blocks",
			"addresses are to come from the nodes' podCIDRs, and these have none: %s", strings.Join(firstFew(without), ", ")))
	}
	return out
}

func checkKubeProxy(s *Survey) []Finding {
	if mode := s.ProxyMode; mode != "" && mode != "iptables" && mode != "nftables" {
		return []Finding{warns(FindingKubeProxy, "run it in nftables or iptables mode: how Services' packets leave in another is not known to work beside Ropeway",
			"kube-proxy runs in the mode %s", mode)}
	}
	for _, w := range workloads(s) {
		if strings.Contains(w.name, "kube-proxy") || slices.ContainsFunc(w.images, func(i string) bool { return strings.Contains(i, "/kube-proxy") }) {
			return nil
		}
	}
	return []Finding{warns(FindingKubeProxy, "fine if it runs on the nodes by itself; without it, Services do not work, since Ropeway does not replace it",
		"no DaemonSet of kube-proxy is in this cluster")}
}

// checkOwnNames: a CRD of our group that is there and not ours is never
// replaced.
func checkOwnNames(s *Survey) []Finding {
	var out []Finding
	for name, ours := range s.OwnCRDs {
		if !ours {
			out = append(out, stops(FindingOwnObjects, "it may hold somebody's objects: if it is a left-over, kubectl delete crd "+name+"; if it was applied by hand, kubectl label crd "+name+" "+LabelName+"="+ProductName,
				"the CustomResourceDefinition %s is there, and no installation of Ropeway's made it", name))
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.What, b.What) })
	return out
}
