package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority("lab-ca", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func parse(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(data)
	if block == nil || len(rest) != 0 {
		t.Fatalf("not exactly one PEM block: %q", data)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestIssuedCertificatesVerify(t *testing.T) {
	a := authority(t)
	roots := x509.NewCertPool()
	roots.AddCert(parse(t, a.Pair().Certificate))
	address := netip.MustParseAddr("192.168.1.11")
	address6 := netip.MustParseAddr("fd00:192:168:1::11")

	for _, c := range []struct {
		name    string
		subject Subject
		good    []x509.VerifyOptions
		bad     []x509.VerifyOptions
	}{
		{
			name:    "a server with names of both families",
			subject: Subject{CommonName: "kube-apiserver", DNSNames: []string{"kubernetes.default"}, Addresses: []netip.Addr{address, address6}, Server: true},
			good: []x509.VerifyOptions{
				{DNSName: "kubernetes.default", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
				{DNSName: "192.168.1.11", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
				{DNSName: "[fd00:192:168:1::11]", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
			},
			bad: []x509.VerifyOptions{
				{DNSName: "kubernetes.default", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
				{DNSName: "192.168.1.12", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
			},
		},
		{
			name:    "a client",
			subject: Subject{CommonName: "system:node:a", Groups: []string{"system:nodes"}, Client: true},
			good:    []x509.VerifyOptions{{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}},
			bad:     []x509.VerifyOptions{{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			pair, err := a.Issue(c.subject)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tls.X509KeyPair(pair.Certificate, pair.Key); err != nil {
				t.Errorf("key does not fit the certificate: %v", err)
			}
			cert := parse(t, pair.Certificate)
			if cert.Subject.CommonName != c.subject.CommonName || strings.Join(cert.Subject.Organization, ",") != strings.Join(c.subject.Groups, ",") {
				t.Errorf("subject is %v, want %+v", cert.Subject, c.subject)
			}
			if cert.IsCA {
				t.Error("an issued certificate may sign others")
			}
			for _, o := range c.good {
				o.Roots = roots
				if _, err := cert.Verify(o); err != nil {
					t.Errorf("verify %q %v: %v", o.DNSName, o.KeyUsages, err)
				}
			}
			for _, o := range c.bad {
				o.Roots = roots
				if _, err := cert.Verify(o); err == nil {
					t.Errorf("verify %q %v passed, want an error", o.DNSName, o.KeyUsages)
				}
			}
		})
	}
}

func TestAnotherAuthorityDoesNotVerify(t *testing.T) {
	pair, err := authority(t).Issue(Subject{CommonName: "admin", Groups: []string{"system:masters"}, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(parse(t, authority(t).Pair().Certificate))
	_, err = parse(t, pair.Certificate).Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil {
		t.Error("a certificate verified against the authority of another lab")
	}
}

func TestIssueRefusesAnUnusableCertificate(t *testing.T) {
	if _, err := authority(t).Issue(Subject{CommonName: "x"}); err == nil {
		t.Error("a certificate for neither server nor client was issued")
	}
}

func TestSerialNumbersDiffer(t *testing.T) {
	a := authority(t)
	seen := map[string]bool{}
	for range 20 {
		pair, err := a.Issue(Subject{CommonName: "x", Client: true})
		if err != nil {
			t.Fatal(err)
		}
		serial := parse(t, pair.Certificate).SerialNumber.String()
		if seen[serial] {
			t.Fatalf("serial number %s was used twice", serial)
		}
		seen[serial] = true
	}
}

func TestSigningKeyPairFits(t *testing.T) {
	private, public, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(private)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	block, _ = pem.Decode(public)
	read, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("the private key is a %T", key)
	}
	if !signer.PublicKey.Equal(read) {
		t.Error("the public file does not belong to the private one")
	}
}

func TestKubeconfigHoldsTheCertificates(t *testing.T) {
	a := authority(t)
	pair, err := a.Issue(Subject{CommonName: "system:node:cn-chengdu.i-2vcxxr", Client: true})
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		CurrentContext string `json:"current-context"`
		Contexts       []struct {
			Name    string
			Context struct{ Cluster, User string }
		}
		Clusters []struct {
			Name    string
			Cluster struct {
				Server string
				CA     []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			Name string
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			}
		}
	}
	text := Kubeconfig("https://[fd00:192:168::10]:6443", "system:node:cn-chengdu.i-2vcxxr", a.Pair(), pair)
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	context, cluster, user := config.Contexts[0], config.Clusters[0], config.Users[0]
	if config.CurrentContext != context.Name || context.Context.Cluster != cluster.Name || context.Context.User != user.Name {
		t.Errorf("the context does not lead to the cluster and the user:\n%s", text)
	}
	if cluster.Cluster.Server != "https://[fd00:192:168::10]:6443" {
		t.Errorf("server is %q", cluster.Cluster.Server)
	}
	if string(user.User.Certificate) != string(pair.Certificate) || string(user.User.Key) != string(pair.Key) ||
		string(cluster.Cluster.CA) != string(a.Pair().Certificate) {
		t.Error("certificates do not survive the kubeconfig")
	}
}
