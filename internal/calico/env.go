package calico

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"ropeway.dev/ropeway/api/v1alpha1"
)

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// readEnv speaks of each variable, by the first rule that knows it.
func (r *reader) readEnv(where string, env []corev1.EnvVar) {
	for _, e := range env {
		f := r.add(where, e.Name, e.Value)
		switch {
		case e.ValueFrom != nil:
			readReference(f, *e.ValueFrom)
		case r.readPoolVariable(f), r.readNodeVariable(f), r.readFelixVariable(f):
		default:
			f.say(Refused, "not a variable of Calico's that this version knows: remove it if nothing depends on it")
		}
	}
}

// readReference speaks of a variable whose value stands elsewhere.
func readReference(f *Finding, from corev1.EnvVarSource) {
	switch {
	case from.ConfigMapKeyRef != nil && from.ConfigMapKeyRef.Name == "calico-config":
		f.Value = "(ConfigMap calico-config, " + from.ConfigMapKeyRef.Key + ")"
		f.say(Harmless, "the ConfigMap's own key is what counts")
	case from.ConfigMapKeyRef != nil && from.ConfigMapKeyRef.Optional != nil && *from.ConfigMapKeyRef.Optional:
		// kubernetes-services-endpoint, which the manifest offers for eBPF mode.
		f.Value = "(ConfigMap " + from.ConfigMapKeyRef.Name + ", optional)"
		f.say(Translated, "--api-server, if it was set there: agents reach the API server directly")
	case from.FieldRef != nil || from.ResourceFieldRef != nil:
		f.Value = "(the pod's own field)"
		f.say(Harmless, "the agent knows it")
	case strings.HasPrefix(f.Key, "ETCD_"):
		f.say(Harmless, "Ropeway keeps its state in the Kubernetes API")
	default:
		f.say(Refused, "its value stands in another object, which is not read: write the value itself")
	}
}

// readPoolVariable knows what describes Calico's first pools.
func (r *reader) readPoolVariable(f *Finding) bool {
	switch f.Key {
	case "CALICO_IPV4POOL_CIDR", "CALICO_IPV6POOL_CIDR":
		r.readPoolCIDR(f)
	case "CALICO_IPV4POOL_BLOCK_SIZE":
		r.out.BlockSizeIPv4 = readBlockSize(f, 20, 31)
	case "CALICO_IPV6POOL_BLOCK_SIZE":
		r.out.BlockSizeIPv6 = readBlockSize(f, 112, 127)
	case "CALICO_IPV4POOL_IPIP":
		r.ipip4 = f
	case "CALICO_IPV4POOL_VXLAN":
		r.vxlan4 = f
	case "CALICO_IPV6POOL_VXLAN":
		r.vxlan6 = f
	case "CALICO_IPV4POOL_NAT_OUTGOING":
		r.readNATOutgoing(f)
	case "CALICO_IPV6POOL_NAT_OUTGOING":
		if isTrue(f.Value) {
			f.say(Honoured, "spec.nat.outgoing is for both families")
		} else {
			f.say(Translated, "spec.nat.outgoing is for both families; it follows CALICO_IPV4POOL_NAT_OUTGOING")
		}
	case "CALICO_IPV4POOL_NODE_SELECTOR", "CALICO_IPV6POOL_NODE_SELECTOR":
		refuseUnless(f, f.Value == "all()", "pools for some of the nodes are not in this version")
	case "CALICO_IPV4POOL_DISABLE_BGP_EXPORT", "CALICO_IPV6POOL_DISABLE_BGP_EXPORT":
		f.say(Harmless, "there is no BGP")
	case "NO_DEFAULT_POOLS":
		if isTrue(f.Value) {
			f.say(Translated, "give the ranges with --pod-cidr")
		} else {
			f.say(Harmless, "")
		}
	default:
		return false
	}
	return true
}

func (r *reader) readPoolCIDR(f *Finding) {
	p, err := netip.ParsePrefix(f.Value)
	six := f.Key == "CALICO_IPV6POOL_CIDR"
	switch {
	case err != nil:
		f.say(Refused, "not a CIDR: write it like 10.244.0.0/16 or fd00:10:244::/48")
		return
	case p.Addr().Is4() == six:
		f.say(Refused, "a CIDR of the other family")
		return
	case p != p.Masked():
		f.say(Refused, "bits are set behind the prefix: %s is meant", p.Masked())
		return
	}
	r.cidr6 = r.cidr6 || six
	r.out.PodCIDRs = append(r.out.PodCIDRs, p.String())
	f.say(Translated, "spec.podCIDRs of the ClusterNetwork")
}

func readBlockSize(f *Finding, low, high int) int32 {
	n, err := strconv.Atoi(f.Value)
	if err != nil || n < low || n > high {
		f.say(Refused, "want a prefix length from %d to %d", low, high)
		return 0
	}
	f.say(Translated, "spec.blockSize of the ClusterNetwork")
	return int32(n)
}

func (r *reader) readNATOutgoing(f *Finding) {
	v, err := strconv.ParseBool(f.Value)
	if err != nil {
		f.say(Refused, "want true or false")
		return
	}
	r.out.Masquerade = &v
	f.say(Translated, "spec.nat.outgoing: %t", v)
}

// readNodeVariable knows calico-node's own variables and install-cni's.
func (r *reader) readNodeVariable(f *Finding) bool {
	switch f.Key {
	case "CALICO_NETWORKING_BACKEND":
		r.readBackend(f)
	case "USE_POD_CIDR":
		r.usePodCIDR = f
	case "IP", "IP6":
		refuseUnless(f, slices.Contains([]string{"autodetect", "none", ""}, f.Value),
			"one address for every node: the Node's InternalIP is used; set it with the kubelet's --node-ip")
	case "IP_AUTODETECTION_METHOD", "IP6_AUTODETECTION_METHOD":
		readAutodetection(f)
	case "DATASTORE_TYPE":
		f.say(Harmless, "Ropeway keeps its state in the Kubernetes API")
	case "KUBERNETES_SERVICE_HOST":
		r.out.APIServerHost = f.Value
		f.say(Translated, "--api-server")
	case "KUBERNETES_SERVICE_PORT":
		r.out.APIServerPort = f.Value
		f.say(Translated, "--api-server")
	case "CNI_MTU":
		r.readMTU(f)
	case "CNI_CONF_NAME":
		f.say(Translated, "the file is 10-ropeway.conflist, so that both products' files are told apart")
	case "CNI_NET_DIR":
		f.say(Harmless, "the directory of the volume cni-net-dir is what counts")
	case "CALICO_MANAGE_CNI":
		f.say(Harmless, "the plugin has no token to be refreshed")
	default:
		note, known := harmlessVariables()[f.Key]
		if !known && strings.HasPrefix(f.Key, "ETCD_") {
			note, known = "Ropeway keeps its state in the Kubernetes API", true
		}
		if !known {
			return false
		}
		f.say(Harmless, "%s", note)
	}
	return true
}

func harmlessVariables() map[string]string {
	const bgp, node, install = "there is no BGP", "the agent knows its Node", "the agent installs atomically"
	return map[string]string{
		"AS":                            bgp,
		"CALICO_ROUTER_ID":              bgp,
		"CLUSTER_TYPE":                  "a label for Calico's statistics",
		"WAIT_FOR_DATASTORE":            "the agent always waits, and keeps the kernel as it is meanwhile",
		"NODENAME":                      node,
		"KUBERNETES_NODE_NAME":          node,
		"CALICO_K8S_NODE_REF":           node,
		"DISABLE_NODE_IP_CHECK":         node,
		"AUTODETECT_POLL_INTERVAL":      node,
		"CALICO_DISABLE_FILE_LOGGING":   "logs go to the container's output only",
		"CALICO_CNI_SERVICE_ACCOUNT":    "the plugin has no API credentials",
		"CALICO_API_GROUP":              "Calico's objects are not used",
		"SLEEP":                         install,
		"UPDATE_CNI_BINARIES":           install,
		"CNI_OLD_CONF_NAME":             install,
		"SKIP_TLS_VERIFY":               "the plugin does not talk to the API server",
		"CNI_TOKEN_REFRESH_INTERVAL":    "the plugin has no API credentials",
		"KUBERNETES_SERVICE_PORT_HTTPS": "the API server's port is KUBERNETES_SERVICE_PORT",
	}
}

func readAutodetection(f *Finding) {
	switch f.Value {
	case "kubernetes-internal-ip":
		f.say(Honoured, "the Node's InternalIP is what peers use")
	case "", "first-found":
		f.say(Translated, "the Node's InternalIP is what peers use")
	default:
		f.say(Translated, "the Node's InternalIP is what peers use: if that is another address than %s finds, set the kubelet's --node-ip", f.Value)
	}
}

func (r *reader) readBackend(f *Finding) {
	switch f.Value {
	case "bird":
		f.say(Harmless, "no BIRD is needed: the agent programs every route")
	case "vxlan":
		r.backend = f
	case "none":
		f.say(Refused, "policy beside another pod network is not in this version")
	default:
		f.say(Refused, "not a backend: bird, vxlan and none are")
	}
}

// readMTU takes a pod's MTU: 0 is "find out".
func (r *reader) readMTU(f *Finding) {
	n, err := strconv.Atoi(f.Value)
	switch {
	case err != nil:
		f.say(Refused, "want a number of bytes, or 0 to find out")
	case n == 0:
		f.say(Honoured, "found out: pods have the uplink's MTU, each route its transport's")
	case n < 1280 || n > 65535:
		f.say(Refused, "want 1280 to 65535 bytes (IPv6 needs 1280), or 0 to find out")
	default:
		if r.out.MTU == 0 || n < r.out.MTU {
			r.out.MTU = n // Calico's pods have the smallest of what is enabled
		}
		f.say(Translated, "spec.mtu: %d, for pods", r.out.MTU)
	}
}

func (r *reader) allow(t ...v1alpha1.Transport) { r.out.Transports = t }

func refuseUnless(f *Finding, ok bool, why string) {
	if ok {
		f.say(Harmless, "")
	} else {
		f.say(Refused, "%s", why)
	}
}

func isTrue(s string) bool {
	v, err := strconv.ParseBool(s)
	return err == nil && v
}
