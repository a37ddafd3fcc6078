package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// certificateSource gives the certificate for each TLS handshake. It reads the files
// again when they have changed, and tells why the API server would refuse what is in
// use.
type certificateSource struct {
	service           string // the DNS name that it must be for
	certFile, keyFile string // empty: the certificate is fixed
	log               *slog.Logger

	mu      sync.Mutex
	current *chain // in use
	newest  *chain // in the files
	stamp   string // of the files read last
	readErr error  // what is wrong with them
	// What was logged last.
	refused, unused report
}

// certificateFiles is a source of the certificate chain and the key in two PEM files,
// for the DNS name service. A new pair that is wrong does not replace the last good
// one. A file ca.crt beside the chain is what the API server trusts, as in the Secrets
// of cert-manager.
func certificateFiles(certFile, keyFile, service string, log *slog.Logger) (*certificateSource, error) {
	s := &certificateSource{service: service, certFile: certFile, keyFile: keyFile, log: log}
	if err := s.read(); err != nil {
		return nil, err
	}
	s.current = s.newest
	s.status(time.Now()) // logs what is wrong with it
	return s, nil
}

// get is the GetCertificate of a tls.Config.
func (s *certificateSource) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renew(time.Now())
	return &s.current.certificate, nil
}

// status says why the API server would refuse the certificate in use at now, and
// why what is in the files is not in use.
func (s *certificateSource) status(now time.Time) (refused, unused error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	unused = s.renew(now)
	if refused = s.current.refusal(s.service, now); refused != nil {
		where := ""
		if s.certFile != "" {
			where = s.certFile + ": "
		}
		refused = fmt.Errorf("the API server would refuse the certificate: %s%w", where, refused)
	}
	if s.refused.isNew(refused) {
		s.log.Error("not ready", "err", refused)
	}
	return refused, unused
}

// renew takes the certificate of the files into use when the API server would
// accept it.
func (s *certificateSource) renew(now time.Time) error {
	if s.certFile == "" {
		return nil
	}
	err := s.read()
	if err == nil && s.newest != s.current {
		if err = s.newest.refusal(s.service, now); err == nil {
			s.current = s.newest
			s.log.Info("renewed certificate is in use", "expires", s.current.leaf().NotAfter.UTC().Format(time.RFC3339))
		} else {
			err = fmt.Errorf("%s: %w", s.certFile, err)
		}
	}
	if s.unused.isNew(err) {
		s.log.Error("renewed certificate is not used, the last good one stays", "err", err)
	}
	return err
}

// read reads the files again when they are not the ones that were read last. The
// error is about the files as they are now.
func (s *certificateSource) read() error {
	paths := []string{s.certFile, s.keyFile}
	caFile := filepath.Join(filepath.Dir(s.certFile), "ca.crt")
	if _, err := os.Stat(caFile); !errors.Is(err, fs.ErrNotExist) {
		paths = append(paths, caFile)
	}
	before, err := stampOf(paths...)
	if err != nil {
		return fmt.Errorf("%w: --tls-cert and --tls-key need the files of a TLS Secret", err)
	}
	if before == s.stamp {
		return s.readErr
	}
	content := make([][]byte, 3)
	for i, path := range paths {
		if content[i], err = os.ReadFile(path); err != nil {
			return err
		}
	}
	if after, err := stampOf(paths...); err != nil || before != after {
		return errors.New("the certificate's files change while they are read")
	}
	read, err := parseChain(content[0], content[1], content[2])
	if err != nil {
		err = fmt.Errorf("certificate %s with key %s: %w", s.certFile, s.keyFile, err)
	} else {
		s.newest = read
	}
	s.stamp, s.readErr = before, err
	return err
}

// stampOf tells cheaply whether files have changed, by their inodes, sizes and
// modification times. The kubelet replaces the files of a mounted Secret by moving a
// symbolic link, so a change shows as another inode.
func stampOf(paths ...string) (stamp string, err error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		file := info.Sys().(*syscall.Stat_t)
		stamp += fmt.Sprintln(path, file.Dev, file.Ino, file.Size, info.ModTime().UnixNano())
	}
	return stamp, nil
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
