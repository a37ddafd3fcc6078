// Package selfsigned makes a certificate authority and one serving certificate for where nothing else issues
// them: a laptop, a demo, a cluster without cert-manager.
package selfsigned

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"time"
)

// Bundle is what Issue makes, all in PEM.
type Bundle struct {
	CA          []byte // the authority's certificate: the caBundle of a webhook configuration
	Certificate []byte // the serving certificate; a server does not send the CA
	Key         []byte // its private key (PKCS #8)
}

// clockSkew is how far a client's clock may be behind ours, or ours be set back.
const clockSkew = 24 * time.Hour

// Issue makes an authority, whose key is forgotten, and a serving certificate for DNS names or IP addresses.
// Both expire after lifetime; the keys are ECDSA P-256.
func Issue(lifetime time.Duration, names ...string) (*Bundle, error) {
	if len(names) == 0 {
		return nil, errors.New("a serving certificate needs at least one DNS name or IP address")
	}
	caKey, errCA := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(errCA, err); err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"kubevirt-imds"}, CommonName: "self-signed CA"},
		NotBefore:             now.Add(-min(clockSkew, lifetime)),
		NotAfter:              now.Add(lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	serving := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"kubevirt-imds"}},
		NotBefore:   ca.NotBefore,
		NotAfter:    ca.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			serving.IPAddresses = append(serving.IPAddresses, ip)
		} else {
			serving.DNSNames = append(serving.DNSNames, name)
		}
	}

	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	// Parsed, the CA has the key identifier that the serving certificate refers to.
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		return nil, fmt.Errorf("CA certificate: %w", err)
	}
	servingDER, errServing := x509.CreateCertificate(rand.Reader, serving, ca, &key.PublicKey, caKey)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(errServing, err); err != nil {
		return nil, fmt.Errorf("serving certificate: %w", err)
	}
	encode := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	return &Bundle{CA: encode("CERTIFICATE", caDER), Certificate: encode("CERTIFICATE", servingDER), Key: encode("PRIVATE KEY", keyDER)}, nil
}
