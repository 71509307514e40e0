package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"ropeway.dev/ropeway/internal/lab/config"
	"ropeway.dev/ropeway/internal/lab/ledger"
	"ropeway.dev/ropeway/internal/lab/pki"
)

// secrets makes every certificate, key and kubeconfig of a lab and gives each
// host what it needs and no more.
type secrets struct {
	manifest *ledger.Manifest
	ca       *pki.Authority
}

// writeSecrets fills the hosts' KubernetesDir and writes the administrator's
// kubeconfig.
func writeSecrets(m *ledger.Manifest, now time.Time) error {
	ca, err := pki.NewAuthority("ropeway-lab-"+m.Name, now)
	if err != nil {
		return err
	}
	s := secrets{manifest: m, ca: ca}
	for _, h := range m.Hosts {
		files := map[string][]byte{}
		switch h.Role {
		case ledger.ControlPlane:
			err = s.controlPlane(files)
		case ledger.Node:
			err = s.node(h, files)
		}
		if err != nil {
			return err
		}
		if err := writeFiles(filepath.Join(h.Dir, "kubernetes"), files); err != nil {
			return err
		}
	}
	return s.administrator()
}

// controlPlane adds the files of the control plane: path below the machine's
// root, as the host sees it -> content.
func (s secrets) controlPlane(files map[string][]byte) error {
	cluster := clusterOf(s.manifest)
	serverAddresses := append([]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}, cluster.Addresses...)
	for _, cidr := range cluster.ServiceCIDRs {
		serverAddresses = append(serverAddresses, config.ServiceAddress(cidr, 1))
	}
	names := []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}
	certificates := map[string]pki.Subject{
		config.EtcdName: {CommonName: "etcd", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Server: true, Client: true},
		// The API server is etcd's client with the same certificate.
		config.APIServerName: {CommonName: "kube-apiserver", DNSNames: names, Addresses: serverAddresses, Server: true, Client: true},
		config.ToKubeletName: {CommonName: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}, Client: true},
		config.AdminName:     adminSubject(),
	}
	for name, subject := range certificates {
		if err := s.certificate(files, name, subject); err != nil {
			return err
		}
	}
	pair := s.ca.Pair()
	files[config.Certificate(config.CAName)], files[config.Key(config.CAName)] = pair.Certificate, pair.Key
	private, public, err := pki.NewSigningKey()
	if err != nil {
		return err
	}
	files[config.Key(config.ServiceAccount)], files[config.PublicKey(config.ServiceAccount)] = private, public
	for name, user := range map[string]string{
		config.ManagerName: "system:kube-controller-manager", config.SchedulerName: "system:kube-scheduler",
	} {
		if err := s.kubeconfig(files, name, pki.Subject{CommonName: user, Client: true}); err != nil {
			return err
		}
	}
	return nil
}

func (s secrets) node(h ledger.Host, files map[string][]byte) error {
	user := pki.Subject{CommonName: "system:node:" + h.Name, Groups: []string{"system:nodes"}, Client: true}
	if err := s.kubeconfig(files, config.KubeletName, user); err != nil {
		return err
	}
	server := pki.Subject{CommonName: user.CommonName, Groups: user.Groups, DNSNames: []string{h.Name}, Addresses: addrs(h), Server: true}
	if err := s.certificate(files, config.KubeletName, server); err != nil {
		return err
	}
	files[config.Certificate(config.CAName)] = s.ca.Pair().Certificate
	return s.kubeconfig(files, config.ProxyName, pki.Subject{CommonName: "system:kube-proxy", Client: true})
}

// administrator writes the kubeconfig that `status` shows.
func (s secrets) administrator() error {
	pair, err := s.ca.Issue(adminSubject())
	if err != nil {
		return err
	}
	text := pki.Kubeconfig(s.manifest.APIServer, "admin", s.ca.Pair(), pair)
	if err := os.WriteFile(s.manifest.Kubeconfig, text, 0o600); err != nil {
		return fmt.Errorf("write the administrator's kubeconfig: %w", err)
	}
	return nil
}

func adminSubject() pki.Subject {
	return pki.Subject{CommonName: "admin", Groups: []string{"system:masters"}, Client: true}
}

func (s secrets) certificate(files map[string][]byte, name string, subject pki.Subject) error {
	pair, err := s.ca.Issue(subject)
	if err != nil {
		return err
	}
	files[config.Certificate(name)], files[config.Key(name)] = pair.Certificate, pair.Key
	return nil
}

func (s secrets) kubeconfig(files map[string][]byte, name string, subject pki.Subject) error {
	pair, err := s.ca.Issue(subject)
	if err != nil {
		return err
	}
	files[config.Kubeconfig(name)] = pki.Kubeconfig(s.manifest.APIServer, subject.CommonName, s.ca.Pair(), pair)
	return nil
}

// writeFiles writes the files of one host; dir is what it sees as
// KubernetesDir.
func writeFiles(dir string, files map[string][]byte) error {
	for path, content := range files {
		below, err := filepath.Rel(config.KubernetesDir, path)
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		at := filepath.Join(dir, below)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		if err := os.WriteFile(at, content, 0o600); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}
