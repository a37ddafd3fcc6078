package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/example/kubevirt-imds/injector/selfsigned"
)

// served returns the certificate of a new handshake.
func (w *webhook) served() *x509.Certificate {
	w.t.Helper()
	connection, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: w.ca})
	if err != nil {
		w.t.Fatal(err)
	}
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0]
}

func certificateIn(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestRenewedCertificateIsServedAtTheNextHandshake(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	first := w.served()
	if !first.Equal(certificateIn(t, w.certFile)) {
		t.Fatal("the certificate in the file is not the one that is served")
	}
	w.renewCertificate(time.Hour)
	second := w.served()
	if second.Equal(first) || !second.Equal(certificateIn(t, w.certFile)) {
		t.Error("the renewed certificate is not served")
	}
	w.log.wait(t, "renewed certificate is in use")
}

// The kubelet shows the files of a Secret as links into a folder that it swaps.
func TestCertificateSwappedBySymlinkIsServed(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	first := w.served()
	for _, path := range []string{w.certFile, w.keyFile} {
		if err := os.Rename(path, path+".v1"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path+".v1", path); err != nil {
			t.Fatal(err)
		}
	}
	if !w.served().Equal(first) {
		t.Fatal("another certificate behind a link to the same file")
	}
	w.renewCertificate(time.Hour)
	if w.served().Equal(first) {
		t.Error("the renewed certificate is not served")
	}
}

func TestBadRenewalKeepsTheOldCertificateAndIsReportedOnce(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	other, err := selfsigned.Issue(time.Hour, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(){
		"key of another certificate": func() { replaceFile(t, w.keyFile, other.Key) },
		"no PEM":                     func() { replaceFile(t, w.certFile, []byte("renewal under way")) },
		"gone": func() {
			if err := os.Remove(w.certFile); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w.renewCertificate(time.Hour)
			first := w.served()
			before := w.log.count("renewed certificate is not used")
			spoil()
			for range 3 {
				if !w.served().Equal(first) {
					t.Error("the last good certificate is not served any more")
				}
			}
			if reported := w.log.count("renewed certificate is not used") - before; reported != 1 {
				t.Errorf("reported %d times", reported)
			}
			if status, body := w.ready(); status != http.StatusOK || !strings.Contains(body, "the last good one stays in use") {
				t.Errorf("/readyz: %d %s", status, body)
			}

			w.renewCertificate(time.Hour)
			if w.served().Equal(first) {
				t.Error("a good renewal after a bad one is not served")
			}
			if status, body := w.ready(); status != http.StatusOK || body != "OK\n" {
				t.Errorf("/readyz: %d %s", status, body)
			}
		})
	}
}

func TestExpiredCertificateIsNotReadyUntilRenewed(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	if status, body := w.ready(); status != http.StatusOK {
		t.Fatalf("/readyz at the start: %d %s", status, body)
	}
	w.renewCertificate(-time.Minute)
	if status, body := w.ready(); status != http.StatusServiceUnavailable || !strings.Contains(body, "the certificate expired at") {
		t.Errorf("/readyz with an expired certificate: %d %s", status, body)
	}
	w.renewCertificate(time.Hour)
	if status, body := w.ready(); status != http.StatusOK {
		t.Errorf("/readyz after the renewal: %d %s", status, body)
	}
}

func TestTLSBefore13IsRefused(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	_, err := tls.Dial("tcp", strings.TrimPrefix(w.url, "https://"), &tls.Config{RootCAs: w.ca, MaxVersion: tls.VersionTLS12})
	if err == nil || !strings.Contains(err.Error(), "protocol version") {
		t.Errorf("got %v", err)
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	response, err := http.Post(strings.Replace(w.url, "https", "http", 1)+"/mutate-pod", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		t.Errorf("got %s", response.Status)
	}
}

func TestHTTP1AndHTTP2(t *testing.T) {
	w := startWebhook(t, declaredPatches, immediately)
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		client := w.client()
		transport := client.Transport.(*http.Transport)
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetHTTP1(protocol == "HTTP/1.1")
		transport.Protocols.SetHTTP2(protocol == "HTTP/2.0")
		body := strings.NewReader(string(reviewOf(t, podRequest(fixture(t, "masquerade")))))
		response, err := client.Post(w.url+"/mutate-pod", "application/json", body)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.Proto != protocol || response.StatusCode != http.StatusOK {
			t.Errorf("asked for %s, got %s %s", protocol, response.Proto, response.Status)
		}
	}
}
