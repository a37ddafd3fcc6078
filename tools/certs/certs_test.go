package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const serviceName = "imds-webhook.kubevirt-imds.svc"

// certs runs the command and returns what it printed; it must exit with status.
func certs(t *testing.T, status int, now time.Time, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if got := run(args, now, &stdout, &stderr); got != status {
		t.Fatalf("certs %v: status %d, want %d\n%s%s", args, got, status, &stdout, &stderr)
	}
	return stdout.String() + stderr.String()
}

// connect has a server with the certificate and key of one folder, and a client
// that trusts the CAs of another, shake hands over TCP.
func connect(t *testing.T, server, client, name string) error {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(server, certFile), filepath.Join(server, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(client, caFile))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", pem)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: name})
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestAPIServerTrustsWhatWasMade(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "tls")
	out := certs(t, 0, time.Now(), "--out", folder)
	for _, want := range []string{folder, caFile, certFile, keyFile, serviceName, "expires 2", "in 365 days"} {
		if !strings.Contains(out, want) {
			t.Errorf("output %q does not say %q", out, want)
		}
	}
	for _, name := range []string{serviceName, serviceName + ".cluster.local"} {
		if err := connect(t, folder, folder, name); err != nil {
			t.Error(err)
		}
	}
	if err := connect(t, folder, folder, "imds-webhook.another.svc"); err == nil {
		t.Error("the certificate is good for a name that was not asked for")
	}
	certs(t, 0, time.Now(), "--check", "--out", folder)
}

func TestNamesAndLifetimeAreTheUsers(t *testing.T) {
	folder := t.TempDir()
	out := certs(t, 0, time.Now(), "--out", folder, "--names", "imds-webhook.infra.svc, 127.0.0.1", "--days", "10")
	if !strings.Contains(out, "in 10 days") {
		t.Errorf("output %q does not say the lifetime", out)
	}
	for _, name := range []string{"imds-webhook.infra.svc", "127.0.0.1"} {
		if err := connect(t, folder, folder, name); err != nil {
			t.Error(err)
		}
	}
}

func TestKeyIsTheOwnersAlone(t *testing.T) {
	folder := t.TempDir()
	certs(t, 0, time.Now(), "--out", folder)
	// A key that others could read gets its mode back with the next one.
	if err := os.Chmod(filepath.Join(folder, keyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	certs(t, 0, time.Now(), "--out", folder, "--force")
	info, err := os.Stat(filepath.Join(folder, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 3 {
		t.Errorf("files %v (%v), want three and no temporary one", entries, err)
	}
}

func TestFilesAreReplacedOnlyByForce(t *testing.T) {
	for _, name := range []string{caFile, certFile, keyFile} {
		folder := t.TempDir()
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := certs(t, 1, time.Now(), "--out", folder); !strings.Contains(out, path) || !strings.Contains(out, "--force") {
			t.Errorf("error %q does not name %s and --force", out, path)
		}
		if content, _ := os.ReadFile(path); string(content) != "precious" {
			t.Errorf("%s was replaced", name)
		}
		certs(t, 0, time.Now(), "--out", folder, "--force")
	}
}

func TestRenewalKeepsTrustInTheServedCertificate(t *testing.T) {
	folder, served := t.TempDir(), t.TempDir()
	certs(t, 0, time.Now(), "--out", folder)
	if err := os.CopyFS(served, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	certs(t, 0, time.Now(), "--out", folder, "--force")
	if err := connect(t, served, folder, serviceName); err != nil {
		t.Errorf("the old certificate with the new CA file: %v", err)
	}
	if err := connect(t, folder, folder, serviceName); err != nil {
		t.Errorf("the new certificate: %v", err)
	}
	certs(t, 0, time.Now(), "--out", folder, "--force")
	if err := connect(t, served, folder, serviceName); err == nil {
		t.Error("two renewals later the first CA is still trusted: the file would grow for ever")
	}
}

func TestRenewalDropsAnExpiredCA(t *testing.T) {
	folder := t.TempDir()
	certs(t, 0, time.Now(), "--out", folder, "--days", "1")
	later := time.Now().Add(48 * time.Hour)
	// The new certificate is checked at the same later time.
	certs(t, 0, later, "--out", folder, "--force", "--days", "10")
	pem, err := os.ReadFile(filepath.Join(folder, caFile))
	if err != nil {
		t.Fatal(err)
	}
	if count := bytes.Count(pem, []byte("BEGIN CERTIFICATE")); count != 1 {
		t.Errorf("%d certificates in %s, want the new CA's alone", count, caFile)
	}
}

func TestCheckSaysToRunJustCerts(t *testing.T) {
	made := t.TempDir()
	certs(t, 0, time.Now(), "--out", made)
	without := func(name string) string {
		folder := t.TempDir()
		if err := os.CopyFS(folder, os.DirFS(made)); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(folder, name)); err != nil {
			t.Fatal(err)
		}
		return folder
	}
	expired := time.Now().Add(366 * 24 * time.Hour)
	for name, test := range map[string]struct {
		now  time.Time
		args []string
	}{
		"no folder":      {time.Now(), []string{"--out", filepath.Join(made, "absent")}},
		"no CA":          {time.Now(), []string{"--out", without(caFile)}},
		"no certificate": {time.Now(), []string{"--out", without(certFile)}},
		"no key":         {time.Now(), []string{"--out", without(keyFile)}},
		"expired":        {expired, []string{"--out", made}},
		"another name":   {time.Now(), []string{"--out", made, "--names", "imds-webhook.infra.svc"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := certs(t, 1, test.now, append(test.args, "--check")...)
			if !strings.Contains(out, "run just certs") {
				t.Errorf("error %q does not say to run just certs", out)
			}
		})
	}
}

func TestWrongCommandLines(t *testing.T) {
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"--days", "0"}, "--days 0"},
		{[]string{"--days", "3651"}, "--days 3651"},
		{[]string{"--names", " , "}, "--names"},
		{[]string{"--check", "--force"}, "--force"},
		{[]string{"here"}, `"here"`},
		{[]string{"--unknown"}, "unknown"},
	} {
		if out := certs(t, 2, time.Now(), test.args...); !strings.Contains(out, test.says) {
			t.Errorf("certs %v: %q does not say %s", test.args, out, test.says)
		}
	}
	if out := certs(t, 0, time.Now(), "--help"); out != usage {
		t.Errorf("--help printed %q", out)
	}
}

func TestServerWithoutItsCAIsNotTrusted(t *testing.T) {
	one, other := t.TempDir(), t.TempDir()
	certs(t, 0, time.Now(), "--out", one)
	certs(t, 0, time.Now(), "--out", other)
	var unknown x509.UnknownAuthorityError
	if err := connect(t, one, other, serviceName); !errors.As(err, &unknown) {
		t.Errorf("got %v, want a certificate of an unknown authority", err)
	}
}
