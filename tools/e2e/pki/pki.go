// Package pki makes the certificates that the parts of a Kubernetes cluster show each other. They live in memory.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

const (
	lifetime = 24 * time.Hour
	// backdate lets a guest whose clock runs a little behind accept what was made just now.
	backdate = 5 * time.Minute
)

// Pair is a certificate and its private key, both PEM.
type Pair struct {
	Certificate, Key []byte
}

// Authority signs certificates.
type Authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// NewAuthority makes a self-signed authority.
func NewAuthority(commonName string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	certificate, err := cert.NewSelfSignedCACert(cert.Config{CommonName: commonName, NotBefore: time.Now().Add(-backdate)}, key)
	return &Authority{certificate, key}, err
}

// Certificate is the authority's own certificate, PEM.
func (a *Authority) Certificate() []byte { return encode(a.certificate.Raw, cert.CertificateBlockType) }

// Server makes the certificate of a server that is reached at hosts: DNS names or IP addresses.
func (a *Authority) Server(subject pkix.Name, hosts ...string) (Pair, error) {
	template := &x509.Certificate{Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return a.issue(template)
}

// Client makes the certificate by which Kubernetes knows a user: the common name is the user, each
// organization one of its groups.
func (a *Authority) Client(subject pkix.Name) (Pair, error) {
	return a.issue(&x509.Certificate{Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
}

func (a *Authority) issue(template *x509.Certificate) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.NotBefore, template.NotAfter = time.Now().Add(-backdate), time.Now().Add(lifetime)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return Pair{}, err
	}
	encodedKey, err := keyutil.MarshalPrivateKeyToPEM(key)
	return Pair{encode(der, cert.CertificateBlockType), encodedKey}, err
}

// NewServiceAccountKey makes the key pair that signs and checks ServiceAccount tokens, both PEM. It is RSA,
// as kubeadm makes it, so that tokens have the algorithm and the size that they have in most clusters.
func NewServiceAccountKey() (private, public []byte, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, err
	}
	private, err = keyutil.MarshalPrivateKeyToPEM(key)
	return private, encode(der, keyutil.PublicKeyBlockType), err
}

func encode(der []byte, kind string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
