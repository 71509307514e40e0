// Package config renders the command lines and configuration files of the
// lab's Kubernetes: pure functions from a description of the cluster to text.
//
// Where a setting differs from a plain cluster's, the reason stands beside it;
// the rest is what kubeadm would do.
package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
)

// Paths inside every host of a lab. Files lie where kubeadm puts them.
const (
	// BinDir holds the lab's programs, ImageDir the archives of the images.
	BinDir   = "/opt/ropeway-lab/bin"
	ImageDir = "/opt/ropeway-lab/images"
	// KubernetesDir holds certificates and kubeconfig files of this host.
	KubernetesDir = "/etc/kubernetes"
	// ContainerdConfig and the others are configuration files.
	ContainerdConfig = "/etc/containerd/config.toml"
	KubeletConfig    = "/var/lib/kubelet/config.yaml"
	KubeProxyConfig  = "/etc/kubernetes/kube-proxy.yaml"
	// ContainerdSocket is where clients of the runtime find it.
	ContainerdSocket = "/run/containerd/containerd.sock"
	// LogDir takes a log for each program.
	LogDir = "/var/log"
	// Path is the search path of a host's programs: the lab's own first.
	Path = BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// PauseImage is the image of every pod's sandbox.
	PauseImage = "lab.ropeway.dev/pause:3.10"
)

// Names of files below KubernetesDir: certificates X.crt with X.key, and
// kubeconfigs X.conf.
const (
	CAName         = "ca"
	APIServerName  = "apiserver"
	EtcdName       = "etcd"
	ToKubeletName  = "apiserver-kubelet-client"
	AdminName      = "admin"
	ManagerName    = "controller-manager"
	SchedulerName  = "scheduler"
	KubeletName    = "kubelet"
	ProxyName      = "kube-proxy"
	ServiceAccount = "sa"
)

// Certificate, Key and Kubeconfig are the paths of a name's files.
func Certificate(name string) string { return filepath.Join(KubernetesDir, "pki", name+".crt") }

// Key is the path of a private key.
func Key(name string) string { return filepath.Join(KubernetesDir, "pki", name+".key") }

// PublicKey is the path of a public key.
func PublicKey(name string) string { return filepath.Join(KubernetesDir, "pki", name+".pub") }

// Kubeconfig is the path of a kubeconfig.
func Kubeconfig(name string) string { return filepath.Join(KubernetesDir, name+".conf") }

// Binary is the path of one of the lab's programs.
func Binary(name string) string { return filepath.Join(BinDir, name) }

// Cluster describes what all configuration files of a lab agree on.
type Cluster struct {
	// Addresses are the control plane's, the primary family first.
	Addresses []netip.Addr
	// PodCIDRs and ServiceCIDRs hold one prefix for each family, the primary
	// family first.
	PodCIDRs     []netip.Prefix
	ServiceCIDRs []netip.Prefix
	// AllocateNodeCIDRs makes the controller-manager give nodes podCIDRs.
	AllocateNodeCIDRs bool
	// ProxyMode is kube-proxy's mode.
	ProxyMode string
}

// Port is the API server's.
const Port = 6443

// Server is the URL of the API server.
func (c Cluster) Server() string {
	return "https://" + netip.AddrPortFrom(c.Addresses[0], Port).String()
}

// ServiceAddress returns the n-th address of a service CIDR: 1 is the API
// server's by Kubernetes' own rule, 10 cluster DNS's by custom.
func ServiceAddress(cidr netip.Prefix, n int) netip.Addr {
	addr := cidr.Masked().Addr()
	for range n {
		addr = addr.Next()
	}
	return addr
}

// DNSAddress is the primary address of cluster DNS.
func (c Cluster) DNSAddress() netip.Addr { return ServiceAddress(c.ServiceCIDRs[0], DNSHost) }

// DNSHost is the number of cluster DNS's address in each service CIDR.
const DNSHost = 10

// NodeMask is the prefix length of a node's podCIDR, Kubernetes' own default.
func NodeMask(podCIDR netip.Prefix) int {
	if podCIDR.Addr().Is4() {
		return 24
	}
	return 64
}

// join renders prefixes as Kubernetes' flags take them.
func join[T fmt.Stringer](values []T) string {
	text := ""
	for i, v := range values {
		if i > 0 {
			text += ","
		}
		text += v.String()
	}
	return text
}

// NodeCIDR is the podCIDR of the i-th node, from 0: the i-th part of a cluster's.
func NodeCIDR(podCIDR netip.Prefix, i int) netip.Prefix {
	mask, address := NodeMask(podCIDR), podCIDR.Masked().Addr().AsSlice()
	for at := mask/8 - 1; i > 0 && at >= 0; at-- { // a node's mask ends with a byte
		i += int(address[at])
		address[at], i = byte(i), i>>8
	}
	addr, _ := netip.AddrFromSlice(address) // it was an address's slice
	return netip.PrefixFrom(addr, mask)
}
