package scale

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Access is how the programs reach what they need.
type Access struct {
	Program    string // path of ropeway
	Dir        string // for files
	Kubeconfig string
	API        string // host:port of the API server, on the loopback
}

// NewAccess writes a kubeconfig of the API server into a directory, and beside it what
// agents find in their image.
func NewAccess(cfg *rest.Config, program, dir string) (Access, error) {
	at, err := url.Parse(cfg.Host)
	if err != nil {
		return Access{}, fmt.Errorf("read the API server's address: %w", err)
	}
	const name = "bench"
	file := clientcmdapi.NewConfig()
	file.Clusters[name] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	file.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData}
	file.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	file.CurrentContext = name
	a := Access{Program: program, Dir: dir, Kubeconfig: filepath.Join(dir, "kubeconfig"), API: at.Host}
	if err := clientcmd.WriteToFile(*file, a.Kubeconfig); err != nil {
		return a, fmt.Errorf("write the kubeconfig: %w", err)
	}
	return a, a.layImage()
}

// plugins is the directory of the plugins that agents install.
func (a Access) plugins() string { return filepath.Join(a.Dir, "image-plugins") }

// layImage makes the plugins, which an agent copies and nobody runs: a node's agent
// that cannot install them tries again and again.
func (a Access) layImage() error {
	err := os.MkdirAll(a.plugins(), 0o755)
	for _, name := range []string{"ropeway-cni", "host-local", "portmap", "bandwidth"} {
		err = errors.Join(err, os.WriteFile(filepath.Join(a.plugins(), name), []byte(name), 0o755))
	}
	return err
}
