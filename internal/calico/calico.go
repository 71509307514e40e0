// Package calico reads the configuration of a Calico installation (its
// ConfigMap, a snippet of calico-node's environment, or a whole edited
// calico.yaml) and says what it means for Ropeway: every key is honoured,
// translated, harmless, or refused with the reason. It reads text and returns
// plain data; nothing is applied.
package calico

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/util/yaml"

	"ropeway.dev/ropeway/api/v1alpha1"
)

// Document is one YAML text, which may hold several YAML documents. Name is
// what findings and errors call it: the file's name, or "-" for stdin.
type Document struct {
	Name string
	Data []byte
}

// Installation is what the documents ask for, in Ropeway's words. A zero field
// was not spoken of: the installer's default holds.
type Installation struct {
	PodCIDRs      []string
	AddressSource v1alpha1.AddressSource
	BlockSizeIPv4 int32 // prefix length
	BlockSizeIPv6 int32 // prefix length
	Transports    []v1alpha1.Transport
	VXLANPort     int32
	VXLANVNI      int32
	MTU           int   // the pods', in bytes
	Masquerade    *bool // nil: not spoken of
	// Conflist is the template of the CNI configuration, with Calico's
	// placeholders in it, exactly as it was written.
	Conflist string
	// TakeOver are names of Calico's own plugin files that the conflist calls,
	// and that Ropeway therefore has to answer to.
	TakeOver []string
	// Registry replaces docker.io in the image's reference.
	Registry string
	// APIServerHost and APIServerPort are where agents reach the API server.
	APIServerHost, APIServerPort string
	// CNIBinDir and CNIConfDir are the node's directories, if not the usual.
	CNIBinDir, CNIConfDir string
	// LogLevel is debug, info, warn or error.
	LogLevel string
}

// Read reads the documents together, since one's environment and another's
// ConfigMap decide one thing. A refused key is not an error but a Finding (see
// Report.Refused); an error is a text that cannot be read at all, or one in
// which there is nothing of Calico's.
func Read(documents ...Document) (Installation, Report, error) {
	r := &reader{}
	for _, doc := range documents {
		before := len(r.findings)
		if err := r.readDocument(doc); err != nil {
			return Installation{}, Report{}, err
		}
		if len(r.findings) == before {
			return Installation{}, Report{}, fmt.Errorf("%s: nothing of Calico's in it: want its ConfigMap (kind: ConfigMap with cni_network_config), a list of environment variables (- name: ..., value: ...), or a calico.yaml", doc.Name)
		}
	}
	r.resolve()
	return r.out, r.report(), nil
}

// reader gathers findings in the order of the text. What several keys decide
// together is settled by resolve, once all have been seen.
type reader struct {
	out      Installation
	findings []*Finding

	ipip4, vxlan4, vxlan6 *Finding // CALICO_IPV4POOL_IPIP and so on, nil: absent
	cidr6                 bool     // an IPv6 pool's CIDR was given
	backend               *Finding // calico_backend or CALICO_NETWORKING_BACKEND
	usePodCIDR            *Finding // USE_POD_CIDR
	hostLocal             bool     // the conflist's ipam is host-local with usePodCidr
}

func (r *reader) add(where, key, value string) *Finding {
	f := &Finding{Where: where, Key: key, Value: value}
	r.findings = append(r.findings, f)
	return f
}

func (r *reader) report() Report {
	out := make([]Finding, 0, len(r.findings))
	for _, f := range r.findings {
		out = append(out, *f)
	}
	return Report{Findings: out}
}

func (r *reader) readDocument(doc Document) error {
	in := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(doc.Data)))
	for n := 1; ; n++ {
		text, err := in.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: reading YAML document %d: %w", doc.Name, n, err)
		}
		if blank(text) {
			continue
		}
		if err := r.readText(text); err != nil {
			return fmt.Errorf("%s: YAML document %d: %w", doc.Name, n, err)
		}
	}
}

// blank says whether a YAML document has nothing but comments.
func blank(text []byte) bool {
	for _, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}
