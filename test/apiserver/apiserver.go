// Package apiserver runs a real kube-apiserver with its etcd on the loopback
// for tests that a fake client would not fail: admission rules, preconditions,
// watches, leader election. There are no nodes and no other controllers.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"ropeway.dev/ropeway/internal/lab/build"
	"ropeway.dev/ropeway/internal/lab/pki"
	"ropeway.dev/ropeway/internal/lab/source"
)

// ServiceCIDR is the range of the server's Services.
const ServiceCIDR = "172.21.0.0/16"

// startTimeout is long because the machine may be building something else.
const startTimeout = 90 * time.Second

// Server is a running API server.
type Server struct {
	dir       string
	authority *pki.Authority
	url       string
	processes []*process
}

// process is a program that was started, and how it ended.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // valid after done
}

// Start runs etcd and kube-apiserver, building them first when the lab's cache
// lacks them, and returns when the API server is ready and Ropeway's CRDs are
// established. The caller calls Stop.
func Start(ctx context.Context) (*Server, error) {
	root, err := source.Here()
	if err != nil {
		return nil, err
	}
	s := &Server{}
	if s.dir, err = os.MkdirTemp("", "rwt-apiserver-"); err != nil {
		return nil, fmt.Errorf("make a directory for the test's API server: %w", err)
	}
	if err := s.start(ctx, root); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, root string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute) // a cold build
	defer cancel()
	if err := s.installPrograms(ctx, root); err != nil {
		return err
	}
	if err := s.writeCertificates(); err != nil {
		return err
	}
	ports, err := freePorts(3)
	if err != nil {
		return err
	}
	if err := s.run("etcd", s.etcdArgs(ports[0], ports[1])); err != nil {
		return err
	}
	if err := s.run("kube-apiserver", s.apiServerArgs(ports[0], ports[2])); err != nil {
		return err
	}
	s.url = fmt.Sprintf("https://127.0.0.1:%d", ports[2])
	ctx, cancel = context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.waitReady(ctx); err != nil {
		return err
	}
	return s.applyCRDs(ctx, filepath.Join(root, "config", "crd"))
}

// installPrograms puts etcd and kube-apiserver into the server's directory.
func (s *Server) installPrograms(ctx context.Context, root string) error {
	cache := os.Getenv("ROPEWAY_LAB_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("find the cache of the lab's programs (set ROPEWAY_LAB_CACHE): %w", err)
		}
		cache = filepath.Join(base, "ropeway-lab")
	}
	var wanted []build.Program
	for _, p := range build.Programs() {
		if p.Name == "etcd" || p.Name == "kube-apiserver" {
			wanted = append(wanted, p)
		}
	}
	b := &build.Builder{
		Source: root, Cache: filepath.Join(cache, "parts"), Programs: wanted,
		Progress: func(line string) { fmt.Fprintln(os.Stderr, line) },
	}
	if err := b.Install(ctx, filepath.Join(s.dir, "bin")); err != nil {
		return fmt.Errorf("get etcd and kube-apiserver for the test: %w", err)
	}
	return nil
}

// writeCertificates makes an authority, one certificate that both programs
// serve and call with, and the key of service accounts' tokens.
func (s *Server) writeCertificates() error {
	authority, err := pki.NewAuthority("rwt-apiserver", time.Now())
	if err != nil {
		return err
	}
	s.authority = authority
	server, err := authority.Issue(pki.Subject{
		CommonName: "rwt-apiserver", DNSNames: []string{"localhost"},
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Server: true, Client: true,
	})
	if err != nil {
		return err
	}
	private, public, err := pki.NewSigningKey()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"ca.crt": authority.Pair().Certificate, "server.crt": server.Certificate, "server.key": server.Key,
		"sa.key": private, "sa.pub": public,
	} {
		if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
			return fmt.Errorf("write the test's certificates: %w", err)
		}
	}
	return nil
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Server) etcdArgs(client, peer int) []string {
	clientURL := fmt.Sprintf("https://127.0.0.1:%d", client)
	peerURL := fmt.Sprintf("https://127.0.0.1:%d", peer)
	return []string{
		"--data-dir=" + s.path("etcd"), "--name=rwt",
		"--listen-client-urls=" + clientURL, "--advertise-client-urls=" + clientURL,
		"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL,
		"--initial-cluster=rwt=" + peerURL,
		"--cert-file=" + s.path("server.crt"), "--key-file=" + s.path("server.key"),
		"--client-cert-auth", "--trusted-ca-file=" + s.path("ca.crt"),
		"--peer-cert-file=" + s.path("server.crt"), "--peer-key-file=" + s.path("server.key"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + s.path("ca.crt"),
		"--unsafe-no-fsync", "--log-level=warn",
	}
}

func (s *Server) apiServerArgs(etcd, port int) []string {
	return []string{
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port),
		fmt.Sprintf("--etcd-servers=https://127.0.0.1:%d", etcd), "--etcd-cafile=" + s.path("ca.crt"),
		"--etcd-certfile=" + s.path("server.crt"), "--etcd-keyfile=" + s.path("server.key"),
		"--tls-cert-file=" + s.path("server.crt"), "--tls-private-key-file=" + s.path("server.key"),
		"--client-ca-file=" + s.path("ca.crt"), "--anonymous-auth=false", "--authorization-mode=Node,RBAC",
		"--service-cluster-ip-range=" + ServiceCIDR,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + s.path("sa.pub"), "--service-account-signing-key-file=" + s.path("sa.key"),
		// Nobody makes the default service accounts that it would look for.
		"--disable-admission-plugins=ServiceAccount",
		// The endpoint of the kubernetes Service would be this loopback address.
		"--endpoint-reconciler-type=none", "--profiling=false",
	}
}

// run starts a program with its output in a log file.
func (s *Server) run(name string, args []string) error {
	log, err := os.Create(s.path(name + ".log"))
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer log.Close()
	p := &process{name: name, log: log.Name(), done: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(s.dir, "bin", name), args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = diesWithParent()
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	s.processes = append(s.processes, p)
	return nil
}

// Stop ends the programs and removes their files.
func (s *Server) Stop() error {
	var errs []error
	for i := len(s.processes) - 1; i >= 0; i-- {
		p := s.processes[i]
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("stop %s: %w", p.name, err))
		}
		<-p.done
	}
	s.processes = nil
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// Config returns the configuration of a client that may do everything.
func (s *Server) Config() (*rest.Config, error) {
	return s.ConfigFor("rwt-admin", "system:masters")
}

// ConfigFor returns the configuration of a client of the named user in groups.
func (s *Server) ConfigFor(user string, groups ...string) (*rest.Config, error) {
	pair, err := s.authority.Issue(pki.Subject{CommonName: user, Groups: groups, Client: true})
	if err != nil {
		return nil, err
	}
	return &rest.Config{
		Host: s.url, QPS: 500, Burst: 1000,
		TLSClientConfig: rest.TLSClientConfig{
			CAData: s.authority.Pair().Certificate, CertData: pair.Certificate, KeyData: pair.Key,
		},
	}, nil
}

// failed returns an error when a program has ended, with the end of its log.
func (s *Server) failed() error {
	for _, p := range s.processes {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended (%w); its last words:\n%s", p.name, orExited(p.err), lastLines(p.log, 15))
		default:
		}
	}
	return nil
}

func orExited(err error) error {
	if err == nil {
		return errors.New("exit code 0")
	}
	return err
}

func lastLines(path string, n int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// freePorts finds TCP ports of the loopback that nobody listens on.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close() // together at the end, so that they differ
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
