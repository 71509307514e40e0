package lab

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ropeway.dev/ropeway/internal/lab/cgroup"
	"ropeway.dev/ropeway/internal/lab/ledger"
)

func drawn(o Options) *ledger.Manifest { return draw(o.complete()) }

func options(change func(*Options)) Options {
	o := DefaultOptions()
	change(&o)
	return o
}

func TestEachNodeHasAVSwitchOfItsOwn(t *testing.T) {
	m := drawn(options(func(o *Options) { o.Family, o.Nodes = Dual, MaxNodes }))
	seen := map[netip.Prefix]string{}
	for _, h := range m.Hosts {
		if h.Role == ledger.Outside || h.Role == ledger.Cloud {
			continue
		}
		if len(h.Addresses) != 2 || !h.Addresses[0].Addr().Is4() || !h.Addresses[1].Addr().Is6() {
			t.Errorf("%s has %v, want IPv4 then IPv6", h.Name, h.Addresses)
		}
		for _, a := range h.Addresses {
			if other, taken := seen[a.Masked()]; taken {
				t.Errorf("%s and %s share the vSwitch %s", h.Name, other, a.Masked())
			}
			seen[a.Masked()] = h.Name
		}
	}
	if len(m.Hosts) != MaxNodes+3 {
		t.Errorf("%d hosts, want the nodes, the control plane, the cloud and the outside", len(m.Hosts))
	}
}

// TestHostsOnASwitch: one subnet for each family, the VPC's addresses, no cloud.
func TestHostsOnASwitch(t *testing.T) {
	m := drawn(options(func(o *Options) { o.Fabric, o.Family, o.Nodes = Switch, Dual, 3 }))
	if _, found := m.Host(cloudHost); found || !m.Switch {
		t.Errorf("the lab has a cloud (%t), or no switch (%t)", found, m.Switch)
	}
	subnets := map[netip.Prefix]bool{}
	for _, h := range m.Hosts {
		for _, a := range h.Addresses {
			subnets[a.Masked()] = true
		}
	}
	for _, want := range vpcRange() {
		if !subnets[want] || len(subnets) != 2 {
			t.Errorf("hosts are in %v, want all in %s", subnets, want)
		}
	}
}

func TestNamesBelongToOneLab(t *testing.T) {
	a := drawn(options(func(o *Options) { o.Name = "a" }))
	b := drawn(options(func(o *Options) { o.Name = "ab" }))
	for _, h := range b.Hosts {
		if strings.HasPrefix(h.Netns, ledger.NetnsPrefix(a.Name)) {
			t.Errorf("taking down lab %q would take %s of lab %q", a.Name, h.Netns, b.Name)
		}
	}
	for _, h := range a.Hosts {
		if !strings.HasPrefix(h.Netns, ledger.NetnsPrefix(a.Name)) {
			t.Errorf("taking down lab %q would leave %s", a.Name, h.Netns)
		}
	}
}

// The kubelets' images, and what pid 1 does, hang together by names.
func TestProgramsComeAfterProgramsThatExist(t *testing.T) {
	m := drawn(DefaultOptions())
	for _, h := range m.Hosts {
		spec := describe(m, h, "/lab", cgroup.Layout{})
		var names []string
		for _, p := range spec.Programs {
			names = append(names, p.Name)
		}
		for _, p := range spec.Programs {
			for _, before := range p.After {
				if !slices.Contains(names, before) {
					t.Errorf("%s: %s comes after %q, which does not exist", h.Name, p.Name, before)
				}
			}
		}
	}
}

func TestHostsHideTheMachinesDirectories(t *testing.T) {
	m := drawn(DefaultOptions())
	node := m.Hosts[1]
	spec := describe(m, node, "/lab", cgroup.Layout{})
	for _, target := range []string{"/var/lib", "/var/log", "/etc/cni", "/opt/cni", "/etc/kubernetes"} {
		found := false
		for _, b := range spec.Binds {
			if b.Target == target {
				found = true
				if !strings.HasPrefix(b.Source, node.Dir+"/") || b.ReadOnly {
					t.Errorf("%s is %+v, want a writable directory of the node", target, b)
				}
			}
		}
		if !found {
			t.Errorf("%s is the machine's", target)
		}
	}
	for _, path := range []string{"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"} {
		if spec.Shadows[path] == "" {
			t.Errorf("the kubelet would change the machine's %s", path)
		}
	}
}

func TestSecretsGoWhereTheyBelong(t *testing.T) {
	o := options(func(o *Options) { o.Store, o.Family = ledger.Store(t.TempDir()), Dual })
	m := drawn(o)
	if err := os.MkdirAll(o.Store.Dir(o.Name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writeSecrets(m, time.Now()); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]string{
		{"controller-manager.conf", "pki/admin.crt", "pki/admin.key", "pki/apiserver-kubelet-client.crt", "pki/apiserver-kubelet-client.key",
			"pki/apiserver.crt", "pki/apiserver.key", "pki/ca.crt", "pki/ca.key", "pki/etcd.crt", "pki/etcd.key", "pki/sa.key", "pki/sa.pub", "scheduler.conf"},
		// A node must not hold the authority's key, nor an administrator's.
		{"kube-proxy.conf", "kubelet.conf", "pki/ca.crt", "pki/kubelet.crt", "pki/kubelet.key"},
	} {
		if got := listFiles(t, filepath.Join(m.Hosts[i].Dir, "kubernetes")); !slices.Equal(got, want) {
			t.Errorf("%s holds\n%v, want\n%v", m.Hosts[i].Name, got, want)
		}
	}
	outside := m.Hosts[len(m.Hosts)-1]
	if got := listFiles(t, filepath.Join(outside.Dir, "kubernetes")); len(got) > 0 {
		t.Errorf("the outside holds %v", got)
	}
	if info, err := os.Stat(m.Kubeconfig); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the administrator's kubeconfig: %v, %v", info, err)
	}

	server := readCertificate(t, filepath.Join(m.Hosts[0].Dir, "kubernetes/pki/apiserver.crt"))
	for _, name := range []string{"kubernetes", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"192.168.0.10", "fd00:192:168::10", "172.21.0.1", "fd00:10:21::1", "127.0.0.1"} {
		if err := server.VerifyHostname(name); err != nil {
			t.Errorf("API server: %v", err)
		}
	}
	kubelet := readCertificate(t, filepath.Join(m.Hosts[1].Dir, "kubernetes/pki/kubelet.crt"))
	for _, name := range []string{"cn-chengdu.i-2vcxxr", "192.168.1.11", "fd00:192:168:1::11"} {
		if err := kubelet.VerifyHostname(name); err != nil {
			t.Errorf("kubelet: %v", err)
		}
	}
	if kubelet.VerifyHostname("192.168.2.12") == nil {
		t.Error("one node's kubelet can pass for another's")
	}
}

func listFiles(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err == nil && !d.IsDir() {
			below, _ := filepath.Rel(dir, path)
			found = append(found, below)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

func readCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestCommandLinesOfHosts(t *testing.T) {
	store := ledger.Store(t.TempDir())
	m := drawn(options(func(o *Options) { o.Store = store }))
	self, err := ledger.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	m.Hosts[1].Init = self
	l := &Lab{store: store, manifest: m}

	line, err := l.HostLine("cn-chengdu.i-2vcxxr", "ip", "route")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(line, " ")
	for _, part := range []string{"--target", "--mount", "--net", "--pid", "--cgroup", "--pdeathsig KILL", "-- ip route"} {
		if !strings.Contains(text, part) {
			t.Errorf("command on a node: %s has no %s", text, part)
		}
	}
	line, err = l.KubectlLine("get", "nodes")
	if err != nil {
		t.Fatal(err)
	}
	text = strings.Join(line, " ")
	if !strings.HasPrefix(text, "nsenter --net=/run/netns/rwlab-lab-control-plane -- ") || !strings.HasSuffix(text, "get nodes") ||
		!strings.Contains(text, "--kubeconfig="+l.Kubeconfig()) {
		t.Errorf("kubectl is %s", text)
	}
	for host, want := range map[string]string{
		"nowhere":             "it has control-plane, cn-chengdu.i-2vcxxr",
		"cn-chengdu.i-2vcxxs": "does not run",
	} {
		if _, err := l.HostLine(host, "true"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("command on %s: error %v does not say %q", host, err, want)
		}
	}
}

func TestEnvironmentKeepsTheMachineOut(t *testing.T) {
	l := standIn(t)
	machine := []string{"PATH=/bin", "https_proxy=x", "NO_PROXY=y", "KUBECONFIG=/z", "TERM=t"}
	node := strings.Join(l.Environment("cn-chengdu.i-2vcxxr", machine), " ")
	if !strings.HasPrefix(node, "TERM=t PATH=/opt/ropeway-lab/bin:") || strings.Contains(node, "KUBECONFIG") {
		t.Errorf("on a node the environment is %s", node)
	}
	other := strings.Join(l.Environment("control-plane", machine), " ")
	if !strings.HasPrefix(other, "TERM=t PATH="+l.Dir()) || !strings.Contains(other, "KUBECONFIG="+l.Kubeconfig()) {
		t.Errorf("beside the control plane the environment is %s", other)
	}
	if strings.Contains(node+other, "proxy") || strings.Contains(node+other, "PROXY") {
		t.Errorf("the machine's proxies are in %s, %s", node, other)
	}
}
