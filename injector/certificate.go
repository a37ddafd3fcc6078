package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"
)

// certificateSource gives the certificate for each TLS handshake, from files that it reads each time.
type certificateSource struct {
	service           string // the DNS name that it must be for
	certFile, keyFile string // empty: the certificate is fixed
	log               *slog.Logger

	mu      sync.Mutex
	current *chain    // in use
	files   [3][]byte // read last: certificates, key, CA
	newest  *chain    // in them
	readErr error     // what is wrong with them
	told    problems
}

// condition is what is known of the certificate in use.
type condition struct {
	refused error // why the API server would refuse it
	unused  error // why what is in the files is not in use instead
	soon    error // in the last tenth of its life: renewed by hand, it may have been forgotten
	expires time.Time
}

// certificateFiles is a source of two PEM files. A new pair that is wrong does not replace the last good one.
// A file ca.crt beside them is what the API server trusts, as in the Secrets of cert-manager.
func certificateFiles(certFile, keyFile, service string, log *slog.Logger) (*certificateSource, error) {
	s := &certificateSource{service: service, certFile: certFile, keyFile: keyFile, log: log, told: problems{}}
	if err := s.read(); err != nil {
		return nil, err
	}
	s.current = s.newest
	s.look(time.Now()) // logs what is wrong with it
	return s, nil
}

// get is the GetCertificate of a tls.Config.
func (s *certificateSource) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renew(time.Now())
	return &s.current.certificate, nil
}

// look renews the certificate, and says in what condition it is.
func (s *certificateSource) look(now time.Time) condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := condition{unused: s.renew(now)}
	if c.refused = s.refusal(s.current, now); c.refused != nil {
		c.refused = fmt.Errorf("the API server would refuse the certificate: %w", c.refused)
	}
	leaf := s.current.parsed[0]
	c.expires = leaf.NotAfter
	if c.expires.Sub(now) < c.expires.Sub(leaf.NotBefore)/10 {
		c.soon = fmt.Errorf("the certificate expires at %s: renew it", c.expires.UTC().Format(time.RFC3339))
	}
	s.told.tell(s.log.Error, "not ready", c.refused)
	s.told.tell(s.log.Warn, "certificate expires soon", c.soon)
	return c
}

func (s *certificateSource) refusal(c *chain, now time.Time) error {
	err := c.refusal(s.service, now)
	if err != nil && s.certFile != "" {
		err = fmt.Errorf("%s: %w", s.certFile, err)
	}
	return err
}

// renew takes the certificate of the files into use when the API server would accept it.
func (s *certificateSource) renew(now time.Time) error {
	if s.certFile == "" {
		return nil
	}
	err := s.read()
	if err == nil && s.newest != s.current {
		if err = s.refusal(s.newest, now); err == nil {
			s.current = s.newest
			s.log.Info("renewed certificate is in use", "expires", s.current.parsed[0].NotAfter.UTC().Format(time.RFC3339))
		}
	}
	s.told.tell(s.log.Error, "renewed certificate is not used, the last good one stays", err)
	return err
}

// read reads the files, and parses them where they have changed. The error is about what they are now.
func (s *certificateSource) read() error {
	var files [3][]byte
	for i, path := range []string{s.certFile, s.keyFile, filepath.Join(filepath.Dir(s.certFile), "ca.crt")} {
		var err error
		if files[i], err = os.ReadFile(path); err != nil && (i < 2 || !errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("%w: --tls-cert and --tls-key need the files of a TLS Secret", err)
		}
	}
	if reflect.DeepEqual(files, s.files) {
		return s.readErr
	}
	s.files = files
	if s.newest, s.readErr = parseChain(files[0], files[1], files[2]); s.readErr != nil {
		s.readErr = fmt.Errorf("certificate %s with key %s: %w", s.certFile, s.keyFile, s.readErr)
	}
	return s.readErr
}

// problems has what was wrong last, by what the log says of it: each problem is logged once.
type problems map[string]string

func (p problems) tell(log func(string, ...any), message string, err error) {
	before := p[message]
	p[message] = fmt.Sprint(err)
	if err != nil && p[message] != before {
		log(message, "err", err)
	}
}

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
	c := &chain{certificate: pair, roots: x509.NewCertPool()}
	if !c.roots.AppendCertsFromPEM(ca) {
		c.roots = nil
	}
	for i, der := range pair.Certificate {
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the file: %w", i+1, err)
		}
		c.parsed = append(c.parsed, parsed)
	}
	return c, nil
}

// positionOfKey says which certificate of a file the key belongs to, counted from 1; 0: none.
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

// refusal says why a client that calls service at now would refuse the certificate, and what to do about it.
func (c *chain) refusal(service string, now time.Time) error {
	// Without roots the chain must be good as far as it goes.
	attempts := []*x509.CertPool{poolOf(c.parsed[len(c.parsed)-1]), poolOf(c.parsed[0])}
	if c.roots != nil {
		attempts = []*x509.CertPool{c.roots}
	}
	var err error
	for _, roots := range attempts {
		_, err = c.parsed[0].Verify(x509.VerifyOptions{
			DNSName: service, CurrentTime: now, Roots: roots, Intermediates: poolOf(c.parsed[1:]...),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) {
			break
		}
	}
	// What to do about it.
	var invalid x509.CertificateInvalidError
	var hostname x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		// Not err itself: it has the current time in it, and would be another problem at each look.
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

func poolOf(certificates ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return pool
}
