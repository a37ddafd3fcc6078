// Package certificate holds the serving certificate of the webhook, reads it again
// when it is renewed, and tells why the API server would refuse it.
package certificate

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Source gives the certificate for each TLS handshake.
type Source struct {
	service           string // the DNS name that it must be for
	certFile, keyFile string // empty: the certificate is fixed
	log               *slog.Logger

	mu      sync.Mutex
	current *chain // in use
	newest  *chain // in the files
	stamp   stamp  // of the files read last
	readErr error  // what is wrong with them
	// What was logged last.
	refused, unused report
}

// Fixed is a Source of one certificate for service that is never renewed.
func Fixed(certificate tls.Certificate, service string, log *slog.Logger) (*Source, error) {
	fixed, err := newChain(certificate, nil)
	return &Source{service: service, current: fixed, log: log}, err
}

// FromFiles is a Source of the certificate chain and the key in two PEM files, for
// the DNS name service. It reads them again when they have changed; a new pair that
// is wrong does not replace the last good one. A file ca.crt beside the chain is
// what the API server trusts, as in the Secrets of cert-manager.
func FromFiles(certFile, keyFile, service string, log *slog.Logger) (*Source, error) {
	s := &Source{service: service, certFile: certFile, keyFile: keyFile, log: log}
	if err := s.read(); err != nil {
		return nil, err
	}
	s.current = s.newest
	s.Status(time.Now()) // logs what is wrong with it
	return s, nil
}

// Get is the GetCertificate of a tls.Config.
func (s *Source) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renew(time.Now())
	return &s.current.certificate, nil
}

// Status says why the API server would refuse the certificate in use at now, and
// why what is in the files is not in use.
func (s *Source) Status(now time.Time) (refused, unused error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	unused = s.renew(now)
	if refused = s.current.refusal(s.service, now); refused != nil {
		refused = fmt.Errorf("the API server would refuse the certificate: %s%w", s.name(), refused)
	}
	if s.refused.isNew(refused) {
		s.log.Error("not ready", "err", refused)
	}
	return refused, unused
}

// name is what to put before a message about the certificate.
func (s *Source) name() string {
	if s.certFile == "" {
		return ""
	}
	return s.certFile + ": "
}

// renew takes the certificate of the files into use when the API server would
// accept it.
func (s *Source) renew(now time.Time) error {
	if s.certFile == "" {
		return nil
	}
	err := s.read()
	if err == nil && s.newest != s.current {
		if err = s.newest.refusal(s.service, now); err == nil {
			s.current = s.newest
			s.log.Info("renewed certificate is in use", "expires", s.current.leaf().NotAfter.UTC().Format(time.RFC3339))
		} else {
			err = fmt.Errorf("%s%w", s.name(), err)
		}
	}
	if s.unused.isNew(err) {
		s.log.Error("renewed certificate is not used, the last good one stays", "err", err)
	}
	return err
}

// read reads the files again when they are not the ones that were read last. The
// error is about the files as they are now.
func (s *Source) read() error {
	paths := []string{s.certFile, s.keyFile}
	caFile := filepath.Join(filepath.Dir(s.certFile), "ca.crt")
	if _, err := os.Stat(caFile); !errors.Is(err, fs.ErrNotExist) {
		paths = append(paths, caFile)
	}
	before, err := stampOf(paths...)
	if err != nil {
		return fmt.Errorf("%w: --tls-cert and --tls-key need the files of a TLS Secret", err)
	}
	if before.equal(s.stamp) {
		return s.readErr
	}
	content := make([][]byte, 3)
	for i, path := range paths {
		if content[i], err = os.ReadFile(path); err != nil {
			return err
		}
	}
	if after, err := stampOf(paths...); err != nil || !before.equal(after) {
		return errors.New("the certificate's files change while they are read")
	}
	read, err := parse(content[0], content[1], content[2])
	if err != nil {
		err = fmt.Errorf("certificate %s with key %s: %w", s.certFile, s.keyFile, err)
	} else {
		s.newest = read
	}
	s.stamp, s.readErr = before, err
	return err
}

// report keeps the text of a problem, so that each is logged once.
type report string

// isNew reports whether err is a problem, and another one than before.
func (r *report) isNew(err error) bool {
	last := *r
	if *r = ""; err != nil {
		*r = report(err.Error())
	}
	return err != nil && *r != last
}
