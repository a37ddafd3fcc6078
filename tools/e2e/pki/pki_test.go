package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestMutualTLSWithCertificatesOfOneAuthority(t *testing.T) {
	authority := newAuthority(t)
	server := startServer(t, authority)

	client, err := authority.Client(pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})
	if err != nil {
		t.Fatal(err)
	}
	response, err := httpClient(t, authority, client).Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(body), "admin [system:masters]"; got != want {
		t.Errorf("server saw user and groups %q, want %q", got, want)
	}
}

func TestServerRefusesClientOfAnotherAuthority(t *testing.T) {
	authority := newAuthority(t)
	server := startServer(t, authority)

	stranger, err := newAuthority(t).Client(pkix.Name{CommonName: "admin"})
	if err != nil {
		t.Fatal(err)
	}
	if response, err := httpClient(t, authority, stranger).Get(server.URL); err == nil {
		response.Body.Close()
		t.Error("a client certificate of another authority was accepted")
	}
}

func TestClientRefusesServerOfAnotherHost(t *testing.T) {
	authority := newAuthority(t)
	pair, err := authority.Server(pkix.Name{CommonName: "kube-apiserver"}, "10.96.0.1", "kubernetes.default")
	if err != nil {
		t.Fatal(err)
	}
	certificate := parse(t, pair.Certificate)
	for host, want := range map[string]bool{"10.96.0.1": true, "kubernetes.default": true, "127.0.0.1": false, "localhost": false} {
		if got := certificate.VerifyHostname(host) == nil; got != want {
			t.Errorf("certificate is valid for %s: %t, want %t", host, got, want)
		}
	}
}

func TestServerCertificateIsNoClientCertificate(t *testing.T) {
	authority := newAuthority(t)
	pair, err := authority.Server(pkix.Name{CommonName: "kube-apiserver"}, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = parse(t, pair.Certificate).Verify(x509.VerifyOptions{
		Roots: pool(t, authority), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err == nil {
		t.Error("a server certificate passed as a client's")
	}
}

func TestServiceAccountKeyPairBelongsTogether(t *testing.T) {
	private, public, err := NewServiceAccountKey()
	if err != nil {
		t.Fatal(err)
	}
	privateBlock, _ := pem.Decode(private)
	publicBlock, _ := pem.Decode(public)
	if privateBlock == nil || publicBlock == nil {
		t.Fatal("a key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(privateBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.ParsePKIXPublicKey(publicBlock.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("token"))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key.(*rsa.PrivateKey), crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if err := rsa.VerifyPKCS1v15(other.(*rsa.PublicKey), crypto.SHA256, digest[:], signature); err != nil {
		t.Error(err)
	}
}

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	authority, err := NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// startServer answers with the user and the groups of the client's certificate.
func startServer(t *testing.T, authority *Authority) *httptest.Server {
	t.Helper()
	pair, err := authority.Server(pkix.Name{CommonName: "server"}, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		subject := r.TLS.PeerCertificates[0].Subject
		io.WriteString(w, subject.CommonName+" ["+subject.Organization[0]+"]")
	}))
	server.TLS = &tls.Config{
		Certificates: []tls.Certificate{keyPair(t, pair)},
		ClientCAs:    pool(t, authority),
		ClientAuth:   tls.RequireAndVerifyClientCert,
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

func httpClient(t *testing.T, authority *Authority, pair Pair) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: pool(t, authority), Certificates: []tls.Certificate{keyPair(t, pair)}}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func pool(t *testing.T, authority *Authority) *x509.CertPool {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority.Certificate()) {
		t.Fatal("the authority's certificate is not PEM")
	}
	return roots
}

func keyPair(t *testing.T, pair Pair) tls.Certificate {
	t.Helper()
	certificate, err := tls.X509KeyPair(pair.Certificate, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func parse(t *testing.T, encoded []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(encoded)
	if block == nil {
		t.Fatal("not PEM")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}
