package selfsigned

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func issue(t *testing.T, names ...string) (*Bundle, *x509.Certificate, *x509.Certificate) {
	t.Helper()
	bundle, err := Issue(time.Hour, names...)
	if err != nil {
		t.Fatal(err)
	}
	return bundle, parse(t, bundle.CA), parse(t, bundle.Certificate)
}

func parse(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(data)
	if block == nil || len(rest) != 0 {
		t.Fatalf("not one PEM block: %s", data)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestHandshakeByNameAndByAddress(t *testing.T) {
	bundle, _, _ := issue(t, "imds-webhook.kubevirt-imds.svc", "127.0.0.1", "::1")
	pair, err := tls.X509KeyPair(bundle.Certificate, bundle.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle.CA) {
		t.Fatal("the CA is no PEM certificate")
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	defer server.Close()
	for name, accepted := range map[string]bool{
		"imds-webhook.kubevirt-imds.svc": true,
		"127.0.0.1":                      true,
		"::1":                            true,
		"kubevirt-imds.svc":              false,
		"127.0.0.2":                      false,
	} {
		connection, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: name})
		if (err == nil) != accepted {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			connection.Close()
		}
	}
}

func TestCertificatesAreForTheirPurposeOnly(t *testing.T) {
	_, ca, serving := issue(t, "a.example")
	if !ca.IsCA || !ca.MaxPathLenZero || ca.KeyUsage != x509.KeyUsageCertSign || ca.DNSNames != nil {
		t.Errorf("CA: %+v", ca)
	}
	if serving.IsCA || serving.KeyUsage != x509.KeyUsageDigitalSignature ||
		len(serving.ExtKeyUsage) != 1 || serving.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Errorf("serving certificate: %+v", serving)
	}
	for _, certificate := range []*x509.Certificate{ca, serving} {
		key, ok := certificate.PublicKey.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() {
			t.Errorf("key of %T", certificate.PublicKey)
		}
		if lifetime := certificate.NotAfter.Sub(certificate.NotBefore); lifetime != 2*time.Hour {
			t.Errorf("valid for %s", lifetime)
		}
	}
}

func TestEachBundleIsItsOwn(t *testing.T) {
	_, firstCA, first := issue(t, "a.example")
	_, secondCA, second := issue(t, "a.example")
	if firstCA.Equal(secondCA) || first.SerialNumber.Cmp(second.SerialNumber) == 0 || second.CheckSignatureFrom(firstCA) == nil {
		t.Error("two bundles share something")
	}
}

func TestNoNames(t *testing.T) {
	if _, err := Issue(time.Hour); err == nil {
		t.Error("a certificate for nobody")
	}
}
