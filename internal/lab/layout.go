package lab

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pidone"
	"ropeway.dev/ropeway/internal/lab/vpc"
)

// Names of the hosts that are no nodes.
const (
	controlPlaneHost = "control-plane"
	outsideHost      = vpc.OutsideHost
	cloudHost        = "cloud"
)

// OutsideCommand is the hidden command of ropeway-lab that serves the outside
// world's HTTP.
const OutsideCommand = "__outside"

// nodeName returns the name of the i-th node, counted from 1: the scenario's
// two, then further ones of their kind.
func nodeName(i int) string { return "cn-chengdu.i-2vcxx" + string(rune('r'+i-1)) }

// hostAddresses returns the addresses of a host in the vSwitch of that number:
// the control plane's is 0, the nodes' their own. On a switch they are the same,
// in one subnet.
func hostAddresses(o Options, vswitch int) []netip.Prefix {
	bits4, bits6 := 24, 64
	if o.Fabric == Switch {
		bits4, bits6 = 16, 48
	}
	var addresses []netip.Prefix
	if o.Family.has4() {
		addresses = append(addresses, netip.MustParsePrefix(fmt.Sprintf("192.168.%d.%d/%d", vswitch, 10+vswitch, bits4)))
	}
	if o.Family.has6() {
		addresses = append(addresses, netip.MustParsePrefix(fmt.Sprintf("fd00:192:168:%x::%d/%d", vswitch, 10+vswitch, bits6)))
	}
	return addresses
}

// draw turns options into the manifest of a lab that does not exist yet.
func draw(o Options) *ledger.Manifest {
	dir := o.Store.Dir(o.Name)
	host := func(name string, role ledger.Role, addresses []netip.Prefix) ledger.Host {
		return ledger.Host{
			Name: name, Role: role, Addresses: addresses,
			Netns: ledger.NetnsPrefix(o.Name) + name,
			Dir:   filepath.Join(dir, "hosts", name),
		}
	}
	m := &ledger.Manifest{
		Name: o.Name, Phase: ledger.Starting, Nodes: o.Nodes, Switch: o.Fabric == Switch, ExternalCloud: o.CloudProvider == External,
		PodCIDRs: o.PodCIDRs, ServiceCIDRs: o.ServiceCIDRs,
		AllocateNodeCIDRs: o.AllocateNodeCIDRs, ProxyMode: o.ProxyMode,
		Kubeconfig: filepath.Join(dir, "admin.conf"),
	}
	m.Hosts = append(m.Hosts, host(controlPlaneHost, ledger.ControlPlane, hostAddresses(o, 0)))
	for i := 1; i <= o.Nodes; i++ {
		m.Hosts = append(m.Hosts, host(nodeName(i), ledger.Node, hostAddresses(o, i)))
	}
	if o.Fabric == VPC {
		m.Hosts = append(m.Hosts, host(cloudHost, ledger.Cloud, cloudAddresses(o.Family)))
	}
	outside := host(outsideHost, ledger.Outside, nil)
	outside.Netns = vpc.OutsideNetns(o.Name)
	m.Hosts = append(m.Hosts, outside)
	m.APIServer = clusterOf(m).Server()
	return m
}

// clusterOf is what the configuration files of a lab agree on.
func clusterOf(m *ledger.Manifest) config.Cluster {
	return config.Cluster{
		Addresses: addrs(m.Hosts[0]), PodCIDRs: m.PodCIDRs, ServiceCIDRs: m.ServiceCIDRs,
		AllocateNodeCIDRs: m.AllocateNodeCIDRs, ProxyMode: m.ProxyMode,
	}
}

// addrs are a host's addresses without their prefix lengths.
func addrs(h ledger.Host) []netip.Addr {
	var all []netip.Addr
	for _, p := range h.Addresses {
		all = append(all, p.Addr())
	}
	return all
}

// network is the VPC of a lab.
func network(m *ledger.Manifest) vpc.Spec {
	spec := vpc.Spec{Lab: m.Name, PodCIDRs: m.PodCIDRs, Switch: m.Switch}
	for _, h := range m.Hosts {
		if h.Role != ledger.Outside {
			spec.Hosts = append(spec.Hosts, vpc.Host{Name: h.Name, Netns: h.Netns, Addresses: h.Addresses})
		}
	}
	return spec
}

// Directories below a lab's own.
func binDir(dir string) string   { return filepath.Join(dir, "bin") }
func imageDir(dir string) string { return filepath.Join(dir, "images") }

// hostDirs maps directories below a host's own to where the host sees them.
// All of them lie on a real file system, which overlayfs needs for containers,
// and hide what the machine has in that place.
func hostDirs() map[string]string {
	return map[string]string{
		"log":        config.LogDir,
		"lib":        "/var/lib",
		"kubernetes": config.KubernetesDir,
		"cni-etc":    "/etc/cni",
		"cni-opt":    "/opt/cni",
		"run":        "/run/ropeway-lab",
	}
}

const stateFile = "state.json"

// kubeletGate is the file, below a host's run directory, that lets its kubelet
// start.
const kubeletGate = "kubelet-may-start"

// gatePath is where the lab makes the gate of a node's kubelet.
func gatePath(h ledger.Host) string { return filepath.Join(h.Dir, "run", kubeletGate) }

// statePath is where the lab finds what a host's programs do.
func statePath(h ledger.Host) string { return filepath.Join(h.Dir, "run", stateFile) }

// describe is the description of a host for its first process.
func describe(m *ledger.Manifest, h ledger.Host, dir string, layout cgroup.Layout) pidone.Spec {
	spec := pidone.Spec{
		Hostname: h.Name,
		Scratch:  filepath.Join(h.Dir, "scratch"),
		Cgroups:  layout,
		State:    filepath.Join(hostDirs()["run"], stateFile),
		Binds: []pidone.Bind{
			{Source: binDir(dir), Target: config.BinDir, ReadOnly: true},
		},
		Files: identity(m.Name, h),
	}
	for _, name := range slices.Sorted(maps.Keys(hostDirs())) {
		spec.Binds = append(spec.Binds, pidone.Bind{Source: filepath.Join(h.Dir, name), Target: hostDirs()[name]})
	}
	cluster := clusterOf(m)
	switch h.Role {
	case ledger.ControlPlane:
		spec.Programs = controlPlanePrograms(cluster)
	case ledger.Outside:
		spec.Programs = []pidone.Program{program("outside", []string{config.Binary("ropeway-lab"), OutsideCommand})}
	case ledger.Cloud:
		spec.Programs = []pidone.Program{cloudProgram()}
		// The API's route tables are the VPC's.
		path := filepath.Join("/run/netns", vpc.Netns(m.Name))
		spec.Binds = append(spec.Binds, pidone.Bind{Source: path, Target: path})
	case ledger.Node:
		spec.Sysctls, spec.Shadows = config.NodeSysctls(), config.KubeletShadows()
		spec.Files = append(spec.Files,
			text(config.ContainerdConfig, config.Containerd()),
			text(config.KubeletConfig, config.Kubelet(cluster, h.Addresses[0].Addr())),
			text(config.KubeProxyConfig, config.KubeProxy(cluster, h.Name)))
		spec.Programs = nodePrograms(h, m.ExternalCloud)
	}
	return spec
}

// identity is what tells a host from the machine that it runs on.
func identity(lab string, h ledger.Host) []pidone.File {
	id := md5.Sum([]byte(lab + "/" + h.Name))
	hosts := "127.0.0.1 localhost\n::1 localhost\n"
	for _, a := range addrs(h) {
		hosts += fmt.Sprintf("%s %s\n", a, h.Name)
	}
	return []pidone.File{
		text("/etc/hostname", h.Name+"\n"),
		text("/etc/hosts", hosts),
		text("/etc/machine-id", hex.EncodeToString(id[:])+"\n"),
		text("/etc/resolv.conf", "# a lab's networks have no resolver outside the cluster\n"),
	}
}

func text(path, content string) pidone.File {
	return pidone.File{Path: path, Content: content, Mode: 0o644}
}

// program is a program that runs for as long as its host.
func program(name string, argv []string, after ...string) pidone.Program {
	return pidone.Program{
		Name: name, Argv: argv, After: after,
		Env: []string{"PATH=" + config.Path, "HOME=/root"},
		Log: filepath.Join(config.LogDir, name+".log"),
	}
}

func controlPlanePrograms(c config.Cluster) []pidone.Program {
	etcd := program("etcd", config.Etcd())
	etcd.Ready = &pidone.Probe{URL: config.EtcdHealth(), Authority: config.Certificate(config.CAName),
		Certificate: config.Certificate(config.APIServerName), Key: config.Key(config.APIServerName)}
	// No order between etcd and the API server: it waits for etcd by itself.
	api := program("kube-apiserver", config.APIServer(c))
	api.Ready = &pidone.Probe{URL: config.APIServerHealth(), Authority: config.Certificate(config.CAName),
		Certificate: config.Certificate(config.AdminName), Key: config.Key(config.AdminName)}
	manager := program("kube-controller-manager", config.ControllerManager(c), "kube-apiserver")
	manager.Ready = &pidone.Probe{URL: config.ControllerManagerHealth}
	scheduler := program("kube-scheduler", config.Scheduler(), "kube-apiserver")
	scheduler.Ready = &pidone.Probe{URL: config.SchedulerHealth}
	return []pidone.Program{etcd, api, manager, scheduler}
}

// nodePrograms starts kube-proxy at once and the kubelet as soon as it may.
func nodePrograms(h ledger.Host, externalCloud bool) []pidone.Program {
	kubelet := program("kubelet", config.KubeletCommand(h.Name, addrs(h), externalCloud), "containerd")
	kubelet.Gate = filepath.Join(hostDirs()["run"], kubeletGate)
	kubelet.Ready = &pidone.Probe{URL: config.KubeletHealth}
	return []pidone.Program{containerd(), kubelet, program("kube-proxy", config.KubeProxyCommand())}
}

func containerd() pidone.Program {
	p := program("containerd", config.ContainerdCommand())
	p.Ready = &pidone.Probe{Unix: config.ContainerdSocket}
	return p
}
