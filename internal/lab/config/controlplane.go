package config

import "fmt"

// etcdPort is on the loopback of the control plane's host.
const (
	etcdPort     = 2379
	etcdPeerPort = 2380
)

// EtcdDir is etcd's data directory.
const EtcdDir = "/var/lib/etcd"

// Etcd is the command line of etcd.
func Etcd() []string {
	client := fmt.Sprintf("https://127.0.0.1:%d", etcdPort)
	peer := fmt.Sprintf("http://127.0.0.1:%d", etcdPeerPort)
	return []string{
		Binary("etcd"),
		"--name=lab",
		"--data-dir=" + EtcdDir,
		// A lab's data does not outlive the machine; waiting for the disk
		// would only make it slower.
		"--unsafe-no-fsync",
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=lab=" + peer,
		"--cert-file=" + Certificate(EtcdName),
		"--key-file=" + Key(EtcdName),
		"--client-cert-auth",
		"--trusted-ca-file=" + Certificate(CAName),
		"--log-level=warn",
	}
}

// EtcdHealth is a URL that answers 200 when etcd serves.
func EtcdHealth() string { return fmt.Sprintf("https://127.0.0.1:%d/health", etcdPort) }

// APIServer is the command line of kube-apiserver.
func APIServer(c Cluster) []string {
	return []string{
		Binary("kube-apiserver"),
		"--advertise-address=" + c.Addresses[0].String(),
		fmt.Sprintf("--secure-port=%d", Port),
		fmt.Sprintf("--etcd-servers=https://127.0.0.1:%d", etcdPort),
		"--etcd-cafile=" + Certificate(CAName),
		"--etcd-certfile=" + Certificate(APIServerName),
		"--etcd-keyfile=" + Key(APIServerName),
		"--tls-cert-file=" + Certificate(APIServerName),
		"--tls-private-key-file=" + Key(APIServerName),
		"--client-ca-file=" + Certificate(CAName),
		"--anonymous-auth=false",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--kubelet-certificate-authority=" + Certificate(CAName),
		"--kubelet-client-certificate=" + Certificate(ToKubeletName),
		"--kubelet-client-key=" + Key(ToKubeletName),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-cluster-ip-range=" + join(c.ServiceCIDRs),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + PublicKey(ServiceAccount),
		"--service-account-signing-key-file=" + Key(ServiceAccount),
		// Network components are privileged pods.
		"--allow-privileged=true",
		"--profiling=false",
	}
}

// APIServerHealth is a URL that answers 200 when the API server serves and
// its built-in roles are in place.
func APIServerHealth() string { return fmt.Sprintf("https://127.0.0.1:%d/readyz", Port) }

// Health ports of the other programs, on the loopback of their host.
const (
	ControllerManagerHealth = "https://127.0.0.1:10257/healthz"
	SchedulerHealth         = "https://127.0.0.1:10259/healthz"
	KubeletHealth           = "http://127.0.0.1:10248/healthz"
)

// ControllerManager is the command line of kube-controller-manager.
func ControllerManager(c Cluster) []string {
	args := []string{
		Binary("kube-controller-manager"),
		"--kubeconfig=" + Kubeconfig(ManagerName),
		"--authentication-kubeconfig=" + Kubeconfig(ManagerName),
		"--authorization-kubeconfig=" + Kubeconfig(ManagerName),
		"--authorization-always-allow-paths=/healthz,/readyz,/livez",
		"--bind-address=127.0.0.1",
		// There is one; an election would only cost seconds at the start.
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--root-ca-file=" + Certificate(CAName),
		"--service-account-private-key-file=" + Key(ServiceAccount),
		"--cluster-signing-cert-file=" + Certificate(CAName),
		"--cluster-signing-key-file=" + Key(CAName),
		"--service-cluster-ip-range=" + join(c.ServiceCIDRs),
		"--kube-api-qps=1000", "--kube-api-burst=2000",
		fmt.Sprintf("--allocate-node-cidrs=%t", c.AllocateNodeCIDRs),
	}
	if !c.AllocateNodeCIDRs {
		return args
	}
	args = append(args, "--cluster-cidr="+join(c.PodCIDRs))
	for _, cidr := range c.PodCIDRs {
		family := "ipv6"
		if cidr.Addr().Is4() {
			family = "ipv4"
		}
		args = append(args, fmt.Sprintf("--node-cidr-mask-size-%s=%d", family, NodeMask(cidr)))
	}
	return args
}

// Scheduler is the command line of kube-scheduler.
func Scheduler() []string {
	return []string{
		Binary("kube-scheduler"),
		"--kubeconfig=" + Kubeconfig(SchedulerName),
		"--authentication-kubeconfig=" + Kubeconfig(SchedulerName),
		"--authorization-kubeconfig=" + Kubeconfig(SchedulerName),
		"--authorization-always-allow-paths=/healthz,/readyz,/livez",
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--kube-api-qps=1000", "--kube-api-burst=2000",
	}
}
