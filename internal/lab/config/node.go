package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// Containerd is the configuration file of containerd.
func Containerd() string {
	return fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

# Plugins that a lab's machine may lack the kernel features for.
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.differ.v1.erofs",
]

[grpc]
  address = %q

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = %q

[plugins.'io.containerd.cri.v1.runtime']
  # A machine may deny the lab the right to lower an OOM score; without this
  # every sandbox fails there with "can't get final child's PID from pipe".
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = %q
        SystemdCgroup = false
`, ContainerdSocket, PauseImage, Binary("runc"))
}

// Kubelet is the configuration file of the kubelet.
func Kubelet(c Cluster, node netip.Addr) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %q
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
tlsCertFile: %s
tlsPrivateKeyFile: %s
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
# Machines that still have version 1 of cgroups are welcome.
failCgroupV1: false
failSwapOn: false
# The machine may deny the right to lower an OOM score.
oomScoreAdj: 0
clusterDomain: cluster.local
clusterDNS: [%q]
# The machine's resolver is not reachable from a lab's networks.
resolvConf: /dev/null
# Disk and images belong to the machine; a nearly full disk must not evict.
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%"}
localStorageCapacityIsolation: false
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
`, node, Certificate(CAName), Certificate(KubeletName), Key(KubeletName), ContainerdSocket, c.DNSAddress())
}

// Node is the i-th node's object, from 0, with what its kubelet does not add to a
// Node that is there when it registers: its podCIDRs, and with externalCloud the
// taint that keeps pods away until a cloud controller has made the node known.
func Node(c Cluster, name string, i int, externalCloud bool) string {
	var cidrs []string
	for _, cidr := range c.PodCIDRs {
		cidrs = append(cidrs, fmt.Sprintf("%q", NodeCIDR(cidr, i)))
	}
	taints := ""
	if externalCloud {
		taints = "  taints: [{key: node.cloudprovider.kubernetes.io/uninitialized, value: \"true\", effect: NoSchedule}]\n"
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Node
metadata: {name: %q}
spec:
  podCIDR: %s
  podCIDRs: [%s]
%s`, name, cidrs[0], strings.Join(cidrs, ", "), taints)
}

// KubeletCommand is the command line of the kubelet of a node; with externalCloud
// one that waits for a cloud controller to make the node known.
func KubeletCommand(name string, addresses []netip.Addr, externalCloud bool) []string {
	argv := []string{
		Binary("kubelet"),
		"--config=" + KubeletConfig,
		"--kubeconfig=" + Kubeconfig(KubeletName),
		"--hostname-override=" + name,
		"--node-ip=" + join(addresses),
	}
	if externalCloud {
		argv = append(argv, "--cloud-provider=external")
	}
	return argv
}

// KubeProxy is the configuration file of kube-proxy.
func KubeProxy(c Cluster, name string) string {
	bind := "0.0.0.0"
	if !c.Addresses[0].Is4() {
		bind = "::"
	}
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: %q
clientConnection: {kubeconfig: %s}
clusterCIDR: %q
mode: %s
hostnameOverride: %s
# These sysctls belong to the whole machine and are not writable from a node.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, bind, Kubeconfig(ProxyName), join(c.PodCIDRs), c.ProxyMode, name)
}

// KubeProxyCommand is the command line of kube-proxy.
func KubeProxyCommand() []string {
	return []string{Binary("kube-proxy"), "--config=" + KubeProxyConfig}
}

// ContainerdCommand is the command line of containerd.
func ContainerdCommand() []string {
	return []string{Binary("containerd"), "--config=" + ContainerdConfig}
}

// ImportCommand is the command line that imports an image archive into a
// node's containerd, for pods to find; "-" reads stdin.
func ImportCommand(archive string) []string {
	return []string{Binary("ctr"), "--address", ContainerdSocket, "--namespace", "k8s.io", "images", "import", archive}
}

// NodeSysctls are what an administrator sets on a node before Kubernetes is
// installed: path below /proc/sys -> value.
func NodeSysctls() map[string]string {
	return map[string]string{
		"net/ipv4/ip_forward":          "1",
		"net/ipv6/conf/all/forwarding": "1",
	}
}

// KubeletShadows are sysctls of the whole machine that the kubelet insists on;
// it finds them already set and leaves the machine's alone. The list is that
// of the kubelet's own container manager.
func KubeletShadows() map[string]string {
	return map[string]string{
		"vm/overcommit_memory":     "1",
		"vm/panic_on_oom":          "0",
		"kernel/panic":             "10",
		"kernel/panic_on_oops":     "1",
		"kernel/keys/root_maxkeys": "1000000",
		// 25 bytes for each key.
		"kernel/keys/root_maxbytes": "25000000",
	}
}
