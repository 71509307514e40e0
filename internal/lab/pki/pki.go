// Package pki makes the lab's certificate authority, certificates and
// kubeconfig files, as a cluster's administrator would with a CA of their own.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

// Validity is how long the lab's certificates hold; labs live for hours, and
// nothing in a lab rotates them.
const Validity = 365 * 24 * time.Hour

// skew is how far before its making a certificate is valid, for clocks that
// are set back while a lab runs.
const skew = time.Hour

// Authority signs the certificates of one lab.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pair        Pair
	now         time.Time
}

// Pair is a certificate and its private key, each PEM encoded.
type Pair struct {
	Certificate []byte
	Key         []byte
}

// Subject describes a certificate to issue.
type Subject struct {
	// CommonName is the user name to the API server.
	CommonName string
	// Groups become organizations: the user's groups to the API server.
	Groups []string
	// DNSNames and Addresses are the subject's alternative names; a server
	// certificate without any matches nothing.
	DNSNames  []string
	Addresses []netip.Addr
	// Server and Client choose the extended key usages; one at least is set.
	Server, Client bool
}

// NewAuthority makes a self-signed CA on the P-256 curve, valid from an hour
// before now.
func NewAuthority(name string, now time.Time) (*Authority, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template, err := newTemplate(pkix.Name{CommonName: name}, now)
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of authority %q: %w", name, err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back the certificate of authority %q: %w", name, err)
	}
	return &Authority{
		certificate: certificate,
		key:         key,
		pair:        Pair{Certificate: encode("CERTIFICATE", der), Key: keyPEM},
		now:         now,
	}, nil
}

// Pair returns the authority's own certificate and key.
func (a *Authority) Pair() Pair { return a.pair }

// Issue makes a key and a certificate for a subject.
func (a *Authority) Issue(s Subject) (Pair, error) {
	if !s.Server && !s.Client {
		return Pair{}, fmt.Errorf("issue a certificate for %q: neither server nor client usage was asked for", s.CommonName)
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	template, err := newTemplate(pkix.Name{CommonName: s.CommonName, Organization: s.Groups}, a.now)
	if err != nil {
		return Pair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if s.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if s.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	template.DNSNames = s.DNSNames
	for _, addr := range s.Addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign the certificate of %q: %w", s.CommonName, err)
	}
	return Pair{Certificate: encode("CERTIFICATE", der), Key: keyPEM}, nil
}

// NewSigningKey makes the key pair that signs and verifies service account
// tokens.
func NewSigningKey() (private, public []byte, err error) {
	key, private, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("encode the public key for service account tokens: %w", err)
	}
	return private, encode("PUBLIC KEY", der), nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a P-256 key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(crypto.PrivateKey(key))
	if err != nil {
		return nil, nil, fmt.Errorf("encode a P-256 key: %w", err)
	}
	return key, encode("PRIVATE KEY", der), nil
}

func newTemplate(name pkix.Name, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("choose a serial number for %q: %w", name.CommonName, err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      name,
		NotBefore:    now.Add(-skew),
		NotAfter:     now.Add(Validity),
	}, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
