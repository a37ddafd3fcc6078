// Package certificate holds the serving certificate of the webhook and reads
// it again when it is renewed.
package certificate

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/example/kubevirt-imds/injector/internal/filestamp"
)

// Source gives the certificate for each TLS handshake.
type Source struct {
	certFile, keyFile string // empty: the certificate is fixed
	log               *slog.Logger

	mu       sync.Mutex
	current  *tls.Certificate
	stamp    filestamp.Stamp // of the files read last
	stampErr error           // what is wrong with them
	reported string          // the last problem that was logged
}

// Fixed is a Source of one certificate that is never renewed.
func Fixed(certificate tls.Certificate) *Source {
	return &Source{current: &certificate}
}

// FromFiles is a Source of the certificate chain and the key in two PEM files.
// It reads them again when they have changed; a new pair that is wrong does
// not replace the last good one.
func FromFiles(certFile, keyFile string, log *slog.Logger) (*Source, error) {
	s := &Source{certFile: certFile, keyFile: keyFile, log: log}
	if err := s.refresh(); err != nil {
		return nil, err
	}
	return s, nil
}

// Get is the GetCertificate of a tls.Config.
func (s *Source) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	certificate, _ := s.Current()
	return certificate, nil
}

// Current returns the certificate to serve: the files' content, or the last
// good one and the reason why the content is not in use.
func (s *Source) Current() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.certFile == "" {
		return s.current, nil
	}
	err := s.refresh()
	if err != nil && err.Error() != s.reported {
		s.log.Error("renewed certificate is not used, the last good one stays", "err", err)
		s.reported = err.Error()
	}
	if err == nil {
		s.reported = ""
	}
	return s.current, err
}

// Valid reports why a client would refuse the certificate at now.
func Valid(certificate *tls.Certificate, now time.Time) error {
	leaf := certificate.Leaf
	switch {
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s", leaf.NotBefore.UTC().Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// refresh reads the files again when they are not the ones that were read
// last. The error is about the files as they are now.
func (s *Source) refresh() error {
	stamp, err := filestamp.Of(s.certFile, s.keyFile)
	if err != nil {
		return fmt.Errorf("%w: --tls-cert and --tls-key need the files of a TLS Secret", err)
	}
	if stamp.Equal(s.stamp) {
		return s.stampErr
	}
	certificate, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
	if after, errAfter := filestamp.Of(s.certFile, s.keyFile); errAfter != nil || !stamp.Equal(after) {
		return errors.New("the certificate's files change while they are read")
	}
	if err != nil {
		err = fmt.Errorf("certificate %s with key %s: %w: both must be PEM and belong together", s.certFile, s.keyFile, err)
	}
	s.stamp, s.stampErr = stamp, err
	if err != nil {
		return err
	}
	if s.current != nil {
		s.log.Info("renewed certificate is in use", "expires", certificate.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	s.current = &certificate
	return nil
}
