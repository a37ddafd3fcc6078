package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// issued is a certificate with its key.
type issued struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// sign makes a certificate; signer nil: it signs itself. change may change what is
// asked for.
func sign(t *testing.T, name string, signer *issued, change func(*x509.Certificate)) *issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	change(template)
	if signer == nil {
		signer = &issued{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.Certificate, &key.PublicKey, signer.key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{parsed, key}
}

func ca(template *x509.Certificate) {
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
}

func serving(template *x509.Certificate) {
	template.DNSNames = []string{serviceName}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
}

// all applies changes in order.
func all(changes ...func(*x509.Certificate)) func(*x509.Certificate) {
	return func(template *x509.Certificate) {
		for _, change := range changes {
			change(template)
		}
	}
}

func pemOf(certificates ...*issued) []byte {
	var file []byte
	for _, c := range certificates {
		file = append(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return file
}

func (i *issued) keyPEM(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// handshakeWith has a client that trusts roots call serviceName, as the API server does.
func handshakeWith(t *testing.T, c *chain, roots *x509.CertPool) error {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{c.certificate}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: serviceName}).Handshake()
}

// TestRefusalIsTheClients compares the verdict with that of a client that trusts the
// root: what it refuses has a reason, and what it accepts has none.
func TestRefusalIsTheClients(t *testing.T) {
	root, another := sign(t, "root", nil, ca), sign(t, "another root", nil, ca)
	intermediate := sign(t, "intermediate", root, ca)
	old := sign(t, "old intermediate", root, all(ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))
	leaf := sign(t, "leaf", root, serving)
	lower := sign(t, "leaf", intermediate, serving)

	for name, test := range map[string]struct {
		file []*issued
		says []string // nothing: the client accepts it
		// unseen: without a ca.crt it cannot be told.
		unseen bool
	}{
		"good":              {file: []*issued{leaf}},
		"with its root":     {file: []*issued{leaf, root}},
		"with another root": {file: []*issued{leaf, another}},
		"with intermediate": {file: []*issued{lower, intermediate}},
		"in any order":      {file: []*issued{lower, root, intermediate}},
		"any usage":         {file: []*issued{sign(t, "leaf", root, all(serving, func(c *x509.Certificate) { c.ExtKeyUsage = nil }))}},
		"wildcard":          {file: []*issued{sign(t, "leaf", root, all(serving, func(c *x509.Certificate) { c.DNSNames = []string{"*.kubevirt-imds.svc"} }))}},

		"expired": {file: []*issued{sign(t, "leaf", root, all(serving, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }))},
			says: []string{`"CN=leaf"`, "renew it"}},
		"not yet": {file: []*issued{sign(t, "leaf", root, all(serving, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }))},
			says: []string{`"CN=leaf"`, "clock"}},
		"no name": {file: []*issued{sign(t, "", root, all(serving, func(c *x509.Certificate) { c.DNSNames = nil }))},
			says: []string{"not valid for any names", "subject alternative name " + serviceName}},
		"common name only": {file: []*issued{sign(t, serviceName, root, all(serving, func(c *x509.Certificate) { c.DNSNames = nil }))},
			says: []string{"Common Name", "subject alternative name " + serviceName}},
		"another name": {file: []*issued{sign(t, "leaf", root, all(serving, func(c *x509.Certificate) { c.DNSNames = []string{"imds-webhook.infra.svc"} }))},
			says: []string{"imds-webhook.infra.svc", "subject alternative name " + serviceName}},
		"for clients only": {file: []*issued{sign(t, "leaf", root, all(serving, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }))},
			says: []string{"incompatible key usage", "serverAuth"}},
		"intermediate expired": {file: []*issued{sign(t, "leaf", old, serving), old}, says: []string{`"CN=old intermediate"`, "renew it"}},
		"intermediate missing": {file: []*issued{lower}, says: []string{"unknown authority", "intermediate"}, unseen: true},
		"of another CA":        {file: []*issued{sign(t, "leaf", another, serving), another}, says: []string{"unknown authority", "ca.crt"}, unseen: true},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parseChain(pemOf(test.file...), test.file[0].keyPEM(t), pemOf(root))
			if err != nil {
				t.Fatal(err)
			}
			client := handshakeWith(t, c, poolOf(root.Certificate))
			if (client == nil) != (test.says == nil) {
				t.Fatalf("the client says %v", client)
			}
			wantRefusal(t, "with ca.crt", c.refusal(serviceName, time.Now()), test.says)
			c.roots = nil
			if test.unseen {
				test.says = nil
			}
			wantRefusal(t, "without", c.refusal(serviceName, time.Now()), test.says)
		})
	}
}

func wantRefusal(t *testing.T, what string, got error, says []string) {
	t.Helper()
	if (got == nil) != (says == nil) {
		t.Errorf("%s: %v", what, got)
	}
	for _, part := range says {
		if got == nil || !strings.Contains(got.Error(), part) {
			t.Errorf("%s: %v does not say %s", what, got, part)
		}
	}
}

// TestSameProblemHasTheSameText: each is logged once.
func TestSameProblemHasTheSameText(t *testing.T) {
	leaf := sign(t, "leaf", nil, serving)
	c, err := parseChain(pemOf(leaf), leaf.keyPEM(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	one, two := c.refusal(serviceName, time.Now().Add(2*time.Hour)), c.refusal(serviceName, time.Now().Add(3*time.Hour))
	if one == nil || two == nil || one.Error() != two.Error() {
		t.Errorf("%v, then %v", one, two)
	}
}

func TestRootBeforeLeaf(t *testing.T) {
	root := sign(t, "root", nil, ca)
	leaf := sign(t, "leaf", root, serving)
	_, err := parseChain(pemOf(root, leaf), leaf.keyPEM(t), nil)
	wantRefusal(t, "root first", err, []string{"certificate 2", "put the serving certificate first"})
	_, err = parseChain(pemOf(root, leaf), sign(t, "other", nil, serving).keyPEM(t), nil)
	wantRefusal(t, "key of none", err, []string{"private key does not match", "belong together"})
	_, err = parseChain(bytes.ToLower(pemOf(leaf)), leaf.keyPEM(t), nil)
	wantRefusal(t, "no PEM", err, []string{"must be PEM"})
}

// TestCAFileWithoutACertificate: cert-manager writes an empty one where the issuer
// does not say its CA.
func TestCAFileWithoutACertificate(t *testing.T) {
	leaf := sign(t, "leaf", sign(t, "root", nil, ca), serving)
	c, err := parseChain(pemOf(leaf), leaf.keyPEM(t), []byte("\n"))
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, "empty ca.crt", c.refusal(serviceName, time.Now()), nil)
}
