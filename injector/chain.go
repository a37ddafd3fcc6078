package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// chain is a serving certificate with what a client judges it by.
type chain struct {
	certificate tls.Certificate
	parsed      []*x509.Certificate // the leaf first
	roots       *x509.CertPool      // nil: what the API server trusts is not known
}

// parseChain reads a chain, its key and, unless it is empty, what the API server trusts.
func parseChain(certificates, key, ca []byte) (*chain, error) {
	pair, err := tls.X509KeyPair(certificates, key)
	if err != nil {
		if position := positionOfKey(certificates, key); position > 1 {
			return nil, fmt.Errorf("the key belongs to certificate %d of the file: put the serving certificate first, and what signed it after it", position)
		}
		return nil, fmt.Errorf("%w: both must be PEM and belong together", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		roots = nil
	}
	return newChain(pair, roots)
}

// positionOfKey says which certificate of a file the key belongs to, counted from
// 1; 0: none.
func positionOfKey(certificates, key []byte) int {
	for position := 1; ; position++ {
		block, rest := pem.Decode(certificates)
		if block == nil {
			return 0
		}
		if _, err := tls.X509KeyPair(pem.EncodeToMemory(block), key); err == nil {
			return position
		}
		certificates = rest
	}
}

func newChain(pair tls.Certificate, roots *x509.CertPool) (*chain, error) {
	c := &chain{certificate: pair, roots: roots}
	for i, der := range pair.Certificate {
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the file: %w", i+1, err)
		}
		c.parsed = append(c.parsed, parsed)
	}
	return c, nil
}

func (c *chain) leaf() *x509.Certificate { return c.parsed[0] }

// refusal says why a client that calls service at now would refuse the certificate,
// and what to do about it.
func (c *chain) refusal(service string, now time.Time) error {
	if c.roots != nil {
		return remedy(c.verify(service, now, c.roots), service)
	}
	// What cannot be told is whether the chain leads to what the API server trusts.
	// As far as it goes, it must be good.
	var unknown x509.UnknownAuthorityError
	err := c.verify(service, now, poolOf(c.parsed[len(c.parsed)-1]))
	if errors.As(err, &unknown) {
		err = c.verify(service, now, poolOf(c.leaf()))
	}
	return remedy(err, service)
}

func (c *chain) verify(service string, now time.Time, roots *x509.CertPool) error {
	_, err := c.leaf().Verify(x509.VerifyOptions{
		DNSName: service, CurrentTime: now, Roots: roots, Intermediates: poolOf(c.parsed[1:]...),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

func poolOf(certificates ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return pool
}

// remedy adds to the verdict on a certificate what to do about it.
func remedy(err error, service string) error {
	var invalid x509.CertificateInvalidError
	var hostname x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		// Not err itself: it has the current time in it, and would be another
		// problem at each look.
		return fmt.Errorf("the certificate of %q is valid from %s to %s only: renew it, or set the node's clock", invalid.Cert.Subject,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("%w: issue it with the extended key usage serverAuth", err)
	case errors.As(err, &hostname):
		return fmt.Errorf("%w: issue it with the subject alternative name %s, by which the API server calls (--service)", err, service)
	case errors.As(err, &unknown):
		return fmt.Errorf("%w: ca.crt must hold the CA, and the file any intermediate certificates after its own", err)
	}
	return err
}
