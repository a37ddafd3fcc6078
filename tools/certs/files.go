package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/example/kubevirt-imds/injector/selfsigned"
)

// The files of a TLS Secret, as cert-manager names them too.
const (
	caFile   = "ca.crt"
	certFile = "tls.crt"
	keyFile  = "tls.key"
)

// issue makes the three files and says what it made.
func issue(opts options, now time.Time, stdout io.Writer) error {
	previous, err := previousCA(opts, now)
	if err != nil {
		return err
	}
	bundle, err := selfsigned.Issue(time.Duration(opts.days)*24*time.Hour, opts.names...)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(opts.out, 0o755); err != nil {
		return err
	}
	for _, file := range []struct {
		name    string
		content []byte
		mode    fs.FileMode
	}{
		{caFile, slices.Concat(bundle.CA, previous), 0o644},
		{certFile, bundle.Certificate, 0o644},
		{keyFile, bundle.Key, 0o600},
	} {
		if err := replace(filepath.Join(opts.out, file.name), file.content, file.mode); err != nil {
			return err
		}
	}
	return check(opts, now, stdout)
}

// previousCA refuses to replace files unless it is forced to. It returns the CA of
// the files that are there, in PEM; nothing when it has expired.
func previousCA(opts options, now time.Time) ([]byte, error) {
	for _, name := range []string{caFile, certFile, keyFile} {
		path := filepath.Join(opts.out, name)
		if _, err := os.Lstat(path); err == nil && !opts.force {
			return nil, fmt.Errorf("%s exists: use --force to replace it, or --out for another folder", path)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	content, err := os.ReadFile(filepath.Join(opts.out, caFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, nil
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil || now.After(ca.NotAfter) {
		return nil, nil
	}
	return pem.EncodeToMemory(block), nil
}

// replace writes a file under another name first: nobody ever reads half of it,
// nor a key with the mode of the file before.
func replace(path string, content []byte, mode fs.FileMode) error {
	temporary, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, errWrite := temporary.Write(content)
	if err := errors.Join(errWrite, temporary.Chmod(mode), temporary.Close()); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}

// check reads the three files as the webhook and the API server do, and says what
// they are.
func check(opts options, now time.Time, stdout io.Writer) error {
	const remedy = "run just certs (go run ./tools/certs --force), then apply the overlay again"
	pair, err := tls.LoadX509KeyPair(filepath.Join(opts.out, certFile), filepath.Join(opts.out, keyFile))
	if err != nil {
		return fmt.Errorf("%s: %w: %s", opts.out, err, remedy)
	}
	ca, err := os.ReadFile(filepath.Join(opts.out, caFile))
	if err != nil {
		return fmt.Errorf("%w: %s", err, remedy)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return fmt.Errorf("%s has no certificate in it: %s", filepath.Join(opts.out, caFile), remedy)
	}
	for _, name := range opts.names {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now}); err != nil {
			return fmt.Errorf("%s: %w: %s", filepath.Join(opts.out, certFile), err, remedy)
		}
	}
	expires := pair.Leaf.NotAfter.UTC()
	fmt.Fprintf(stdout, "%s\n  %-8s the CA, for the caBundle\n  %-8s the certificate of %s\n  %-8s its private key\nexpires %s, in %.0f days\n",
		opts.out, caFile, certFile, strings.Join(opts.names, ", "), keyFile,
		expires.Format(time.RFC3339), expires.Sub(now).Hours()/24)
	return nil
}
